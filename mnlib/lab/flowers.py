"""Chapter 8's experiment: MobileNets and VGG-19 on the photographs of tf_flowers.

The networks are those of :mod:`mnlib.mobilenet` and Simonyan and Zisserman (2015); the split is
this book's and published in ``data/flowers_split.csv``. Probabilities are N×5 in the order of
``CLASSES``, labels int64 N.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from mnlib import gates, mobilenet
from mnlib.lab import data, runs, training
from mnlib.lab.comparison import wilson
from mnlib.lab.data import Dataset
from mnlib.lab.runs import Run, Which
from mnlib.lab.tasks import Outcome, restored
from mnlib.lab.training import Recipe

__all__ = [
    "AUGMENTED",
    "CLASSES",
    "HELD_OUT",
    "NAMES",
    "NEAR",
    "PROTOCOLS",
    "SPLIT",
    "build",
    "class_maps",
    "draw_accuracies",
    "load",
    "measure_near_duplicates",
    "near_duplicates",
    "probabilities",
    "published_split",
    "recipe",
    "study_gates",
    "trainings",
]

#: The published split: class, file, sha256 and part ("train" or "validation") of each photograph.
#: sha256 holds the first 16 digits of the hash of the original bytes, where those were at hand.
SPLIT = runs.FOLDER / "flowers_split.csv"

#: The number of photographs kept for validation, a fifth of each class.
HELD_OUT = 734

CLASSES = data.CLASSES["tf_flowers"]

#: The networks' names as their papers write them.
NAMES = {
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3_large": "MobileNetV3-Large",
    "mobilenet_v3_small": "MobileNetV3-Small",
    "vgg19": "VGG-19",
}

#: The protocols that :func:`trainings` are of, and what their networks have been through.
PROTOCOLS = {
    "scratch": "from scratch",
    "imagenet": "from ImageNet",
    "augmented": "from ImageNet, augmented",
    "mirrored": "augmented, mirror averaged",
    "frozen": "ImageNet, frozen",
    "last_block": "ImageNet, last block",
    "last_block_slow": "ImageNet, last block, slowly",
}

#: Two photographs whose 16×16 thumbnails correlate at least so much are near-duplicates.
NEAR = 0.95


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


#: Ours: random crops, and a rate that falls to zero.
AUGMENTED = Recipe(
    sizes=(224,) * 60,
    batch=64,
    optimiser="sgd",
    rate=0.008,
    smoothing=0.1,
    crop=0.35,
    statistics="imagenet",
)


def published_split() -> pd.DataFrame:
    """Return the published split, a row a photograph, ordered by class and file name.

    Columns: ``class``, ``file``, ``sha256``, ``part``, and ``label``, the index of the class.
    """
    rows = pd.read_csv(SPLIT, keep_default_na=False)
    return rows.assign(label=rows["class"].map(CLASSES.index))


def load(part: str) -> Dataset:
    """Return photographs at 224×224, uint8 N×224×224×3, and their labels.

    Args:
        part: ``"train"`` for all 3,670, of which the runner holds those of the published split out
            (:func:`mnlib.lab.training.split`), ``"test"`` for these 734.

    Raises:
        FileNotFoundError: tf_flowers is not there; the message names the remedy.
        ValueError: the files are not those of the published split.

    """
    images, labels, files = data.packed_flowers(224)
    rows = published_split()
    expected = rows["class"] + "/" + rows["file"]
    if list(files) != list(expected):
        strange = sorted({*files} ^ {*expected})
        raise ValueError(
            f"the photographs are not the {len(expected)} of {SPLIT.name} "
            f"({len(strange)} differ, such as {strange[:1]}): delete them and run: "
            "mnlib fetch tf_flowers"
        )
    if part == "train":
        return Dataset(images, labels)
    validation = (rows["part"] == "validation").to_numpy()
    return Dataset(images[validation], labels[validation])


def build(name: str) -> nn.Module:
    """Return a network with five outputs and random weights, for example ``"mobilenet_v2"``."""
    return getattr(mobilenet, name)(classes=len(CLASSES)).to(memory_format=torch.channels_last)


def trainings() -> dict[tuple[str, str], Run]:
    """Return the recorded trainings with seed 0, by protocol and model, in the book's order."""
    found = {
        (run.protocol, run.model): run
        for run in runs.load_runs("flowers")
        if "probabilities" in run.results and run.seed == 0
    }
    return {which: found[which] for which in product(PROTOCOLS, NAMES) if which in found}


