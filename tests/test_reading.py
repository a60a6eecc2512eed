"""A page shows the code that a reader learns from; what draws and hands over is folded."""

import ast
import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "book").glob("*.ipynb"))
#: A statement that names one of these draws, lays out, or hands a number to the text.
PLUMBING = re.compile(r"\b(book|plt|fig|ax|axes|diagrams)\.")
FOLDED = {"hide-input", "hide-cell", "remove-input"}


def cells(path: Path) -> list[dict]:
    """Return a notebook's code cells."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def is_open(cell: dict) -> bool:
    """Tell whether a reader sees the code of a cell without asking for it."""
    return not FOLDED & {*cell["metadata"].get("tags", ())}


def lines_of_plumbing(code: str) -> int:
    """Return the number of lines of the statements that draw, lay out or hand over."""
    return sum(
        node.end_lineno - node.lineno + 1
        for node in ast.parse(code).body
        if PLUMBING.search(ast.unparse(node))
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_open_cell_is_longer_than_a_screen_takes_in(path):
    long = [c["id"] for c in cells(path) if is_open(c) and len(c["source"]) > 20]
    assert not long, f"{path.name}: fold or split {long}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_at_most_a_third_of_the_open_lines_are_plumbing(path):
    shown = ["".join(cell["source"]) for cell in cells(path) if is_open(cell)]
    plumbing = sum(map(lines_of_plumbing, shown))
    assert 3 * plumbing <= sum(len(code.splitlines()) for code in shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_folded_says_what_it_does(path):
    for cell in cells(path):
        if "hide-input" in cell["metadata"].get("tags", ()):
            prompt = cell["metadata"].get("mystnb", {}).get("code_prompt_show", "")
            assert len(prompt.split()) > 2, f"{path.name}: {cell['id']}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_table_and_figure_has_a_name_and_a_caption(path):
    for cell in cells(path):
        code, meta = "".join(cell["source"]), cell["metadata"]
        if re.search(r"^book\.\w*table\(", code, re.M):
            about = meta.get("mnlib", {}).get("table", {})
            assert about.get("name", "").startswith("tab-"), f"{path.name}: {cell['id']}"
            assert len(about["caption"]) > 10
        if "plt.show()" in code:
            about = meta.get("mystnb", {})
            assert about.get("figure", {}).get("name", "").startswith("fig-"), cell["id"]
            assert about.get("image", {}).get("alt"), cell["id"]
    assert "# NBVAL_IGNORE_OUTPUT" not in path.read_text(encoding="utf-8"), "use the cell's tag"
