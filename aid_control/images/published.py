"""What is known of the published EDM and EDM2 networks: names, architectures, sizes; no weights.

The weights are NVIDIA's, licensed CC BY-NC-SA 4.0 (attribution, no commercial use, share alike), and are not shipped
or fetched by this package: ``page`` tells where to obtain a file, ``folder`` in which folder of the publisher's server
it lies.

EDM's networks (Karras et al. 2022) are listed one by one.  EDM2's (Karras et al. 2024) are reconstructions of an
exponential average after training, many a network, and their names say all that matters:

    edm2-{img512|img64}-{size}[-uncond]-{thousands of images seen}-{width of the average}

Any such name is understood, whether or not a file of that name exists; `names` lists only those that are known
to.  Two architectures differ by their width alone, so the number of weights follows from the name.  ``None`` means
"not known here": of the baselines only the classes are.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

__all__ = ["LICENCE", "Published", "check_hash", "names", "published"]

LICENCE = "CC BY-NC-SA 4.0, NVIDIA Corporation: attribution, non-commercial use only, share alike"
PAGES = {"edm": "https://github.com/NVlabs/edm", "edm2": "https://github.com/NVlabs/edm2"}


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Attributes:
        name: without its ending.
        family: ``"edm"`` or ``"edm2"``.
        page: where the user obtains it.
        folder: on the publisher's server.
        class_name: of the preconditioned network in the file.
        kwargs: its constructor's arguments; EDM2's dropout, which is of no matter after training, is left out.
        image_resolution: side of the pictures in pixels.
        shape: (C, H, W) of what the network denoises: pictures or latents.
        label_dim: classes; 0 = unconditional.
        codec: ``"stability"`` for latent networks, else ``None``.
        parameters: number of weights.
        steps: solver steps of the published deterministic sampler; for ImageNet at 64 (adm) of the stochastic one.
        size: of the file in bytes.
        sha256: of the file.
        licence: of the weights.
    """

    name: str
    family: str
    page: str
    folder: str
    class_name: str
    kwargs: dict[str, Any] | None
    image_resolution: int
    shape: tuple[int, int, int]
    label_dim: int
    codec: str | None
    parameters: int | None
    steps: int | None
    size: int | None = None
    sha256: str | None = None
    licence: str = LICENCE

    @property
    def url(self) -> str:
        """Where the publisher keeps the file."""
        return f"https://nvlabs-fi-cdn.nvidia.com/{self.folder}/{self.file}"

    @property
    def file(self) -> str:
        """Its file name."""
        return f"{self.name}.pkl"


UNETS: dict[str, dict[str, Any]] = {
    "vp": dict(
        model_type="SongUNet", embedding_type="positional", encoder_type="standard", decoder_type="standard",
        channel_mult_noise=1, resample_filter=[1, 1], model_channels=128, augment_dim=9, use_fp16=False,
    ),
    "ve": dict(
        model_type="SongUNet", embedding_type="fourier", encoder_type="residual", decoder_type="standard",
        channel_mult_noise=2, resample_filter=[1, 3, 3, 1], model_channels=128, augment_dim=9, use_fp16=False,
    ),
    "adm": dict(model_type="DhariwalUNet", model_channels=192, channel_mult=[1, 2, 3, 4], use_fp16=True),
}  # fmt: skip

# data set, labels, network -> dropout, steps, parameters
EDM: dict[tuple[str, int, str], tuple[float, int, int]] = {
    ("cifar10-32x32", 10, "vp"): (0.13, 18, 55_735_299),
    ("cifar10-32x32", 10, "ve"): (0.13, 18, 56_400_643),
    ("cifar10-32x32", 0, "vp"): (0.13, 18, 55_733_891),
    ("cifar10-32x32", 0, "ve"): (0.13, 18, 56_397_827),
    ("ffhq-64x64", 0, "vp"): (0.05, 40, 61_805_571),
    ("ffhq-64x64", 0, "ve"): (0.05, 40, 62_761_091),
    ("afhqv2-64x64", 0, "vp"): (0.25, 40, 61_805_571),
    ("afhqv2-64x64", 0, "ve"): (0.25, 40, 62_761_091),
    ("imagenet-64x64", 1000, "adm"): (0.10, 256, 295_899_267),
}

BASELINES = {
    "baseline-cifar10-32x32-uncond-vp": ("VPPrecond", 32, 0),
    "baseline-cifar10-32x32-uncond-ve": ("VEPrecond", 32, 0),
    "baseline-imagenet-64x64-cond-adm": ("iDDPMPrecond", 64, 1000),
}

