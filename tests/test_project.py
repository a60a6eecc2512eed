"""The project's own files agree: floors, requirements, notebooks, configuration."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))

FIRST_HOUSE = sorted({*(ROOT / "mnlib").rglob("*.py")} - {*(ROOT / "mnlib/lab").rglob("*.py")})


def module_of(path: Path) -> str:
    """Return the dotted name of a file of mnlib."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted((ROOT / "mnlib").rglob("*.py"))}


def imports(name: str) -> set[str]:
    """Return the modules that a module of mnlib imports, relative ones and within functions too."""
    path, found = MODULES[name], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".")[: None if path.name == "__init__.py" else -1]
                above = package[: len(package) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in MODULES else base)
    return found


def test_the_first_house_needs_pytorch_and_numpy_only_and_never_the_lab():
    for path in FIRST_HOUSE:
        for name in imports(module_of(path)):
            assert not name.startswith("mnlib.lab"), f"{path.name} imports {name}"
            top = name.partition(".")[0]
            assert top in {"mnlib", "torch", "numpy", *sys.stdlib_module_names}, (path.name, top)


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: {n for n in imports(name) if n in MODULES} - {name} for name in MODULES}
    while free := {name for name, needed in graph.items() if not needed & set(graph)}:
        graph = {name: needed for name, needed in graph.items() if name not in free}
    assert not graph, f"a circle among {sorted(graph)}"


def test_the_first_house_is_read_in_an_evening():
    assert sum(len(path.read_text().splitlines()) for path in FIRST_HOUSE) <= 2800


def test_each_module_says_what_it_offers():
    for name, path in MODULES.items():
        names = [
            ast.literal_eval(node.value)
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        if name not in ("mnlib", "mnlib.lab") and not name.startswith("mnlib.ode."):
            assert names, f"{name} has no __all__"


def test_importing_mnlib_does_not_import_what_is_slow():
    code = (
        "import sys, mnlib, mnlib.pca, mnlib.separable, mnlib.lab.data, mnlib.lab.cli;"
        "print([m for m in ('torchvision', 'tensorflow_datasets', 'sklearn') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_conda_users_get_the_requirements_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert f"python{project['requires-python']}" in conda
    assert conda[-1] == {"pip": ["-c constraints.txt", "-e .[test]"]}


def test_the_constraints_satisfy_the_requirements():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    extras = project["optional-dependencies"]
    for text in project["dependencies"] + extras["book"] + extras["test"]:
        wanted = Requirement(text)
        if wanted.name != "mnlib":
            assert pinned[canonicalize_name(wanted.name)] in wanted.specifier, text


def test_the_table_of_contents_lists_every_page():
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text())
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    listed = {toc["root"], *(chapter["file"] for chapter in chapters)}
    assert listed == {path.stem for path in [*NOTEBOOKS, *BOOK.glob("*.md")]}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
class TestNotebook:
    """A committed notebook was run from top to bottom, on the embedded tier, without an error."""

    @staticmethod
    def code(path):
        return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]

    def test_every_cell_was_run_in_order(self, path):
        assert [c["execution_count"] for c in self.code(path)] == list(
            range(1, len(self.code(path)) + 1)
        )

    def test_no_output_is_an_error_a_picture_or_a_path(self, path):
        for cell in self.code(path):
            for output in cell["outputs"]:
                assert output["output_type"] != "error"
                assert not [k for k in output.get("data", {}) if k.startswith("image/")]
                text = json.dumps(output.get("data", {})) + "".join(output.get("text", ""))
                assert str(ROOT) not in text
                assert str(Path.home()) not in text

    def test_a_cell_that_should_print_does(self, path):
        for cell in self.code(path):
            source = "".join(cell["source"])
            if any(call in source for call in ("print(", "plt.show(", "book.table(", "display(")):
                assert cell["outputs"], f"this cell printed nothing:\n{source}"

    def test_every_figure_has_a_number_a_caption_and_alternative_text(self, path):
        for cell in self.code(path):
            shown = ["".join(o.get("data", {}).get("text/plain", "")) for o in cell["outputs"]]
            if any(text.startswith("<Figure ") for text in shown):
                meta = cell["metadata"].get("mystnb", {})
                assert meta.get("figure", {}).get("caption"), cell["source"]
                assert meta["figure"].get("name", "").startswith("fig-"), cell["source"]
                assert meta.get("image", {}).get("alt"), cell["source"]

    def test_the_tier_is_shown_and_was_embedded(self, path):
        badges = [
            html
            for cell in self.code(path)
            for output in cell["outputs"]
            if "mnlib-badge" in (html := "".join(output.get("data", {}).get("text/html", "")))
        ]
        assert len(badges) == 1
        assert "real data" not in badges[0]

    def test_no_helper_is_longer_than_a_few_lines(self, path):
        for cell in self.code(path):
            for node in ast.walk(ast.parse("".join(cell["source"]))):
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < 12, f"{node.name} belongs in mnlib"


