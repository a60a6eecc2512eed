"""Site, PDF, slides and downloads say the same: each number of the ledger stands in all four."""

import copy
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbclient import NotebookClient
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from mnlib.lab import book, claims
from mnlib.lab.deck import load_slides

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = claims.load_claims()
PAGE = r"""(sec-first)=
# First

% a remark
It is {glue:text}`one-number` by {cite:t}`knuth`, {cite}`knuth`, {eq}`eq-one`, {prf:ref}`thm-one`,
{numref}`fig-one`, {ref}`sec-first`, {doc}`other`, {ref}`there <sec-first>`; {deck}`May $4$, 2022`.

$$
a = b
$$ (eq-one)

$$ c = d $$

````{prf:theorem} Of $x$
:label: thm-one
So {eq}`eq-one`.
```
raw
```
````

```{exercise} Why?
:label: ex-one
Because.
```

```{solution} ex-one
:class: dropdown
So.
```

```{admonition} Erratum
:class: warning
Not {eq}`eq-one`.
```
"""


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cell(identifier, source, outputs=(), **metadata):
    kind = {"execution_count": 1, "outputs": list(outputs)}
    common = {"id": identifier, "source": source, "metadata": metadata}
    return {"cell_type": "code", **common, **kind}


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    """Return the notebook that a small book offers, as its build made it."""
    folder = tmp_path_factory.mktemp("downloads")
    glued = {
        "output_type": "display_data",
        "data": {"application/papermill.record/text/plain": "'-43.11'"},
        "metadata": {
            "scrapbook": {"mime_prefix": "application/papermill.record/", "name": "one-number"}
        },
    }
    picture = {"output_type": "display_data", "data": {"image/svg+xml": "<svg/>"}, "metadata": {}}
    table = r'<div class="mnlib-table"><table><tr><td>-1 &lt; \(x\)</td></tr></table></div>'
    ledger = {"output_type": "display_data", "data": {"text/html": table}, "metadata": {}}
    figure = {"name": "fig-one", "caption": "As {glue:text}`one-number`."}
    cells = [
        {"cell_type": "markdown", "id": "m", "metadata": {}, "source": PAGE},
        cell("glue", "print(6 * 7)", [glued], tags=["hide-input"]),
        cell("ledger", "1", [ledger]),
        cell("draw", "1", [picture], mystnb={"figure": figure}),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (folder / "page.ipynb").write_text(json.dumps(notebook))
    (folder / "other.md").write_text("# The other\n\n```{bibliography}\n```\n")
    contents = "# All\n\n```{toctree}\n:numbered:\npage\nother\n```\n"
    (folder / "index.md").write_text(contents)
    bib = "@book{knuth, author={Donald Knuth}, title={T}, year={1984}, publisher={A}}"
    (folder / "book.bib").write_text(bib)
    extensions = ["myst_nb", "sphinx_proof", "sphinx_exercise", "sphinxcontrib.bibtex"]
    settings = {
        "extensions": [*extensions, "mnlib_sphinx", "downloads"],
        "nb_execution_mode": "off",
        "html_sourcelink_suffix": "",  # as Jupyter Book has it
        "myst_enable_extensions": ["dollarmath"],
        "numfig": True,
        "bibtex_bibfiles": ["book.bib"],
        "bibtex_reference_style": "author_year",
    }
    sys.path.insert(0, str(ROOT / "book" / "_ext"))
    with docutils_namespace(), patch_docutils(folder):
        out = folder / "_build" / "html"
        app = Sphinx(folder, None, out, folder / "trees", "html", settings, status=None, parallel=0)
        app.build(force_all=True)
    sys.path.remove(str(ROOT / "book" / "_ext"))
    return nbformat.read(out / "_sources" / "page.ipynb", as_version=4)


def test_a_download_says_first_how_to_install(downloaded):
    nbformat.validate(downloaded)
    assert "pip install" in downloaded.cells[0].source


def test_a_download_has_text_for_roles_and_directives(downloaded):
    text = "\n".join(c.source for c in downloaded.cells if c.cell_type == "markdown")
    for raw in ("{", "}`", ":label:", ":class:", "(sec-first)=", "% a remark"):
        assert raw not in re.sub(r"\\tag\{1\.1\}", "", text).replace("{exercise}", ""), raw
    for read in (
        "It is −43.11 by Knuth [1984], [Knuth, 1984], (1.1), Theorem 1.1,\nFig. 1.1, First,",
        "First, The other, there;",
        "“May $4$, 2022”",
        "a = b \\tag{1.1} $$",
        "$$ c = d $$",
        "**Theorem 1.1** (Of $x$)**.** So (1.1).\n```\nraw\n```",
        "**Exercise 1.1** (Why?)**.** Because.",
        "**Solution to Exercise 1.1.** So.",
        "**Erratum.** Not (1.1).",
        "**Fig. 1.1.** As −43.11.",
    ):
        assert read in text


def test_a_table_of_a_download_has_the_pages_minus_signs(downloaded):
    (ledger,) = (c for c in downloaded.cells if c.id == "ledger")
    assert r"<td>−1 &lt; \(x\)</td>" in ledger.outputs[0].data["text/html"]


def test_a_download_runs_in_an_empty_folder(downloaded, tmp_path):
    run = copy.deepcopy(downloaded)
    NotebookClient(run, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    code = [c for c in run.cells if c.cell_type == "code"]
    assert code[0].outputs[0].text == "42\n"
    assert code[0].metadata.jupyter.source_hidden


def said(row):
    """Return a row of the ledger as a text without blanks."""
    return "".join("".join(row[n] for n in ("verdict", "slides", "live", "recorded")).split())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return a site of the book's pages with two headings each, and the ledger on its own."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNLIB_TIER", "embedded")
        ledger = book.claims_table().data
    for page in script("pdf").chapters():
        text = (
            f'<html><body><article class="bd-article"><section id="{page}-one"><h1>Of {page}</h1>'
            f'<p>{"words " * 900}</p><section id="same"><h2>More of {page}</h2>'
            f'<p><a href="conclusion.html#same">there</a> <a href="files/x.html">code</a></p>'
            f"{ledger if page == 'conclusion' else ''}</section></section></article></body></html>"
        )
        (folder / f"{page}.html").write_text(text, encoding="utf-8")
    return folder


def test_the_slides_are_the_decks_with_the_ledgers_verdicts_and_need_no_network(site, tmp_path):
    slides = script("slides")
    slides.main(site, tmp_path / "slides.html")
    text = (tmp_path / "slides.html").read_text(encoding="utf-8")
    soup = BeautifulSoup(text, "html.parser")
    titles = [(s["id"], s.h2.get_text()) for s in soup.find_all("section")]
    deck = load_slides()
    assert titles == [(f"slide-{s.number}", f"{s.number} {s.title}") for s in deck]
    for claim in CLAIMS:
        row = slides.Site(site).row(claim.id)
        entry = soup.find(id=f"claim-{claim.id}")
        assert entry.find_parent("section")["id"] == f"slide-{claim.slide}"
        assert entry.find(class_="chip").get_text() == row["verdict"] == claim.expected
        numbers = entry.strong.get_text() if entry.strong else ""
        for column in ("slides", "live", "recorded"):
            assert (f"{column} {row[column]}" in numbers) == (row[column] != "–")
    for erratum in claims.load_errata():
        section = soup.find(id=f"slide-{erratum.slide}").get_text()
        assert erratum.right.split("$")[0] in section
    loaded = re.findall(r'(?:src|href)="([^"]{5})', text)
    assert {*loaded} <= {"data:", "html/"}


def test_pdf_and_slides_say_in_a_sentence_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="make book"):
        script("slides").main(tmp_path, tmp_path / "slides.html")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"printed by Chromium, and none of chromium, .*: install"):
        script("pdf").main(tmp_path, tmp_path / "book.pdf")
    monkeypatch.setattr(shutil, "which", lambda name: name)
    with pytest.raises(SystemExit, match="make book"):
        script("pdf").main(tmp_path, tmp_path / "book.pdf")


