"""The ledgers: every claim is measured, every verdict is the one we stand by, every test exists."""

import ast
from pathlib import Path

import pytest

from mnlib.lab import claims

ROOT = Path(__file__).parents[1]
CLAIMS = claims.load_claims()
ENTRIES = [*CLAIMS, *claims.load_errata()]


def test_every_claim_has_a_measurement_and_every_measurement_a_claim():
    assert {claim.id for claim in CLAIMS} == set(claims.MEASURES)


def test_ids_are_unique():
    ids = [entry.id for entry in ENTRIES]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.id)
def test_its_test_exists(entry):
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


def made_up(**fields):
    ours = {"value": 10.0, "tolerance": 0.5, "unit": "", "place": "page#here", "expected": "e"}
    return claims.Claim("i", 1, "count", "printed", "claimed", **ours | fields)


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
        ("at most", 10.5, "reproduced"),
        ("at most", 10.6, "not reproduced"),
        ("at most", -99.0, "reproduced"),
        ("more than", 10.1, "reproduced"),
        ("more than", 10.0, "not reproduced"),
        ("equal", float("nan"), "not reproduced"),
        ("at most", float("nan"), "not reproduced"),
        ("equal", None, claims.NOT_MEASURED),
    ],
)
def test_verdicts(rule, measured, verdict):
    claim = made_up(rule=rule)
    assert claim.verdict(measured) == verdict


def test_a_remark_shows_in_the_verdict():
    claim = made_up(remark="but")
    assert claim.verdict(10.0) == "reproduced with remark"
    assert claim.verdict(11.0) == "not reproduced"


def test_vgg19_is_counted_from_its_definition():
    assert claims._live_vgg19("vertical", 0) == 16
    assert claims._live_vgg19("vertical", 1) == 4995
    assert claims._live_vgg19("horizontal", 1) == 5504


def test_a_claim_without_a_number_is_not_measured_whatever_is_found():
    assert made_up(value=None).verdict(10.0) == claims.NOT_MEASURED


def test_kinds_are_known_and_a_reading_names_its_threshold_as_ours():
    assert {claim.kind for claim in CLAIMS} == set(claims.KINDS)
    kinds = {erratum.kind for erratum in claims.load_errata()}
    assert kinds == {"wrong", "imprecise", "sharpened"}
    for claim in CLAIMS:
        if claim.kind == "reading" and claim.value:  # zero and more than zero need no choice
            assert "our " in claim.remark or "is read here" in claim.remark


def test_what_the_compression_saves_is_counted_from_the_layers():
    """By hand from torchvision's layers: two from C to C channels instead of C to C/r and back."""
    from torchvision.models import mobilenet_v3_large
    from torchvision.ops import SqueezeExcitation

    gates = [m for m in mobilenet_v3_large().modules() if isinstance(m, SqueezeExcitation)]
    widths = [(m.fc1.in_channels, m.fc1.out_channels) for m in gates]
    saved = sum(2 * c * c - 2 * c * hidden for c, hidden in widths)
    total = 216_589_760  # multiply-adds, tests/test_mobilenet.py
    assert claims._compression_saves() == pytest.approx(100 * saved / (total + saved), rel=1e-3)


def test_a_broken_entry_of_a_ledger_is_named_with_its_fault(tmp_path, monkeypatch):
    from mnlib.lab import deck

    text = (deck.FOLDER / "claims.toml").read_text(encoding="utf-8")
    monkeypatch.setattr(deck, "FOLDER", tmp_path)
    for old, new, why in [
        ('unit = "ms"', "", "entry 1 of claims.toml.*no 'unit'"),
        ("slide = 2\n", 'slide = "two"\n', "entry 1 of claims.toml.*'slide' is 'two'"),
        ('unit = "ms"', 'unit = "ms"\ncolour = "red"', "'colour', which is unknown"),
        ('unit = "ms"', "unit = ", r"claims.toml is no ledger.*restore it from git"),
    ]:
        assert old in text
        (tmp_path / "claims.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(ValueError, match=why):
            claims.load_claims()
    (tmp_path / "slides.toml").write_text('[[slide]]\ntitle = "t"\nitem = [{kind = "words"}]\n')
    with pytest.raises(ValueError, match=r"slide 1 of slides.toml.*no 'quote'"):
        deck.load_slides()
