"""Sphinx extension of the book: the reference of the package, from its docstrings.

Under each function stand the sections of the chapters that use it, the equations of
these, and the tests that call it: found in the code, so that the lists are true.
"""

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

ROOT = Path(__file__).resolve().parents[2]

#: The modules in the order of the chapters.
MODULES = (
    "mnlib.separable",
    "mnlib.pca",
    "mnlib.ode",
    "mnlib.residual",
    "mnlib.cifar",
    "mnlib.gates",
    "mnlib.mobilenet",
    "mnlib.cost",
)


@dataclass
class Uses:
    """Where a function is used: sections as (page, label, title), equations, tests."""

    sections: list[tuple[str, str, str]] = field(default_factory=list)
    equations: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)


def names_in(tree: ast.AST, known: dict[str, str]) -> Iterator[str]:
    """Yield the full names of what of mnlib a piece of code uses.

    ``known`` maps names to full ones; what the code imports is added to it.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mnlib"):
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in known:
            yield known[node.id]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{known.get(node.value.id)}.{node.attr}"


def uses() -> dict[str, Uses]:
    """Return the uses of each full name in the chapters and the tests."""
    found: dict[str, Uses] = {}
    for path in sorted((ROOT / "book").glob("*.ipynb")):
        known: dict[str, str] = {}
        section, here = (path.stem, "", path.stem), set()
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                heading = re.search(r"(?:^\((.+)\)=\n+)?^#+ (.+)$", text, re.MULTILINE)
                if heading:
                    section, here = (path.stem, heading[1] or "", heading[2]), set()
                here |= set(re.findall(r"^\$\$ \((eq-[\w-]+)\)$", text, re.MULTILINE))
                here |= set(re.findall(r"^:label: (eq-[\w-]+)$", text, re.MULTILINE))
                continue
            for name in names_in(ast.parse(text), known):
                entry = found.setdefault(name, Uses())
                if section not in entry.sections:
                    entry.sections.append(section)
                entry.equations += sorted(here - {*entry.equations})
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        known = {}
        list(names_in(tree, known))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for name in {*names_in(node, known)}:
                    found.setdefault(name, Uses()).tests.append(node.name)
    return found


def entry(module: str, name: str, used: Uses) -> Iterator[str]:
    """Yield the lines of a function's, a class's or a constant's entry."""
    thing = getattr(importlib.import_module(module), name)
    kind = "autodata"
    if inspect.isclass(thing):
        kind = "autoclass"
    elif inspect.isfunction(thing):
        kind = "autofunction"
    elif ("", name) not in ModuleAnalyzer.for_module(module).find_attr_docs():
        kind = "py:data"  # autodoc would print the docstring of dict
    yield from ("```{eval-rst}", f".. {kind}:: {module}.{name}")
    yield from ("   :members:",) if kind == "autoclass" else ()
    yield from ("```", "", "```{container} mnlib-uses")
    lines = [f"*Source:* `{module.rpartition('.')[2]}.{name}`"]
    if used.sections:
        links = []
        for page, label, title in used.sections:
            role, target = ("ref", label) if label else ("doc", page)
            links.append(f"{{{role}}}`{title.replace('`', '')} <{target}>`")
        lines.append("*Used in:* " + ", ".join(links))
    if used.equations:
        links = [f"{{eq}}`{label}`" for label in used.equations]
        lines.append("*Equations there:* " + ", ".join(links))
    if used.tests:
        lines.append("*Tests:* " + ", ".join(f"`{test}`" for test in used.tests))
    yield "\\\n".join(lines)
    yield from ("```", "")


def write_reference(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the entries into the page of the reference."""
    if page != "reference":
        return
    found, lines = uses(), []
    for module in MODULES:
        imported = importlib.import_module(module)
        lines += [f"(module-{module.rpartition('.')[2]})=", f"## {module}", ""]
        lines += [inspect.getdoc(imported).partition("\n")[0], ""]
        for name in imported.__all__:
            lines += entry(module, name, found.get(f"{module}.{name}", Uses()))
    source[0] += "\n" + "\n".join(lines)


def setup(app: Sphinx) -> dict:
    """Connect the above to autodoc's settings for this book."""
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("source-read", write_reference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
