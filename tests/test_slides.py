"""Every slide has its place in the book, and every quotation is the deck's, to the character.

The deck is third-party text and not part of the project: where it is not at hand beside the
checkout, the comparison with it is skipped.
"""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from mnlib.lab import claims
from mnlib.lab.deck import load_slides

ROOT = Path(__file__).parents[1]
DECK = ROOT.parent / "shared" / "slides.md"
SLIDES = load_slides()
PAGES = sorted([*(ROOT / "book").glob("*.ipynb"), *(ROOT / "book").glob("*.md")])
LEDGERS = [*claims.load_claims(), *claims.load_errata()]

needs_deck = pytest.mark.skipif(
    not DECK.exists(), reason="the text of the slides is not beside the checkout"
)


def source(page):
    """Return a page's prose, captions included."""
    if page.suffix == ".md":
        return page.read_text("utf-8")
    cells = json.loads(page.read_text("utf-8"))["cells"]
    text = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    figures = [cell["metadata"].get("mystnb", {}).get("figure", {}) for cell in cells]
    captions = [f"{figure['caption']} ({figure['name']})=" for figure in figures if figure]
    return "\n".join(text + captions)


def plain(text):
    """Undo Markdown's bold and bring all white space to one blank."""
    return " ".join(text.replace("**", "").split())


def is_quoted(text, deck):
    """Tell whether all pieces of a quotation stand in the deck, in their order."""
    start = 0
    for piece in plain(text).split(" … "):
        start = deck.find(piece, start) + len(piece)
        if start < len(piece):
            return False
    return True


def formula(latex):
    """Return a formula without white space, the number of the deck and a final stop."""
    return re.sub(r"\\tag\{\d+\}|\s", "", latex).rstrip(".,")


QUOTATIONS = [
    (page, text) for page in PAGES for text in re.findall(r"\{deck\}`([^`]+)`", source(page))
]


@pytest.fixture(scope="module")
def deck():
    return plain(DECK.read_text("utf-8"))


def test_a_changed_character_is_found():
    assert is_quoted("a **b** … d", "a b c d")
    assert not is_quoted("a B", "a b c d")
    assert not is_quoted("d … a", "a b c d")


@needs_deck
def test_the_pages_quote_the_deck(deck):
    assert len(QUOTATIONS) > 50
    assert [(p.stem, text) for p, text in QUOTATIONS if not is_quoted(text, deck)] == []


@pytest.fixture(scope="module")
def parts(deck):
    """The text of each slide, from its title to the next; the titles stand in this order."""
    starts = [0]
    for slide in SLIDES:
        starts.append(deck.index(f"# {plain(slide.title)} ", starts[-1]) + 1)
    return [deck[a:b] for a, b in pairwise([*starts[1:], len(deck)])]


@needs_deck
def test_the_ledgers_quote_the_slide_that_they_name(parts):
    for slide, text in zip(SLIDES, parts, strict=True):
        for item in slide.items:
            assert is_quoted(item.quote, text), (slide.number, item.quote)
    for entry in LEDGERS:
        assert is_quoted(entry.quote, parts[entry.slide - 1]), entry.id


@needs_deck
def test_no_slide_of_the_deck_is_left_out(deck):
    headings = re.findall(r"^#+ (.*)$", DECK.read_text("utf-8"), re.MULTILINE)
    known = {slide.title for slide in SLIDES} | {"How?", "Model Accuracy versus Parameters"}
    assert [heading for heading in headings if plain(heading) not in known] == []
    captions = re.findall(r"^(?:Figure|Table) (\d+):", DECK.read_text("utf-8"), re.MULTILINE)
    listed = [re.match(r"(?:Figure|Table) (\d+):", item.quote) for s in SLIDES for item in s.items]
    assert sorted(captions) == sorted(match[1] for match in listed if match)


def test_the_equations_are_1_to_10_as_printed():
    """The display that the book labels as a slide's is that slide's, to the character."""
    listed = {i.equation: i for slide in SLIDES for i in slide.items if i.equation is not None}
    assert list(listed) == list(range(1, 11))
    shown = {}
    for page in PAGES:
        for latex, number in re.findall(
            r"\$\$\s*((?:(?!\$\$).)+?)\s*\$\$\s*\(eq-slides-(\d+)\)", source(page), re.DOTALL
        ):
            assert int(number) not in shown
            shown[int(number)] = page.stem, latex
    for number, item in listed.items():
        page, latex = shown[number]
        assert item.place == f"{page}#equation-eq-slides-{number}"
        assert formula(latex) == formula(item.quote)


PLACES = sorted(
    {item.place for slide in SLIDES for item in slide.items} | {entry.place for entry in LEDGERS}
)


@pytest.mark.parametrize("place", PLACES)
def test_every_item_has_a_place(place):
    """The build of the book fails, too, where an item's place is not on its page."""
    name, _, anchor = place.partition("#")
    (page,) = (page for page in PAGES if page.stem == name)
    assert f"({anchor.removeprefix('equation-')})" in source(page)


def test_nothing_is_said_to_come_from_a_description_of_the_slides():
    for page in PAGES:
        assert not re.search(r"description of the slides|from a description", source(page))


FRAME = ("index", "data", "certificate", "conclusion")
CHAPTERS = [p for p in PAGES if p.suffix == ".ipynb" and p.stem not in FRAME]


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_ends_with_exercises_what_to_take_away_and_the_claims(page):
    headings = re.findall(r"^## (.*)$", source(page), re.MULTILINE)
    assert headings[-3:] == ["Exercises", "What to take away", "The slides' claims"]
    exercises = re.findall(r"\{exercise\}.*\n:label: (\S+)", source(page))
    solutions = re.findall(r"\{solution\} (\S+)", source(page))
    assert exercises
    assert solutions == exercises
