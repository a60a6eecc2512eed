"""Sphinx extension of the book: strict builds that re-run all, and the slides' numbers.

Jupyter Book has flags for strictness, but nobody should need to know them. A plain
``jupyter-book build book/`` exits non-zero for a broken reference, citation, link or
image, and runs every page again, since an unchanged page may call code that changed.
"""

import re

from docutils.nodes import make_id
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


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


def setup(app: Sphinx) -> dict:
    """Connect the above; ``keep_going`` shows all warnings, then fails the build."""
    app.keep_going = True
    app.connect("env-get-outdated", every_page)
    # this event comes once Sphinx has numbered the equations
    app.connect("env-check-consistency", keep_slides_numbers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
