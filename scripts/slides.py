"""Write the slides anew, in the deck's order, with the book's verdict beside each claim.

Usage: python scripts/slides.py [SITE] [HTML]   (after `make book`; _build/html, _build/slides.html)

One file that needs no network: the verdicts and numbers are those of the built site's ledger, the
figures its pictures, and MathJax is within. Arrow keys or scrolling turn the slides.
"""

import base64
import mimetypes
import sys
from functools import cache
from html import escape
from importlib import metadata
from pathlib import Path

import yaml
from bs4 import BeautifulSoup, Tag

from mnlib.lab.claims import Claim, load_claims, load_errata
from mnlib.lab.deck import Item, Slide, load_slides, pieces

ROOT = Path(__file__).resolve().parents[1]

DOCUMENT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}: slide by slide, with verdicts</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{style}</style>
<script>MathJax = {{startup: {{typeset: true}}, options: {{enableMenu: false}}}};</script>
<script defer src="data:text/javascript;base64,{mathjax}"></script></head>
<body>{slides}<script>{keys}</script></body></html>
"""

KEYS = """
addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, PageDown: 1, ArrowLeft: -1, PageUp: -1 }[event.key];
  if (!step) return;
  const slides = [...document.querySelectorAll("section")];
  const here = slides.findLastIndex((s) => s.getBoundingClientRect().top <= 2);
  slides[Math.min(Math.max(here + step, 0), slides.length - 1)].scrollIntoView();
  event.preventDefault();
});
"""


def formulas(words_and_formulas: list[str]) -> str:
    """Return words and formulas in turns as HTML, the formulas for MathJax."""
    return "".join(
        rf"\({escape(piece)}\)" if i % 2 else escape(piece)
        for i, piece in enumerate(words_and_formulas)
    )


class Site:
    """The built pages, of which the slides take verdicts, numbers and pictures."""

    def __init__(self, folder: Path) -> None:
        """Read the site in ``folder``.

        Raises:
            SystemExit: there is none.

        """
        if not (folder / "conclusion.html").exists():
            sys.exit(f"there is no site in {folder}: run `make book` first")
        self.folder = folder
        self.page = cache(self._page)

    def _page(self, name: str) -> Tag:
        return BeautifulSoup((self.folder / f"{name}.html").read_text("utf-8"), "html.parser")

    def row(self, identifier: str) -> dict[str, str]:
        """Return a row of the ledger by the names of its columns."""
        row = self.page("conclusion").find(id=f"claim-{identifier}").find_parent("tr")
        names = [th.get_text(strip=True) for th in row.find_parent("table").find_all("th")]
        cells = [td.get_text(" ", strip=True) for td in row.find_all("td")]
        return dict(zip(names, cells, strict=True))

    def picture(self, place: str) -> str:
        """Return the figure at ``page#anchor`` with its picture inside, or nothing."""
        page, _, anchor = place.partition("#")
        figure = self.page(page).find("figure", id=anchor)
        image = figure and figure.find("img")
        if not image:
            return ""
        file = self.folder / image["src"]
        kind = mimetypes.guess_type(file.name)[0]
        data = base64.b64encode(file.read_bytes()).decode()
        number = figure.find(class_="caption-number").get_text(strip=True)
        return (
            f'<figure><img src="data:{kind};base64,{data}" alt="{escape(image.get("alt", ""))}">'
            f"<figcaption>Here: {number} of the book</figcaption></figure>"
        )


def chip(text: str) -> str:
    """Return a verdict or a kind of error with its colour."""
    return f'<b class="chip {text.split()[0]} {text.split()[-1]}">{escape(text)}</b>'


def said(item: Item) -> str:
    """Return what a slide says, in its own characters, with its place in the book."""
    page, _, anchor = item.place.partition("#")
    quote = formulas(pieces(item.quote))
    if item.equation:
        quote = rf"\[{escape(item.quote)}\] ({item.equation})"
    link = f'<a href="html/{page}.html#{anchor}" title="its place in the book">→</a>'
    return f"<li>{quote} {link}</li>"


def found(claim: Claim, row: dict[str, str]) -> str:
    """Return what was measured of a claim, with the ledger's verdict and numbers."""
    columns = ("slides", "live", "recorded")
    numbers = ", ".join(f"{name} {row[name]}" for name in columns if row[name] != "–")
    remark = f"<small>{formulas(claim.remark.split('$'))}</small>" if claim.remark else ""
    return (
        f'<li id="claim-{claim.id}">{chip(row["verdict"])} {formulas(claim.claim.split("$"))}'
        f"{f': <strong>{escape(numbers)}</strong>' if numbers else ''}{remark}</li>"
    )


def section(site: Site, slide: Slide) -> str:
    """Return a slide: what it says on the left, what was found on the right."""
    ours = [found(c, site.row(c.id)) for c in load_claims() if c.slide == slide.number]
    for erratum in (e for e in load_errata() if e.slide == slide.number):
        quote, right = formulas(pieces(erratum.quote)), formulas(erratum.right.split("$"))
        ours.append(f"<li>{chip(erratum.kind)} “{quote}”: <small>{right}</small></li>")
    places = dict.fromkeys(item.place for item in slide.items if item.kind == "figure")
    pictures = "".join(map(site.picture, places))
    if not (ours or pictures):
        ours = ["<li>Nothing to measure here.</li>"]
    return (
        f'<section id="slide-{slide.number}"><h2><span>{slide.number}</span> '
        f'{escape(slide.title)}</h2><div><ul class="said">{"".join(map(said, slide.items))}</ul>'
        f'<div class="found"><ul>{"".join(ours)}</ul>{pictures}</div></div></section>'
    )


def main(site: Path, file: Path) -> None:
    """Write the slides to ``file``."""
    book = Site(site)
    title = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["title"]
    # whole, from its package: the site leaves out what its pages do not use
    parts = metadata.files("sphinx-mathjax-offline") or ()
    mathjax = next(part for part in parts if part.name == "tex-svg.js").read_binary()
    text = DOCUMENT.format(
        title=escape(title),
        style=(ROOT / "book" / "print" / "slides.css").read_text(encoding="utf-8"),
        mathjax=base64.b64encode(mathjax).decode(),
        slides="".join(section(book, slide) for slide in load_slides()),
        keys=KEYS,
    )
    file.write_text(text, encoding="utf-8")
    print(f"{file}: {len(load_slides())} slides, {len(text) / 1e6:.1f} MB")


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    main(*given, *[ROOT / "_build" / "html", ROOT / "_build" / "slides.html"][len(given) :])
