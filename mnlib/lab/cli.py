"""The command ``mnlib``: data, experiments, recorded runs, claims, and classifying a picture."""

import argparse
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from mnlib import __version__

__all__ = ["EXPERIMENTS", "main", "parser"]

#: What ``mnlib run --help`` lists without importing what it takes to run them: an experiment, a
#: protocol and its models a line.
EXPERIMENTS = """\
  vgg19_slices   slides     vgg19
  decoupling     photographs  vgg19 mobilenet_v2 mobilenet_v3_small
  gates          imagenet   mobilenet_v3_small
  residual_flow  imagenet   mobilenet_v3_small mobilenet_v2
  residual_flow  augmented  mobilenet_v3_small mobilenet_v2
  drawn_flowers  plain      small mobilenet_v3_small_tiny mobilenet_v3_small_ungated
  flowers        scratch    mobilenet_v3_small mobilenet_v3_large mobilenet_v2
  flowers        frozen     mobilenet_v2 mobilenet_v3_small vgg19
  flowers        pixels     near_duplicates
  flowers        augmented  mobilenet_v2 mobilenet_v3_small
  flowers        mirrored   mobilenet_v2 mobilenet_v3_small
  flowers        imagenet   mobilenet_v3_small mobilenet_v2 mobilenet_v3_large
  flowers        last_block  vgg19
  flowers        last_block_slow  vgg19
  table1         slides     resnet20 neural_ode
  table1         unpenalised  neural_ode
  table1         inverted   neural_ode
  table1         good       resnet20 neural_ode
  table1         trainval   resnet20 neural_ode
  table1         mirrored   resnet20 neural_ode
  table1_images  slides     resnet20 neural_ode
  table1_images  unpenalised  neural_ode
  table1_images  inverted   neural_ode
  table1_images  good       resnet20 neural_ode
  table1_images  trainval   resnet20 neural_ode
  table1_images  mirrored   resnet20 neural_ode
  mnist          good       neural_ode
"""


