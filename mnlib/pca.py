"""Principal components of the slices of convolution weights, and the scale of a network's channels.

A layer's weight has shape n_o×n_i×k_h×k_w. A *vertical* slice is what one input channel meets: its
n_o kernels. A *horizontal* slice is what makes one output channel: its n_i kernels.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise, product
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mnlib.separable import check_real, gram_matrices, slices_of

__all__ = [
    "AVERAGES",
    "atlas",
    "balance",
    "balanced_scales",
    "explained_variance",
    "explained_variance_ratio",
    "first_component",
    "rescale",
    "unit_norm_scales",
]

Slices = Literal["vertical", "horizontal"]
Samples = Literal["positions", "channels"]
Average = Literal["mean", "median", "pooled"]
AVERAGES: tuple[Average, ...] = get_args(Average)


def explained_variance(
    weight: Tensor, *, slices: Slices, samples: Samples = "positions", center: bool = True
) -> Tensor:
    """Return the variance along each principal component of every slice of a convolution weight.

    The result is float64, slices × min(n, k), descending. A slice whose variance is within rounding
    of zero, because it is constant, zero or has a single sample, gets zeros.

    A slice is a matrix of n kernels by k = k_h·k_w positions, with n = n_o for each of n_i
    vertical and n = n_i for each of n_o horizontal slices. What scikit-learn's ``PCA().fit(X)``
    computes for one X is done here for all slices at once: the variances are the eigenvalues of
    the k×k Gram matrices over the number of samples less one. For float32 these are products in
    float32, so that ratios err by less than 1e-6, or in float64 where the mean dominates.

    >>> diagonal = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).view(2, 1, 2, 1)
    >>> explained_variance(diagonal, slices="vertical", center=False).tolist()
    [[9.0, 1.0]]

    Args:
        weight: n_o×n_i×k_h×k_w, floating and finite.
        slices: "vertical", one an input channel, or "horizontal", one an output channel.
        samples: which axis of a slice is the sample, the other being the feature. "positions":
            k samples of n features, which gives the slides' numbers; "channels": n samples of k.
        center: subtract from each feature its mean over the samples. With positions as samples
            every kernel then has mean zero.

    """
    scatter, scale, count = _scatter(weight, slices, samples, center)
    return scatter / max(count - 1, 1) * scale[:, None] * scale[:, None]


def _scatter(
    weight: Tensor, slices: Slices, samples: Samples, center: bool
) -> tuple[Tensor, Tensor, int]:
    """Return sums of squares along the components of slices over their scales, these, and count."""
    if slices not in ("vertical", "horizontal"):
        raise ValueError(f"slices={slices!r} is unknown: give 'vertical' or 'horizontal'")
    if samples not in ("positions", "channels"):
        raise ValueError(f"samples={samples!r} is unknown: give 'positions' or 'channels'")
    x = slices_of(weight, slices == "vertical")
    _, n, k = x.shape
    axis = 2 if samples == "positions" else 1
    gram = gram_matrices(x, x.dtype).double()
    energy = torch.einsum("sii->s", gram)
    scale = torch.ones_like(energy)
    if center and samples == "channels":
        mean = x.mean(1, dtype=torch.float64)
        gram = gram - n * mean[:, :, None] * mean[:, None]
    elif center:
        gram = gram - gram.mean(1, keepdim=True)
        gram = gram - gram.mean(2, keepdim=True)
    # Where the mean dominates, or squares leave the range of numbers, once more and with care.
    tiny = torch.finfo(x.dtype).tiny / torch.finfo(x.dtype).eps
    again = ~((torch.einsum("sii->s", gram) > energy / 4) & (energy > tiny) & energy.isfinite())
    if bool(again.any()):
        x = x[again].double()
        largest = torch.maximum(x.amax((1, 2)), -x.amin((1, 2)))
        check_real(largest)
        scale[again] = largest.masked_fill(largest == 0, 1)
        x /= scale[again][:, None, None]
        mean = x.mean(axis, keepdim=True) * center
        x -= mean
        gram[again] = gram_matrices(x, x.dtype)
        energy[again] = torch.einsum("sii->s", gram[again])
        energy[again] += x.shape[axis] * mean.square().sum((1, 2))
    eigenvalues = torch.linalg.eigvalsh(gram).flip(1).clamp(min=0)
    if center and samples == "positions":
        eigenvalues[:, -1] = 0  # along the constant vector, which centring leaves nothing of
    eigenvalues = eigenvalues[:, : min(n, k)]
    nil = eigenvalues.sum(1) <= (k * torch.finfo(torch.float64).eps) ** 2 * energy
    return eigenvalues.masked_fill(nil[:, None], 0), scale, x.shape[axis]


def explained_variance_ratio(
    weight: Tensor, *, slices: Slices, samples: Samples = "positions", center: bool = True
) -> Tensor:
    """Return :func:`explained_variance` over its sum: the share of every component in every slice.

    Arguments and shape are those of :func:`explained_variance`. The ratios of a slice add
    up to 1, or are all 0 where it has no variance.

    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).view(2, 1, 2, 1)
    >>> explained_variance_ratio(weight, slices="vertical", center=False).tolist()
    [[0.9, 0.1]]
    """
    scatter = _scatter(weight, slices, samples, center)[0]
    total = scatter.sum(1, keepdim=True)
    return scatter / total.masked_fill(total == 0, 1)


def first_component(
    weights: Iterable[Tensor],
    *,
    slices: Slices,
    samples: Samples = "positions",
    center: bool = True,
    average: Average = "mean",
) -> float:
    """Return the share of variance of the first component, averaged over all slices of all layers.

    Arguments and errors are those of :func:`explained_variance`, with one weight a layer.
    ``average`` is "mean" or "median" over the slices, each counting once, or "pooled", the sum of
    squares along the first components over the sum of squares along all, in which a slice counts by
    its size. Slices without variance do not count; the share is 0 if there are no others.

    >>> layers = [torch.eye(4).view(4, 1, 2, 2), torch.ones(1, 1, 2, 2)]
    >>> round(first_component(layers, slices="vertical"), 6)  # three equal axes, and no variance
    0.333333
    """
    if average not in AVERAGES:
        raise ValueError(f"average={average!r} is unknown: give 'mean', 'median' or 'pooled'")
    found = [_scatter(w, slices, samples, center)[:2] for w in weights]
    total = torch.cat([scatter.sum(1) for scatter, _ in found])
    first = torch.cat([scatter[:, 0] for scatter, _ in found])[total > 0]
    scale, total = torch.cat([scale for _, scale in found])[total > 0], total[total > 0]
    if not len(total):
        return 0.0
    if average == "pooled":
        size = (scale / scale.max()).square()
        return float((size * first).sum() / (size * total).sum())
    return float((first / total).quantile(0.5) if average == "median" else (first / total).mean())


def atlas(weights: Iterable[Tensor], *, slices: Slices) -> list[dict[str, str | bool | float]]:
    """Return :func:`first_component` in percent by all of its definitions.

    A row for each ``samples`` and ``center``, with a value for each of ``AVERAGES`` by its name;
    the first row's mean is what gives the slides' numbers.

    >>> atlas([torch.eye(4).view(4, 1, 2, 2)], slices="vertical")[1]["samples"]
    'positions'
    """
    weights, rows = list(weights), []
    for samples, center in product(get_args(Samples), (True, False)):
        how: Any = {"samples": samples, "center": center}
        shares = {a: first_component(weights, slices=slices, average=a, **how) for a in AVERAGES}
        rows.append(how | {a: 100 * share for a, share in shares.items()})
    return rows


def rescale(
    weights: Sequence[Tensor], biases: Sequence[Tensor], scales: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Multiply each hidden channel by a positive number and divide what reads it by the same.

    The L weights are n_l×n_{l−1}×k_h×k_w (or n_l×n_{l−1}), the biases and L − 1 scales m_l are n_l.
    A chain of convolutions with ReLU (and pooling) between them computes the same function then,
    because relu(c·x) = c·relu(x) for c > 0: W_l becomes diag(m_l) W_l diag(m_{l−1})⁻¹ and b_l
    becomes m_l b_l, with m_0 = m_L = 1 at the network's input and output; shapes and dtypes stay.

    >>> weights, biases = [torch.eye(2), torch.ones(1, 2)], [torch.ones(2), torch.ones(1)]
    >>> rescale(weights, biases, [torch.tensor([1.0, 4.0])])[0][1].tolist()
    [[1.0, 0.25]]
    """
    _check_chain(weights)
    check_real(*biases)
    if len(biases) != len(weights) or len(scales) != len(weights) - 1:
        raise ValueError(
            f"{len(biases)} biases and {len(scales)} vectors of scales do not suit {len(weights)} "
            f"layers: give {len(weights)} and {len(weights) - 1}"
        )
    for layer, (weight, scale) in enumerate(zip(weights, scales, strict=False)):
        if scale.shape != weight.shape[:1] or not bool((scale > 0).all() & scale.isfinite().all()):
            raise ValueError(
                f"the scales of layer {layer} (shape {tuple(scale.shape)}) must be "
                f"{len(weight)} positive, finite numbers, one an output channel"
            )
    first, last = (weights[0].new_ones(n) for n in (weights[0].shape[1], len(weights[-1])))
    chain = [s.double() for s in (first, *scales, last)]
    new_weights, new_biases = [], []
    for weight, bias, (reads, writes) in zip(weights, biases, pairwise(chain), strict=True):
        factor = (writes[:, None] / reads).reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2))
        new_weights.append((weight.double() * factor).to(weight.dtype))
        new_biases.append((bias.double() * writes).to(bias.dtype))
    return new_weights, new_biases


