"""Sphinx extension of the book: warnings fail the build, and the slides' equations keep their numbers.

Jupyter Book's ``-W`` flag would do the first too, but nobody should need to know it: a broken
reference, citation, link target or image exits non-zero by default, after all were shown.
"""

import re

from docutils.nodes import make_id
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def keep_slides_numbers(app: Sphinx, env: BuildEnvironment) -> None:
    """Number the equation labelled ``eq-slides-7`` as the slides do, (7), wherever it stands."""
    for label, (page, _) in env.get_domain("math").equations.items():
        if match := re.fullmatch(r"eq-slides-(\d+)", label):
            numbers = env.toc_fignumbers.setdefault(page, {}).setdefault("displaymath", {})
            numbers[make_id(f"equation-{label}")] = (int(match[1]),)


def setup(app: Sphinx) -> dict:
    """Connect the above."""
    app.warningiserror = True
    app.keep_going = True
    app.connect("env-updated", keep_slides_numbers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
