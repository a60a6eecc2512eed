"""The book's pages are run in each build, two at a time, and a page that fails ends it."""

import json
from pathlib import Path

import pytest
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import docutils_namespace, patch_docutils

ROOT = Path(__file__).resolve().parents[1]
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def page(code):
    title = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# A page"}
    table = {"mnlib": {"table": {"caption": "A table.", "name": "tab-one"}}}
    cell = {"cell_type": "code", "id": "b", "metadata": table, "source": code}
    cells = [title, cell | {"execution_count": None, "outputs": []}]
    return json.dumps({"cells": cells, "metadata": KERNEL, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Return a function that builds a small book of the pages in ``tmp_path``."""
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    monkeypatch.delenv("MNLIB_DRAFT", raising=False)
    settings = {
        "extensions": ["myst_nb", "cell_tables", "run_pages"],
        "exclude_patterns": ["_build"],
        "nb_execution_mode": "force",
        "nb_execution_excludepatterns": ["*.ipynb"],  # else MyST-NB would run them once more
    }

    def build():
        with docutils_namespace(), patch_docutils(tmp_path):
            out = tmp_path / "_build" / "html"
            trees = tmp_path / "_build" / "trees"
            new = {"freshenv": True, "status": None, "parallel": 0}
            app = Sphinx(tmp_path, None, out, trees, "html", settings, **new)
            app.build(force_all=True)
        return out

    return build


def test_a_build_runs_all_cells_again_and_a_draft_the_changed(tmp_path, built, monkeypatch):
    count = "from pathlib import Path\nwith Path('{0}.txt').open('a') as f:\n    f.write('{0}')"
    (tmp_path / "index.ipynb").write_text(page(count.format("i")))
    (tmp_path / "other.ipynb").write_text(page(count.format("o") + "\n6 * 7"))
    index = json.loads((tmp_path / "index.ipynb").read_text())
    index["cells"][0]["source"] += "\n\n```{toctree}\nother\n```"
    (tmp_path / "index.ipynb").write_text(json.dumps(index))
    times = [(tmp_path / name).read_text for name in ("i.txt", "o.txt")]

    out = built()
    assert "42" in (out / "other.html").read_text()
    executed = out.parent / "jupyter_execute" / "other.ipynb"  # from it come figures' data
    assert "42" in str(json.loads(executed.read_text())["cells"][1]["outputs"])
    assert [time() for time in times] == ["i", "o"]
    built()
    assert [time() for time in times] == ["ii", "oo"]

    monkeypatch.setenv("MNLIB_DRAFT", str(tmp_path / "_build" / "draft"))
    built()
    assert [time() for time in times] == ["iii", "ooo"]
    changed = page(count.format("o") + "\n6 * 8")
    (tmp_path / "other.ipynb").write_text(changed)
    assert "48" in (built() / "other.html").read_text()
    assert [time() for time in times] == ["iii", "oooo"]


def test_a_page_that_fails_ends_the_build(tmp_path, built):
    (tmp_path / "index.ipynb").write_text(page("print(1 / 0)"))
    with pytest.raises(ExtensionError, match=r"(?s)index failed.*ZeroDivisionError"):
        built()
    assert not (tmp_path / "_build" / "html" / "index.html").exists()


def test_so_does_a_page_that_fails_to_show_what_it_has(tmp_path, built):
    """Jupyter goes on after such an error, and the page would have a traceback for a figure."""
    (tmp_path / "index.ipynb").write_text(
        page("class Figure:\n    def _repr_html_(self):\n        return 1 / 0\n\n\nFigure()")
    )
    with pytest.raises(ExtensionError, match=r"(?s)index shows an error.*division by zero"):
        built()


@pytest.mark.parametrize("asked", ["active", None])
def test_threads_of_two_kernels_wait_asleep_unless_asked_otherwise(
    tmp_path, built, monkeypatch, asked
):
    monkeypatch.setenv("OMP_WAIT_POLICY", asked or "")
    if asked is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    (tmp_path / "index.ipynb").write_text(
        page("import os\n\nprint('threads', os.environ['OMP_WAIT_POLICY'])")
    )
    assert f"threads {asked or 'passive'}" in (built() / "index.html").read_text()