def balanced_scales(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the scales m_l (L − 1, float64) that balance a ReLU network by :func:`rescale`.

    Weight decay picks them: at a stationary point of loss + (ω/2)·Σw² no rescaling that keeps the
    function may change Σw², so for every hidden channel c the weights that write it and those that
    read it have equal squared norms,

        Σ_i (W_ci m_c / m_i)² = Σ_o (W_oc m_o / m_c)²,

    hence m_c⁴ = Σ_o (W_oc m_o)² / Σ_i (W_ci / m_i)², with m = 1 held at the input and the output.
    If every hidden channel lies on a path of nonzero weights from input to output, Σw² is strictly
    convex in the log m and grows without bound in every direction: there is exactly one solution.
    Solving layer by layer approaches it. A channel that nothing writes or reads keeps its scale.

    >>> balanced_scales([torch.tensor([[1.0]]), torch.tensor([[16.0]])])
    [tensor([4.], dtype=torch.float64)]
    """
    _check_chain(weights)
    # Squared norms of the kernels, and u = m². A factor that all weights share changes nothing.
    largest = max(float(w.abs().max()) for w in weights) or 1
    norms = [_kernels(w, largest).square().sum(2) for w in weights]
    squares = [n.new_ones(n.shape[1]) for n in norms] + [norms[-1].new_ones(len(norms[-1]))]
    hidden = range(1, len(weights))
    for _ in range(10_000):
        change = 0.0
        for layer in (*hidden, *reversed(hidden)):
            written = norms[layer - 1] @ (1 / squares[layer - 1])
            read = squares[layer + 1] @ norms[layer]
            balance = (read / written).sqrt()
            new = torch.where((written > 0) & (read > 0), balance, squares[layer])
            change = max(change, float((new / squares[layer] - 1).abs().max()))
            squares[layer] = new
        if change <= 1e-12:
            return [u.sqrt() for u in squares[1:-1]]
    raise RuntimeError(
        f"the channels' scales still change by {change:.1e} after 10,000 sweeps, more than 1e-12: "
        "remove channels that are hardly written or read"
    )


def unit_norm_scales(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the scales with which :func:`rescale` gives every hidden channel's filter norm 1.

    Layer by layer, m_c = (Σ_i ‖W_ci‖² / m_i²)^−½; a filter that is zero keeps its scale.

    >>> unit_norm_scales([torch.tensor([[3.0, 4.0]]), torch.ones(1, 1)])
    [tensor([0.2000], dtype=torch.float64)]
    """
    _check_chain(weights)
    reads = weights[0].new_ones(weights[0].shape[1], dtype=torch.float64)
    scales = []
    for weight in weights[:-1]:
        largest = float(weight.abs().max()) or 1
        norms = largest * (_kernels(weight, largest).norm(dim=2) / reads).norm(dim=1)
        reads = torch.where(norms > 0, 1 / norms, 1)
        scales.append(reads)
    return scales


def balance(
    weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Rescale a chain of ReLU layers to the scale that weight decay prefers, function unchanged.

    This is :func:`rescale` with :func:`balanced_scales`. It undoes any earlier rescaling of hidden
    channels, as of the normalised VGG-19 of Gatys et al. (2016), up to the scale of the output.

    >>> balance([torch.tensor([[1.0]]), torch.tensor([[16.0]])], 2 * [torch.zeros(1)])[0]
    [tensor([[4.]]), tensor([[4.]])]
    """
    return rescale(weights, biases, balanced_scales(weights))


def _kernels(weight: Tensor, scale: float) -> Tensor:
    """Return the kernels over ``scale`` in float64, n_o×n_i×k, of a matrix with k = 1."""
    return weight.double().reshape(*weight.shape[:2], -1) / scale


def _check_chain(weights: Sequence[Tensor]) -> None:
    """Raise ValueError unless each weight reads as many channels as the one before it writes."""
    if not weights:
        raise ValueError("no weights were given: a chain needs at least one layer")
    check_real(*weights)
    for layer, (before, after) in enumerate(pairwise(weights), 1):
        if after.shape[1] != len(before):
            raise ValueError(
                f"layer {layer} reads {after.shape[1]} channels but layer {layer - 1} writes "
                f"{len(before)}: give the weights in the order in which they are applied"
            )
