"""Write the table of results into README.md, from the ledger and the records.

Usage: python scripts/readme.py
"""

import os
from pathlib import Path

os.environ["MNLIB_TIER"] = "embedded"  # so that the table is the same on every machine

from mnlib.lab import claims, runs

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- results: python scripts/readme.py -->\n", "<!-- end of results -->\n"


def table() -> str:
    """Return the results, a row a number of the slides."""
    recorded = {run.name: run for run in runs.load_runs()}
    lines = [
        "| slide | what is measured | slides | ours | verdict | made by | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for claim in claims.load_claims():
        if claim.kind == "reading" or claim.value is None:
            continue
        row = claims.measure(claim)
        value = row["live"] if row["live"] is not None else row["recorded"]
        ours = "–" if value is None else f"{value:.4g}"
        run = recorded.get(claim.run)
        made, time = "`mnlib claims`", "seconds"
        if run is not None:
            made = f"`{run.command.replace(' --seed 0', '')}`"
            hardware = run.hardware.replace("(R)", "").replace(" Processor", "")
            time = f"{run.seconds:.0f} s" if run.seconds < 90 else f"{run.seconds / 60:.0f} min"
            time += f", {hardware}"
        elif value is None:
            made, time = "a telephone", ""
        lines.append(
            f"| {claim.slide} | {claim.claim.replace('$', '')} | {claim.value:g} {claim.unit} "
            f"| {ours} | {row['verdict']} | {made} | {time} |"
        )
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    """Return the text of README with the table of now."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
