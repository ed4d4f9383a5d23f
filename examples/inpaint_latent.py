"""AID in latent space, from images to numbers: ``python examples/inpaint_latent.py data=faces256.zip``.

Fits (or loads) a codec, encodes the images, fits (or loads) a backbone of latents, trains guidance for a minute with
the classes used for pixels, and fills holes of held-out images; known pixels are exact.  A codec or backbone fitted
here is small: a check of the pipeline, not a generator.  See ``conf/inpaint_latent.yaml`` for the options.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from aid_control.checkpoint import atomic_write
from aid_control.errors import InputError
from aid_control.images import load_backbone
from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.backbones.precond import Denoiser
from aid_control.images.backbones.registry import fingerprint, save_exact
from aid_control.images.clock import within
from aid_control.images.data import ImageSource, to_float
from aid_control.images.guidance import Guidance, PyramidCritic, save_guidance
from aid_control.images.latents import Codec, StabilityCodec, inpaint_latent, load_codec
from aid_control.images.latents.tiny import fit_codec, save_codec
from aid_control.images.latents.training import LatentInpaintingData
from aid_control.images.masks import MASK_KINDS, make_mask
from aid_control.images.metrics import psnr, ssim, summary
from aid_control.images.pictures import picture_rows
from aid_control.images.problem import GuidanceProblem, Observation
from aid_control.images.training import band_variances
from aid_control.noise import generator
from aid_control.program import program
from aid_control.schedules import linear
from aid_control.trainer import ActorCritic

CROP = 64
BANDS = 4


def crops(images: Tensor, seed: int, each: int = 4) -> Tensor:
    """Random 64x64 pieces, a few an image: the codec is convolutional, and small pieces are cheap."""
    rng, room = generator(seed, 0xC0DE), images.shape[-1] - CROP
    if room <= 0:
        return images
    places = torch.randint(room + 1, (len(images), each, 2), generator=rng).tolist()
    pieces = [image[:, a : a + CROP, b : b + CROP] for image, own in zip(images, places, strict=True) for a, b in own]
    return torch.stack(pieces)


def get_codec(cfg: Any, images: Tensor, out: Path) -> Codec:
    if cfg.codec is None:
        codec = fit_codec(crops(images, cfg.seed), cfg.codec_iterations, seed=cfg.seed, progress=True)
        save_codec(out / "codec.safetensors", codec)
        return codec
    if str(cfg.codec).startswith("stability:"):
        return StabilityCodec(str(cfg.codec).split(":", 1)[1])
    return load_codec(cfg.codec)


def get_backbone(cfg: Any, latents: Tensor, out: Path) -> Denoiser:
    if cfg.backbone is not None:
        return load_backbone(cfg.backbone, path=cfg.path, sha256=cfg.sha256)
    net = GaussianBackbone.from_samples(latents, min(cfg.rank, len(latents) - 1), cfg.seed)
    net.fingerprint = fingerprint(net)
    save_exact(out / "backbone.safetensors", net)
    return net


def get_guidance(cfg: Any, net: Denoiser, data: LatentInpaintingData, latents: Tensor, out: Path) -> Guidance:
    """Both phases, half of the minutes each; the same classes as ``train_guidance.py``."""
    problem = GuidanceProblem(net, within(net.sigma_min, net.sigma_max), beta=cfg.beta, base="projected")
    torch.manual_seed(cfg.seed)
    guidance = Guidance(net.shape[-1], net.shape[0], bands=BANDS, coarse=2, base="projected")
    guidance.backbone = net.fingerprint
    critic = PyramidCritic(guidance.encoder, cfg.beta, problem.pixels, band_variances(latents[:512], BANDS))
    first = ActorCritic(
        problem, guidance, critic, critic_lr=2e-3, value_scale=problem.pixels**-0.5, ema=0.995, seed=cfg.seed
    )
    second = ActorCritic(
        problem, guidance, critic, estimator="backprop", actor_lr=cfg.lr, ema=0.9, seed=cfg.seed, value_scale=0.1,
        step_weight=problem.fall, rate=linear(1.0, 0.02, cfg.iterations),
    )  # fmt: skip
    for title, trainer, most in (("encoder", first, 10**9), ("guidance", second, cfg.iterations)):
        start = time.monotonic()
        with tqdm(desc=title, unit="step") as bar:
            while time.monotonic() - start < 30 * cfg.minutes and trainer.iteration < most:
                if trainer is first:
                    z, mask = data.clean_and_mask(cfg.batch, trainer.iteration)
                    bar.set_postfix(loss=f"{trainer.fit_terminal(z, Observation(z * mask, mask), z):.4f}")
                else:
                    i = trainer.iteration
                    log = trainer.iterate(data.rollout_batch(problem, guidance, cfg.batch, i, cfg.steps))
                    bar.set_postfix(cost=f"{log['cost']:.4f}")
                bar.update()
        guidance.load_state_dict(trainer.average)
        second.average = {k: v.clone() for k, v in guidance.state_dict().items()}
    guidance.facts = {"latent": True, "beta": cfg.beta, "iterations": [first.iteration, second.iteration]}
    save_guidance(out / "guidance.safetensors", guidance)
    return guidance.eval().requires_grad_(False)


def main(cfg: Any) -> None:
    torch.set_num_threads(cfg.threads)
    if cfg.mask not in MASK_KINDS:
        raise InputError(f"mask is {cfg.mask!r}; expected one of {', '.join(MASK_KINDS)}")
    if min(cfg.test, cfg.batch, cfg.steps) < 1 or cfg.resolution % 64:
        raise InputError("test, batch, steps: expected at least 1; resolution: a multiple of 64")
    source = ImageSource(cfg.data, cfg.resolution, 3)
    count = min(len(source), cfg.limit or len(source))
    if count < cfg.test + 8:
        raise InputError(f"{cfg.data}: {count} images; expected at least {cfg.test + 8}, {cfg.test} of them held out")
    out = Path(cfg.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); expected a folder") from error
    images = source.stack(range(count))
    train, x = images[: -cfg.test], to_float(images[-cfg.test :])

    codec = get_codec(cfg, train, out)
    steps = tqdm(range(0, len(train), 32), desc="encoding")
    moments = torch.cat([codec.moments(to_float(train[i : i + 32])) for i in steps])
    latents = codec.draw(moments, range(len(moments)))
    net = get_backbone(cfg, latents, out)
    data = LatentInpaintingData(moments, codec, "mixed", cfg.seed)
    guidance = get_guidance(cfg, net, data, latents, out)

    mask = torch.stack([make_mask(cfg.mask, cfg.resolution, cfg.seed + i) for i in range(len(x))])
    seeds = range(cfg.seed, cfg.seed + len(x))
    rows = {"original": x, "masked": x * mask, "codec alone": codec.decode(codec.encode(x))}
    table = {}
    for name, module, base in (("flow", None, "flow"), ("projection", None, "projected"), ("AID", guidance, None)):
        start = time.perf_counter()
        result = inpaint_latent(
            net, codec, module, x * mask, mask, cfg.steps, cfg.solver, seeds, blend=cfg.blend, base=base
        )
        if not torch.equal(result * mask, x * mask):
            raise RuntimeError(f"{name}: known pixels were changed")
        rows[name] = result
        table[name] = {
            "psnr_hole": summary(psnr(result, x, 1 - mask)),
            "ssim_hole": summary(ssim(result, x, 1 - mask)),
            "seconds_per_image": (time.perf_counter() - start) / len(x),
        }
    atomic_write(out / "grid.png", picture_rows(rows, 6, 1.8))
    report = {"methods": table, "images": len(x), "latents": list(net.shape), "mask": cfg.mask, "seed": cfg.seed,
              "guidance": guidance.facts, "codec_psnr": summary(psnr(rows["codec alone"], x))}  # fmt: skip
    atomic_write(out / "metrics.json", json.dumps(report, indent=1).encode())
    print(f"{len(x)} held-out images of {cfg.resolution}x{cfg.resolution}, latents {tuple(net.shape)}, mask {cfg.mask}")
    print(f"codec alone: {report['codec_psnr']['mean']:.2f} dB")
    for name, row in table.items():
        values = " ± ".join(f"{row['psnr_hole'][k]:.2f}" for k in ("mean", "ci95"))
        seconds = row["seconds_per_image"]
        print(f"{name:12s} hole PSNR {values} dB, SSIM {row['ssim_hole']['mean']:.3f}, {seconds:.3f} s an image")
    print(f"pictures and numbers: {out}/grid.png, {out}/metrics.json")


if __name__ == "__main__":
    program("conf/inpaint_latent", main)