def probabilities(_model: nn.Module, logits: Tensor) -> dict:
    """Return for the record the probabilities of ``logits``, N×5, to four digits."""
    return {"probabilities": [[round(p, 4) for p in row] for row in logits.softmax(1).tolist()]}


def near_duplicates(images: np.ndarray) -> list[tuple[int, int, float]]:
    """Return the pairs i < j of images, N×224×224×3, that look alike, with their correlation.

    Images are shrunk to 16×16 colour thumbnails; two look alike when these, or one of them and the
    other's mirror image, have a correlation of at least ``NEAR``. Most alike first.
    """
    tiny = np.stack(
        [x[::2, ::2].reshape(16, 7, 16, 7, 3).mean((1, 3), dtype=np.float32) for x in images]
    )
    tiny -= tiny.mean((1, 2), keepdims=True)  # a colour in common is no likeness
    tiny /= np.sqrt((tiny**2).sum((1, 2, 3), keepdims=True)) + 1e-9
    flat, mirrored = (v.reshape(len(v), -1) for v in (tiny, tiny[:, :, ::-1]))
    alike = np.triu(np.maximum(flat @ flat.T, flat @ mirrored.T), 1)
    pairs = [(int(i), int(j), float(alike[i, j])) for i, j in np.argwhere(alike >= NEAR)]
    return sorted(pairs, key=lambda pair: -pair[2])


def measure_near_duplicates(_which: Which) -> Outcome:
    """Look for near-duplicates among all photographs, by their rows in the split."""
    pairs = near_duplicates(load("train").images)
    return Outcome(
        parameters=0,
        accuracy=None,
        results={"threshold": NEAR, "pairs": [[i, j, round(r, 3)] for i, j, r in pairs]},
    )


def study_gates(network: Callable[[], nn.Module], which: Which) -> Outcome:
    """Study the gates of a network that was fine-tuned, on the photographs held out.

    Raises:
        FileNotFoundError: its training is not recorded; the message names the remedy.

    """
    fine_tuned = runs.recorded("flowers", "imagenet", which.model)
    model, test = restored(network, fine_tuned), load("test")

    def evaluate() -> Tensor:
        return training.logits(model, test.images, size=224, statistics="imagenet")

    results = gates.study(model, evaluate, torch.as_tensor(test.labels))
    return Outcome(
        parameters=fine_tuned.parameters,
        accuracy=results["accuracy"]["learned"],
        results=results,
        checkpoint=fine_tuned.checkpoint,
        sha256=fine_tuned.sha256,
    )


def draw_accuracies(ax: Axes, cost: Callable[[Run], float]) -> None:
    """Draw the :func:`trainings`' accuracies, with :func:`wilson`'s interval, over ``cost(run)``.

    A marker a protocol, on a logarithmic axis; a network's name stands beside its point, once.
    """
    recorded = trainings()
    for marker, (protocol, label) in zip("ovsD^PX", PROTOCOLS.items(), strict=True):
        here = [run for run in recorded.values() if run.protocol == protocol]
        if here:
            x, y = [cost(run) for run in here], np.array([run.accuracy for run in here])
            low, high = np.transpose([wilson(a, HELD_OUT) for a in y])
            ax.errorbar(x, y, (y - low, high - y), fmt=marker, capsize=3, label=label)
        named = protocol not in ("augmented", "mirrored")  # which show the same networks again
        for run in here if named else []:
            name = NAMES[run.model].removeprefix("MobileNet")
            where = {"xytext": (5, 3), "textcoords": "offset points", "fontsize": 7}
            ax.annotate(name, (cost(run), run.accuracy), **where)
    ax.set(xscale="log", ylabel="validation accuracy")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")


def class_maps(model: nn.Module, x: Tensor) -> Tensor:
    """Return N×5×h×w: the classifier applied at every position of the last feature map.

    Args:
        model: a MobileNet in evaluation mode.
        x: normalised images, N×3×H×W.

    For V2, whose classifier is linear, the mean over positions equals the logits: this is the
    class-activation map of Zhou et al. (2016). For V3 it is what each position alone would give.

    """
    with torch.inference_mode():
        return model.classifier(model.features(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
