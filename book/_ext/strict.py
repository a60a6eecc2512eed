"""Sphinx extension: any warning fails the build, also of a plain ``jupyter-book build book/``.

Jupyter Book's own ``-W`` flag would do the same, but a reader should not need to know it: a broken
reference, citation, link target or image exits non-zero by default. All warnings are shown first.
"""

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict:
    """Turn warnings into a non-zero exit status, after the whole book has been read."""
    app.warningiserror = True
    app.keep_going = True
    return {"parallel_read_safe": True, "parallel_write_safe": True}
