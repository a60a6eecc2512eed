"""What :func:`mnlib.lab.data.load` promises, checked on whatever a reader returns.

A ValueError's message completes "it cannot be read, for …".
"""

from typing import Any

import numpy as np

from mnlib.lab.data.readers import CLASSES, VGG19_INDICES, Photographs

__all__ = ["VGG19_WIDTHS", "check_dataset", "check_weights"]

_IMAGES = {"cifar10": (32, 32, 3), "mnist": (28, 28, 1)}
_COUNTS = {
    "cifar10": {"train": 50_000, "test": 10_000},
    "mnist": {"train": 60_000, "test": 10_000},
}

VGG19_WIDTHS = (64, 64, 128, 128, *[256] * 4, *[512] * 8)
"""The output channels of VGG-19's 16 convolutions."""


def check_dataset(name: str, split: str, images: Any, labels: Any) -> None:
    """Check types, shapes, lengths, and that labels are classes.

    Raises:
        ValueError: what :class:`mnlib.lab.data.Dataset` promises does not hold.

    """
    if name in _IMAGES:
        shape = _IMAGES[name]
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            raise ValueError(f"its pixels are {getattr(images, 'dtype', type(images))}, not uint8")
        if images.ndim != 4 or images.shape[1:] != shape:
            raise ValueError(f"its images have the shape {images.shape}, not N×{_times(shape)}")
    elif not isinstance(images, Photographs):
        raise ValueError(f"it holds {type(images).__name__}, no photographs")
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.ndim != 1:
        raise ValueError("its labels are no row of integers")
    if not len(images) == len(labels) > 0:
        raise ValueError(f"it has {len(images)} images and {len(labels)} labels")
    classes = CLASSES[name]
    wrong = labels[(labels < 0) | (labels >= len(classes))]
    if len(wrong):
        raise ValueError(f"it has the label {wrong[0]}, but labels are 0 to {len(classes) - 1}")
    for other, count in _COUNTS.get(name, {}).items():
        if len(labels) == count and count != _COUNTS[name][split]:
            raise ValueError(
                f"it has {count:,} images: the files of {split} and {other} are swapped"
            )
    if isinstance(images, Photographs):
        _check_files(images.files, [classes[label] for label in labels])


def _check_files(files: tuple[str, ...], classes: list[str]) -> None:
    """Check that photographs stand by class and name, each once, below the class they have."""
    for file, of in zip(files, classes, strict=True):
        if file.partition("/")[0] != of:
            raise ValueError(f"the photograph {file} is labelled {of}")
    if list(files) != sorted(set(files)):
        raise ValueError("its photographs do not stand in the order of their names, each once")


def check_weights(name: str, weights: Any) -> None:
    """Check names and shapes against the network's, and that weights are finite float32.

    Raises:
        ValueError: they are no weights of the network ``name``.

    """
    import torch

    expected = _shapes(name)
    for key in weights:
        if key not in expected:
            raise ValueError(f"it holds {key}, which {name} has not")
    for key, shape in expected.items():
        counter = key.endswith("num_batches_tracked")  # older files lack it, and nothing reads it
        if key not in weights:
            if counter:
                continue
            raise ValueError(f"it lacks {key}")
        weight, kind = weights[key], torch.int64 if counter else torch.float32
        if not isinstance(weight, torch.Tensor) or weight.layout != torch.strided:
            raise ValueError(f"{key} is no dense tensor")
        if weight.device.type != "cpu" or weight.dtype != kind:
            raise ValueError(f"{key} is {weight.dtype} on {weight.device}, not {kind}")
        if tuple(weight.shape) != shape:
            raise ValueError(f"{key} is {_times(weight.shape)}, not {_times(shape)}")
        if not weight.isfinite().all():
            raise ValueError(f"{key} has a value that is not finite")
        if key.endswith("running_var") and (weight < 0).any():
            raise ValueError(f"{key} has a negative variance")


def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of the network ``name`` by torchvision's names."""
    import torch

    from mnlib import mobilenet

    if name == "vgg19":
        shapes, channels = {}, 3
        for index, width in zip(VGG19_INDICES, VGG19_WIDTHS, strict=True):
            shapes[f"features.{index}.weight"] = (width, channels, 3, 3)
            shapes[f"features.{index}.bias"] = (width,)
            channels = width
        return shapes
    with torch.device("meta"):
        model = getattr(mobilenet, name)()
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def _times(shape: Any) -> str:
    return "×".join(map(str, shape)) or "a number"
