"""The scripts of the project's own making keep what they write up to date."""

import importlib.util
from pathlib import Path

from mnlib.lab import claims, runs

ROOT = Path(__file__).parents[1]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_results_of_readme_are_those_of_ledger_and_records(monkeypatch):
    monkeypatch.setenv("MNLIB_TIER", "embedded")
    readme = script("readme")
    text = readme.README.read_text(encoding="utf-8")
    assert readme.written(text) == text, "run: python scripts/readme.py"


def test_the_runs_that_claims_rest_on_are_recorded():
    recorded = {run.name: run for run in runs.load_runs()}
    for claim in claims.load_claims():
        assert claim.run in {"", *recorded}
        if claim.run and recorded[claim.run].accuracy is not None:
            measured = claims.MEASURES[claim.id][1]()
            assert measured == 100 * recorded[claim.run].accuracy


def test_the_drafts_cache_is_new_for_whatever_may_change_an_outcome(tmp_path, monkeypatch):
    draft = script("draft")
    for folder in ("mnlib/lab", "data/runs", "inputs"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("mnlib/pca.py", "mnlib/lab/book.py", "data/sha256sums", "inputs/weights.pth"):
        (tmp_path / file).write_text("1")
    monkeypatch.setattr(draft, "ROOT", tmp_path)
    monkeypatch.delenv("MNLIB_TIER", raising=False)
    monkeypatch.setenv("MNLIB_DATA", str(tmp_path / "inputs"))
    seen = {draft.state()}
    assert draft.state() in seen
    for file in ("mnlib/pca.py", "mnlib/lab/book.py", "data/sha256sums", "inputs/weights.pth"):
        (tmp_path / file).write_text("12")
        assert draft.state() not in seen, file
        seen.add(draft.state())
    monkeypatch.setenv("MNLIB_TIER", "embedded")
    assert draft.state() not in seen


def test_codemeta_says_what_citation_and_pyproject_say():
    codemeta = script("codemeta")
    assert codemeta.TARGET.read_text() == codemeta.text(), "run: python scripts/codemeta.py"
