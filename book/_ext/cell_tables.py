"""Sphinx extension of the book: the tables that cells show, in every output.

A cell shows a table of ``mnlib.lab.book`` as HTML, which is what Jupyter reads. Here it
is read back into a table of docutils, which HTML, LaTeX and EPUB each write as their
own. With ``"mnlib": {"table": {"caption": ..., "name": "tab-..."}}`` in the cell's
metadata it is numbered, and ``{numref}`` finds it.
"""

import json

from bs4 import BeautifulSoup, NavigableString, Tag
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

from mnlib.lab.deck import load_slides, pieces

SLIDES = load_slides()
CHIPS = {
    "reproduced": "good",
    "reproduced with remark": "fair",
    "not reproduced": "bad",
    "sharpened": "good",
    "imprecise": "fair",
    "wrong": "bad",
    "not measured": "open",
}
ROW = '<a class="headerlink" href="#{}" title="Link to this row">#</a>'
UNSEEN = '<span class="visually-hidden">row</span>'
OURS = ('<div class="mnlib-table', '<p class="mnlib-badge')


def quotation(text: str, classes: tuple[str, ...] = ()) -> nodes.inline:
    """Return a quotation of the slides, its formulas set, with its slide's number."""
    number = next(
        (s.number for s in SLIDES if any(text in item.quote for item in s.items)), None
    )
    quoted = nodes.inline("", "", classes=["mnlib-deck", *classes], slide=number)
    words_and_formulas = pieces(text)
    words_and_formulas[0] = "“" + words_and_formulas[0]
    words_and_formulas[-1] += "”"
    for i, piece in enumerate(words_and_formulas):
        quoted += nodes.math("", piece) if i % 2 else nodes.inline("", piece)
    return quoted


def give_captions(app: Sphinx, page: str, source: list[str]) -> None:
    """Hand a table's caption to MyST-NB as a figure's, whose roles it knows."""
    if not app.env.doc2path(page).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        if about := cell["metadata"].get("mnlib", {}).get("table"):
            cell["metadata"].setdefault("mystnb", {})["figure"] = about
    source[0] = json.dumps(notebook)


def formula(tag: Tag) -> str:
    r"""Return the TeX of a formula that is written ``\(...\)`` for MathJax."""
    return tag.get_text().removeprefix(r"\(").removesuffix(r"\)")


def words(tag: Tag) -> list[nodes.Node]:
    """Return what stands in an element, as docutils' inline nodes."""
    found = []
    for child in tag.children:
        if isinstance(child, NavigableString):
            text = nodes.Text(str(child))
            text.support_smartquotes = False  # `--model` is an option, no dash
            found.append(text)
            continue
        classes = child.get("class", [])
        if child.name == "q":
            for span in child.find_all("span", class_="math"):
                span.replace_with(f"${formula(span)}$")
            found.append(quotation(child.get_text()))
        elif "math" in classes:
            found.append(nodes.math("", formula(child)))
        elif child.name == "code":
            found.append(nodes.literal("", child.get_text()))
        elif child.name == "a":
            link = nodes.reference("", "", *words(child), classes=classes)
            # pages are found once the builder is known: see `link_places`
            link["mnlib_place"] = child["href"]
            if "id" in child.attrs:
                link["names"] = [child["id"]]
            found.append(link)
            if link["names"]:
                found.append(nodes.raw("", ROW.format(child["id"]), format="html"))
        elif child.name in ("b", "strong"):
            found.append(nodes.strong("", "", *words(child)))
        elif child.name in ("em", "i"):
            found.append(nodes.emphasis("", "", *words(child)))
        elif child.name == "br":
            found.append(nodes.line())  # `entry` begins a paragraph here
        elif child.name != "wbr":
            classes = ["mnlib-small", *classes] if child.name == "small" else classes
            found.append(nodes.inline("", "", *words(child), classes=classes))
    return found


