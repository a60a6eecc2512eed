"""Sphinx extension of the book: what the download button gives is a notebook that runs.

Sphinx offers a page's source, in which only Sphinx understands the roles. Here it is
replaced by what the build has run: numbers, references and citations are text, and a
first cell says how to install what the code imports.
"""

import ast
import json
import os
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from cell_tables import OURS
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util import logging
from web_pages import minus

LOGGER = logging.getLogger(__name__)

INSTALL = """This is a page of the executable book *A Deep Dive into MobileNet*, as
its build ran it. Its code imports `mnlib`: to run it, install that from a clone of the
book's repository, in the clone's folder, and open the notebook with the Python that it
was installed for.

```
pip install -c constraints.txt -e ".[book]"
```"""

DIRECTIVE = re.compile(
    r"^(?P<fence>[`:]{3,})\{(?P<name>[\w:-]+)\}[ ]*(?P<title>[^\n]*)\n"
    r"(?P<body>.*?)^(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL,
)
OPTIONS = re.compile(r"(?:^:[\w-]+:.*\n)+", re.MULTILINE)
DISPLAY = re.compile(r"\$\$((?:(?!\$\$).)+)\$\$(?: *\(([\w-]+)\))?", re.DOTALL)
FOR_SPHINX = re.compile(r"^(?:\([\w-]+\)=|%.*)\n+", re.MULTILINE)
ROLE = re.compile(r"\{([a-z:]+)\}`([^`]+)`")
DOMAINS = {"eq": "math", "cite": "cite", "prf": "prf"}


def reference(app: Sphinx, page: str, role: str, text: str) -> str:
    """Return what a cross-reference or a citation reads in the built page."""
    domain, _, kind = role.partition(":")
    kind = kind or {"cite": "p"}.get(role, role)
    explicit = re.fullmatch(r"(.+?)\s*<([^<>]+)>", text, re.DOTALL)
    target = explicit[2] if explicit else text
    target = target.lower() if kind in ("ref", "numref") and domain != "prf" else target
    place = pending_xref(
        "",
        refdoc=page,
        refdomain=DOMAINS.get(domain, "std"),
        reftype=kind,
        reftarget=target,
        refexplicit=explicit is not None,
    )
    content = nodes.inline("", explicit[1] if explicit else text)
    place += content.deepcopy()
    domain = app.env.get_domain(DOMAINS.get(domain, "std"))
    found = domain.resolve_xref(
        app.env, page, app.builder, kind, target, place, content
    )
    if found is None:
        LOGGER.warning("no text for {%s}`%s`", role, text, location=page, type="mnlib")
        return text
    return found.astext()


def role(app: Sphinx, page: str, glued: dict[str, str], match: re.Match) -> str:
    """Return a role as plain Markdown; one that is none of ours stays."""
    name, text = match.groups()
    if name == "glue:text":
        return glued.get(text, match[0])  # the build has warned of one that is missing
    if name == "deck":
        return f"“{text}”"
    known = name in ("ref", "numref", "doc", "eq") or name.startswith(("cite", "prf"))
    return reference(app, page, name, text) if known else match[0]


def numbered(app: Sphinx, page: str, kind: str, label: str) -> str:
    """Return ``Theorem 2.1`` for a label, or the kind alone where it has no number."""
    numbers = app.env.toc_fignumbers.get(page, {})
    parts = next((n[label] for n in numbers.values() if label in n), ())
    return " ".join(
        [kind.capitalize(), *([".".join(map(str, parts))] if parts else [])]
    )


def directive(app: Sphinx, page: str, match: re.Match) -> str:
    """Return a directive as plain Markdown: name or title in bold before its text."""
    name, title, body = match["name"], match["title"], match["body"]
    options = OPTIONS.match(body)
    label = re.search(r"^:label: *(\S+)", options[0] if options else "", re.MULTILINE)
    body = body[options.end() if options else 0 :].strip()
    body = DIRECTIVE.sub(partial(directive, app, page), body)
    if name in ("tableofcontents", "play"):
        return ""
    kind = name.removeprefix("prf:")
    if kind == "solution":
        return f"**Solution to {numbered(app, page, 'exercise', title)}.** {body}"
    if kind == "admonition":
        return f"**{title}.** {body}"
    head = numbered(app, page, kind, label[1]) if label else kind.capitalize()
    return f"**{head}**{f' ({title})' if title else ''}**.** {body}"


