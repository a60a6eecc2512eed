"""What a result depends on, as hashes: the inputs, the code that it could reach, the versions."""

import ast
import dataclasses
import hashlib
import importlib.util
import io
import platform
import tokenize
from collections.abc import Iterable
from functools import cache, partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from mnlib.lab import data
from mnlib.lab.data.sources import INPUTS

__all__ = ["code", "inputs", "reached", "versions"]

#: Modules that are not followed: what they hand over, data and records, is hashed itself.
HANDED_OVER = (
    "mnlib.lab.data.download",
    "mnlib.lab.data.readers",
    "mnlib.lab.data.sources",
    "mnlib.lab.fingerprint",
    "mnlib.lab.runs",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    names = ("torchvision", "numpy", "pillow", "lightning-fabric")
    ours = {"python": platform.python_version(), "torch": torch.__version__}  # with its build
    return ours | {name: metadata.version(name) for name in names}


@cache
def inputs(name: str) -> dict[str, str]:
    """Return ``source`` and ``sha256`` of an input of the book.

    The hash is of what :func:`mnlib.lab.data.load` returns, so that it does not depend on how the
    input is stored: of images' bytes (photographs' as they came), labels and names, or of the
    names and values of weights.

    Raises:
        FileNotFoundError: the input is not there.

    """
    digest = hashlib.sha256()
    for split in INPUTS[name].splits or ("train",):
        content = data.load(name, split)
        if isinstance(content, dict):
            for key in sorted(content):
                digest.update(f"{key}{tuple(content[key].shape)}".encode())
                digest.update(np.ascontiguousarray(content[key]).data)
            continue
        images, labels = content
        digest.update(f"{split}{len(labels)}".encode() + np.ascontiguousarray(labels).data)
        if isinstance(images, data.Photographs):
            for i, file in enumerate(images.files):
                digest.update(file.encode() + hashlib.sha256(images.encoded(i)).digest())
        else:
            digest.update(f"{images.shape}".encode() + np.ascontiguousarray(images).data)
    source = next(row["source"] for row in data.status() if row["name"] == name)
    return {"source": source, "sha256": digest.hexdigest()}


def code(task: object) -> str:
    """Return the hash of an experiment's description and of the code that it could reach.

    The code is that of the modules of mnlib in which its functions and classes are defined, and of
    all that these import, directly or not, without comments, docstrings and empty lines.
    """
    text, modules = _described(task)
    digest = hashlib.sha256(text.encode())
    for name in sorted(reached(modules)):
        digest.update(f"\n{name}\n{_bare(name)}".encode())
    return digest.hexdigest()


def _described(what: object) -> tuple[str, set[str]]:
    """Return a text that is the same in every process, and the modules of what it names."""
    if isinstance(what, partial):
        parts = {"": what.func, **dict(enumerate(what.args)), **what.keywords}
        name = "partial"
    elif dataclasses.is_dataclass(what) and not isinstance(what, type):
        parts = {field.name: getattr(what, field.name) for field in dataclasses.fields(what)}
        parts[""] = type(what)
        name = "dataclass"
    elif hasattr(what, "__qualname__"):
        return f"{what.__module__}.{what.__qualname__}", {what.__module__}
    else:
        return repr(what), set()
    texts, modules = {}, set()
    for key, part in parts.items():
        texts[key], more = _described(part)
        modules |= more
    return f"{name}({texts})", {m for m in modules if m.partition(".")[0] == "mnlib"}


def reached(modules: Iterable[str]) -> set[str]:
    """Return the modules of mnlib that these import, directly or not, and these themselves."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found and name not in HANDED_OVER:
            found.add(name)
            waiting += _imports(name)
    return found


@cache
def _origin(name: str) -> Path | None:
    """Return the file of a module of mnlib, None if the name is not a module's."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # its parent is no package
        return None
    return Path(spec.origin) if spec and spec.origin else None


@cache
def _imports(name: str) -> tuple[str, ...]:
    found = []
    for node in ast.walk(ast.parse(_origin(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import, which is not followed"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            ours = node.module.partition(".")[0] == "mnlib"
            found += [m if ours and _origin(m) else node.module for m in whole]
    return tuple(m for m in found if m.partition(".")[0] == "mnlib")


@cache
def _bare(name: str) -> str:
    """Return a module's source without comments, docstrings and empty lines."""
    text = _origin(name).read_text(encoding="utf-8")
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                for row in range(first.lineno, first.end_lineno + 1):
                    lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())
