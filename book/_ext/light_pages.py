"""Sphinx extension of the book: a page loads what it uses, and little else.

The theme brings the whole of Bootstrap, Font Awesome and MathJax: of each is kept what
the built pages name.
"""

import logging
import re
import shutil
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx
from sphinx.config import Config

# Scripts and styles of which no page has anything: Thebe runs code on a server and is
# declared twice, the other sets cards and tabs.
UNUSED = ("sphinx-thebe", "THEBE_JS_URL", "sphinx-design", "design-tabs")
# Names, punctuation and blanks in code have the colour of the text around them, and
# operators, the most of all, do without one.
PLAIN = re.compile(r'<span class="(?:n|p|w|o)">([^<]*)</span>')
RULE = re.compile(r"([^{}]*)\{((?:[^{}]|\{[^{}]*\})*)\}")
SELECTOR = re.compile(r"(?:\((?:[^()]|\([^()]*\))*\)|[^,()])+")
ICONS = "vendor/fontawesome/*"
SOLID = re.compile(r"url\(([^)]*/fa-solid-900)\.woff2\)[^;}]*")


def leave_out(app: Sphinx, page: str, template: str, context: dict, tree) -> None:
    """Leave out scripts and styles that no page uses."""
    for kind in ("script_files", "css_files"):
        context[kind] = [
            file
            for file in context[kind]
            if not any(name in f"{file.filename} {file.attributes}" for name in UNUSED)
        ]


def choose_mathjax(app: Sphinx, config: Config) -> None:
    """Start MathJax by the file that loads the parts which ``_config.yml`` names."""
    config.mathjax_path = "mathjax/startup.js"


def named_by(pages: list[Path], scripts: list[Path]) -> set[str]:
    """Return the classes that pages have, and every word of the scripts."""
    found = set()
    for page in pages:
        for names in re.findall(r'class="([^"]*)"', page.read_text(encoding="utf-8")):
            found.update(names.split())
    for script in scripts:
        found.update(re.findall(r"[\w-]+", script.read_text(encoding="utf-8")))
    return found


def shaken(css: str, named: set[str]) -> str:
    """Return a style sheet without the rules for classes that nothing names.

    >>> shaken("a, .b:not(.c) {d: e} .c {f: g} @media print {.c {h: i}}", {"b"})
    'a,.b:not(.c){d: e}'
    """
    # a script may put names together: "bs-" before "tooltip"
    starts = tuple(name for name in named if name.endswith("-") and len(name) > 2)

    def needed(selector: str) -> bool:
        while selector != (less := re.sub(r"\([^()]*\)", "", selector)):
            selector = less  # what :not and :is enclose is no condition
        classes = re.findall(r"\.(-?[a-zA-Z_][\w-]*)", selector)
        return all(name in named or name.startswith(starts) for name in classes)

    def rule(match: re.Match) -> str:
        before, semicolon, head = match[1].rpartition(";")  # as after @import
        head, body = head.strip(), match[2]
        if head.startswith(("@media", "@supports")):
            body = RULE.sub(rule, body)
            kept = head if body.strip() else ""
        elif head.startswith("@"):
            kept = head
        else:
            kept = ",".join(filter(needed, map(str.strip, SELECTOR.findall(head))))
        return before + semicolon + (f"{kept}{{{body}}}" if kept else "")

    return RULE.sub(rule, re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)).strip()


def draw_icons(static: Path) -> None:
    """Keep of Font Awesome's glyphs those that a style sheet still names."""
    sheets = (path.read_text(encoding="utf-8") for path in static.rglob("*.css"))
    text = "".join(sheets)
    codes = {int(code, 16) for code in re.findall(r'"\\([ef][0-9a-f]{3})"', text)}
    codes |= set(map(ord, re.findall("[\ue000-\uf8ff]", text)))
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    (whole,) = static.glob(f"{ICONS}/webfonts/fa-solid-900.ttf")
    font = TTFont(whole)
    subsetter = Subsetter(Options(drop_tables=["FFTM"], layout_features=[]))
    subsetter.populate(unicodes=codes)
    subsetter.subset(font)
    font.flavor = "woff"
    font.save(whole.with_suffix(".woff"))
    for path in static.glob(f"{ICONS}/css/*.css"):
        css = path.read_text(encoding="utf-8")
        path.write_text(SOLID.sub(r"url(\1.woff)", css), encoding="utf-8")


def lighten(app: Sphinx, error: Exception | None) -> None:
    """Take out of the site what its pages do not use."""
    if error is not None or app.builder.name != "html":
        return
    out = Path(app.outdir)
    static, pages = out / "_static", sorted(out.glob("*.html"))
    for path in pages:
        text = path.read_text(encoding="utf-8")
        # Font Awesome's script, 1.4 MB, draws the icons that its style sheet draws too
        text = re.sub(r'<script src="[^"]*/fontawesome/[^"]*"></script>', "", text)
        text = re.sub(r'<link rel="preload" as="font"[^>]*>', "", text)
        path.write_text(PLAIN.sub(r"\1", text), encoding="utf-8")
    scripts = [static.glob("*.js"), static.glob("scripts/*.js"), out.glob("play/*.js")]
    named = named_by(pages, [path for some in scripts for path in some])
    for path in static.rglob("*.css"):
        css = shaken(path.read_text(encoding="utf-8"), named)
        path.write_text(css, encoding="utf-8")
    draw_icons(static)
    mathjax = static / "mathjax"
    for path in mathjax.glob("*"):
        if path.is_file() and path.name not in ("startup.js", "core.js", "loader.js"):
            path.unlink()
        elif path.name in ("sre", "ui", "adaptors"):
            shutil.rmtree(path)


def setup(app: Sphinx) -> dict:
    """Connect the above."""
    app.connect("html-page-context", leave_out, priority=900)
    app.connect("config-inited", choose_mathjax)
    app.connect("build-finished", lighten, priority=900)  # after MathJax is copied
    return {"parallel_read_safe": True, "parallel_write_safe": True}
