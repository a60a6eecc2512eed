"""Sphinx extension of the book: strict builds, slides, their numbers, code.

Jupyter Book has flags for strictness, but nobody should need to know them. A plain
``jupyter-book build book/`` exits non-zero for a broken reference, citation, link or
image, and runs every page again, since an unchanged page may call code that changed.
"""

import ast
import os
import re
from pathlib import Path

from cell_tables import SLIDES, quotation
from docutils import nodes
from docutils.nodes import make_id
from docutils.utils import new_document
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

from mnlib import __version__

LOGGER = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]


def definitions(path: Path) -> dict[str, int]:
    """Return the line of each function, class and constant at a file's top level."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node.lineno
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name) and target.id.isupper():
                found[target.id] = node.lineno
    return found


TESTS = {
    name: (path, line)
    for path in sorted((ROOT / "tests").glob("test_*.py"))
    for name, line in definitions(path).items()
    if name.startswith("test_")
}


def sources() -> dict[str, tuple[Path, int]]:
    """Return file and line by name: ``mnlib.pca``, ``pca.balance``, ``balance``."""
    found, bare = {}, {}
    for path in sorted((ROOT / "mnlib").rglob("*.py")):
        module = path.relative_to(ROOT).with_suffix("").parts
        module = module[:-1] if module[-1] == "__init__" else module
        found[".".join(module)] = path, 1
        for name, line in definitions(path).items():
            if not name.startswith("_"):
                found[".".join((*module, name))] = path, line
                found[f"{module[-1]}.{name}"] = path, line
                bare.setdefault(name, []).append((path, line))
    # a bare name leads somewhere if it can mean one thing only, and is no common word
    alone = {n: where[0] for n, where in bare.items() if len(where) == 1}
    return {n: w for n, w in alone.items() if "_" in n or n.lower() != n} | found


SOURCES = sources()


def every_page(app: Sphinx, env: BuildEnvironment, *_changes: set[str]) -> set[str]:
    """Let Sphinx read, and so execute, all pages in each build but a draft."""
    return set() if os.environ.get("MNLIB_DRAFT") else env.found_docs


def keep_slides_numbers(app: Sphinx, env: BuildEnvironment) -> None:
    """Number the equation labelled ``eq-slides-7`` (7), as the slides do, others on."""
    slides = {
        f"equation-{make_id(label)}": int(match[1])
        for label in env.get_domain("math").equations
        if (match := re.fullmatch(r"eq-slides-(\d+)", label))
    }
    for page in env.found_docs:
        numbers = env.toc_fignumbers.get(page, {}).get("displaymath", {})
        own = 0
        for name, number in numbers.items():
            own += name not in slides
            numbers[name] = (slides[name],) if name in slides else (*number[:-1], own)


class Quotation(SphinxRole):
    """``{deck}`text```: a quotation of the slides, its formulas set, linked."""

    def run(self) -> tuple[list[nodes.Node], list]:
        """Return a quotation that will be a link."""
        return [quotation(self.text.replace("\x00", "\\"))], []


def cross_reference(page: str, label: str) -> pending_xref:
    """Return a link, yet without a text, to a label of any page."""
    return pending_xref(
        "",
        refdoc=page,
        refdomain="std",
        reftype="ref",
        reftarget=label,
        refexplicit=True,
        refwarn=True,
    )


def write_slides(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the list of the slides into their page."""
    if page != "slides":
        return
    lines = []
    for slide in SLIDES:
        lines += [f"(slide-{slide.number})=", f"## {slide.number}. {slide.title}", ""]
        for item in slide.items:
            anchor = item.place.partition("#")[2].removeprefix("equation-")
            role = "numref" if anchor.startswith("fig-") else "ref"
            role = "eq" if item.equation else role
            quote = f"${item.quote}$" if item.equation else f"{{deck}}`{item.quote}`"
            lines.append(f"- *{item.kind}:* {quote} → {{{role}}}`{anchor}`")
        lines.append("")
    source[0] += "\n" + "\n".join(lines)


def name_slides(app: Sphinx, tree: nodes.document) -> None:
    """Say which slides a section follows; warn where a place is missing."""
    page, found = app.env.docname, {}
    for slide in SLIDES:
        for item in slide.items:
            its_page, _, anchor = item.place.partition("#")
            if its_page != page:
                continue
            node = next(
                (
                    node
                    for node in tree.findall(nodes.Element)
                    if anchor in node.get("ids", ())
                    or anchor in node.get("names", ())
                    or anchor == f"equation-{node.get('label')}"
                ),
                None,
            )
            while node is not None and not isinstance(node, nodes.section):
                node = node.parent
            if node is None:
                message = (
                    "data/slides.toml puts slide %d at #%s, which is not on the page"
                )
                LOGGER.warning(
                    message, slide.number, anchor, location=page, type="mnlib"
                )
            else:
                found.setdefault(node, {})[slide.number] = slide.title
    for section, slides in found.items():
        line = nodes.paragraph(classes=["mnlib-slides"])
        line += nodes.Text("Follows ")
        for i, (number, title) in enumerate(slides.items()):
            link = cross_reference(page, f"slide-{number}")
            link += nodes.inline("", f"slide {number}, {title}")
            line += [nodes.Text(", "), link] if i else link
        title = section.first_child_matching_class(nodes.title)
        section.insert(title + 1, line)


