"""The command ``mnlib``: data, experiments, recorded runs, claims, and classifying a picture."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

__all__ = ["main", "parser"]


def _print_table(rows: Iterable[dict]) -> None:
    rows = list(rows)
    if not rows:
        print("nothing to show")
        return
    cells = [list(rows[0])] + [["" if v is None else str(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def _fetch(args: argparse.Namespace) -> int:
    from mnlib.lab import data

    rows = data.fetch(args.names)
    _print_table(rows)
    return int(bool(args.names) and any(row["outcome"] == "not reached" for row in rows))


def _data(args: argparse.Namespace) -> int:
    from mnlib.lab import data

    _print_table(data.status())
    return 0


def _run(args: argparse.Namespace) -> int:
    from mnlib.lab.experiments import run
    from mnlib.lab.training import keep_freed

    keep_freed()
    run(args.experiment, models=args.model, protocol=args.protocol, seeds=args.seed)
    return 0


def _runs(args: argparse.Namespace) -> int:
    from mnlib.lab import runs

    rows = runs.as_dicts()
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        shown = ("experiment", "model", "protocol", "seed", "epochs")
        _print_table(
            {key: row[key] for key in shown}
            | {
                "accuracy": None if row["accuracy"] is None else f"{row['accuracy']:.2%}",
                "date": row["date"][:10],
                "commit": row["commit"][:10],
            }
            for row in rows
        )
    return 0


def _claims(args: argparse.Namespace) -> int:
    from mnlib.lab import claims

    rows = [claims.measure(claim) for claim in claims.load_claims()]
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        shown = ("id", "slides", "live", "recorded", "unit", "verdict")
        _print_table({key: _rounded(row[key]) for key in shown} for row in rows)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from mnlib.lab import certificate, verify

    found = []
    for finding in verify.verify(args.names, rerun=args.rerun):
        found.append(finding)
        if finding.kind != "file" or finding.outcome == verify.FAILS:
            print(f"{finding.kind:5}  {finding.name}: {finding.outcome}: {finding.why}", flush=True)
    counted = Counter(finding.outcome for finding in found)
    print(
        "; ".join(
            f"{counted[outcome]} {outcome}" for outcome in verify.OUTCOMES if counted[outcome]
        )
    )
    if args.write:
        for path in certificate.write(found, args.write):
            print(path)
    return int(counted[verify.FAILS] > 0)


def _rounded(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def _classify(args: argparse.Namespace) -> int:
    from mnlib.lab.classify import classify

    _print_table(classify(args.photographs))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of ``mnlib``."""
    top = argparse.ArgumentParser(prog="mnlib", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    fetch = commands.add_parser(
        "fetch", help="bring data and weights (the only use of the network)"
    )
    fetch.add_argument("names", nargs="*", metavar="NAME", help="default: all that can be reached")
    fetch.set_defaults(call=_fetch)

    data = commands.add_parser("data", help="tell which tier each input is in")
    data.set_defaults(call=_data)

    run = commands.add_parser("run", help="run an experiment in full and record it in data/")
    run.add_argument("experiment")
    run.add_argument("--model", action="append", help="only this model (may be repeated)")
    run.add_argument("--protocol", help="only this protocol")
    run.add_argument("--seed", type=int, action="append", help="default: 0 (may be repeated)")
    run.set_defaults(call=_run)

    runs = commands.add_parser("runs", help="list the recorded runs")
    runs.add_argument("--json", action="store_true", help="whole records, as JSON")
    runs.set_defaults(call=_runs)

    claims = commands.add_parser("claims", help="hold the slides' claims against what is measured")
    claims.add_argument("--json", action="store_true", help="whole rows, as JSON")
    claims.set_defaults(call=_claims)

    verify = commands.add_parser(
        "verify", help="tell what of the records still holds, here and now"
    )
    verify.add_argument("names", nargs="*", metavar="NAME", help="a run or a claim (default: all)")
    verify.add_argument("--rerun", action="store_true", help="carry the runs out again: hours")
    verify.add_argument(
        "--write",
        type=Path,
        metavar="FOLDER",
        help="write codecheck.yml and ro-crate-metadata.json there, at the checkout's root",
    )
    verify.set_defaults(call=_verify)

    classify = commands.add_parser("classify", help="tell which flower a picture shows")
    classify.add_argument("photographs", nargs="+", metavar="PHOTO")
    classify.set_defaults(call=_classify)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run the command line; a foreseen error is one line on standard error and exit status 1."""
    args = parser().parse_args(argv)
    try:
        return args.call(args)
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"mnlib: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
