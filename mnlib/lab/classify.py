"""What ``mnlib classify`` does: tell of any picture which flower the best recorded network sees.

Pictures are read a batch at a time, so that a folder of any size fits in memory, and one that
cannot be read keeps no other from its answer.
"""

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from mnlib.lab import experiments, flowers

__all__ = ["classify", "pictures"]

_HEIC = (".heic", ".heif")
_SUFFIXES = {
    *(".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    *_HEIC,
}


def pictures(paths: Iterable[str | Path]) -> list[Path]:
    """Return ``paths`` with each folder replaced by the picture files in and below it, in order.

    Hidden files are passed over, ``__MACOSX`` too. A folder without pictures stays as it is.
    """
    found = []
    for path in map(Path, paths):
        below = sorted(path.rglob("*")) if path.is_dir() else []
        found += [file for file in below if _is_picture(file, path)] or [path]
    return found


def _is_picture(file: Path, folder: Path) -> bool:
    parts = file.relative_to(folder).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and file.suffix.lower() in _SUFFIXES and file.is_file()


def classify(files: Iterable[str | Path], *, batch: int = 64) -> Iterator[dict[str, str | float]]:
    """Classify pictures with the recorded MobileNet of the highest accuracy.

    Args:
        files: files of any format that Pillow reads.
        batch: this many pictures are held in memory at once.

    Yields:
        A row a picture, in order: ``file``, ``class``, and the probability of each class by its
        name; or ``file`` and ``error``, the sentence that tells why it could not be read.

    Raises:
        FileNotFoundError: every recorded checkpoint is missing.
        ValueError: the checkpoint is not the recorded one.

    """
    kept = [r for r in flowers.trainings().values() if r.checkpoint and r.model != "vgg19"]
    if not kept:
        raise FileNotFoundError("no trained network is there: train one with: mnlib run flowers")
    best = max(kept, key=lambda run: run.accuracy)
    ask = experiments.asker(best)
    files = list(files)
    with tqdm(total=len(files), unit=" pictures", disable=None) as bar:
        for start in range(0, len(files), batch):
            rows, images = [], []
            for file in files[start : start + batch]:
                rows.append({"file": str(file)})
                try:
                    images.append(_picture(Path(file)))
                except (OSError, ValueError) as error:
                    rows[-1]["error"] = str(error)
                bar.update()
            if images:
                answers = iter(ask(np.stack(images)).softmax(1))
                for row in rows:
                    if "error" not in row:
                        shares = next(answers)
                        row["class"] = flowers.CLASSES[shares.argmax()]
                        named = zip(flowers.CLASSES, shares.tolist(), strict=True)
                        row |= {name: round(p, 3) for name, p in named}
            yield from rows


def _picture(file: Path) -> np.ndarray:
    """Read a picture upright and resize it as :func:`mnlib.lab.data.packed_flowers` does.

    No photograph that was trained on has a camera's note of how it was held: all are as stored.
    """
    if file.is_dir():
        raise ValueError(f"no picture lies in or below the folder {file}: name one that has some")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            upright = _eight_bits(ImageOps.exif_transpose(image), image).convert("RGB")
            return np.asarray(upright.resize((224, 224), Image.Resampling.BILINEAR))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {file}: check the name") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers of damaged files raise errors of any kind
        if file.suffix.lower() in _HEIC:
            raise ValueError(
                f"{file} is a HEIC picture, which Pillow cannot read: convert it to JPEG"
            ) from error
        raise ValueError(
            f"{file} is no readable picture ({error}): give a JPEG, PNG or other image file"
        ) from error


def _eight_bits(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Return ``image`` with 0 to 255 in place of more bits or floats, which Pillow would clip.

    ``opened`` is the same picture as its file was opened, which knows the format and its tags.
    """
    tags = getattr(opened, "tag_v2", {})  # of TIFF
    if image.mode == "F":
        top = 1
    elif image.mode.startswith("I;16"):
        top = 2 ** tags.get(258, (16,))[0] - 1
    elif image.mode == "I" and opened.format in ("PNG", "PPM"):
        top = 2**16 - 1
    elif image.mode == "I":
        raise ValueError("its grey values have 32 bits or a sign and no range that is known")
    else:
        return image
    values = np.asarray(image)
    if not (values.min() >= 0 and values.max() <= top):  # true for NaN
        raise ValueError(f"its grey values are not all from 0 to {top}")
    if tags.get(262) == 0:  # TIFF's "white is zero", which Pillow minds with 8 bits only
        values = top - values
    return Image.fromarray((values * (255 / top) + 0.5).astype(np.uint8))
