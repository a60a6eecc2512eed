"""Sphinx extension of the book: the pieces that play in the page.

``{play} NAME`` puts a sentence and a table there, for print and for readers without
scripts, and the place in which ``book/play/NAME.js`` draws once a reader comes to it.
The modules of ``book/play/`` go out as one classic script a piece, since Chromium loads
no module from ``file://``.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from mnlib.lab import data

SOURCES = Path(__file__).resolve().parents[1] / "play"

IMPORT = re.compile(r'^import \{ ([\w, ]+) \} from "\./(\w+)\.js";\n', re.MULTILINE)
EXPORT = re.compile(
    r"^export ((?:async )?(?:function|const|class) (\w+))", re.MULTILINE
)


@dataclass(frozen=True)
class Piece:
    """A piece: its title, what is there without scripts, what ``mount`` is given."""

    title: str
    sentence: str
    rows: Callable[[], list[dict[str, str]]]  # the table, its columns the keys
    data: Callable[[], dict] = dict  # goes into the script as JSON
    needs: str = ""  # an input of the book, without which the table is all there is
    write: Callable[[Path], None] = lambda folder: None  # files for play/onnx

    def still(self) -> str:
        """Return the sentence that says why it cannot play, nothing where it can."""
        if not self.needs or data.tier(self.needs) == "real data":
            return ""
        return (
            f"This build is without {self.needs}, which mnlib fetch brings, so that "
            "this piece does not play."
        )


# Each imports what it needs when a page asks for it: with PyTorch that takes seconds,
# and an author waits for them.


def cost() -> Piece:
    """Return chapter 2's cost calculator."""
    from mnlib.lab import play

    return Piece(
        "Cost calculator",
        "With scripts the settings can be turned; here are those that it starts with.",
        play.cost_rows,
        lambda: {"start": play.COST, "forms": play.FORMS},
    )


def flow() -> Piece:
    """Return chapter 4's bench of flows and gradients."""
    from mnlib.lab import play

    return Piece(
        "Flow and adjoint bench",
        "With scripts the start can be dragged and the length, the method and the "
        "steps chosen; here is the gradient by all ways for those that it starts with.",
        play.flow_rows,
        play.flow_data,
    )


def rank() -> Piece:
    """Return chapter 3's slider."""
    from mnlib.lab import play

    about = play.rank_data()
    return Piece(
        "Rank slider",
        "With scripts the number of blocks can be turned and seen in a slice; here is "
        f"the relative error of the whole layer, {about['layer']} of "
        f"{about['network']}, for each number of blocks.",
        play.rank_rows,
        lambda: about,
    )


def photograph() -> Piece:
    """Return chapter 8's network for the reader's photograph."""
    from mnlib.lab import export

    return Piece(
        "Your photograph",
        "With scripts, this network looks at a picture of yours, which stays with you.",
        export.photograph_rows,
        export.photograph,
        needs="onnxruntime_web",
        write=export.write_photograph,
    )


def telephone() -> Piece:
    """Return chapter 7's networks that are timed on the reader's device."""
    from mnlib.lab import export

    return Piece(
        "Your telephone",
        "With scripts, these networks take turns on your device and are timed there.",
        export.telephone_rows,
        export.telephone,
        needs="onnxruntime_web",
        write=export.write_telephone,
    )


PIECES = {piece.__name__: piece for piece in (cost, flow, rank, photograph, telephone)}


def shown(name: str) -> dict:
    """Return what a page shows of a piece; in a draft from where its cells are kept."""
    draft = os.environ.get("MNLIB_DRAFT")
    kept = Path(draft) / f"play-{name}.json" if draft else None
    if kept and kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    piece = PIECES[name]()
    still = piece.still()
    about = {
        "title": piece.title,
        "sentence": still or piece.sentence,
        "rows": piece.rows(),
        "plays": not still,
        "data": {} if still else piece.data(),
    }
    if kept:
        kept.write_text(json.dumps(about), encoding="utf-8")
    return about