def _shown(value: object) -> str:
    """Return a value as text of one line: a file's name may hold a newline or what is no text."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _line(cells: Iterable[object], widths: Iterable[int]) -> str:
    padded = (_shown(cell).ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "  ".join(padded).rstrip()


def _print_table(rows: Iterable[dict]) -> None:
    rows = list(rows)
    lines = [[*rows[0]], *([*row.values()] for row in rows)]
    widths = [max(len(_shown(cell)) for cell in column) for column in zip(*lines, strict=True)]
    for cells in lines:
        print(_line(cells, widths))


def _complain(error: object) -> None:
    print(f"mnlib: {_shown(error)}", file=sys.stderr)


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
    from mnlib.lab import places
    from mnlib.lab.experiments import run
    from mnlib.lab.training import keep_freed

    keep_freed()
    run(
        args.experiment,
        models=args.model,
        protocol=args.protocol,
        seeds=args.seed,
        folder=places.WRITTEN,
    )
    return 0


def _runs(args: argparse.Namespace) -> int:
    from mnlib.lab import places, runs

    rows = runs.as_dicts()
    if args.json:
        print(json.dumps(rows, indent=1))
    elif rows:
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
    else:
        raise FileNotFoundError(
            f"no run is recorded in {' or '.join(str(f / 'runs') for f in places.READ)}: "
            "in a checkout run: git restore data, elsewhere install mnlib again"
        )
    return 0


def _claims(args: argparse.Namespace) -> int:
    from mnlib.lab import claims

    rows = [claims.measure(claim) for claim in claims.load_claims()]
    if args.json:
        print(json.dumps(rows, indent=1))
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
    from tqdm import tqdm

    from mnlib.lab.classify import classify, pictures
    from mnlib.lab.data import CLASSES

    head = ["file", "class", *CLASSES["tf_flowers"]]
    files = pictures(args.photographs)
    # known before the answers are, which are printed as they come
    widths = [max(len(_shown(cell)) for cell in ["file", *files])]
    widths += [max(map(len, head)), *map(len, head[2:])]
    good, bad = [], 0
    for row in classify(files):
        if "error" in row:
            bad += 1
            tqdm.write(f"mnlib: {_shown(row['error'])}", file=sys.stderr)  # above the bar
            continue
        if not args.json:
            for cells in [row.values()] if good else [head, row.values()]:
                tqdm.write(_line(cells, widths))
        good.append(row)
    if args.json:
        print(json.dumps(good, indent=1))
    return int(bad > 0)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of ``mnlib``."""
    top = argparse.ArgumentParser(
        prog="mnlib",
        description=__doc__,
        epilog=_examples(
            "mnlib data                          what is there of the book's inputs",
            "mnlib claims                        the slides' numbers beside what was measured",
            "mnlib classify garden.jpg photos/   which flower a picture shows",
            "mnlib COMMAND --help                more examples",
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"mnlib {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, call, help: str, *examples: str, more: str = ""):
        sub = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=_examples(*examples) + more,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(call=call)
        return sub

    fetch = command(
        "fetch",
        _fetch,
        "bring data and weights (the only use of the network)",
        "mnlib fetch",
        "mnlib fetch cifar10 mnist",
        "MNLIB_DATA=~/data mnlib fetch vgg19",
    )
    fetch.add_argument("names", nargs="*", metavar="NAME", help="default: all that can be reached")

    command("data", _data, "tell which tier each input is in", "mnlib data")

    run = command(
        "run",
        _run,
        "run an experiment in full and record it",
        "mnlib run drawn_flowers",
        "mnlib run table1 --protocol slides --model resnet20 --seed 1 --seed 2",
        more=f"\nexperiments, their protocols and models:\n{EXPERIMENTS}",
    )
    run.add_argument("experiment", metavar="EXPERIMENT", help="one of those below")
    run.add_argument("--model", action="append", help="only this model (may be repeated)")
    run.add_argument("--protocol", help="only this protocol")
    run.add_argument("--seed", type=int, action="append", help="default: 0 (may be repeated)")

    runs = command("runs", _runs, "list the recorded runs", "mnlib runs", "mnlib runs --json")
    runs.add_argument("--json", action="store_true", help="whole records, as JSON")

    claims = command(
        "claims",
        _claims,
        "hold the slides' claims against what is measured",
        "mnlib claims",
        "mnlib claims --json",
    )
    claims.add_argument("--json", action="store_true", help="whole rows, as JSON")

    verify = command(
        "verify",
        _verify,
        "tell what of the records still holds, here and now",
        "mnlib verify",
        "mnlib verify --rerun table1-resnet20-slides-0",
    )
    verify.add_argument("names", nargs="*", metavar="NAME", help="a run or a claim (default: all)")
    verify.add_argument("--rerun", action="store_true", help="carry the runs out again: hours")
    verify.add_argument(
        "--write",
        type=Path,
        metavar="FOLDER",
        help="write codecheck.yml and ro-crate-metadata.json there, at the checkout's root",
    )

    classify = command(
        "classify",
        _classify,
        "tell which flower a picture shows",
        "mnlib classify garden.jpg windowsill.png",
        "mnlib classify --json photos/ > answers.json",
    )
    classify.add_argument(
        "photographs", nargs="+", metavar="PHOTO", help="a picture, or a folder of pictures"
    )
    classify.add_argument("--json", action="store_true", help="the answers, as JSON")
    return top


def _examples(*lines: str) -> str:
    return "examples:\n" + "".join(f"  {line}\n" for line in lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; a foreseen error is one line on standard error and exit status 1.

    Interrupted, the status is 130; where the reader of a pipe has gone, 141 and silence.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            args = parser().parse_args(argv)
            return args.call(args)
        finally:
            print(end="", flush=True)  # a pipe that was closed shows here, not after the end
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except ImportError as error:  # array-record, where it has no wheel
        _complain(f"{error}: install it with pip; README.md tells what has no wheel where")
        return 1
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        _complain(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
