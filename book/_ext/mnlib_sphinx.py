"""Sphinx extension of the book: strict builds, the slides' numbers, links to the tests.

Jupyter Book has flags for strictness, but nobody should need to know them. A plain
``jupyter-book build book/`` exits non-zero for a broken reference, citation, link or
image, and runs every page again, since an unchanged page may call code that changed.
"""

import ast
import re
from pathlib import Path

from docutils import nodes
from docutils.nodes import make_id
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)

TESTS = {
    function.name: (path, function.lineno)
    for path in sorted(
        (Path(__file__).resolve().parents[2] / "tests").glob("test_*.py")
    )
    for function in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(function, ast.FunctionDef) and function.name.startswith("test_")
}


def every_page(app: Sphinx, env: BuildEnvironment, *_changes: set[str]) -> set[str]:
    """Let Sphinx read, and so execute, all pages in each build."""
    return env.found_docs


def keep_slides_numbers(app: Sphinx, env: BuildEnvironment) -> None:
    """Number the equation labelled ``eq-slides-7`` as the slides do: (7)."""
    for label, (page, _) in env.get_domain("math").equations.items():
        if match := re.fullmatch(r"eq-slides-(\d+)", label):
            numbers = env.toc_fignumbers.setdefault(page, {})
            numbers = numbers.setdefault("displaymath", {})
            numbers[make_id(f"equation-{label}")] = (int(match[1]),)


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
    app.connect("env-get-outdated", every_page)
    # this event comes once Sphinx has numbered the equations
    app.connect("env-check-consistency", keep_slides_numbers)
    app.connect("doctree-resolved", link_tests)
    app.connect("build-finished", show_tests)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