def link_quotations(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Let a quotation lead to its slide."""
    if app.builder.format != "html":
        return
    for quoted in list(tree.findall(nodes.inline)):
        if "mnlib-deck" in quoted["classes"]:
            slides = app.builder.get_relative_uri(page, "slides")
            number = quoted["slide"]
            link = nodes.reference(
                "",
                "",
                refuri=f"{slides}#slide-{number}" if number else slides,
                classes=["mnlib-deck"],
            )
            quoted.replace_self(link)
            link += quoted.children


def page_of(path: Path) -> str:
    """Return the address of the page that shows a file of the project."""
    return "files/" + "-".join(path.relative_to(ROOT).with_suffix("").parts) + ".html"


def link_code(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Let the name of a test or a function lead to its line; a test must exist."""
    if app.builder.name != "html":  # other outputs have no pages of files
        return
    for name in list(tree.findall(nodes.literal)):
        text = name.astext()
        if isinstance(name.parent, nodes.reference):
            continue
        if re.fullmatch(r"test_\w+", text) and text not in TESTS:
            message = "no file of tests/ has %s"
            LOGGER.warning(message, text, location=page, type="mnlib")
            continue
        where = TESTS.get(text) or SOURCES.get(text.partition("(")[0])
        if where is not None:
            path, line = where
            link = nodes.reference("", "", refuri=f"{page_of(path)}#line-{line}")
            name.replace_self(link)
            link += name


FILE_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} · A Deep Dive into MobileNet</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 1rem; font: 0.9rem/1.4 system-ui, sans-serif; }}
.highlight {{ overflow-x: auto; background: none; }}
:target {{ scroll-margin-top: 30vh; }}
{light}
@media (prefers-color-scheme: dark) {{ {dark} }}
</style>
</head>
<body>
<p><a href="../index.html">A Deep Dive into MobileNet</a> ·
<code>{name}</code>{back}</p>
<main role="main">
{code}
</main>
</body>
</html>
"""


def show_files(app: Sphinx, error: Exception | None) -> None:
    """Write the tests and mnlib out as pages with numbered lines."""
    if error is not None or app.builder.name != "html":
        return
    folder = Path(app.outdir) / "files"
    folder.mkdir(exist_ok=True)
    light, dark = (
        HtmlFormatter(style=style).get_style_defs(".highlight")
        for style in ("a11y-high-contrast-light", "a11y-high-contrast-dark")
    )
    shape = HtmlFormatter(linenos="inline", lineanchors="line", anchorlinenos=True)
    draft = bool(os.environ.get("MNLIB_DRAFT"))  # which leaves what has not changed
    for path in {path for path, _ in (*TESTS.values(), *SOURCES.values())}:
        shown = Path(app.outdir) / page_of(path)
        if draft and shown.exists() and shown.stat().st_mtime > path.stat().st_mtime:
            continue
        code = highlight(path.read_text(encoding="utf-8"), PythonLexer(), shape)
        name = path.relative_to(ROOT).as_posix()
        module = path.parent.name if "/ode/" in name else path.stem
        label = f"module-{module}"
        back = ""
        if label in app.env.get_domain("std").anonlabels and "/lab/" not in name:
            back = f' · <a href="../reference.html#{label}">its reference</a>'
        page = FILE_PAGE.format(name=name, back=back, light=light, dark=dark, code=code)
        shown.write_text(page, encoding="utf-8")


def index_files(app: Sphinx) -> list:
    """Let the search find tests and functions by their names, and say no more pages."""
    indexer, fed = app.builder.indexer, set()
    if indexer is None:  # the output has no search
        return []
    for path in {path for path, _ in (*TESTS.values(), *SOURCES.values())}:
        tree = new_document(str(path))
        module = ast.parse(path.read_text(encoding="utf-8"))
        tree += nodes.paragraph("", ast.get_docstring(module) or "")
        tree += nodes.paragraph("", " ".join(definitions(path)))
        page, name = page_of(path).removesuffix(".html"), str(path.relative_to(ROOT))
        indexer.feed(page, page, name, tree)
        fed.add(page)
    prune = indexer.prune  # would drop whatever is no page of Sphinx
    indexer.prune = lambda pages: prune({*pages, *fed})
    return []


def setup(app: Sphinx) -> dict:
    """Connect the above; ``keep_going`` shows all warnings, then fails the build."""
    app.keep_going = True
    app.config.version = __version__  # an EPUB must have one
    app.add_role("deck", Quotation())
    app.connect("env-get-outdated", every_page)
    app.connect("source-read", write_slides)
    app.connect("doctree-read", name_slides)
    # this event comes once Sphinx has numbered the equations
    app.connect("env-check-consistency", keep_slides_numbers)
    app.connect("doctree-resolved", link_quotations)
    app.connect("doctree-resolved", link_code)
    app.connect("html-collect-pages", index_files)
    app.connect("build-finished", show_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
