"""How sure one can be of an accuracy, of a difference between two, and of a probability."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

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

    ``p`` is that of McNemar's exact test, on the images on which exactly one is right. The
    interval is Tango's (Statistics in Medicine 17, 891, 1998): all differences that the score test
    does not reject, as :func:`wilson`'s is for one proportion. It is about the networks as
    trained, on images like these: another seed is another network.

    Raises:
        ValueError: other shapes, or nothing to compare.

    Example:
        >>> one, other = [True] * 90 + [False] * 10, [True] * 80 + [False] * 20
        >>> print(paired(one, other))
        +10.0 (+5.5 to +17.4)

    """
    one, other = np.asarray(one, bool), np.asarray(other, bool)
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"{one.shape} answers against {other.shape}: ask both about equal images")
    wins, losses, n = int((one & ~other).sum()), int((other & ~one).sum()), len(one)
    p = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    low, high = -_highest(losses, wins, n), _highest(wins, losses, n)
    return Paired((wins - losses) / n, low, high, p, wins, losses)


def _highest(wins: int, losses: int, n: int) -> float:
    """Return the largest difference that the score test does not reject."""

    def deviation(difference: float) -> float:
        # of a loss the most likely probability, given the difference
        a, c = 2 * n, -losses * difference * (1 - difference)
        b = (2 * n - wins + losses) * difference - wins - losses
        q = (math.sqrt(b * b - 4 * a * c) - b) / (2 * a)
        variance = n * (2 * q + difference * (1 - difference))
        return (n * difference - wins + losses) / math.sqrt(variance) - norm.isf(0.025)

    seen, most = (wins - losses) / n + 1e-9, 1 - 1e-9
    return 1.0 if seen >= most or deviation(most) < 0 else brentq(deviation, seen, most)


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
