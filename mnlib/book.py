"""What the chapters share: a figure style, the tier badge, glued numbers, tables and ledgers."""

import html
from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML

from mnlib import claims, data

# Okabe and Ito's colours, which colour-blind readers can tell apart; the line styles are for
# readers in greyscale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


def style() -> None:
    """Set matplotlib's parameters for the book: 6.5 in wide, light grid, colours and dashes."""
    plt.rcParams.update(
        {
            "figure.figsize": (6.5, 3.6),
            "figure.dpi": 120,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": plt.cycler(color=COLOURS) + plt.cycler(linestyle=_LINES),
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.alpha": 0.3,
            "font.size": 9,
            "legend.frameon": False,
        }
    )


def badge(*names: str) -> HTML:
    """Return the one-line badge that tells which tier each input of a chapter is in.

    Args:
        names: inputs as :func:`mnlib.data.tier` knows them, for example ``"vgg19"``; none when the
            chapter computes everything from nothing.

    Raises:
        ValueError: a name that :mod:`mnlib.data` does not know.

    """
    parts = [f"{html.escape(name)}: <b>{data.tier(name)}</b>" for name in names]
    text = " · ".join(parts) or "computed from nothing but the code on this page"
    return HTML(
        f'<p class="mnlib-badge">Inputs of this page — {text} '
        '<a href="data.html">(what this means)</a></p>'
    )


def glue(key: str, text: str) -> None:
    """Hand ``text``, an already rounded number, to the prose: ``{glue:text}`key```.

    Raises:
        TypeError: ``text`` is not a string, so that its rounding would be left to chance.

    """
    if not isinstance(text, str):
        raise TypeError(f"glue({key!r}, {text!r}): give a rounded string, such as f'{{x:.2f}}'")
    from myst_nb import glue as nb_glue

    nb_glue(key, text, display=False)


def table(rows: pd.DataFrame | Iterable[dict]) -> HTML:
    """Return rows (a data frame or dicts with equal keys) as an HTML table."""
    return _html(pd.DataFrame(rows))


def _html(frame: pd.DataFrame, escape: bool = True) -> HTML:
    text = frame.to_html(index=False, border=0, escape=escape)
    return HTML(f'<div class="mnlib-table">{text}</div>')


def claims_table(chapter: str | None = None) -> HTML:
    """Return the slides' claims with what was measured, those of one chapter or all.

    In a chapter they link to the closing chapter's ledger, and there back to their chapters. A
    claim that is not measured on this tier has a dash.
    """
    rows = []
    for claim in claims.load_claims():
        if chapter in (None, claim.chapter):
            row = claims.measure(claim)
            target = f"conclusion.html#claim-{claim.id}" if chapter else f"{claim.chapter}.html"
            anchor = "" if chapter else f' id="claim-{claim.id}"'
            remark = f"<br><small>{html.escape(claim.remark)}</small>" if claim.remark else ""
            rows.append(
                {
                    "claim": f'<a{anchor} href="{target}">{html.escape(claim.claim)}</a>{remark}',
                    "slides": f"{claim.value:,g} {claim.unit}",
                    "live": _number(row["live"]),
                    "recorded": _number(row["recorded"]),
                    "verdict": row["verdict"],
                }
            )
    return _html(pd.DataFrame(rows), escape=False)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}".rstrip("0").rstrip(".")


def errata_table() -> HTML:
    """Return the slides' errors, what is right, and the test that shows it."""
    return _html(
        pd.DataFrame(
            {
                "the slides": html.escape(erratum.printed),
                "right": html.escape(erratum.right),
                "chapter": f'<a href="{erratum.chapter}.html">{erratum.section}</a>',
                # a name in snake case may break after each of its words
                "test": html.escape(erratum.test.rpartition("::")[2]).replace("_", "_<wbr>") or "–",
            }
            for erratum in claims.load_errata()
        ),
        escape=False,
    )
