"""Decoupling one layer: ours against NumPy and torch SVD, and the blocks against the dense layer.

Usage: python benchmarks/decoupling.py [--quick]. The layer is VGG-19's conv5_1 (512×512×3×3) where
the weights are at hand, else a random one of its shape.
"""

import argparse

import numpy as np
import torch
from _timing import compare, processor, report
from torch import nn

from mnlib.lab import data
from mnlib.separable import DecoupledConv2d, DepthwiseSeparableConv2d, decouple


def numpy_loop(weight, order):
    """The factors by one thin SVD a slice."""
    flat = weight.flatten(2).numpy()
    slices = flat.transpose(1, 0, 2) if order == "depthwise_first" else flat
    svds = [np.linalg.svd(s, full_matrices=False) for s in slices]
    return np.stack([u * s for u, s, _ in svds]), np.stack([v for _, _, v in svds])


def torch_svd(weight, order):
    flat = weight.flatten(2)
    slices = flat.transpose(0, 1) if order == "depthwise_first" else flat
    left, values, right = torch.linalg.svd(slices, full_matrices=False)
    return left * values[:, None], right


class Loop(nn.Module):
    """The blocks of ``fused`` one after another."""

    def __init__(self, fused: DecoupledConv2d, n: int):
        super().__init__()
        rank = len(fused.depthwise.weight) // n
        self.blocks = nn.ModuleList()
        for r in range(rank):
            block = DepthwiseSeparableConv2d(n, n, 3, padding=1, bias=False)
            block.depthwise.weight.data = fused.depthwise.weight[r::rank].contiguous()
            block.pointwise.weight.data = fused.pointwise.weight[:, r::rank].contiguous()
            self.blocks.append(block)

    def forward(self, x):
        """Return the sum of the blocks."""
        return sum(block(x) for block in self.blocks)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small layer, one round")
    quick = parser.parse_args().quick
    try:
        weight, origin = data.load("vgg19")["features.28.weight"].clone(), "VGG-19's conv5_1"
    except FileNotFoundError:
        weight, origin = torch.randn(512, 512, 3, 3), "random weights"
    weight = weight[:32, :32].contiguous() if quick else weight
    n, repeats = len(weight), 1 if quick else 15
    print(f"one thread of {processor()}\n")

    for order in ("depthwise_first", "pointwise_first"):
        variants = {
            "mnlib": lambda order=order: decouple(weight, order),
            "torch batched SVD": lambda order=order: torch_svd(weight, order),
            "NumPy thin SVD loop": lambda order=order: numpy_loop(weight, order),
        }
        report(compare(variants, repeats), title=f"decouple {n}×{n}×3×3, {origin}, {order}")

    dense = nn.Conv2d(n, n, 3, padding=1, bias=False)
    dense.weight.data = weight
    for order in ("depthwise_first", "pointwise_first"):
        fused = {rank: DecoupledConv2d(dense, order, rank) for rank in (9, 4, 1)}
        x = torch.randn(1, n, 14, 14)
        error = (fused[9](x) - dense(x)).norm() / dense(x).norm()
        variants = {"dense": lambda x=x: dense(x)}
        variants |= {f"{r} fused": lambda m=m, x=x: m(x) for r, m in fused.items()}
        if order == "depthwise_first":
            loop = Loop(fused[9], n)
            variants["9 in a loop"] = lambda loop=loop, x=x: loop(x)
        report(compare(variants, 4 * repeats), title=f"apply at 14×14, {order}")
        print(f"relative error of 9 blocks: {error:.1e}\n")


if __name__ == "__main__":
    main()
