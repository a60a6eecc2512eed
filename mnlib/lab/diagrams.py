"""Schematic drawings: text boxes in a chain with the tensors between them, and channels wired."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Polygon, Rectangle
from torch import nn

from mnlib.lab.style import COLOURS

__all__ = ["KINDS", "chain", "residual_block", "wiring"]

# of a layer's kind: the fills are light, so that text on them reads
KINDS = {
    "pointwise": (COLOURS[0], ""),
    "depthwise": (COLOURS[4], "///"),
    "gate": (COLOURS[1], "..."),
    "other": ("0.6", ""),
}


def chain(
    ax: Axes,
    boxes: Sequence[tuple[str, str]],
    shapes: Sequence[str],
    y: float = 0.0,
    bypasses: Sequence[tuple[int, int, str]] = (),
) -> None:
    """Draw layers from left to right, a box each, with the shape of what flows between them.

    Args:
        ax: axes without ticks; box i stands at x = 2i to 2i + 1.25, a unit high.
        boxes: text and kind (a key of ``KINDS``) of each layer.
        shapes: one more than boxes: what comes in, what goes between, what comes out.
        y: the height of the chain's middle.
        bypasses: (i, j, text) for an arrow around the boxes i to j.

    """
    for i, (text, kind) in enumerate(boxes):
        colour, hatch = KINDS[kind]
        fill = Rectangle((2 * i, y - 0.5), 1.25, 1, facecolor=colour, alpha=0.25, hatch=hatch)
        ax.add_patch(fill)
        ax.add_patch(Rectangle((2 * i, y - 0.5), 1.25, 1, fill=False, edgecolor=colour))
        label = ax.text(2 * i + 0.625, y, text, ha="center", va="center", fontsize=7)
        label.set_bbox({"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8})
    arrow = {"arrowstyle": "->", "shrinkA": 0, "shrinkB": 0}
    for i, text in enumerate(shapes):
        ax.annotate("", (2 * i, y), (2 * i - 0.75, y), arrowprops=arrow)
        ax.text(2 * i - 0.375, y - 0.1, text, ha="center", va="top", fontsize=6)
    for i, j, text in bypasses:
        left, right, top = 2 * i - 0.6, 2 * j + 1.45, y + 0.8
        ax.plot([left, left, right], [y, top, top], "-", color="black", linewidth=0.8)
        ax.annotate("", (right, y), (right, top), arrowprops=arrow)
        ax.text((left + right) / 2, top + 0.05, text, ha="center", va="bottom", fontsize=7)
    ax.set(xlim=(-0.9, max(2 * len(boxes), ax.get_xlim()[1])), ylim=(y - 0.7, ax.get_ylim()[1]))
    ax.set_aspect("equal")
    ax.axis("off")


def residual_block(ax: Axes, branch: nn.Sequential, title: str) -> None:
    """Draw ``h + branch(h)``: a slab a feature map, as thick as it has channels (Figure 3).

    Args:
        ax: empty axes.
        branch: convolutions, norms and nonlinearities in a chain, such as
            :class:`mnlib.residual.Bottleneck`. An arrow carries a convolution and the nonlinearity
            after it; the slab after a convolution without one is hatched.
        title: text above.

    """
    arrows: list[tuple[str, nn.Conv2d]] = []
    for layer in branch:
        if isinstance(layer, nn.Conv2d):
            own = "\ndepthwise" if layer.groups == layer.out_channels > 1 else ""
            arrows.append(("{}×{}".format(*layer.kernel_size) + own, layer))
        elif not isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            arrows[-1] = (f"{arrows[-1][0]}\n{type(layer).__name__}", arrows[-1][1])
    channels = [branch[0].in_channels, *(conv.out_channels for _, conv in arrows)]
    texts = ["", *(text for text, _ in arrows)]
    depth, gap, tall, x, middles = 0.45, 1.75, 1.6, 0.0, []
    for n, (count, text) in enumerate(zip(channels, texts, strict=True)):
        if n:
            _arrow(ax, (x + 0.1, 0), (x + gap - 0.05, 0))
            ax.text(x + depth + gap / 3, 0.1, text, ha="center", va="bottom", fontsize=6.5)
            x += gap
        thick = max(0.1, 1.5 * count / max(channels))
        linear = n > 0 and "\n" not in text
        fill = {"facecolor": KINDS["depthwise" if 0 < n < len(arrows) else "pointwise"][0]}
        front = Rectangle((x, -tall / 2), thick, tall, hatch="////" if linear else "", **fill)
        left, right, top, down = x, x + thick, tall / 2, -tall / 2
        for corners in (
            [(left, top), (left + depth, top + depth), (right + depth, top + depth), (right, top)],
            [
                (right, down),
                (right + depth, down + depth),
                (right + depth, top + depth),
                (right, top),
            ],
        ):
            ax.add_patch(Polygon(corners, edgecolor="0.2", linewidth=0.6, alpha=0.35, **fill))
        front.set(edgecolor="0.2", linewidth=0.6, alpha=0.6)
        ax.add_patch(front)
        ax.text(x + thick / 2, down - 0.1, count, ha="center", va="top", fontsize=8)
        middles.append(x + (thick + depth) / 2)
        x += thick
    plus = x + 1.4
    _arrow(ax, (x + 0.1, 0), (plus - 0.15, 0))
    _arrow(ax, (plus + 0.15, 0), (plus + 0.7, 0))
    ax.text(plus, 0, "⊕", ha="center", va="center", fontsize=13)
    roof = tall / 2 + depth + 0.35
    ax.plot([middles[0]] * 2 + [plus], [roof - 0.3, roof, roof], "-", color="0.2", linewidth=1)
    _arrow(ax, (plus, roof), (plus, 0.2))
    ax.text((middles[0] + plus) / 2, roof + 0.05, "shortcut", ha="center", va="bottom", fontsize=7)
    ax.set(xlim=(-0.2, plus + 0.8), ylim=(-tall / 2 - 0.5, roof + 0.4))
    ax.set_title(title, loc="left", fontsize=9)
    ax.set_aspect("equal")
    ax.axis("off")


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=8, color="0.2", shrinkA=0, shrinkB=0
        )
    )


def wiring(ax: Axes, convolutions: Sequence[nn.Conv2d], title: str) -> None:
    """Draw who reads whom: a column of squares, the channels, and a line an input that one reads.

    Lines of 1×1 convolutions are solid and thin, of larger kernels dashed; the kernel's size and
    the number of weights stand above.

    Args:
        ax: axes, cleared of ticks.
        convolutions: one after another, each reading what the one before it writes.
        title: what this is.

    """
    counts = [convolutions[0].in_channels, *(c.out_channels for c in convolutions)]
    heights = [[(n - 1) / 2 - i for i in range(n)] for n in counts]
    for x, (conv, ins, outs) in enumerate(zip(convolutions, heights, heights[1:], strict=False)):
        pointwise = conv.kernel_size == (1, 1)
        colour, _ = KINDS["pointwise" if pointwise else "depthwise"]
        for o, to in enumerate(outs):
            group = o * conv.groups // len(outs)
            size = len(ins) // conv.groups
            for start in ins[group * size : (group + 1) * size]:
                ax.plot([x, x + 1], [start, to], "-" if pointwise else "--", color=colour, lw=0.9)
        label = "{}×{}".format(*conv.kernel_size) + f"\n{conv.weight.numel()} weights"
        ax.text(x + 0.5, max(counts) / 2 + 0.2, label, ha="center", va="bottom", fontsize=7)
    for x, column in enumerate(heights):
        ax.plot([x] * len(column), column, "s", color="0.25", markersize=6, linestyle="None")
    ax.set(
        xlim=(-0.3, len(convolutions) + 0.3), ylim=(-max(counts) / 2 - 0.2, max(counts) / 2 + 1.7)
    )
    ax.set_title(title, fontsize=8)
    ax.axis("off")
