"""Sphinx extension of the book: strict builds, slides, their numbers, tests.

Jupyter Book has flags for strictness, but nobody should need to know them. A plain
``jupyter-book build book/`` exits non-zero for a broken reference, citation, link or
image, and runs every page again, since an unchanged page may call code that changed.
"""

import ast
import re
import tomllib
from pathlib import Path

from docutils import nodes
from docutils.nodes import make_id
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

LOGGER = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
SLIDES = tomllib.loads((ROOT / "data" / "slides.toml").read_text("utf-8"))["slide"]

TESTS = {
    function.name: (path, function.lineno)
    for path in sorted((ROOT / "tests").glob("test_*.py"))
    for function in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(function, ast.FunctionDef) and function.name.startswith("test_")
}


def every_page(app: Sphinx, env: BuildEnvironment, *_changes: set[str]) -> set[str]:
    """Let Sphinx read, and so execute, all pages in each build."""
    return env.found_docs


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
        """Return a quotation in a link."""
        text = self.text.replace("\x00", "\\")
        number = next(
            (
                number
                for number, slide in enumerate(SLIDES, 1)
                if any(text in item["quote"] for item in slide["item"])
            ),
            None,
        )
        if text.startswith("\\"):  # a formula as a whole
            text = f"${text}$"
        text = text.replace("**", "").replace("\\*", "*")
        quotation = nodes.inline("", "", classes=["mnlib-deck"], slide=number)
        for i, piece in enumerate(f"“{text}”".split("$")):
            quotation += nodes.math("", piece) if i % 2 else nodes.inline("", piece)
        return [quotation], []


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
    for number, slide in enumerate(SLIDES, 1):
        lines += [f"(slide-{number})=", f"## {number}. {slide['title']}", ""]
        for item in slide["item"]:
            anchor = item["place"].partition("#")[2]
            quote = item["quote"]
            if "equation" in item:
                place, quote = (
                    f"{{eq}}`{anchor.removeprefix('equation-')}`",
                    f"${quote}$",
                )
            elif anchor.startswith("fig-"):
                place, quote = f"{{numref}}`{anchor}`", f"{{deck}}`{quote}`"
            else:
                place, quote = f"{{ref}}`{anchor}`", f"{{deck}}`{quote}`"
            lines.append(f"- *{item['kind']}:* {quote} → {place}")
        lines.append("")
    source[0] += "\n" + "\n".join(lines)


def name_slides(app: Sphinx, tree: nodes.document) -> None:
    """Say which slides a section follows; warn where a place is missing."""
    page, found = app.env.docname, {}
    for number, slide in enumerate(SLIDES, 1):
        for item in slide["item"]:
            its_page, _, anchor = item["place"].partition("#")
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
                LOGGER.warning(message, number, anchor, location=page, type="mnlib")
            else:
                found.setdefault(node, {})[number] = slide["title"]
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
    for quotation in list(tree.findall(nodes.inline)):
        if "mnlib-deck" in quotation["classes"]:
            slides = app.builder.get_relative_uri(page, "slides")
            number = quotation["slide"]
            link = nodes.reference(
                "",
                "",
                refuri=f"{slides}#slide-{number}" if number else slides,
                classes=["mnlib-deck"],
            )
            quotation.replace_self(link)
            link += quotation.children


def link_tests(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Let the name of a test lead to its line, and warn where there is no such test."""
    if app.builder.format != "html":
        return
    for name in list(tree.findall(nodes.literal)):
        if re.fullmatch(r"test_\w+", name.astext()):
            if name.astext() not in TESTS:
                message = "no file of tests/ has %s"
                LOGGER.warning(message, name.astext(), location=page, type="mnlib")
                continue
            path, line = TESTS[name.astext()]
            link = nodes.reference("", "", refuri=f"tests/{path.stem}.html#line-{line}")
            name.replace_self(link)
            link += name


def show_tests(app: Sphinx, error: Exception | None) -> None:
    """Write the tests out as pages with numbered lines."""
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir) / "tests"
        folder.mkdir(exist_ok=True)
        for path in {path for path, _ in TESTS.values()}:
            style = HtmlFormatter(
                full=True,
                title=path.name,
                linenos="table",
                lineanchors="line",
                anchorlinenos=True,
            )
            text = highlight(path.read_text(encoding="utf-8"), PythonLexer(), style)
            (folder / f"{path.stem}.html").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict:
    """Connect the above; ``keep_going`` shows all warnings, then fails the build."""
    app.keep_going = True
    app.add_role("deck", Quotation())
    app.connect("env-get-outdated", every_page)
    app.connect("source-read", write_slides)
    app.connect("doctree-read", name_slides)
    # this event comes once Sphinx has numbered the equations
    app.connect("env-check-consistency", keep_slides_numbers)
    app.connect("doctree-resolved", link_quotations)
    app.connect("doctree-resolved", link_tests)
    app.connect("build-finished", show_tests)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
