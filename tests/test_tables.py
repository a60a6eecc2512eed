"""Tables and numbers of cells are in each output, with caption, and with the run they come from."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from mnlib.lab import book

EXTENSIONS = Path(__file__).resolve().parents[1] / "book" / "_ext"
LEDGER = (
    '<div class="mnlib-table mnlib-prose"><table><thead><tr><th>printed</th></tr></thead><tbody>'
    rf'<tr><td>{book.quotation("is $n_o$")} <a id="claim-x" href="other.html#sec-there">there</a>'
    "<br>and <code>test_this</code></td></tr><tr><td>reproduced with remark</td></tr></tbody>"
    "</table></div>"
)
CAPTION = {"mnlib": {"table": {"caption": "As in {eq}`eq-one`, *twice*.", "name": "tab-one"}}}


CONTENTS = "# All\n\n```{toctree}\n:numbered:\npage\nother\nslides\n```\n"


def glued(key, text, metadata):
    kind = "application/papermill.record/"
    return {
        "output_type": "display_data",
        "data": {f"{kind}text/plain": repr(text)},
        "metadata": {"scrapbook": {"name": key, "mime_prefix": kind}} | metadata,
    }


def cell(identifier, html, metadata):
    data = {"text/html": html, "text/plain": "<IPython.core.display.HTML object>"}
    return {
        "cell_type": "code",
        "id": identifier,
        "metadata": metadata,
        "source": "show",
        "execution_count": 1,
        "outputs": [
            {"output_type": "execute_result", "data": data, "metadata": {}, "execution_count": 1}
        ],
    }


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder, built = tmp_path_factory.mktemp("tables"), tmp_path_factory.mktemp("built")
    text = (
        "# Title\n\n$$ 1 $$ (eq-one)\n\n{numref}`tab-one` and {ref}`it <claim-x>`; "
        "{glue:text}`live` and {glue:text}`old`"
    )
    rows = book.table([{"": "<b>", "c": 1}]).data
    cells = [
        {"cell_type": "markdown", "id": "m", "metadata": {}, "source": text},
        cell("t1", rows, CAPTION),
        cell("t2", LEDGER, {}),
    ]
    cells[1]["outputs"] += [
        glued("live", "-0.50", {}),
        glued("old", "43.15", {"mnlib": {"recorded": "recorded: seed 3"}}),
    ]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "page.ipynb").write_text(json.dumps(notebook))
    (folder / "other.md").write_text("# Other\n\n(sec-there)=\n## There\n")
    (folder / "slides.md").write_text("# Slides\n")
    (folder / "index.md").write_text(CONTENTS)
    settings = {
        "extensions": ["myst_nb", "cell_tables", "web_pages"],
        "nb_execution_mode": "off",
        "myst_enable_extensions": ["dollarmath"],
        "numfig": True,
    }

    @functools.cache
    def build(builder):
        out = built / builder
        with docutils_namespace(), patch_docutils(folder):
            app = Sphinx(
                folder, None, out, built / "trees", builder, settings, status=None, parallel=0
            )
            app.build(force_all=True)
        suffix = {"latex": "*.tex", "html": "page.html"}[builder]
        return next(out.glob(suffix)).read_text()

    sys.path.insert(0, str(EXTENSIONS))
    yield build
    sys.path.remove(str(EXTENSIONS))


def test_html_has_a_numbered_caption_above_and_anchors_and_links(build):
    page = build("html")
    table = page[page.index('id="tab-one"') :]
    caption = table[: table.index("</caption>")]
    assert "Table 1.1" in caption
    assert re.search(r'href="#equation-eq-one">\(1\.1\)</a>, <em>twice</em>', caption)
    assert "&lt;b&gt;" in table
    assert '<th class="head"><p><span class="visually-hidden">row</span></p></th>' in table
    assert 'href="#tab-one"><span class="std std-numref">Table 1.1' in page
    assert re.search(r'<a [^>]*href="other.html#sec-there"[^>]* id="claim-x">there</a>', page)
    assert 'href="#claim-x"' in page
    assert re.search(r"math[^>]*>\\\(n_o\\\)", page)


def test_latex_has_both_tables_and_no_repr_of_python(build):
    text = build("latex")
    assert "IPython" not in text
    assert text.count(r"\begin{tabulary}") == 2
    assert r"\(n_o\)" in text
    assert "test\\_this" in text


def test_a_number_says_where_it_comes_from_and_has_a_true_minus(build):
    page = build("html")
    assert re.search(r'<abbr class="mnlib-number [^>]*title="given by the code [^"]*">−0.50<', page)
    assert re.search(r'<abbr class="[^>]*mnlib-recorded[^>]*title="recorded: seed 3">43.15<', page)
    assert "seed 3" not in build("latex")


def test_a_verdict_is_a_chip_and_its_table_a_ledger(build):
    page = build("html")
    assert '<span class="mnlib-chip mnlib-fair">reproduced with remark</span>' in page
    assert page.count("mnlib-ledger") == 1


def test_a_page_has_a_description_and_the_search_knows_decimals(build):
    page = build("html")
    assert re.search(r'<meta name="description" content="Table 1.1 and it; −0.50 and 43.15', page)


def test_every_verdict_has_a_chip_and_no_extension_makes_an_author_wait_for_torch():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import cell_tables, downloads, light_pages, mnlib_sphinx, play, reference, run_pages\n"
        "assert 'torch' not in sys.modules, 'torch is imported'\n"
        "from mnlib.lab import claims\n"
        "verdicts = {c.expected for c in claims.load_claims()} | {claims.NOT_MEASURED}\n"
        "kinds = {e.kind for e in claims.load_errata()}\n"
        "assert verdicts | kinds <= set(cell_tables.CHIPS), verdicts | kinds\n"
    )
    command = [sys.executable, "-c", code, str(EXTENSIONS)]
    done = subprocess.run(command, cwd=EXTENSIONS.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
