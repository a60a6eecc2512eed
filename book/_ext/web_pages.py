"""Sphinx extension of the book: what only a site needs.

Descriptions for those who list pages, a search that finds numbers and code, numbers
that say where they come from, figures for a dark page and their data.
"""

import html
import json
import os
import re
from pathlib import Path

from docutils import nodes
from myst_nb.ext.glue.roles import PasteTextRole
from myst_nb.ext.glue.utils import retrieve_glue_data
from PIL import Image
from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

LIVE = "given by the code of this page, from its inputs and records, in this build"


class Search(SearchEnglish):
    """Sphinx's search in English, for which 43.15 is one word, not two numbers."""

    lang = "en"
    _word_re = re.compile(r"\d+(?:[.,]\d+)+|\w+")
    js_splitter_code = (
        "var splitQuery = (query) => "
        r"query.match(/\d+(?:[.,]\d+)+|[\p{Letter}\p{Number}_]+/gu) || [];"
    )


class Number(PasteTextRole):
    """``{glue:text}``: a number that knows whether it is recorded, and by which run."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the number with a true minus sign."""
        found, messages = super().run()
        for node in found:
            if isinstance(node, nodes.inline):  # else it is glued on another page
                data = retrieve_glue_data(self.document, self.text.partition(":")[0])
                node["recorded"] = data.metadata.get("mnlib", {}).get("recorded", "")
        return found, messages


def minus(text: str) -> str:
    """Return text whose hyphens before digits are minus signs, and no zero negative.

    >>> minus("-0.30 to -0.0, 10-fold, 1e-5")
    '−0.30 to 0.0, 10-fold, 1e-5'
    """
    text = re.sub(r"(?<![\w.])-(0(?:\.0+)?)(?![.\d])", r"\1", text)
    return re.sub(r"(?<![\w.)])-(?=\.?\d)", "−", text)


def set_signs(app: Sphinx, tree: nodes.document) -> None:
    """Write minus signs in the numbers that cells show or glue."""
    places = [n for n in tree.findall(nodes.inline) if "pasted-text" in n["classes"]]
    places += [n for n in tree.findall(nodes.entry)]
    for place in places:
        for text in list(place.findall(nodes.Text)):
            if isinstance(text.parent, (nodes.math, nodes.literal)):
                continue
            if (new := minus(text)) != text:
                text.parent.replace(text, nodes.Text(new))


def tell_origins(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Let a glued number say on hover where it comes from."""
    if app.builder.name != "html":
        return
    for number in list(tree.findall(nodes.inline)):
        if "recorded" in number:
            recorded = number["recorded"]
            classes = ["mnlib-number", *["mnlib-recorded"] * bool(recorded)]
            told = nodes.abbreviation(
                "", "", *number.children, explanation=recorded or LIVE, classes=classes
            )
            number.replace_self(told)


def mark_drawings(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Mark the pictures that are mostly white paper: a dark page turns them over."""
    for image in tree.findall(nodes.image):
        path = Path(app.srcdir, image["uri"])
        if path.suffix == ".svg":
            image["classes"].append("mnlib-drawing")
        elif path.suffix == ".png" and path.exists():
            with Image.open(path) as picture:
                small = picture.convert("L").reduce(4)
                white = small.histogram()[-6:]
                if sum(white) > 0.5 * small.width * small.height:
                    image["classes"].append("mnlib-drawing")


def offer_data(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Link the data of each figure, which its cell gave with it, in its caption."""
    executed = Path(app.outdir).parent / "jupyter_execute" / f"{page}.ipynb"
    if app.builder.name != "html" or not executed.exists():
        return
    tables = {}
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
        name = cell["metadata"].get("mystnb", {}).get("figure", {}).get("name")
        for output in cell.get("outputs", ()):
            about = output.get("metadata", {}).get("image/png", {})
            tables[name] = about.get("csv") or tables.get(name)
    folder = Path(app.outdir, "_downloads")
    for figure in tree.findall(nodes.figure):
        name = next(iter(figure["names"]), None)
        if table := tables.get(name):
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.csv").write_text(table, encoding="utf-8")
            caption = figure[figure.first_child_matching_class(nodes.caption)]
            link = nodes.reference("", "Data (CSV)", refuri=f"_downloads/{name}.csv")
            caption += nodes.inline("", " ", link, classes=["mnlib-only-screen"])


def describe(app: Sphinx, page: str, template: str, context: dict, tree) -> None:
    """Give a page its description."""
    if tree is None:
        return
    about = app.config.html_title or app.config.project
    for paragraph in tree.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section) and not paragraph["classes"]:
            about = " ".join(paragraph.astext().split())
            break
    if len(about) > 200:
        about = about[:200].rpartition(" ")[0] + " …"
    title = re.sub(r"<.*?>", "", context["title"])
    properties = {
        "og:title": html.unescape(title),
        "og:description": about,
        "og:type": "article",
        "og:site_name": app.config.html_title,
    }
    lines = [f'<meta name="description" content="{html.escape(about)}"/>']
    lines += [
        f'<meta property="{name}" content="{html.escape(text)}"/>'
        for name, text in properties.items()
    ]
    context["metatags"] = context.get("metatags", "") + "\n".join(lines)


def setup(app: Sphinx) -> dict:
    """Connect the above."""
    app.setup_extension("myst_nb")
    os.environ["MNLIB_SITE"] = "1"  # for mnlib.lab.figures in the cells
    app.add_search_language(Search)
    app.add_role_to_domain("glue", "text", Number(), override=True)
    app.connect("doctree-read", set_signs)
    app.connect("doctree-resolved", tell_origins)
    app.connect("doctree-resolved", mark_drawings)
    app.connect("doctree-resolved", offer_data)
    app.connect("html-page-context", describe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