def entry(cell: Tag) -> nodes.entry:
    """Return a cell of a table, a paragraph for each of its lines."""
    paragraphs = [nodes.paragraph()]
    for node in words(cell):
        if isinstance(node, nodes.line):
            paragraphs.append(nodes.paragraph())
        else:
            paragraphs[-1] += node
    if (text := paragraphs[0].astext()) in CHIPS:
        chip = nodes.inline("", text, classes=["mnlib-chip", f"mnlib-{CHIPS[text]}"])
        paragraphs[0].children = []
        paragraphs[0] += chip
    return nodes.entry("", *paragraphs)


def table(tag: Tag, classes: list[str]) -> nodes.table:
    """Return a table of docutils that says the same as one of HTML."""
    rows = tag.find_all("tr")
    head = [row for row in rows if row.parent.name == "thead"]
    group = nodes.tgroup(cols=len(rows[0].find_all(["th", "td"])))
    for _ in range(group["cols"]):
        group += nodes.colspec(colwidth=1)
    for part, its_rows in ((nodes.thead(), head), (nodes.tbody(), rows[len(head) :])):
        for row in its_rows:
            part += nodes.row("", *map(entry, row.find_all(["th", "td"])))
        if its_rows:
            group += part
    heads = [e for top in group.findall(nodes.thead) for e in top.findall(nodes.entry)]
    for place in heads:
        if not place.astext():  # a screen reader names the column of each cell
            place[0] += nodes.raw("", UNSEEN, format="html")
    if any("mnlib-chip" in word["classes"] for word in group.findall(nodes.inline)):
        classes = [*classes, "mnlib-ledger"]
    return nodes.table("", group, classes=[*classes, "colwidths-auto"])


class ReadTables(SphinxTransform):
    """Replace the HTML of a table or a badge by nodes that every builder can write."""

    default_priority = 200  # before labels are collected, at 850

    def apply(self, **kwargs: object) -> None:
        """Replace them; a caption becomes the table's title."""
        for raw in list(self.document.findall(nodes.raw)):
            if not raw.astext().startswith(OURS):
                continue
            bundle = raw.parent.parent
            tag = BeautifulSoup(raw.astext(), "html.parser").find()
            if tag.name == "p":
                bundle.replace_self(
                    nodes.paragraph("", "", *words(tag), classes=tag["class"])
                )
                continue
            new = table(tag, tag["class"])
            for link in new.findall(nodes.reference):
                if link["names"]:
                    self.document.note_explicit_target(link)
            figure = bundle.parent
            if isinstance(figure, nodes.figure):
                self.entitle(new, figure)
                figure.replace_self(new)
            else:
                bundle.replace_self(new)

    def entitle(self, new: nodes.table, figure: nodes.figure) -> None:
        """Move name and caption of the figure that MyST-NB has made to the table."""
        caption = figure.first_child_matching_class(nodes.caption)
        if caption is not None:
            new.insert(0, nodes.title("", "", *figure[caption].children))
        new["names"], new["ids"] = figure["names"], figure["ids"]
        for identifier in new["ids"]:
            self.document.ids[identifier] = new


def link_places(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Give the links in tables their address, which each builder writes differently."""
    if app.builder.name != "html":  # only a site has links to a row
        for mark in [n for n in tree.findall(nodes.raw) if "headerlink" in n.astext()]:
            mark.parent.remove(mark)
    for link in tree.findall(nodes.reference):
        if place := link.attributes.pop("mnlib_place", None):
            target, _, anchor = place.partition("#")
            target = target.removesuffix(".html")
            address = app.builder.get_relative_uri(page, target)
            link["refuri"] = f"{address}#{anchor}" if anchor else address
            link["internal"] = True


def setup(app: Sphinx) -> dict:
    """Connect the above."""
    app.connect("source-read", give_captions)
    app.add_transform(ReadTables)
    app.connect("doctree-resolved", link_places)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
