"""What the chapters share: a figure style, the tier badge, glued numbers, tables and ledgers."""

import html
from collections.abc import Collection, Iterable

import pandas as pd
from IPython.display import HTML, display

from mnlib.lab import claims, data, runs
from mnlib.lab.deck import pieces
from mnlib.lab.style import COLOURS, style

__all__ = [
    "COLOURS",
    "badge",
    "claims_table",
    "errata_table",
    "glue",
    "quotation",
    "style",
    "table",
]


GLUE_PREFIX = "application/papermill.record/"  # by which MyST-NB knows what is not shown


def badge(*names: str) -> HTML:
    """Return the one-line badge that tells which tier each input of a chapter is in.

    Args:
        names: inputs as :func:`mnlib.lab.data.tier` knows them, for example ``"vgg19"``; none when
            the chapter computes everything from nothing.

    Raises:
        ValueError: a name that :mod:`mnlib.lab.data` does not know.

    """
    parts = [f"{html.escape(name)}: <b>{data.tier(name)}</b>" for name in names]
    text = " · ".join(parts) or "computed from nothing but the code on this page"
    return HTML(
        f'<p class="mnlib-badge">Inputs of this page — {text} '
        '<a href="data.html">(what this means)</a></p>'
    )


def glue(key: str, text: str, run: runs.Run | Collection[runs.Run] | None = None) -> None:
    """Hand ``text``, an already rounded number, to the prose: ``{glue:text}`key```.

    Args:
        key: its name on the page.
        text: the number.
        run: the recorded run or runs that it was read from; None if this build computes it. The
            page tells it where a reader points at the number.

    Raises:
        TypeError: ``text`` is not a string, so that its rounding would be left to chance.
        ValueError: ``run`` holds no run, so that a recorded number would seem to be computed.

    """
    if not isinstance(text, str):
        raise TypeError(f"glue({key!r}, {text!r}): give a rounded string, such as f'{{x:.2f}}'")
    # what myst_nb.glue does; it has no place for more metadata
    metadata = {"scrapbook": {"name": key, "mime_prefix": GLUE_PREFIX}}
    if run is not None:
        every = [run] if isinstance(run, runs.Run) else [*run]
        if not every:
            raise ValueError(
                f"glue({key!r}, …, run={run!r}): no run; leave it out, or find the run"
            )
        metadata["mnlib"] = {"recorded": recorded(*every)}
    display({f"{GLUE_PREFIX}text/plain": repr(text)}, raw=True, metadata=metadata)


def recorded(first: runs.Run, *others: runs.Run) -> str:
    """Return in one line which runs a number comes from: what, seeds, commits and machines."""
    every = (first, *others)
    parts = [
        _some(f"{run.experiment} {run.protocol}" for run in every),
        _some(run.model for run in every),
        "seed " + _some(str(seed) for seed in sorted({run.seed for run in every})),
        "commit " + _some(f"{run.commit[:8]} of {run.date[:10]}" for run in every),
        _some(run.hardware.replace(", ", " with ") for run in every),
    ]
    if "probabilities" in first.results:
        parts.insert(3, f"n = {len(first.results['probabilities']):,}")
    return "recorded: " + "; ".join(parts)


def _some(values: Iterable[str], most: int = 3) -> str:
    """Return the values once each, and of many the first and how many more."""
    distinct = [*dict.fromkeys(values)]
    more = f" and {len(distinct) - most} more" * (len(distinct) > most)
    return ", ".join(distinct[:most]) + more


def table(rows: pd.DataFrame | Iterable[dict]) -> HTML:
    """Return rows (a data frame or dicts with equal keys) as an HTML table."""
    return _html(pd.DataFrame(rows))


def _html(frame: pd.DataFrame, escape: bool = True) -> HTML:
    text = frame.to_html(index=False, border=0, escape=escape)
    prose = any(len(str(cell)) > 40 for column in frame for cell in frame[column])
    return HTML(f'<div class="mnlib-table{" mnlib-prose" if prose else ""}">{text}</div>')


def claims_table(chapter: str | None = None, kind: str | None = None) -> HTML:
    """Return the slides' claims with what was measured: those of a chapter, of a kind, or all.

    In a chapter they link to the closing chapter's ledger, and there back to their places. A
    claim that is not measured on this tier has a dash.
    """
    rows = []
    for claim in claims.load_claims():
        if chapter in (None, claim.chapter) and kind in (None, claim.kind):
            row = claims.measure(claim)
            target = f"conclusion.html#claim-{claim.id}" if chapter else _href(claim.place)
            anchor = "" if chapter else f' id="claim-{claim.id}"'
            remark = f"<br><small>{_with_formulas(claim.remark)}</small>" if claim.remark else ""
            rows.append(
                {
                    "slide": _slide(claim.slide),
                    "printed": quotation(claim.quote),
                    "measured": f'<a{anchor} href="{target}">{_with_formulas(claim.claim)}</a>'
                    + remark,
                    "verdict": row["verdict"],
                    "slides": _stated(claim),
                    "live": _number(row["live"]),
                    "recorded": _number(row["recorded"]),
                }
            )
    return _html(pd.DataFrame(rows), escape=False)


def _stated(claim: claims.Claim) -> str:
    """Return the slides' number; of a reading, the threshold, which is ours and says so."""
    if claim.value is None:
        return "–"
    number = f"{claim.value:,g} {claim.unit}"
    return f"ours: {claim.rule} {number}" if claim.kind == "reading" else number


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}".rstrip("0").rstrip(".")


def errata_table() -> HTML:
    """Return what the slides print, what is right, and the test that shows it."""
    return _html(
        pd.DataFrame(
            {
                "slide": _slide(erratum.slide),
                "printed": quotation(erratum.quote),
                "kind": erratum.kind,
                "right": f'<a id="erratum-{erratum.id}" href="{_href(erratum.place)}">'
                f"{_with_formulas(erratum.right)}</a>",
                # a name in snake case may break after each of its words
                "test": html.escape(erratum.test.rpartition("::")[2]).replace("_", "_<wbr>") or "–",
            }
            for erratum in claims.load_errata()
        ),
        escape=False,
    )


def quotation(text: str) -> str:
    """Return a quotation of the slides as HTML, its formulas for MathJax."""
    return f'<q class="mnlib-deck">{_html_of(pieces(text))}</q>'


def _with_formulas(text: str) -> str:
    return _html_of(text.split("$"))


def _html_of(words_and_formulas: list[str]) -> str:
    return "".join(
        f'<span class="math notranslate nohighlight">\\({html.escape(piece)}\\)</span>'
        if i % 2
        else html.escape(piece)
        for i, piece in enumerate(words_and_formulas)
    )


def _slide(number: int) -> str:
    return f'<a href="slides.html#slide-{number}">{number}</a>'


def _href(place: str) -> str:
    page, _, anchor = place.partition("#")
    return f"{page}.html#{anchor}"
