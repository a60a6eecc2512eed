"""The slides as ``data/slides.toml`` lists them, and how a quotation of them is taken apart.

The book's Sphinx extension reads them here, too: nothing that is slow to import comes along.
"""

import tomllib
from dataclasses import dataclass
from typing import Any, TypeVar

from mnlib.lab.files import checked
from mnlib.lab.places import FOLDER

__all__ = ["Item", "Slide", "ledger", "load_slides", "pieces"]


T = TypeVar("T")


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


def ledger(name: str, kind: type[T]) -> list[T]:
    """Return the entries of a ledger, a file of ``data/`` with one array of tables, as ``kind``.

    Raises:
        FileNotFoundError: the ledger is not there; the message names the remedy.
        ValueError: it is no TOML, or an entry lacks a field, has an unknown or a wrong one.

    """
    path = FOLDER / f"{name}.toml"
    try:
        (entries,) = tomllib.loads(path.read_text("utf-8")).values()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the ledger {path} is missing: in a checkout run: git restore data, "
            "elsewhere install mnlib again"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path.name} is no ledger ({error}): restore it from git") from error
    return [_entry(f"entry {n} of {path.name}", kind, entry) for n, entry in enumerate(entries, 1)]


def _entry(where: str, kind: type[T], entry: Any) -> T:
    try:
        return checked(kind, entry)
    except ValueError as error:
        raise ValueError(
            f"{where} is broken ({error}): mend it, or restore the file from git"
        ) from error


@dataclass(frozen=True)
class _Entry:
    title: str
    item: list


def load_slides() -> list[Slide]:
    """Return the slides in the deck's order."""
    return [
        Slide(
            number,
            entry.title,
            tuple(_entry(f"slide {number} of slides.toml", Item, item) for item in entry.item),
        )
        for number, entry in enumerate(ledger("slides", _Entry), 1)
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
