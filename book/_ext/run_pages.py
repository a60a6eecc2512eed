"""Sphinx extension of the book: the cells of all pages are run, two pages at a time.

A page keeps one core busy most of the time, and MyST-NB would run one after the other.
So they are run before Sphinx reads them, and it reads what came of that. In a draft
pages come from the cache in the folder ``MNLIB_DRAFT`` if their cells are there.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import ExecutionResult, single_nb_execution
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)

AT_ONCE = 2  # a kernel takes up to 2 GB

OUTCOMES: dict[str, NotebookNode] = {}


def read(app: Sphinx, page: str) -> NotebookNode:
    """Return a notebook as Sphinx will read it."""
    text = [Path(app.env.doc2path(page)).read_text(encoding="utf-8")]
    app.emit("source-read", page, text)
    return nbformat.reads(text[0], as_version=4)


def errors_shown(notebook: NotebookNode) -> str:
    """Return tracebacks of cells that went on, as where a figure cannot be shown."""
    outputs = (out for cell in notebook.cells for out in cell.get("outputs", ()))
    return "\n".join(
        "\n".join(out.traceback) for out in outputs if out.output_type == "error"
    )


def run_pages(app: Sphinx, env: BuildEnvironment, pages: list[str]) -> None:
    """Run what Sphinx is about to read."""
    OUTCOMES.clear()
    folder = os.environ.get("MNLIB_DRAFT")
    cache = get_cache(folder) if folder else None
    waiting = {p: read(app, p) for p in pages if env.doc2path(p).endswith(".ipynb")}
    if cache:
        for page in list(waiting):
            with suppress(KeyError):  # its cells are not there
                OUTCOMES[page] = cache.merge_match_into_notebook(waiting[page])[1]
                del waiting[page]
    longest_first = sorted(waiting, key=lambda page: -len(str(waiting[page])))

    def run(page: str) -> ExecutionResult:
        cwd = str(Path(env.doc2path(page)).parent)
        return single_nb_execution(waiting[page], cwd, None, allow_errors=False)

    # A kernel has a thread for every core: if those that wait would spin, two kernels
    # would take up to ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for page, done in zip(longest_first, pool.map(run, longest_first), strict=True):
            if done.err is not None:
                pool.shutdown(cancel_futures=True)
                raise ExtensionError(f"{page} failed:\n{done.exc_string}")
            if shown := errors_shown(done.nb):
                pool.shutdown(cancel_futures=True)
                raise ExtensionError(f"{page} shows an error:\n{shown}")
            LOGGER.info("ran %s in %.0f s", page, done.time)
            OUTCOMES[page] = done.nb
            if cache:
                outcome = CacheBundleIn(done.nb, env.doc2path(page))
                cache.cache_notebook_bundle(outcome, check_validity=False)


def hand_over(app: Sphinx, page: str, source: list[str]) -> None:
    """Let Sphinx read a page with its outcomes."""
    if page in OUTCOMES:
        source[0] = nbformat.writes(OUTCOMES[page])


def setup(app: Sphinx) -> dict:
    """Connect the above."""
    app.setup_extension("myst_nb")
    app.connect("env-before-read-docs", run_pages)
    app.connect("source-read", hand_over, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
