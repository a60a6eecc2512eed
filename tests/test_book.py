"""What the chapters share shows what it is given, and refuses what would hide a mistake."""

import pytest

from mnlib.lab import book, claims, data, runs


def test_the_badge_tells_each_inputs_tier(monkeypatch):
    monkeypatch.setattr(data, "tier", lambda name: {"vgg19": "real data"}.get(name, "embedded"))
    text = book.badge("vgg19", "mnist").data
    assert "vgg19: <b>real data</b>" in text
    assert "mnist: <b>embedded</b>" in text
    assert "computed from nothing" in book.badge().data


def test_the_badge_refuses_an_unknown_input():
    with pytest.raises(ValueError, match="'vgg20'"):
        book.badge("vgg20")


def test_only_rounded_text_is_glued():
    with pytest.raises(TypeError, match=r"0\.123"):
        book.glue("key", 0.123)


def test_a_table_escapes_its_cells_and_has_no_index():
    text = book.table([{"a": "<b>", "c": 1}, {"a": "x", "c": 2}]).data
    assert "&lt;b&gt;" in text
    assert text.count("<tr") == 3
    assert text.count("<th>") == 2


def test_claims_link_to_the_ledger_and_back(monkeypatch):
    monkeypatch.setenv("MNLIB_TIER", "embedded")
    every = book.claims_table().data
    for claim in claims.load_claims():
        page, anchor = claim.place.split("#")
        assert f'id="claim-{claim.id}" href="{page}.html#{anchor}"' in every
        of_chapter = book.claims_table(claim.chapter).data
        assert f'href="conclusion.html#claim-{claim.id}"' in of_chapter
    assert every.count("<tr") == 1 + len(claims.load_claims())
    of_kinds = [book.claims_table(kind=kind).data.count("<tr") - 1 for kind in claims.KINDS]
    assert sum(of_kinds) == len(claims.load_claims())


def test_every_erratum_is_listed():
    text = book.errata_table().data
    assert text.count("<tr") == 1 + len(claims.load_errata())


def test_a_quotation_shows_its_formulas_and_escapes_the_rest():
    text = book.quotation("if $n_o > n_i$ & **so** on")
    assert r"\(n_o &gt; n_i\)</span> &amp; so on" in text
    assert r"\(\int_t^s\)" in book.quotation(r"\int_t^s")


def test_a_glued_number_keeps_the_run_that_it_comes_from(monkeypatch):
    shown = []
    monkeypatch.setattr(book, "display", lambda data, **options: shown.append((data, options)))
    every = runs.load_runs("table1")
    first = every[0]
    book.glue("live", "0.10")
    book.glue("one", "0.20", run=first)
    book.glue("all", "0.30", run=every)
    assert shown[0][0] == {"application/papermill.record/text/plain": "'0.10'"}
    assert shown[0][1]["metadata"]["scrapbook"]["name"] == "live"
    texts = [options["metadata"].get("mnlib", {}).get("recorded") for _, options in shown]
    assert texts[0] is None
    hardware = first.hardware.replace(", ", " with ")
    for part in (f"seed {first.seed};", first.commit[:8], first.date[:10], hardware):
        assert part in texts[1]
    seeds = sorted({run.seed for run in every})
    assert f"; neural_ode, resnet20; seed {', '.join(map(str, seeds))}; " in texts[2]
    states = {(run.commit, run.date[:10]) for run in every}
    assert f" and {len(states) - 3} more; " in texts[2]


def test_a_recorded_number_without_a_run_is_refused():
    with pytest.raises(ValueError, match="no run"):
        book.glue("key", "0.1", run=[])
