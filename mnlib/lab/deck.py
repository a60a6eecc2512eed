"""The slides as ``data/slides.toml`` lists them, and how a quotation of them is taken apart.

The book's Sphinx extension reads them here, too: nothing that is slow to import comes along.
"""

import tomllib
from dataclasses import dataclass

from mnlib.lab.places import FOLDER

__all__ = ["Item", "Slide", "ledger", "load_slides", "pieces"]


@dataclass(frozen=True)
class Item:
    """A statement, formula, figure, table or claim of a slide and its ``page#anchor`` here."""

    kind: str
    quote: str
    place: str
    equation: int | None = None


@dataclass(frozen=True)
class Slide:
    """A slide of the deck: its number in the deck's order from 1, its title and its items."""

    number: int
    title: str
    items: tuple[Item, ...]


def ledger(name: str) -> list[dict]:
    """Return the entries of a ledger, a file of ``data/`` with one array of tables.

    Raises:
        FileNotFoundError: the ledger is not there; the message names the remedy.

    """
    path = FOLDER / f"{name}.toml"
    try:
        (entries,) = tomllib.loads(path.read_text("utf-8")).values()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the ledger {path} is missing: in a checkout run: git restore data, "
            "elsewhere install mnlib again"
        ) from None
    return entries


def load_slides() -> list[Slide]:
    """Return the slides in the deck's order."""
    return [
        Slide(number, entry["title"], tuple(Item(**item) for item in entry["item"]))
        for number, entry in enumerate(ledger("slides"), 1)
    ]


def pieces(quote: str) -> list[str]:
    """Return a quotation's words and formulas in turns, words first.

    Formulas stand between dollar signs; one that begins with a backslash is a formula as a whole.

    >>> pieces("if $n_o > n_i$")
    ['if ', 'n_o > n_i', '']
    """
    if quote.startswith("\\"):
        return ["", quote, ""]
    return quote.replace("**", "").replace("\\*", "*").split("$")
