"""What the pieces that play in the page start from: tables for print, numbers for the scripts.

The scripts of ``book/play/`` compute the same as the functions here, which the tests compare. Rows
are dicts of texts, for a table of the book.
"""

import torch
from torch import nn

from mnlib import cost
from mnlib.gates import round_channels
from mnlib.mobilenet import InvertedResidual, Row
from mnlib.separable import ORDERS, multiply_adds, parameter_count

__all__ = ["COST", "cost_counts", "cost_rows"]

#: The settings with which the cost calculator starts: a layer of MobileNetV1's middle.
COST = {"n_i": 256, "n_o": 256, "k": 3, "stride": 1, "alpha": 1.0, "resolution": 28, "expansion": 6}

FORMS = {
    "regular": "regular",
    "depthwise_first": "separable, depthwise first",
    "pointwise_first": "separable, pointwise first",
    "inverted_residual": "inverted residual",
}


def cost_counts(
    n_i: int, n_o: int, k: int, stride: int, alpha: float, resolution: int, expansion: int
) -> dict[str, tuple[int, int]]:
    """Return weights and multiply-adds of a convolution by form, without biases and norms.

    ``alpha`` multiplies both numbers of channels, rounded by :func:`round_channels` unless it is 1;
    the k×k kernel is padded by k//2. The inverted residual expands n_i ``expansion`` times.

    Raises:
        ValueError: a stride other than 1 and 2, or what :mod:`mnlib.separable` refuses.

    >>> cost_counts(64, 128, 3, 1, 1.0, 56, 6)["regular"]
    (73728, 231211008)
    """
    if alpha != 1:
        n_i, n_o = round_channels(n_i * alpha), round_channels(n_o * alpha)
    size = (resolution, resolution)
    found = {
        form: (
            parameter_count(form, n_i, n_o, k),
            multiply_adds(form, n_i, n_o, k, size, stride, padding=k // 2),
        )
        for form in ("regular", *ORDERS)
    }
    with torch.device("meta"):
        block = InvertedResidual(n_i, Row(k, expansion * n_i, n_o, False, "RE", stride))
    weights = sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Conv2d))
    return {**found, "inverted_residual": (weights, cost.count_macs(block, (n_i, *size)))}


def cost_rows() -> list[dict[str, str]]:
    """Return the calculator's table for :data:`COST`."""
    counts = cost_counts(**COST)
    weights, macs = counts["regular"]
    return [
        {
            "form": FORMS[form],
            "parameters": f"{own:,}",
            "share of its parameters": f"{100 * own / weights:.1f} %",
            "multiply-adds": f"{work:,}",
            "share of its multiply-adds": f"{100 * work / macs:.1f} %",
        }
        for form, (own, work) in counts.items()
    ]
