"""Sphinx extension of the book: strict builds that re-run everything, and the slides' numbers.

Jupyter Book has flags for strictness, but nobody should need to know them: ``jupyter-book build
book/`` exits non-zero for a broken reference, citation, link target or image, and runs every page
again, since a page that did not change itself may call code that did.
"""

import re

from docutils.nodes import make_id
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def every_page(app: Sphinx, env: BuildEnvironment, *_changes: set[str]) -> set[str]:
    """Let Sphinx read, and so execute, all pages in each build."""
    return env.found_docs


def keep_slides_numbers(app: Sphinx, env: BuildEnvironment) -> None:
    """Number the equation labelled ``eq-slides-7`` as the slides do, (7), wherever it stands."""
    for label, (page, _) in env.get_domain("math").equations.items():
        if match := re.fullmatch(r"eq-slides-(\d+)", label):
            numbers = env.toc_fignumbers.setdefault(page, {}).setdefault("displaymath", {})
            numbers[make_id(f"equation-{label}")] = (int(match[1]),)


def setup(app: Sphinx) -> dict:
    """Connect the above; with ``keep_going`` all warnings are shown, then any sets the status."""
    app.keep_going = True
    app.connect("env-get-outdated", every_page)
    app.connect("env-check-consistency", keep_slides_numbers)  # once Sphinx has numbered them
    return {"parallel_read_safe": True, "parallel_write_safe": True}
