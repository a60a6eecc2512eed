"""A number in the text that is taken from a record names its run, and no other number does.

This follows the names of a page's code, statement by statement: what is assigned from a record, or
from what was, is taken from it. What a recorded network answers to this build is not.
"""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "book").glob("*.ipynb"))
RECORDS = {"recorded", "load_runs", "trainings"}  # calls that read records
ANEW = {"answers", "evaluate", "load_checkpoint", "trained"}  # a recorded network, asked live
MUTATORS = {"add", "append", "extend", "insert", "update"}


class Page:
    """Which names of a page's code hold what is taken from a record, and what is glued."""

    def __init__(self, code: str):
        self.names: set[str] = set()
        self.functions: dict[str, tuple[bool, bool]] = {}
        self.glued: dict[ast.Call, tuple[bool, bool]] = {}  # is its text taken, is a run named
        self.returned = False
        tree = ast.parse(code)
        self.follow(tree.body)
        calls = {node for node in ast.walk(tree) if last_name(node) == "glue"}
        assert calls == {*self.glued}, "glue at a page's top level, where this test looks"

    def taken(self, node: ast.AST | None) -> bool:
        """Tell whether the value of an expression is taken from a record."""
        match node:
            case ast.Name():
                return node.id in self.names
            case ast.Call() if last_name(node) in RECORDS | ANEW:
                return last_name(node) in RECORDS
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                always, if_given = self.functions[name]
                return always or (if_given and any(map(self.taken, arguments(node))))
            case ast.Dict():
                return any(map(self.taken, node.values))
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                outside = {*self.names}
                for part in node.generators:
                    self.bind(part.target, self.taken(part.iter))
                tests = [test for part in node.generators for test in part.ifs]
                value = node.value if isinstance(node, ast.DictComp) else node.elt
                found = any(map(self.taken, [value, *tests]))
                self.names = outside
                return found
        return any(map(self.taken, ast.iter_child_nodes(node)))

    def bind(self, target: ast.AST, taken: bool) -> None:
        """Assign what is taken from a record, or what is not."""
        match target:
            case ast.Name():
                (self.names.add if taken else self.names.discard)(target.id)
                self.functions.pop(target.id, None)
            case ast.Tuple() | ast.List():
                for each in target.elts:
                    self.bind(each, taken)
            case ast.Starred() | ast.Subscript() | ast.Attribute():  # the rest of it stays
                if taken:
                    self.bind(target.value, taken)

    def follow(self, statements: list[ast.stmt]) -> None:
        """Do what the statements do, as far as it concerns names."""
        for node in statements:
            match node:
                case ast.Assign(targets=[ast.Tuple(elts=to)], value=ast.Tuple(elts=values)):
                    for target, taken in zip(to, [*map(self.taken, values)], strict=True):
                        self.bind(target, taken)
                case ast.Assign():
                    taken = self.taken(node.value)
                    for target in node.targets:
                        self.bind(target, taken)
                case ast.AugAssign() if self.taken(node.value):
                    self.bind(node.target, True)
                case ast.Expr(value=ast.Call() as call):
                    self.call(call)
                case ast.For():
                    for _ in range(2):  # what a turn leaves is there in the next
                        self.bind(node.target, self.taken(node.iter))
                        self.follow(node.body)
                case ast.If():
                    before = {*self.names}
                    self.follow(node.body)
                    after, self.names = self.names, before
                    self.follow(node.orelse)
                    self.names |= after
                case ast.With():
                    self.follow(node.body)
                case ast.FunctionDef():
                    self.bind(ast.Name(node.name), False)
                    found = self.returns(node, False), self.returns(node, True)
                    self.bind(ast.Name(node.name), found[0])
                    self.functions[node.name] = found
                case ast.Return():
                    self.returned |= node.value is not None and self.taken(node.value)

    def call(self, call: ast.Call) -> None:
        """Note what is glued, and what a call writes into an object."""
        if last_name(call) == "glue":
            named = any(self.taken(word.value) for word in call.keywords if word.arg == "run")
            before = self.glued.get(call, (False, False))  # an earlier turn of a loop
            self.glued[call] = before[0] or self.taken(call.args[1]), before[1] or named
        elif any(map(self.taken, arguments(call))):
            if last_name(call) in MUTATORS:
                self.bind(call.func, True)
            elif last_name(call) == "at":  # of NumPy's functions
                self.bind(call.args[0], True)

    def returns(self, function: ast.FunctionDef, given: bool) -> bool:
        """Tell whether a function returns what is taken, or does so if that is given to it."""
        outside, self.returned = ({*self.names}, {**self.functions}, self.returned), False
        for argument in function.args.args:
            self.bind(ast.Name(argument.arg), given)
        self.follow(function.body)
        found = self.returned
        self.names, self.functions, self.returned = outside
        return found

    def faults(self) -> list[str]:
        """Return the keys of calls that should name a run and do not, or the other way round."""
        return [
            f"{ast.unparse(call.args[0])}: {'name its run' if taken else 'this is of no run'}"
            for call, (taken, named) in self.glued.items()
            if taken != named
        ]


def last_name(node: ast.AST) -> str:
    """Return the name of what is called, without what it belongs to."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def arguments(call: ast.Call) -> list[ast.expr]:
    """Return the expressions that are given to a call."""
    return [*call.args, *(word.value for word in call.keywords)]


def page(path: Path) -> Page:
    """Return what is to be known of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return Page("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_number_names_its_run_if_and_only_if_it_is_taken_from_a_record(path):
    assert not page(path).faults()


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("book.glue('k', f'{run.accuracy:.1f}')", "name its run"),
        ("book.glue('k', f'{run.accuracy:.1f}', run=None)", "name its run"),
        ("book.glue('k', f'{run.accuracy:.1f}', run=run)", None),
        ("book.glue('k', f'{1:.1f}', run=run)", "of no run"),
        ("x = run.results\nbook.glue('k', str(x))", "name its run"),
        ("x = run.results\nx = 1\nbook.glue('k', str(x))", None),
        ("x = []\nfor a, b in run.results: x.append(a)\nbook.glue('k', str(x))", "name its run"),
        ("x = {}\nif here: x['a'] = run.seed\nbook.glue('k', str(x))", "name its run"),
        ("book.glue('k', str(sum(r.seed for r in [run])))", "name its run"),
        ("def f(): return run.seed\nbook.glue('k', str(f()))", "name its run"),
        ("def f(x): return x\nbook.glue('k', str(f(run)))", "name its run"),
        ("def f(x): return x\nbook.glue('k', str(f(1)))", None),
        ("x = experiments.trained(run)(images)\nbook.glue('k', str(x))", None),
    ],
)
def test_what_is_taken_from_a_record_is_found(code, fault):
    found = Page(f"run = runs.recorded('a', 'b', 'c')\n{code}").faults()
    assert [fault in each for each in found] == ([] if fault is None else [True])
