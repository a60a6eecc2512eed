"""Chapter 8's experiment: MobileNets and VGG-19 on the photographs of tf_flowers.

The networks are those of :mod:`mnlib.mobilenet` and Simonyan and Zisserman (2015); the split is
this book's and published in ``data/flowers_split.csv``. Probabilities are N×5 in the order of
``CLASSES``, labels int64 N.
"""

import time
from collections.abc import Callable, Iterable
from itertools import product

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from mnlib import mobilenet
from mnlib.cost import count_parameters
from mnlib.lab import data, runs, training
from mnlib.lab.data import Dataset
from mnlib.lab.runs import Outcome, Run
from mnlib.lab.training import Recipe
from mnlib.lab.vgg import vgg19_features

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
    "logistic_regression",
    "near_duplicates",
    "outputs",
    "pretrained",
    "probabilities",
    "recipe",
    "record_learning_curve",
    "record_near_duplicates",
    "reliability",
    "split",
    "train_vgg_head",
    "trained",
    "trainings",
    "vgg_features",
    "wilson",
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


def split() -> pd.DataFrame:
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
    rows = split()
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


def trainings() -> dict[tuple[str, str], Run]:
    """Return the recorded trainings with seed 0, by protocol and model, in the book's order."""
    found = {
        (run.protocol, run.model): run
        for run in runs.load_runs("flowers")
        if "probabilities" in run.results and run.seed == 0
    }
    return {which: found[which] for which in product(PROTOCOLS, NAMES) if which in found}


def trained(run: Run) -> nn.Module:
    """Return the MobileNet that ``run`` recorded, in evaluation mode.

    Raises:
        FileNotFoundError: the run kept no weights.
        ValueError: the weights are not those recorded.

    """
    model = build(run.model)
    model.load_state_dict(runs.load_checkpoint(run))
    return model.eval()


def probabilities(logits: Tensor) -> dict:
    """Return for the record the probabilities of ``logits``, N×5, to four digits."""
    return {"probabilities": [[round(p, 4) for p in row] for row in logits.softmax(1).tolist()]}


def vgg_features(images: np.ndarray) -> Tensor:
    """Return the means over positions of VGG-19's last feature maps, N×512.

    Args:
        images: uint8 N×H×W×3, RGB.

    Raises:
        FileNotFoundError: VGG-19's weights are not there; the message names the remedy.

    """
    features = vgg19_features().to(memory_format=torch.channels_last)
    weights = data.load("vgg19")
    features.load_state_dict({key.removeprefix("features."): w for key, w in weights.items()})
    mean = torch.tensor([103.939, 116.779, 123.68])
    found = []
    with torch.inference_mode():
        for start in trange(0, len(images), 16, desc="VGG-19", disable=None):
            bgr = torch.tensor(images[start : start + 16]).flip(-1) - mean
            found.append(features(bgr.permute(0, 3, 1, 2)).mean((2, 3)))
    return torch.cat(found).clone()  # an inference tensor cannot be trained on


def train_vgg_head(seed: int, names: dict[str, str], epochs: int = 40) -> Outcome:
    """Train a linear classifier on VGG-19's frozen features as :func:`recipe` says, and record it.

    The features are computed once; that time is the run's, but for seconds of training.
    """
    now, start = runs.environment(), time.perf_counter()
    images, labels = load("train")
    kept, out = training.split(labels, HELD_OUT)
    features, labels = vgg_features(images), torch.as_tensor(labels)
    torch.manual_seed(seed)
    head = nn.Linear(features.shape[1], len(CLASSES))
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-4)
    curves = {"loss": [], "accuracy": []}
    for _ in range(epochs):
        losses = []
        for chosen in torch.as_tensor(kept)[torch.randperm(len(kept))].split(16):
            optimiser.zero_grad()
            loss = F.cross_entropy(head(features[chosen]), labels[chosen])
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        with torch.no_grad():
            outputs = head(features[out])
        curves["loss"].append(float(np.mean(losses)))
        curves["accuracy"].append(training.accuracy(outputs, labels[out]))
    head.half().float()  # what the checkpoint keeps is what is evaluated
    with torch.no_grad():
        outputs = head(features[out])
    run = Run(
        **names,
        dataset="tf_flowers",
        seed=seed,
        epochs=epochs,
        parameters=count_parameters(vgg19_features()) + count_parameters(head),
        accuracy=training.accuracy(outputs, labels[out]),
        seconds=time.perf_counter() - start,
        results={"curves": curves, **probabilities(outputs)},
        **now,
    )
    return run, head.state_dict()


