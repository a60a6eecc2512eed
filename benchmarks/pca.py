"""PCA of all slices of VGG-19: ours against scikit-learn, NumPy and torch slice by slice.

Usage: python benchmarks/pca.py [--quick]. The weights are VGG-19's where they are at hand (see
``mnlib data``), else random ones of the same shapes. Times are those of one thread in turns; with
``--threads N`` the two fast ones follow by the clock, which other work on the machine disturbs.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from _timing import compare, processor, report
from sklearn.decomposition import PCA

from mnlib import pca
from mnlib.lab import data

WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 256, *[512] * 8)


def vgg19_weights() -> tuple[list[torch.Tensor], str]:
    try:
        weights = [w for w in data.load("vgg19").values() if w.ndim == 4]
    except FileNotFoundError:
        shapes = zip(WIDTHS[1:], WIDTHS, strict=False)
        return [torch.randn(n_o, n_i, 3, 3) for n_o, n_i in shapes], "random weights"
    return weights, "the real VGG-19"


def slices(weights):
    """Every slice as kernels × positions: the vertical ones of all layers, then the horizontal."""
    flat = [w.flatten(2) for w in weights]
    return [s for w in flat for s in w.unbind(1)] + [s for w in flat for s in w.unbind(0)]


def ours(weights):
    return [
        pca.explained_variance_ratio(w, slices=kind)
        for kind in ("vertical", "horizontal")
        for w in weights
    ]


def sklearn_loop(weights):
    return [PCA().fit(s.numpy().T).explained_variance_ratio_ for s in slices(weights)]


def numpy_loop(weights):
    out = []
    for s in slices(weights):
        centred = s.numpy() - s.numpy().mean(1, keepdims=True)
        squares = np.linalg.svd(centred, compute_uv=False) ** 2
        out.append(squares / squares.sum())
    return out


def torch_batched_svd(weights):
    out = []
    for w in weights:
        for batch in (w.flatten(2).transpose(0, 1), w.flatten(2)):
            squares = torch.linalg.svdvals(batch - batch.mean(2, keepdim=True)).square()
            out.append(squares / squares.sum(1, keepdim=True))
    return out


def gram_float64(weights):
    out = []
    for w in weights:
        for batch in (w.flatten(2).transpose(0, 1), w.flatten(2)):
            batch = batch.double()
            batch = batch - batch.mean(2, keepdim=True)
            squares = torch.linalg.eigvalsh(batch.mT @ batch).flip(1)
            out.append(squares / squares.sum(1, keepdim=True))
    return out


def largest_error(weights) -> float:
    """Largest difference of any ratio to that of an SVD in float64."""
    errors = []
    for kind in ("vertical", "horizontal"):
        for w in weights:
            flat = w.double().flatten(2)
            batch = flat.transpose(0, 1) if kind == "vertical" else flat
            squares = torch.linalg.svdvals(batch - batch.mean(2, keepdim=True)).square()
            exact = squares / squares.sum(1, keepdim=True)
            errors.append((pca.explained_variance_ratio(w, slices=kind) - exact).abs().max())
    return float(max(errors))


def by_the_clock(weights, threads: int, repeats: int) -> None:
    torch.set_num_threads(threads)
    ratios = []
    for turn in range(repeats + 1):
        start = time.perf_counter()
        ours(weights)
        middle = time.perf_counter()
        torch_batched_svd(weights)
        if turn:
            ratios.append((time.perf_counter() - middle) / (middle - start))
    ratios.sort()
    print(
        f"{threads} threads, by the clock: torch batched SVD takes {statistics.median(ratios):.3g} "
        f"times as long as mnlib  [{ratios[0]:.3g}, {ratios[-1]:.3g}]"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four small layers, one round")
    parser.add_argument("--threads", type=int, help="time with so many threads, too")
    arguments = parser.parse_args()
    quick = arguments.quick
    weights, origin = vgg19_weights()
    if quick:
        weights = [w[:32, :32].contiguous() for w in weights[:4]]
    count = sum(w.shape[0] + w.shape[1] for w in weights)
    variants = {
        "mnlib": lambda: ours(weights),
        "read the weights": lambda: [w.sum() for w in weights],
        "Gram in float64": lambda: gram_float64(weights),
        "torch batched SVD": lambda: torch_batched_svd(weights),
        "NumPy SVD loop": lambda: numpy_loop(weights),
        "scikit-learn loop": lambda: sklearn_loop(weights),
    }
    repeats = 1 if quick else 9
    times = compare(variants, repeats)
    report(times, title=f"PCA of {count:,} slices of {origin}, one thread of {processor()}")
    if arguments.threads:
        by_the_clock(weights, arguments.threads, repeats)
    print(f"largest error of mnlib's ratios: {largest_error(weights):.1e}")


if __name__ == "__main__":
    main()
