r"""Make a data set: ``python -m aid_control.images.prepare SOURCE DEST.zip resolution=64 crop=center``.

SOURCE is a folder or a zip archive of pictures of any sizes.  DEST.zip has EDM's layout (`archive`): square
pictures of one size as uncompressed RGB PNG, and their labels.  Options:

- ``resolution``: side in pixels; default: as they are, all alike.
- ``crop``: ``none``: pictures must be square; ``center``: the largest centred square, then resized; ``adm``: as the
  ADM networks' data were made: halved by 2x2 means while the short side stays at least twice the resolution, then
  resized bicubically to a short side of the resolution, then cut to the centre.
- ``filter``: of ``none`` and ``center``: ``lanczos``; ``box``: block means, for whole factors only; ``auto``: box where
  the factor is whole, Lanczos elsewhere.
- ``labels``: ``json``: from SOURCE's dataset.json; ``folders``: class i is the i-th top-level folder by name; ``none``;
  ``auto``: the first of these that is there (one folder alone is no class).
- ``limit``: at most so many pictures, the first by name.

Well-known sets.  *FFHQ* is square and unlabelled: ``resolution=64``.  *AFHQv2* is square with cats, dogs and wild
animals in folders; EDM's networks for it are unconditional: ``resolution=64 labels=none``.  *ImageNet* has a folder a
class, and needs a crop: ``crop=center``, for the data of EDM2 ``crop=adm``.  EDM's own tool resizes by Lanczos
always: to see what its networks saw, give ``filter=lanczos``.

Exit codes: 0 = done, 2 = unusable input.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from PIL import Image
from tqdm import tqdm

from ..errors import InputError
from ..program import refuse
from .archive import DatasetWriter, Label, label_table, read_labels
from .data import ImageSource

__all__ = ["main", "prepare", "read_labels", "square"]

Crop = Literal["none", "center", "adm"]
Filter = Literal["auto", "lanczos", "box"]
Labels = Literal["auto", "json", "folders", "none"]
MAX_RESOLUTION = 8192


def square(image: Image.Image, resolution: int | None, crop: Crop = "none", filter: Filter = "auto") -> Image.Image:
    """A square picture.

    Args:
        image: RGB, of any size.
        resolution: side wanted; ``None`` keeps the size (not for ``adm``).
        crop: ``"none"``, ``"center"`` or ``"adm"``; see the module.
        filter: ``"auto"``, ``"lanczos"`` or ``"box"``; ``adm`` has its own.

    Returns:
        Square, of side ``resolution`` where that is given.

    Raises:
        InputError: if it is not square and is not to be cropped, or the box filter does not fit.
    """
    if crop == "adm":
        return _adm(image, resolution or min(image.size))
    width, height = image.size
    side = min(width, height)
    if width != height:
        if crop == "none":
            raise InputError(f"is {width}x{height} pixels; expected a square, or the option crop=center")
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if resolution is None or side == resolution:
        return image
    whole = side % resolution == 0
    if filter == "box" and not whole:
        raise InputError(f"has a side of {side} pixels; expected a multiple of {resolution} for filter=box")
    method = Image.Resampling.BOX if whole and filter != "lanczos" else Image.Resampling.LANCZOS
    return image.resize((resolution, resolution), method)


def _adm(image: Image.Image, resolution: int) -> Image.Image:
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    # rounding a long, thin picture must not take it below the square that is cut out
    width, height = (max(round(scale * n), resolution) for n in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))


def _labels(path: Path, names: Sequence[str], kind: Labels) -> list[Label] | None:
    """One label a name, or ``None``."""
    posix = [name.replace(os.sep, "/") for name in names]
    can_hold = path.is_dir() or path.suffix.lower() == ".zip"
    table = label_table(path) if kind in ("auto", "json") and can_hold else None
    if table is not None:
        for name in posix:
            if name not in table:
                raise InputError(f"{path}:dataset.json: no label for {name}; expected one a picture, or labels=none")
        return [table[name] for name in posix]
    if kind == "json":
        raise InputError(f"{path}: holds no labels in dataset.json; expected some, or labels=folders or none")
    if kind == "none":
        return None
    tops = [PurePosixPath(name).parts[0] if "/" in name else "" for name in posix]
    classes = sorted(set(tops))
    if len(classes) > 1 and "" not in classes:
        return [classes.index(top) for top in tops]
    if kind == "folders":
        raise InputError(f"{path}: pictures are not in two or more folders; expected a folder a class, or labels=none")
    return None


def prepare(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    resolution: int | None = None,
    crop: Crop = "none",
    filter: Filter = "auto",
    labels: Labels = "auto",
    limit: int | None = None,
    progress: bool = False,
) -> dict[str, int]:
    """Write ``dest`` from ``source``; for the options see the module.

    Args:
        source: folder or zip archive of pictures.
        dest: the archive to write, ending in ``.zip``; must not exist.
        resolution: side in pixels, 1 to 8192; ``None`` = as they are.
        crop: ``"none"``, ``"center"`` or ``"adm"``.
        filter: ``"auto"``, ``"lanczos"`` or ``"box"``.
        labels: ``"auto"``, ``"json"``, ``"folders"`` or ``"none"``.
        limit: most pictures; ``None`` = all.
        progress: show a bar.

    Returns:
        ``images`` written, ``enlarged`` of them, and ``classes`` (0 = unlabelled, or labelled by vectors).

    Raises:
        InputError: for unusable options or pictures; then nothing is written.
    """
    for option, value, allowed in (("crop", crop, Crop), ("filter", filter, Filter), ("labels", labels, Labels)):
        if value not in get_args(allowed):
            raise InputError(f"{option} is {value!r}; expected one of {', '.join(get_args(allowed))}")
    if resolution is not None and not 1 <= resolution <= MAX_RESOLUTION:
        raise InputError(f"resolution is {resolution}; expected 1 to {MAX_RESOLUTION} pixels")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; expected at least 1")
    if crop == "adm" and (resolution is None or filter != "auto"):
        raise InputError("crop=adm needs a resolution and brings its own filters; expected resolution=N and no filter")
    pictures = ImageSource(source)
    table = _labels(Path(source), pictures.names, labels)
    count = min(len(pictures), limit or len(pictures))
    side, enlarged = resolution, 0
    with DatasetWriter(dest, "img{:08d}.png") as writer:
        for i in tqdm(range(count), desc="preparing", unit="img", disable=not progress):
            image = Image.fromarray(pictures.picture(i).permute(1, 2, 0).numpy())
            try:
                cut = square(image, resolution, crop, filter)
            except InputError as error:
                raise InputError(f"{source}:{pictures.names[i]}: {error}") from error
            side = side or cut.width
            if cut.width != side:
                raise InputError(
                    f"{source}:{pictures.names[i]}: is {cut.width} pixels wide, the first {side}; expected resolution=N"
                )
            enlarged += min(image.size) < cut.width
            buffer = io.BytesIO()
            cut.save(buffer, format="PNG", compress_level=0, optimize=False)
            writer.add(buffer.getvalue(), None if table is None else table[i])
    used = set() if table is None else {label for label in table[:count] if isinstance(label, int)}
    return {"images": count, "enlarged": enlarged, "classes": len(used)}


def _number(text: str, option: str) -> int | None:
    if text.lower() in ("none", "null", ""):
        return None
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"{option} is {text!r}; expected a whole number") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The program.

    Args:
        arguments: of the command line, by default those of the process.

    Returns:
        The exit code: 0 = done, 2 = unusable input, 130 = interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or {"-h", "--help"} & set(arguments):
        print((__doc__ or "").strip())
        return 0 if arguments else 2
    convert: dict[str, Callable[[str], object]] = {
        "resolution": lambda text: _number(text, "resolution"),
        "limit": lambda text: _number(text, "limit"),
        "crop": str, "filter": str, "labels": str,
    }  # fmt: skip
    try:
        paths, options = [], {}
        for argument in arguments:
            key, found, value = argument.partition("=")
            if found and key in convert:
                options[key] = convert[key](value)
            elif found and key.isidentifier():
                raise InputError(f"{argument}: no such option; expected one of {', '.join(convert)}")
            else:
                paths.append(argument)
        if len(paths) != 2:
            raise InputError(
                f"{len(paths)} paths given; expected SOURCE and DEST.zip, then options such as resolution=64"
            )
        done = prepare(paths[0], paths[1], progress=True, **options)  # type: ignore[arg-type]
    except InputError as error:
        return refuse(error)
    except OSError as error:
        print(f"error: {paths[1]}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    notes = [f"{done['classes']} classes"] if done["classes"] else []
    notes += [f"{done['enlarged']} enlarged"] if done["enlarged"] else []
    print(f"{paths[1]}: {done['images']} images" + (f" ({', '.join(notes)})" if notes else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
