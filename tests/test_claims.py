"""The ledgers: every claim is measured, every verdict is the one we stand by, every test exists."""

import ast
from pathlib import Path

import pytest

from mnlib import claims

ROOT = Path(__file__).parents[1]
CLAIMS = claims.load_claims()
ENTRIES = [*CLAIMS, *claims.load_errata()]


def test_every_claim_has_a_measurement_and_every_measurement_a_claim():
    assert {claim.id for claim in CLAIMS} == set(claims.MEASURES)


def test_ids_are_unique():
    ids = [entry.id for entry in ENTRIES]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.id)
def test_chapter_and_test_exist(entry):
    assert (ROOT / "book" / f"{entry.chapter}.ipynb").exists() or (
        ROOT / "book" / f"{entry.chapter}.md"
    ).exists()
    if entry.test:
        path, name = entry.test.split("::")
        functions = {
            node.name
            for node in ast.walk(ast.parse((ROOT / path).read_text()))
            if isinstance(node, ast.FunctionDef)
        }
        assert name in functions


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_the_verdict_is_the_one_the_project_stands_by(claim, monkeypatch):
    """Without data; the same is tested where data is, by the closing chapter's assertion."""
    monkeypatch.setenv("MNLIB_TIER", "embedded")
    assert claims.measure(claim)["verdict"] == claim.expected


@pytest.mark.parametrize(
    ("rule", "measured", "verdict"),
    [
        ("equal", 10.0, "reproduced"),
        ("equal", 10.5, "reproduced"),
        ("equal", 10.6, "not reproduced"),
        ("equal", 9.4, "not reproduced"),
        ("at least", 99.0, "reproduced"),
        ("at least", 9.5, "reproduced"),
        ("at least", 9.4, "not reproduced"),
        ("equal", float("nan"), "not reproduced"),
        ("equal", None, claims.NOT_MEASURED),
    ],
)
def test_verdicts(rule, measured, verdict):
    claim = claims.Claim("i", "s", "c", 10.0, 0.5, "", "ch", "t", "e", rule)
    assert claim.verdict(measured) == verdict


def test_a_remark_shows_in_the_verdict():
    claim = claims.Claim("i", "s", "c", 10.0, 0.5, "", "ch", "t", "e", remark="but")
    assert claim.verdict(10.0) == "reproduced with remark"
    assert claim.verdict(11.0) == "not reproduced"


def test_vgg19_is_counted_from_its_definition():
    assert claims._live_vgg19("vertical", 0) == 16
    assert claims._live_vgg19("vertical", 1) == 4995
    assert claims._live_vgg19("horizontal", 1) == 5504
