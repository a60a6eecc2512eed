"""Chapter 8's experiment: MobileNets and VGG-19 on the photographs of tf_flowers.

Howard et al. (2019) and Sandler et al. (2018) give the networks; split, hyper-parameters and
measures are this book's.
"""

import pandas as pd
import torch
from torch import Tensor, nn

from mnlib import data, models, runs
from mnlib.data import Dataset
from mnlib.training import Recipe

#: The published split: class, file, sha256 and part ("train" or "validation") of each photograph.
#: sha256 holds the first 16 digits of the hash of the original bytes, where those were at hand.
SPLIT = runs.FOLDER / "flowers_split.csv"

#: The number of photographs kept for validation, a fifth of each class.
HELD_OUT = 734

CLASSES = data.CLASSES["tf_flowers"]


def recipe(epochs: int) -> Recipe:
    """Return the slides' recipe: Adam at 1e-4, batches of 16, 224×224, no augmentation."""
    return Recipe(
        sizes=(224,) * epochs,
        batch=16,
        optimiser="adam",
        rate=1e-4,
        decay=0.0,
        augment=False,
        statistics="imagenet",
    )


def split() -> pd.DataFrame:
    """Return the published split, a row a photograph, ordered by class and file name."""
    return pd.read_csv(SPLIT, keep_default_na=False)


def load(part: str) -> Dataset:
    """Return photographs at 224×224, uint8 N×224×224×3, and their labels.

    Args:
        part: ``"train"`` for all 3,670, of which the runner holds those of the published split out
            (:func:`mnlib.training.split`), ``"test"`` for these 734.

    Raises:
        FileNotFoundError: tf_flowers is not there; the message names the remedy.
        ValueError: the files are not those of the published split.

    """
    images, labels, files = data.packed_flowers(224)
    published = split()
    expected = published["class"] + "/" + published["file"]
    if list(files) != list(expected):
        strange = sorted({*files} ^ {*expected})
        raise ValueError(
            f"the photographs are not the {len(expected)} of {SPLIT.name} "
            f"({len(strange)} differ, such as {strange[:1]}): delete them and run: "
            "mnlib fetch tf_flowers"
        )
    if part == "train":
        return Dataset(images, labels)
    validation = (published["part"] == "validation").to_numpy()
    return Dataset(images[validation], labels[validation])


def build(name: str) -> nn.Module:
    """Return a network with five outputs and random weights, for example ``"mobilenet_v2"``."""
    return getattr(models, name)(classes=5).to(memory_format=torch.channels_last)


def pretrained(name: str) -> nn.Module:
    """Return :func:`build`'s network with ImageNet weights, but for its last layer.

    Raises:
        FileNotFoundError: the weights are not there; the message names the remedy.

    """
    model = build(name)
    last = f"classifier.{len(model.classifier) - 1}."
    fresh = {key: value for key, value in model.state_dict().items() if key.startswith(last)}
    model.load_state_dict(data.load(name) | fresh)
    return model


def probabilities(_model: nn.Module, outputs: Tensor, *_) -> dict:
    """Return for the record the probabilities of ``outputs``, N×5 logits, to four digits."""
    return {"probabilities": [[round(p, 4) for p in row] for row in outputs.softmax(1).tolist()]}