def plain(app: Sphinx, page: str, glued: dict[str, str], text: str) -> str:
    """Return a page's Markdown without what only Sphinx reads."""

    def display(match: re.Match) -> str:
        formula, label = match.groups()
        number = (
            f" \\tag{{{reference(app, page, 'eq', label).strip('()')}}}"
            if label
            else ""
        )
        return f"$${formula.rstrip()}{number} $$"

    text = FOR_SPHINX.sub("", text)
    text = DIRECTIVE.sub(partial(directive, app, page), text)
    return ROLE.sub(partial(role, app, page, glued), DISPLAY.sub(display, text))


def caption(
    metadata: dict, say: Callable[[str], str], number: Callable[[str], str]
) -> str:
    """Return the caption of a cell's figure or table with its number, or nothing."""
    about = metadata.get("mystnb", {}).get("figure") or metadata.get("mnlib", {}).get(
        "table"
    )
    if not about:
        return ""
    return f"**{number(about['name'])}.** {say(about['caption'])}"


def signs(text: str) -> str:
    """Return a table of a cell with the minus signs that the page has."""
    soup = BeautifulSoup(text, "html.parser")
    for place in soup.find_all(["td", "th"]):
        for words in place.find_all(string=True):
            if not words.find_parent("code") and not words.find_parent(class_="math"):
                words.replace_with(minus(words))
    return str(soup)


def download(
    app: Sphinx, page: str, notebook: nbformat.NotebookNode, glued: dict[str, str]
) -> None:
    """Make the executed notebook of a page one that runs elsewhere, in place."""
    say = partial(plain, app, page, glued)
    cells = [nbformat.v4.new_markdown_cell(INSTALL, id="install")]
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            cell.source = say(cell.source)
            continue
        folded = "hide-input" in cell.metadata.get("tags", ())
        text = caption(
            cell.metadata, say, lambda name: reference(app, page, "numref", name)
        )
        if text:
            cells.append(nbformat.v4.new_markdown_cell(text, id=f"{cell.id}-caption"))
        for output in cell.outputs:
            output.get("metadata", {}).get("image/png", {}).pop("csv", None)
            if output.get("data", {}).get("text/html", "").startswith(OURS):
                output.data["text/html"] = signs(output.data["text/html"])
        cell.metadata = {"jupyter": {"source_hidden": True}} if folded else {}
    notebook.cells = cells


def write_downloads(app: Sphinx, error: Exception | None) -> None:
    """Replace each notebook among the site's sources."""
    if error is not None or app.builder.format != "html":
        return
    if os.environ.get("MNLIB_DRAFT"):  # its author looks at it, and downloads nothing
        return
    # Each reference reads the tree of its page, and would unpickle it once more.
    app.env.get_doctree = cache(app.env.get_doctree)
    for page in sorted(app.env.found_docs):
        offered = Path(app.outdir) / "_sources" / f"{page}.ipynb"
        executed = Path(app.outdir).parent / "jupyter_execute" / f"{page}.ipynb"
        if not offered.exists() or not executed.exists():
            continue
        # where MyST-NB keeps what the cells have handed to the text
        kept = executed.with_suffix(".glue.json")
        numbers = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
        glued = {
            name: minus(ast.literal_eval(about["data"]["text/plain"]))
            for name, about in numbers.items()
        }
        notebook = nbformat.read(executed, as_version=4)
        download(app, page, notebook, glued)
        nbformat.write(notebook, offered)


def setup(app: Sphinx) -> dict:
    """Connect the above."""
    app.connect("build-finished", write_downloads)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