def in_pdf(reader):
    """Return the pages' texts without blanks and ligatures."""
    texts = ("".join(page.extract_text().split()) for page in reader.pages)
    return [t.replace("ﬁ", "fi").replace("ﬀ", "ff").replace("ﬂ", "fl") for t in texts]


needs_chromium = pytest.mark.skipif(
    not any(map(shutil.which, script("pdf").NAMES)), reason="the PDF is printed by Chromium"
)


@needs_chromium
def test_the_pdf_has_contents_that_are_right_an_outline_links_and_the_ledger(site, tmp_path):
    from pypdf import PdfReader

    pdf = script("pdf")
    pdf.main(site, tmp_path / "book.pdf")
    assert not (site / "print.html").exists()
    reader = PdfReader(tmp_path / "book.pdf")
    pages = in_pdf(reader)
    contents = "".join(pages[1 : pages.index(next(p for p in pages if "words" in p))])
    for name in pdf.chapters():
        for heading in (f"Of{name}", f"Moreof{name}"):
            number = int(
                re.search(rf"(?<!More){heading.capitalize()[:1]}{heading[1:]}(\d+)", contents)[1]
            )
            assert heading in pages[number - 1]
            assert pages[number - 1].endswith(str(number)) or str(number) in pages[number - 1][:4]
    outline = json.dumps(reader.outline, default=str)
    assert all(f"More of {name}" in outline for name in pdf.chapters())
    links = [a.get_object() for page in reader.pages for a in page.get("/Annots", [])]
    assert len(links) >= 3 * len(pdf.chapters())
    assert not any("files/x.html" in str(link) for link in links)
    ledger = script("slides").Site(site)
    for claim in CLAIMS:
        assert said(ledger.row(claim.id)) in "".join(pages), claim.id
