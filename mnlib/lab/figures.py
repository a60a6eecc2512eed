"""What the site gives of a figure beside the picture: a drawing in lines, and its data."""

import base64
import csv
import io
import os
import re
from collections.abc import Iterator

import numpy as np
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.category import StrCategoryFormatter
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.ticker import FuncFormatter

__all__ = ["bundle", "data", "offer"]

#: Of a series of more points, as a curve may have, every second or nth is given.
MOST = 1000


def offer() -> None:
    """Let a figure of the site's build be a drawing where that is smaller, and bring its data.

    Elsewhere, as in a reader's own notebook, a figure stays a picture.
    """
    if not (os.environ.get("MNLIB_SITE") and (shell := get_ipython())):
        return
    from matplotlib_inline import backend_inline  # noqa: F401  (loaded later, it would undo this)

    shell.display_formatter.formatters["image/png"].pop(Figure, None)
    shell.display_formatter.mimebundle_formatter.for_type(Figure, bundle)


def bundle(figure: Figure, include: object = None, exclude: object = None) -> tuple[dict, dict]:
    """Return a figure as PNG, and as SVG where that is smaller and it shows no image; its data."""
    png = print_figure(figure, "png")
    pictures = {"image/png": base64.b64encode(png).decode()}
    if not any(ax.images or _of(ax, QuadMesh) for ax in figure.axes):
        svg = print_figure(figure, "svg", metadata={"Date": None})
        if len(svg.encode()) <= len(png):
            points = figure.dpi / 72  # to the size of the PNG
            pictures["image/svg+xml"] = re.sub(
                r'="([\d.]+)pt"', lambda size: f'="{float(size[1]) * points:.0f}"', svg
            )
    return pictures, {"image/png": {"csv": data(figure)}}


def data(figure: Figure) -> str:
    """Return what the lines, points and bars of a figure show as CSV; nothing of a diagram.

    A picture, as of a confusion matrix, is left out, and of long series what :data:`MOST` says.
    """
    rows = [
        (_panel(ax), label, *(v if isinstance(v, str) else f"{v:.6g}" for v in place))
        for ax in figure.axes
        if ax.axison
        for label, place in _places(ax)
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("panel", "series", "x", "y"), *rows])
    return text.getvalue() if rows else ""


def _of(ax: Axes, kind: type) -> list:
    return [artist for artist in ax.get_children() if isinstance(artist, kind)]


def _panel(ax: Axes) -> str:
    """Return a panel's title and what its axes are."""
    axes = " over ".join(filter(None, (ax.get_ylabel(), ax.get_xlabel())))
    return ": ".join(filter(None, (ax.get_title(), axes)))


def _places(ax: Axes) -> Iterator[tuple[str, tuple]]:
    """Yield the series and the coordinates of each point of a panel."""
    # a line across the panel, as of axhline, is no data
    lines = [line for line in ax.lines if line.get_transform() == ax.transData]
    steps = _of(ax, StepPatch)
    drawn: list[tuple[Artist, np.ndarray]] = [
        *((line, line.get_xydata()) for line in lines),
        *((cloud, cloud.get_offsets()) for cloud in _of(ax, PathCollection)),
        *((bar, part) for bar in _of(ax, LineCollection) for part in bar.get_segments()),
        *((s, np.stack([s.get_data().edges[1:], s.get_data().values], 1)) for s in steps),
    ]
    for artist, places in drawn:
        for x, y in places[:: len(places) // MOST + 1]:
            yield _series(artist, ax), (x, y)
    for bars in ax.containers:
        for bar in bars if isinstance(bars, BarContainer) else ():
            if bars.orientation == "horizontal":
                name = _name(ax.yaxis, bar.get_y() + bar.get_height() / 2)
                yield _series(bar, ax), (bar.get_width(), name)
            else:
                name = _name(ax.xaxis, bar.get_x() + bar.get_width() / 2)
                yield _series(bar, ax), (name, bar.get_height())


def _series(artist: Artist, ax: Axes) -> str:
    """Return the label of an artist or of the container it is in; its number where it has none."""
    inside = (c for c in ax.containers if artist in c.get_children())
    label = str(next(inside, artist).get_label())
    return label.removeprefix("_child").removeprefix("_container")


def _name(axis: Axis, place: float) -> str | float:
    """Return the name that an axis of categories has for a place, else the place."""
    formatter, ticks = axis.get_major_formatter(), axis.get_ticklocs()
    if isinstance(formatter, StrCategoryFormatter):  # it knows them all, with ticks or without
        return formatter(place)
    if not isinstance(formatter, FuncFormatter) or len(ticks) == 0:
        return place
    return formatter(min(ticks, key=lambda tick: abs(tick - place)))