def outputs(run: Run, images: np.ndarray) -> Tensor:
    """Return the logits, N×5, of the MobileNet that ``run`` recorded for uint8 N×224×224×3 images.

    They are taken as :func:`mnlib.lab.training.outputs` says.

    Raises:
        FileNotFoundError: the run kept no weights.
        ValueError: the weights are not those recorded.

    """
    return training.outputs(trained(run), run, images)


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


def record_near_duplicates(seed: int, names: dict[str, str]) -> Outcome:
    """Look for near-duplicates among all photographs and record them by their rows in the split."""
    now, start = runs.environment(), time.perf_counter()
    pairs = near_duplicates(load("train").images)
    run = Run(
        **names,
        dataset="tf_flowers",
        seed=seed,
        epochs=0,
        parameters=0,
        accuracy=None,
        seconds=time.perf_counter() - start,
        results={"threshold": NEAR, "pairs": [[i, j, round(r, 3)] for i, j, r in pairs]},
        **now,
    )
    return run, None


def logistic_regression(features: Tensor, labels: Tensor, decay: float = 0.01) -> nn.Linear:
    """Return the linear classifier of least cross-entropy plus ``decay``/2·‖W‖², by L-BFGS."""
    head = nn.Linear(features.shape[1], len(CLASSES))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = F.cross_entropy(head(features), labels) + decay / 2 * head.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return head


def record_learning_curve(
    seed: int,
    names: dict[str, str],
    sizes: Iterable[int] = (1, 2, 5, 10, 20, 50, 100, 200, 500),
    draws: int = 5,
) -> Outcome:
    """Measure accuracy against the number of training photographs a class, features frozen.

    The features are those before the last layer of the network ``names["model"]`` with ImageNet
    weights, standardised with the chosen photographs; the classifier is a logistic regression.
    ``accuracy`` is that with all 2,936.
    """
    now, start = runs.environment(), time.perf_counter()
    images, labels = load("train")
    kept, out = training.split(labels, HELD_OUT)
    model = pretrained(names["model"])
    parameters = count_parameters(model)
    model.classifier[-1] = nn.Identity()
    images = np.array(images)  # PyTorch wants memory that it may write to
    features = training.logits(model, images, size=224, statistics="imagenet", batch=16)
    features, labels = features.clone(), torch.as_tensor(labels)
    shuffled = torch.Generator().manual_seed(seed)

    def measure(chosen: Tensor) -> float:
        mean, std = features[chosen].mean(0), features[chosen].std(0) + 1e-3
        head = logistic_regression((features[chosen] - mean) / std, labels[chosen])
        with torch.no_grad():
            return training.accuracy(head((features[out] - mean) / std), labels[out])

    kept = torch.as_tensor(kept)
    curve = []
    for size in sizes:
        for _ in range(draws):
            order = kept[torch.randperm(len(kept), generator=shuffled)]
            each = [order[labels[order] == label][:size] for label in range(len(CLASSES))]
            curve.append({"a_class": size, "accuracy": measure(torch.cat(each))})
    run = Run(
        **names,
        dataset="tf_flowers",
        seed=seed,
        epochs=0,
        parameters=parameters,
        accuracy=measure(kept),
        seconds=time.perf_counter() - start,
        results={"curve": curve},
        **now,
    )
    return run, None


def wilson(accuracy: float, n: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion seen as ``accuracy`` in ``n`` trials.

    Wilson's score interval, which stays within 0 and 1 (Journal of the ASA 22, 1927).
    """
    z = 1.96
    centre = (accuracy + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (accuracy * (1 - accuracy) / n + z**2 / (4 * n**2)) ** 0.5
    return centre - half, centre + half


def draw_accuracies(ax: Axes, cost: Callable[[Run], float]) -> None:
    """Draw the :func:`trainings`' accuracies, with :func:`wilson`'s interval, over ``cost(run)``.

    A marker a protocol, on a logarithmic axis; a network's name stands beside its point, once.
    """
    recorded = trainings()
    for marker, (protocol, label) in zip("ovsD^", PROTOCOLS.items(), strict=True):
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


def reliability(probs: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Return ``confidence``, ``accuracy`` and ``count`` of the predictions, a row a filled tenth.

    The confidence of a prediction is its largest probability; bins are the tenths of 0..1. The
    expected calibration error is the mean of |accuracy - confidence| weighted by count.
    """
    confidence, right = probs.max(1), probs.argmax(1) == labels
    which = np.minimum((confidence * 10).astype(int), 9)
    frame = pd.DataFrame({"confidence": confidence, "accuracy": right, "count": 1})
    means = {"confidence": "mean", "accuracy": "mean", "count": "sum"}
    return frame.groupby(which).agg(means).reset_index(drop=True)


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