BREAKAGES = {
    "test": "`test_that_is_nowhere`",
    "cell": "```{code-cell}\nassert False\n```",
    "reference": "See {ref}`nowhere`.",
    "citation": "See {cite}`nobody1900`.",
    "equation": "See {eq}`nothing`.",
    "link": "See {doc}`no-such-page`.",
    "image": "![alternative text](no-such.png)",
}
FRONT_MATTER = """---
jupytext: {formats: 'md:myst', text_representation: {extension: .md, format_name: myst}}
kernelspec: {display_name: Python 3, language: python, name: python3}
---

# Page

"""


def build(folder: Path, page: str) -> subprocess.CompletedProcess:
    """Build a book of one page with the real book's settings, by the command that readers use."""
    for name in ("_config.yml", "book/_ext", "book/_static", "book/references.bib"):
        (folder / name).parent.mkdir(exist_ok=True)
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    (folder / "book/_toc.yml").write_text("format: jb-book\nroot: page\n")
    if not (folder / "book/page.md").exists():
        (folder / "book/page.md").write_text(FRONT_MATTER + page + "\n")
    return subprocess.run(
        ["jupyter-book", "build", "book/"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", BREAKAGES)
def test_a_broken_page_fails_the_plain_build(kind, tmp_path):
    for _ in range(1 + (kind == "equation")):  # and a second time, with what the first has kept
        result = build(tmp_path, BREAKAGES[kind])
        assert result.returncode != 0, result.stdout + result.stderr


@pytest.mark.slow
def test_a_second_build_runs_an_unchanged_page_again_and_slides_keep_their_numbers(tmp_path):
    page = """```{code-cell}
print(open("value").read())
```

$$a = b$$ (eq-own)

$$c = d$$ (eq-slides-7)

$$e = f$$ (eq-next)

See {eq}`eq-slides-7`, held by `test_order_of_convergence`; {eq}`eq-next` is in `pca.balance`.
"""
    (tmp_path / "book").mkdir()
    for value in ("first", "second"):
        (tmp_path / "book/value").write_text(f"{value} value")
        result = build(tmp_path, page)
        assert result.returncode == 0, result.stdout + result.stderr
        html = (tmp_path / "_build/html/page.html").read_text()
        assert f"{value} value" in html
    assert '<span class="eqno">(7)' in html
    assert '<a class="reference internal" href="#equation-eq-slides-7">(7)</a>' in html
    assert '<a class="reference internal" href="#equation-eq-next">(2)</a>' in html
    for file, begin in (
        ("tests/test_ode.py", "def test_order_of_convergence("),
        ("mnlib/pca.py", "def balance("),
    ):
        page = f"files/{file.removesuffix('.py').replace('/', '-')}.html"
        line = re.search(rf'href="{page}#line-(\d+)"', html)[1]
        shown = (tmp_path / "_build/html" / page).read_text("utf-8")
        assert '<meta charset="utf-8">' in shown
        assert f'name="line-{line}"' in shown or f'id="line-{line}"' in shown
        assert (ROOT / file).read_text("utf-8").splitlines()[int(line) - 1].startswith(begin)
