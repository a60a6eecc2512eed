"""Print the built site as one PDF, through Chromium: contents with page numbers, links, outline.

Usage: python scripts/pdf.py [SITE] [PDF]      (after `make book`; _build/html, _build/book.pdf)

All pages become one document, printed twice: the second time the contents know the numbers.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

import yaml
from bs4 import BeautifulSoup, Tag
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
#: What a page of the site has and paper does not: links to a heading, folded code, buttons.
ONLY_ON_SCREEN = ".headerlink, details.hide, button, script, .toctree-wrapper, .mnlib-only-screen"

DOCUMENT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="stylesheet" href="_static/pygments.css">
<link rel="stylesheet" href="_static/mnlib.css">
<style>{style}</style>
<script>{mathjax}</script><script defer src="{mathjax_file}"></script>
<script>{fit}</script>
</head><body><div class="title"><h1>{title}</h1><p>{author}</p>
<p>Printed from the built site. What draws or lays out is folded there, and left out here.</p></div>
<nav class="contents"><h1>Contents</h1>{contents}</nav>{articles}</body></html>
"""

#: What is wider than the paper is made smaller, never cut; a table that fits a page stays whole.
FIT = """
window.addEventListener("load", async () => {
  await (window.MathJax?.startup?.promise);
  const room = document.body.clientWidth;
  for (const box of document.querySelectorAll("mjx-container[display], table")) {
    const tag = box.parentElement.querySelector(".eqno");
    const limit = room - (tag && box.matches("mjx-container") ? 2 * tag.offsetWidth : 0);
    const wide = Math.max(box.scrollWidth, box.firstElementChild?.offsetWidth ?? 0);
    if (wide > limit) {
      const size = parseFloat(getComputedStyle(box).fontSize);
      box.style.fontSize = `${(size * limit) / wide}px`;
    }
    if (box.matches("table") && box.offsetHeight > 850) box.classList.add("tall");
  }
});
"""


def chapters() -> list[str]:
    """Return the names of the pages in the book's order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]


def own_names(article: Tag, page: str, pages: list[str]) -> None:
    """Make ids and links of a page those of the whole document; drop links that leave it."""
    for element in article.find_all(id=True):
        element["id"] = f"{page}--{element['id']}"
    for link in article.find_all("a", href=True):
        where, _, anchor = link["href"].partition("#")
        target = where.removesuffix(".html") or page
        if re.match(r"[a-z]+:", where):
            continue
        if target in pages:
            link["href"] = f"#{target}--{anchor or 'top'}"
        else:
            link.unwrap()


def document(site: Path, numbers: dict[str, int]) -> str:
    """Return all pages as one, the contents with the page numbers known so far."""
    pages, lines, articles = chapters(), [], []
    mathjax = mathjax_file = ""
    for page in pages:
        soup = BeautifulSoup((site / f"{page}.html").read_text(encoding="utf-8"), "html.parser")
        for script in soup.find_all("script"):
            if "window.MathJax" in script.text:
                mathjax = script.text
            mathjax_file = script["src"] if "mathjax" in script.get("src", "") else mathjax_file
        article = soup.select_one("article.bd-article")
        for element in article.select(ONLY_ON_SCREEN):
            element.decompose()
        for name in article.select("td p"):  # the long name of a test may break in its table
            for text in name.find_all(string=re.compile(r"\w{30}")):
                text.replace_with(text.replace("_", "_\u200b"))
        own_names(article, page, pages)
        article["id"] = f"{page}--top"
        for heading in article.find_all(["h1", "h2"]):
            section = heading.find_parent("section")
            target = section["id"] if heading.name == "h2" else article["id"]
            kind = "chapter" if heading.name == "h1" else "section"
            lines.append(
                f'<p class="{kind}"><a href="#{target}">{escape(heading.get_text())}</a>'
                f'<span class="dots"></span><span>{numbers.get(target, 0)}</span></p>'
            )
        articles.append(str(article))
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return DOCUMENT.format(
        title=escape(config["title"]),
        author=escape(config["author"]),
        style=(ROOT / "book" / "print" / "print.css").read_text(encoding="utf-8"),
        mathjax=mathjax,
        mathjax_file=mathjax_file,
        fit=FIT,
        contents="".join(lines),
        articles="".join(articles),
    )


def print_page(browser: str, page: Path, pdf: Path) -> None:
    """Let Chromium print a page; its own outline goes along.

    Raises:
        RuntimeError: it wrote no PDF.

    """
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--disable-background-networking", "--virtual-time-budget=60000"]
        command += ["--generate-pdf-document-outline", "--no-pdf-header-footer"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}"]
        command += [f"--print-to-pdf={pdf}", page.resolve().as_uri()]
        result = subprocess.run(command, capture_output=True, text=True)
    if not pdf.exists():
        raise RuntimeError(f"{browser} printed nothing:\n{result.stderr[-2000:]}")


def page_numbers(pdf: Path) -> dict[str, int]:
    """Return on which page each target of a link is."""
    reader = PdfReader(pdf)
    found = reader.named_destinations.items()
    return {name.lstrip("/"): reader.get_destination_page_number(to) + 1 for name, to in found}


def main(site: Path, pdf: Path) -> None:
    """Print the site to ``pdf``."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        sys.exit(
            "the PDF is printed by Chromium, and none of "
            f"{', '.join(NAMES)} is on the path: install one of them"
        )
    if not (site / "index.html").exists():
        sys.exit(f"there is no site in {site}: run `make book` first")
    page = site / "print.html"  # beside the pages, since their pictures are found from there
    pdf.unlink(missing_ok=True)
    numbers: dict[str, int] = {}
    try:
        for _ in range(2):
            page.write_text(document(site, numbers), encoding="utf-8")
            print_page(browser, page, pdf)
            numbers = page_numbers(pdf)
    finally:
        page.unlink(missing_ok=True)
    print(f"{pdf}: {len(PdfReader(pdf).pages)} pages")


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    main(*given, *[ROOT / "_build" / "html", ROOT / "_build" / "book.pdf"][len(given) :])
