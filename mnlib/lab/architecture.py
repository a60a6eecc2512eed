"""A network seen from outside: its layers, the papers' figures, a drawing, and two variants."""

import copy
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Arc, Patch, Rectangle
from torch import nn

from mnlib import cost
from mnlib.cifar import NeuralODE
from mnlib.gates import SqueezeExcitation
from mnlib.lab.style import COLOURS
from mnlib.mobilenet import InvertedResidual, convolution_kind, mobilenet_v3_small

__all__ = [
    "KINDS",
    "PUBLISHED",
    "Layer",
    "draw",
    "inverted_neural_ode",
    "layers",
    "legend_handles",
    "published",
    "small_without_gates",
    "without_gates",
]

PUBLISHED = Path(__file__).parents[2] / "data" / "published.csv"

# kind of layer: colour and hatch
KINDS = {
    "convolution": ("#777777", ""),
    "depthwise": (COLOURS[4], "///"),
    "pointwise": (COLOURS[0], ""),
    "inverted residual": (COLOURS[2], ""),
    "inverted residual with SE": (COLOURS[1], "..."),
}


class Layer(NamedTuple):
    """A child of a MobileNet's ``features``; ``size`` is the side of its output in pixels."""

    kind: str
    channels: int
    size: int
    shortcut: bool


def layers(model: nn.Module, size: int = 224) -> list[Layer]:
    """Return what each child of ``model.features`` is and gives for a size×size image."""
    rows = {row.name: row for row in cost.layers(model, (3, size, size))}
    found = []
    for name, module in model.features.named_children():
        modules = list(module.modules())
        if isinstance(module, InvertedResidual):
            gated = any(isinstance(m, SqueezeExcitation) for m in modules)
            kind = "inverted residual with SE" if gated else "inverted residual"
        else:
            kind = convolution_kind(next(m for m in modules if isinstance(m, nn.Conv2d)))
        channels, side, _ = rows[f"features.{name}"].output
        found.append(Layer(kind, channels, side, getattr(module, "shortcut", False)))
    return found


def published() -> pd.DataFrame:
    """Return the papers' own figures, a row a model: millions of parameters and of multiply-adds.

    ``top1_percent`` is the paper's ImageNet accuracy, evaluated as ``evaluation`` says;
    ``citation`` is the key of the bibliography. A figure that the paper does not give is NaN.
    """
    return pd.read_csv(PUBLISHED)


def draw(ax: Axes, model: nn.Module, title: str) -> None:
    """Draw a MobileNet from left to right, a box a child of ``model.features`` (Figure 1).

    Heights are proportional to the root of the feature map's side, widths to the root of its
    channels; an arc stands over each block with a shortcut; channels are written below the boxes,
    sides above where they change.
    """
    x, last_size = 0.0, None
    for layer in layers(model):
        width, height = 0.08 * layer.channels**0.5, layer.size**0.5
        colour, hatch = KINDS[layer.kind]
        box = Rectangle((x, -height / 2), width, height, facecolor=colour, edgecolor="white")
        box.set(hatch=hatch, linewidth=0.5)
        ax.add_patch(box)
        middle = x + width / 2
        if layer.shortcut:
            ax.add_patch(Arc((middle, height / 2), width + 0.3, 3, theta2=180, color="0.35"))
        ax.text(middle, -8.2, layer.channels, rotation=90, ha="center", va="top", fontsize=6.5)
        if layer.size != last_size:
            ax.text(x, max(height / 2, 2) + 2, f"{layer.size}²", fontsize=7)
            last_size = layer.size
        x += width + 0.3
    ax.set(xlim=(-0.3, x), ylim=(-13, 11.5))
    ax.set_title(title, loc="left", fontsize=9)
    ax.axis("off")


def legend_handles() -> list[Patch]:
    """Return the patches that explain the colours and hatches of :func:`draw`."""
    return [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=kind)
        for kind, (colour, hatch) in KINDS.items()
    ]


def without_gates(network: nn.Module) -> nn.Module:
    """Return a copy with the identity in the place of every squeeze-and-excitation module.

    All other weights stay, so that a pair built with one seed starts its trainings alike.
    """
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, SqueezeExcitation):
                setattr(parent, name, nn.Identity())
    return network


def small_without_gates(**kwargs) -> nn.Module:
    """Return MobileNetV3-Small :func:`without_gates`; the arguments are its own."""
    return without_gates(mobilenet_v3_small(**kwargs))


def inverted_neural_ode() -> NeuralODE:
    """Return our Neural ODE of CIFAR-10, its fields the branches of inverted residual blocks.

    Each expands its channels eightfold, filters them depth-wise and projects them back, with SiLU
    and no norm, as the 3×3 convolutions that it stands for, and so with the biases which
    :class:`mnlib.residual.LinearBottleneck` leaves to its norms. That keeps the network at its
    size: 253,114 parameters to 262,746, and 56.0M multiply-adds to 56.8M.
    """
    network = NeuralODE()
    for block in network.blocks:
        channels = len(block.field.shift)
        wide = 8 * channels
        block.field.branch = nn.Sequential(
            nn.Conv2d(channels, wide, 1),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide),
            nn.SiLU(),
            nn.Conv2d(wide, channels, 1),
        )
    return network
