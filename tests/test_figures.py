"""A figure of the site is a drawing where that is smaller, and its data are what it shows."""

import base64
import csv
import io
import re

import matplotlib as mpl
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from matplotlib.figure import Figure
from PIL import Image

from mnlib.lab import figures


def read(figure):
    return list(csv.DictReader(figures.data(figure).splitlines()))


def test_the_data_are_the_points_of_lines_clouds_steps_and_bars():
    figure = Figure()
    left, middle, right = figure.subplots(1, 3)
    left.plot([0, 1], [2, 3.25], label="line")
    left.axhline(9)
    left.set(title="title", xlabel="time", ylabel="height")
    middle.scatter([4], [5])
    middle.stairs([6, 7], [0, 1, 2], label="steps")
    middle.errorbar([1], [2], [0.5], label="with error")
    right.barh(["a", "b"], [1, 2], label="bars")
    rows = [(row["series"], row["x"], row["y"]) for row in read(figure)]
    assert {row["panel"] for row in read(figure)} == {"title: height over time", ""}
    assert rows[:2] == [("line", "0", "2"), ("line", "1", "3.25")]
    for row in (
        ("steps", "2", "7"),
        ("with error", "1", "2"),
        ("bars", "1", "a"),
        ("bars", "2", "b"),
    ):
        assert row in rows
    assert {("4", "5"), ("1", "1.5"), ("1", "2.5")} <= {row[1:] for row in rows}
    assert not any(row[2] == "9" for row in rows)


def test_the_bars_beside_the_ticks_of_named_places_have_their_names():
    figure = Figure()
    ax = figure.subplots()
    ax.bar(np.arange(2) - 0.2, [3, 4], 0.4)
    ax.set_xticks([0, 1], ["first", "second"])
    assert [(row["x"], row["y"]) for row in read(figure)] == [("first", "3"), ("second", "4")]


@pytest.mark.parametrize("ticks", [{}, {"yticks": []}, {"yticks": range(2)}])
def test_bars_have_their_names_where_the_axis_shows_none(ticks):
    figure = Figure()
    for ax in figure.subplots(1, 2, sharey=not ticks):  # the right one's names are hidden
        ax.barh(["a", "b"], [1, 2])
        ax.set(**ticks)
    assert [row["y"] for row in read(figure)] == ["a", "b"] * 2


def test_the_bars_of_an_axis_without_ticks_have_their_places():
    figure = Figure()
    ax = figure.subplots()
    ax.barh([1, 2], [3, 4])
    ax.set_yticks([], [])
    assert [row["y"] for row in read(figure)] == ["1", "2"]


def test_of_a_long_curve_every_nth_point_is_given():
    figure = Figure()
    figure.subplots().plot(np.arange(2500))
    assert [row["x"] for row in read(figure)][:2] == ["0", "3"]


def test_a_diagram_has_no_data():
    figure = Figure()
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1])
    ax.set_axis_off()
    assert figures.data(figure) == ""


def test_a_drawing_has_its_pictures_size_and_images_stay_pictures():
    def drawing():
        return figures.bundle(figure)[0].get("image/svg+xml")

    figure = Figure(figsize=(6, 3), dpi=120)
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1])
    with mpl.rc_context({"svg.hashsalt": "mnlib"}):
        text = drawing()
        assert drawing() == text
    png = base64.b64decode(figures.bundle(figure)[0]["image/png"])
    shown = [int(n) for n in re.findall(r'(?:width|height)="(\d+)"', text.partition("viewBox")[0])]
    picture = Image.open(io.BytesIO(png)).size
    assert shown == pytest.approx(picture, abs=2)
    ax.plot(np.random.default_rng(0).random(20_000), marker="o")
    assert drawing() is None
    ax.clear()
    ax.imshow([[0, 1]])
    assert drawing() is None


@pytest.mark.parametrize("asked", [True, False])
def test_only_the_sites_build_asks_for_them(monkeypatch, asked):
    shell = InteractiveShell()
    select_figure_formats(shell, {"png"})
    monkeypatch.setattr(figures, "get_ipython", lambda: shell)
    monkeypatch.setenv("MNLIB_SITE", "1" if asked else "")
    figures.offer()
    figures.offer()  # as a page may that sets its style twice
    figure = Figure()
    figure.subplots().plot([0, 1], [0, 1])
    pictures, about = shell.display_formatter.format(figure)
    assert ("image/svg+xml" in pictures) == asked
    assert about.get("image/png", {}) == ({"csv": figures.data(figure)} if asked else {})
