"""How sure one can be of an accuracy, of a difference between two, and of a probability."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

__all__ = ["Paired", "calibration_error", "paired", "reliability", "right", "wilson"]


def wilson(accuracy: float, n: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion seen as ``accuracy`` in ``n`` trials.

    Wilson's score interval, which stays within 0 and 1 (Journal of the ASA 22, 1927).
    """
    found = binomtest(round(accuracy * n), n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


class Paired(NamedTuple):
    """One network less another, on the same images: fractions, and numbers of images."""

    difference: float
    low: float
    high: float
    #: of a division at least as uneven as the one seen, were both equally good
    p: float
    only_one: int
    only_other: int

    def __str__(self) -> str:
        """Return points with their interval: ``+1.2 (+0.3 to +2.1)``."""
        found = (f"{100 * x:+.1f}".replace("-", "−") for x in self[:3])
        return "{} ({} to {})".format(*(text.replace("−0.0", "0.0") for text in found))


def paired(one: np.ndarray, other: np.ndarray) -> Paired:
    """Return by how much ``one`` is right more often than ``other``, with a 95 % interval.

    Args:
        one: bool N, whether it is right, an image each.
        other: the same of the other network, for the same images in the same order.

    What counts are the m images on which exactly one is right: ``p`` is that of McNemar's exact
    test, and the interval that of Clopper and Pearson for the share of the m that ``one`` wins, in
    fractions of all images. So it holds 0 if and only if p is at least 0.05; that m itself is a
    matter of chance is left out. It is about the networks as trained, on images like these:
    another seed is another network.

    Raises:
        ValueError: other shapes, or nothing to compare.

    Example:
        >>> one, other = [True] * 90 + [False] * 10, [True] * 80 + [False] * 20
        >>> paired(one, other).p < 0.01
        True

    """
    one, other = np.asarray(one, bool), np.asarray(other, bool)
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"{one.shape} answers against {other.shape}: ask both about equal images")
    wins, losses, n = int((one & ~other).sum()), int((other & ~one).sum()), len(one)
    m = wins + losses
    if m == 0:  # then only what had shown itself within n images can be excluded
        bound = 1 - 0.025 ** (1 / n)
        return Paired(0.0, -bound, bound, 1.0, 0, 0)
    test = binomtest(wins, m)
    low, high = (float((2 * p - 1) * m / n) for p in test.proportion_ci())
    return Paired((wins - losses) / n, low, high, float(test.pvalue), wins, losses)


def right(answers: str, labels: np.ndarray) -> np.ndarray:
    """Return bool N: which of a record's ``answers``, a digit an image, are ``labels``.

    Raises:
        ValueError: not as many answers as labels.

    """
    if len(answers) != len(labels):
        raise ValueError(f"{len(answers)} answers to {len(labels)} images: they belong to others")
    return np.frombuffer(answers.encode(), np.uint8) - ord("0") == np.asarray(labels)


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Return ``confidence``, ``accuracy`` and ``count`` of the predictions, a row a filled tenth.

    The confidence of a prediction is the largest of its ``probabilities``, N×classes; bins are
    the tenths of 0..1.
    """
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == labels
    which = np.minimum((confidence * 10).astype(int), 9)
    frame = pd.DataFrame({"confidence": confidence, "accuracy": hit, "count": 1})
    means = {"confidence": "mean", "accuracy": "mean", "count": "sum"}
    return frame.groupby(which).agg(means).reset_index(drop=True)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the expected calibration error of Guo et al. (2017), with ten bins of equal width.

    The mean of |accuracy - confidence| of :func:`reliability`, weighted by count.
    """
    bins = reliability(probabilities, labels)
    gaps = (bins["accuracy"] - bins["confidence"]).abs()
    return float(np.average(gaps, weights=bins["count"]))