CHANNELS = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
# weights of the networks of 512x512 pictures (4 latent channels, 1000 classes)
WEIGHTS = {
    "xxs": 31_309_029, "xs": 124_713_253, "s": 280_212_837, "m": 497_807_781,
    "l": 777_498_085, "xl": 1_119_283_749, "xxl": 1_523_164_773,
}  # fmt: skip
# Reconstructions named by the presets of EDM2's generate_images.py: network -> thousands of images -> widths
EDM2_FILES: dict[str, dict[str, str]] = {
    "img512-xs": {"2147483": ".045 .135 .150 .200", "0134217": ".125 .165"},
    "img512-xs-uncond": {"2147483": ".015 .020 .025 .030 .035 .045 .085 .150", "0134217": ".110 .125"},
    "img512-s": {"2147483": ".025 .070 .085 .120 .130 .190"},
    "img512-s-uncond": {"2147483": ".070 .090"},
    "img512-m": {"2147483": ".015 .030 .100 .155", "0268435": ".155 .205"},
    "img512-l": {"1879048": ".015 .035 .085 .155"},
    "img512-xl": {"1342177": ".020 .030 .085 .155"},
    "img512-xxl": {"0939524": ".015 .070 .075 .130 .150"},
    "img64-xs": {"0134217": ".110 .175"},
    "img64-s": {"1073741": ".045 .075 .105"},
    "img64-m": {"2147483": ".060"},
    "img64-l": {"1073741": ".040"},
    "img64-xl": {"0671088": ".040"},
}
EDM2 = [
    f"edm2-{network}-{seen}-0{width}"
    for network, files in EDM2_FILES.items()
    for seen, widths in files.items()
    for width in widths.split()
]
EDM2_NAME = re.compile(r"edm2-(img512|img64)-(xxs|xs|s|m|l|xl|xxl)(-uncond)?-([0-9]{1,9})-(0\.[0-9]{3})")
LARGEST_WIDTH = 0.289  # of an average; wider ones cannot be made


def _edm(name: str, data: str, labels: int, unet: str) -> Published:
    dropout, steps, parameters = EDM[data, labels, unet]
    side = int(data.rsplit("x", 1)[1])
    kwargs = dict(UNETS[unet], img_resolution=side, img_channels=3, label_dim=labels, dropout=dropout)
    kwargs.setdefault("channel_mult", [2, 2, 2] if side == 32 else [1, 2, 2, 2])
    return Published(
        name, "edm", PAGES["edm"], "edm/pretrained", "EDMPrecond", kwargs, side, (3, side, side), labels,
        codec=None, parameters=parameters, steps=steps,
    )  # fmt: skip


def _baseline(name: str) -> Published:
    class_name, side, labels = BASELINES[name]
    return Published(
        name, "edm", PAGES["edm"], "edm/pretrained/baseline", class_name, None, side, (3, side, side), labels,
        codec=None, parameters=None, steps=None,
    )  # fmt: skip


def _edm2(name: str) -> Published | None:
    match = EDM2_NAME.fullmatch(name)
    if match is None or not 0 < float(match[5]) < LARGEST_WIDTH:
        return None
    latent, size, labels = match[1] == "img512", match[2], 0 if match[3] else 1000
    width, channels = CHANNELS[size], 4 if latent else 3
    # One colour less is 9 width weights less at either end; the label's embedding has 4 width channels.
    parameters = WEIGHTS[size] - (0 if latent else 18 * width) - (4000 * width if not labels else 0)
    kwargs = dict(
        model_channels=width, use_fp16=True, img_resolution=64, img_channels=channels, label_dim=labels
    )  # fmt: skip
    return Published(
        name, "edm2", PAGES["edm2"], "edm2/posthoc-reconstructions", "Precond", kwargs,
        512 if latent else 64, (channels, 64, 64), labels,
        codec="stability" if latent else None, parameters=parameters, steps=32,
    )  # fmt: skip


def _edm_names() -> dict[str, tuple[str, int, str]]:
    return {f"edm-{data}-{'cond' if labels else 'uncond'}-{unet}": (data, labels, unet) for data, labels, unet in EDM}


def names() -> list[str]:
    """The names of all checkpoints that are known to exist; see the module for other names of EDM2."""
    return [*_edm_names(), *BASELINES, *EDM2]


def published(name: str) -> Published:
    """What is known of a checkpoint.

    Args:
        name: with or without ``.pkl``.

    Returns:
        Its architecture, size and origin.

    Raises:
        InputError: for a name that is none of these networks.
    """
    short = name.removesuffix(".pkl")
    edm = _edm_names()
    if short in edm:
        return _edm(short, *edm[short])
    if short in BASELINES:
        return _baseline(short)
    found = _edm2(short)
    if found is None:
        raise InputError(
            f"{name!r}: no published network; expected one of {', '.join([*edm, *BASELINES])}, or "
            f"edm2-{{img512|img64}}-{{{'|'.join(CHANNELS)}}}[-uncond]-KIMG-WIDTH such as {EDM2[0]}"
        )
    return found


def check_hash(path: str | os.PathLike[str], sha256: str) -> None:
    """Compare a file with the hash it should have.

    Args:
        path: the file.
        sha256: 64 hexadecimal digits.

    Raises:
        InputError: if the file is missing or another one, or ``sha256`` is no such hash.
    """
    wanted = sha256.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise InputError(f"sha256 is {sha256!r}; expected 64 hexadecimal digits")
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise InputError(f"{path}: sha256 is {found}; expected {wanted}: the file is damaged, or another one")