def table(rows: list[dict[str, str]]) -> nodes.table:
    """Return rows of text as a table: every builder can write one."""
    group = nodes.tgroup(cols=len(rows[0]))
    group += [nodes.colspec(colwidth=1) for _ in rows[0]]
    for part, lines in (
        (nodes.thead(), [rows[0].keys()]),
        (nodes.tbody(), [r.values() for r in rows]),
    ):
        for line in lines:
            row = nodes.row()
            row += [nodes.entry("", nodes.paragraph("", text)) for text in line]
            part += row
        group += part
    return nodes.table("", group)


class Play(SphinxDirective):
    """``{play} NAME``: the place of a piece, with what stands there without scripts."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a container; its id tells the loader which piece it is."""
        name = self.arguments[0]
        if name not in PIECES:
            raise self.error(
                f"{name!r} is no piece that plays: choose one of {', '.join(PIECES)}"
            )
        about = shown(name)
        return [
            nodes.container(
                "",
                nodes.rubric("", about["title"]),
                nodes.paragraph("", about["sentence"]),
                table(about["rows"]),
                classes=["mnlib-play"] if about["plays"] else [],
                ids=[f"play-{name}"],
                data=about["data"],
            )
        ]


def modules(name: str) -> dict[str, str]:
    """Return the module ``name`` and, before it, what it imports, as text by name."""
    text = (SOURCES / f"{name}.js").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for _, other in IMPORT.findall(text):
        found |= modules(other)
    return found | {name: text}


def bundle(name: str, data: dict) -> str:
    """Return a piece as one classic script, each module a function of its exports.

    Raises:
        ValueError: a module imports or exports in a form that is not read here.

    """
    parts = []
    for module, text in modules(name).items():
        names = [name for _, name in EXPORT.findall(text)]
        text = IMPORT.sub(r"const { \1 } = modules.\2;\n", text)
        text = EXPORT.sub(r"\1", text)
        if left := re.search(r"^(?:import|export)\b.*", text, re.MULTILINE):
            raise ValueError(
                f"book/play/{module}.js: {left[0]!r} is not understood: "
                'write import { a, b } from "./module.js"; and '
                "export function, const or class"
            )
        text = f"{text}return {{ {', '.join(names)} }};\n"
        parts.append(f"modules.{module} = (() => {{\n{text}}})();\n")
    given = json.dumps(data, allow_nan=False, separators=(",", ":"))
    ready = f'mnlibPlay.ready("{name}", modules.{name}.mount, {given});\n'
    return (
        '"use strict";\n(() => {\nconst modules = {};\n'
        + "".join(parts)
        + ready
        + "})();\n"
    )


def write_scripts(app: Sphinx) -> None:
    """Write the loader and the style to ``play/`` of the site."""
    if app.builder.name != "html":
        return
    folder = Path(app.outdir) / "play"
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("loader.js", "play.css"):
        shutil.copyfile(SOURCES / file, folder / file)


def add_loader(
    app: Sphinx, page: str, template: str, context: dict, tree: nodes.document
) -> None:
    """Add the loader to a page on which a piece plays; write what the piece loads."""
    if app.builder.name != "html":
        return
    containers = tree.findall(nodes.container) if tree else []
    playing = [node for node in containers if "mnlib-play" in node["classes"]]
    if playing:
        app.add_js_file("../play/loader.js", loading_method="defer")
    folder = Path(app.outdir) / "play"
    for node in playing:
        name = node["ids"][0].removeprefix("play-")
        script = bundle(name, node["data"])
        (folder / f"{name}.js").write_text(script, encoding="utf-8")
        draft = os.environ.get("MNLIB_DRAFT")
        by = folder / f"{name}.draft"  # says which draft has written the rest
        if draft and by.exists() and by.read_text() == draft:
            continue
        PIECES[name]().write(folder / "onnx")
        if draft:
            by.write_text(draft)
        else:
            by.unlink(missing_ok=True)


def setup(app: Sphinx) -> dict:
    """Connect the above."""
    app.add_directive("play", Play)
    app.connect("builder-inited", write_scripts)
    app.connect("html-page-context", add_loader)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
