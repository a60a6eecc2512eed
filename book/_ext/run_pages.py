"""Sphinx extension of the book: the cells of two pages at a time are run.

A page keeps one core busy most of the time. MyST-NB would run each where Sphinx comes
to it, one after the other; so they are run before, and it finds the outcomes in its
cache. The cache is emptied first, for it knows of edits of the cells alone.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
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


def source(app: Sphinx, page: str) -> NotebookNode:
    """Return a notebook as Sphinx will read it."""
    text = [Path(app.env.doc2path(page)).read_text(encoding="utf-8")]
    app.emit("source-read", page, text)
    return nbformat.reads(text[0], as_version=4)


def run_pages(app: Sphinx, env: BuildEnvironment, pages: list[str]) -> None:
    """Run what Sphinx is about to read; of a draft what the cache has not."""
    folder = Path(env.mystnb_config.execution_cache_path)
    if not os.environ.get("MNLIB_DRAFT"):
        shutil.rmtree(folder, ignore_errors=True)
    cache = get_cache(folder)
    waiting = {}
    for page in pages:
        if env.doc2path(page).endswith(".ipynb"):
            notebook = source(app, page)
            try:
                cache.match_cache_notebook(notebook)
            except KeyError:
                waiting[page] = notebook
    longest_first = sorted(waiting, key=lambda page: -len(str(waiting[page])))

    def run(page: str) -> ExecutionResult:
        cwd = str(Path(env.doc2path(page)).parent)
        return single_nb_execution(waiting[page], cwd, None, allow_errors=False)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for page, result in zip(
            longest_first, pool.map(run, longest_first), strict=True
        ):
            if result.err is not None:
                pool.shutdown(cancel_futures=True)
                raise ExtensionError(f"{page} failed:\n{result.exc_string}")
            LOGGER.info("ran %s in %.0f s", page, result.time)
            about = {"execution_seconds": result.time}
            outcome = CacheBundleIn(result.nb, env.doc2path(page), data=about)
            cache.cache_notebook_bundle(outcome, check_validity=False)


def setup(app: Sphinx) -> dict:
    """Connect the above."""
    app.setup_extension("myst_nb")
    app.connect("env-before-read-docs", run_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
