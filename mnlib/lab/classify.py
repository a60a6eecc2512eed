"""Classifying pictures with the recorded network that is right most often."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mnlib.lab import experiments, flowers
from mnlib.lab.flowers import CLASSES

__all__ = ["classify"]


def classify(photographs: Iterable[str | Path]) -> list[dict[str, str | float]]:
    """Classify pictures with the recorded MobileNet of the highest accuracy.

    Args:
        photographs: files of any format that Pillow reads.

    Returns:
        A row a picture: ``file``, ``class``, and the probability of each class by its name.

    Raises:
        ValueError: a file is no picture.
        FileNotFoundError: a file, or every recorded checkpoint, is not there.

    """
    photographs = list(photographs)
    images = [_picture(Path(file)) for file in photographs]
    kept = [run for run in flowers.trainings().values() if run.checkpoint and run.model != "vgg19"]
    if not kept:
        raise FileNotFoundError("no trained network is there: train one with: mnlib run flowers")
    best = max(kept, key=lambda run: run.accuracy)
    answers = experiments.outputs(best, np.stack(images)).softmax(1)
    return [
        {
            "file": str(file),
            "class": CLASSES[row.argmax()],
            **{name: round(p, 3) for name, p in zip(CLASSES, row.tolist(), strict=True)},
        }
        for file, row in zip(photographs, answers, strict=True)
    ]


def _picture(file: Path) -> np.ndarray:
    """Read a picture upright and resize it as :func:`mnlib.lab.data.packed_flowers` does."""
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {file}: check the name") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{file} is no readable picture ({error}): give a JPEG, PNG or other image file"
        ) from error
    return np.asarray(upright.resize((224, 224), Image.Resampling.BILINEAR))
