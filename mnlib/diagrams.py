"""Schematic drawings of blocks, of text boxes in a chain and the tensors between them."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from mnlib.book import COLOURS

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
        ax.text(2 * i - 0.375, y + 0.1, text, ha="center", va="bottom", fontsize=6)
    for i, j, text in bypasses:
        left, right, top = 2 * i - 0.6, 2 * j + 1.45, y + 0.8
        ax.plot([left, left, right], [y, top, top], "-", color="black", linewidth=0.8)
        ax.annotate("", (right, y), (right, top), arrowprops=arrow)
        ax.text((left + right) / 2, top + 0.05, text, ha="center", va="bottom", fontsize=7)
    ax.set(xlim=(-0.9, max(2 * len(boxes), ax.get_xlim()[1])), ylim=(y - 0.7, ax.get_ylim()[1]))
    ax.set_aspect("equal")
    ax.axis("off")
