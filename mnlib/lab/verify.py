"""What still holds, here and now: records, checkpoints, ledgers and claims, one by one.

A record is *valid* while the code that it could reach and its inputs are those that it names. Of
older records, which name neither, and where something has changed, the kept weights are tested
again, or the measurement is made again. What needs hours, a GPU or absent data says so.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from mnlib.lab import claims, data, evaluations, experiments, fingerprint, places, runs
from mnlib.lab.deck import ledger
from mnlib.lab.runs import NOT_RECORDED, Run
from mnlib.lab.tasks import Measurement, Outcome, Training

__all__ = [
    "FAILS",
    "OUTCOMES",
    "SUMS",
    "Counted",
    "Finding",
    "changed_inputs",
    "load_counted",
    "parsed",
    "sums",
    "verify",
]

#: Inputs of which every source has the same content: of the others there are versions.
ONE_CONTENT = ("cifar10", "mnist")

VALID = "valid"
AGAIN = "code changed, re-evaluated to the same outcome"
IDENTICAL = "re-run, bit-identical"
CLOSE = "re-run, within its spread"
NOT_HERE = "not verifiable here"
FAILS = "fails"

#: What may be found, from the best to the worst.
OUTCOMES = (VALID, IDENTICAL, AGAIN, CLOSE, NOT_HERE, FAILS)

#: The committed files' hashes, in the form that ``sha256sum -c`` reads.
SUMS = "sha256sums"

#: Two evaluations of the same weights may differ by this accuracy, or in a probability: a GPU and
#: a CPU, and one thread and two, round otherwise, and so two photographs of 734 changed sides.
SAME = 0.003

#: A training that is not bit-identical, on another machine, may differ by this accuracy: five
#: standard deviations over the seeds of the short trainings.
SPREAD = 0.02

#: Seconds that a measurement may take to be made again unasked.
PATIENCE = 60


class Finding(NamedTuple):
    """What was found of a file, a run or a claim: one of :data:`OUTCOMES`, and why."""

    kind: str
    name: str
    outcome: str
    why: str


@dataclass(frozen=True)
class Counted:
    """What a script out of CI counted: how often something was ``tried``, and with what faults."""

    subject: str
    tried: int
    faults: int
    found: str
    command: str
    commit: str
    date: str
    hardware: str


def load_counted() -> list[Counted]:
    """Return the counts of ``data/counted.toml``."""
    return ledger("counted", Counted)


def verify(names: list[str] | None = None, *, rerun: bool = False) -> Iterator[Finding]:
    """Yield what is found of each committed file, run and claim.

    Args:
        names: of runs or claims; by default all, and the files.
        rerun: carry each run out again, and compare all of it: hours, unless ``names`` are given.

    Raises:
        ValueError: no run or claim has such a name.

    """
    recorded = {run.name: run for run in runs.load_runs()}
    claimed = {claim.id: claim for claim in claims.load_claims()}
    for name in names or ():
        if name not in recorded and name not in claimed:
            raise ValueError(f"no run and no claim is named {name!r}: `mnlib runs` lists the runs")
    if not names:
        yield from _files(runs.FOLDER)
    for name, run in recorded.items():
        if not names or name in names:
            yield Finding("run", name, *(_rerun(run) if rerun else _run(run)))
    for name, claim in claimed.items():
        if not names or name in names:
            yield Finding("claim", name, *_claim(claim))


def sums(folder: Path) -> str:
    """Return the hashes of the ledgers, records and checkpoints in ``folder``, a line a file."""
    files = [
        path
        for pattern in ("*.toml", "*.csv", "runs/*.json", "checkpoints/*.pt")
        for path in folder.glob(pattern)
    ]
    hashes = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(hashes.items()))


def parsed(text: str) -> dict[str, str]:
    """Return the hash of each file in a list such as :func:`sums` makes."""
    pairs = (line.split("  ", 1) for line in text.splitlines())
    return {name: sha256 for sha256, name in pairs}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files(folder: Path) -> Iterator[Finding]:
    listed = parsed((folder / SUMS).read_text(encoding="utf-8"))
    found = parsed(sums(folder))
    for name in sorted({*listed, *found}):
        if name not in found and places.CHECKOUT is None:
            yield Finding("file", name, NOT_HERE, "the installed package leaves it out")
        elif name not in found:
            yield Finding("file", name, FAILS, "it is listed and missing; git restore it")
        elif name not in listed:
            yield Finding("file", name, FAILS, "it is not listed; if it is meant: make sums")
        elif found[name] != listed[name]:
            why = f"its sha256 begins {found[name][:8]}, not {listed[name][:8]}"
            yield Finding(
                "file", name, FAILS, why + "; git restore it, or if it is meant: make sums"
            )
        else:
            yield Finding("file", name, VALID, "its hash is the listed one")


def changed_inputs(run: Run) -> list[str]:
    """Return the inputs that are not here as recorded, by this record or, if old, by later ones."""
    changed = []
    for name, entry in run.inputs.items():
        known = {entry["sha256"]}
        if NOT_RECORDED in known:
            known = {r.inputs[name]["sha256"] for r in runs.load_runs() if name in r.inputs}
        known.discard(NOT_RECORDED)
        if known and _here(name) not in known:
            changed.append(name)
    return changed


def _here(name: str) -> str | None:
    return fingerprint.inputs(name)["sha256"] if data.tier(name) == "real data" else None


def _run(run: Run) -> tuple[str, str]:
    """Return outcome and reason of a record as it stands."""
    task = experiments.task(run)
    absent = [name for name in run.inputs if data.tier(name) != "real data"]
    changed = [name for name in changed_inputs(run) if name not in absent]
    if {*changed} & {*ONE_CONTENT}:
        return FAILS, f"{', '.join(changed)} has another content than recorded"
    if run.checkpoint is not None:
        try:
            runs.load_checkpoint(run)
        except FileNotFoundError as error:
            return (NOT_HERE if places.CHECKOUT is None else FAILS), str(error)
        except ValueError as error:
            return FAILS, str(error)
    if changed:  # photographs of another size, weights that came another way
        return NOT_HERE, f"another version of {' and '.join(changed)} is here than was recorded"
    same_code = run.code == fingerprint.code(task)
    hashed = all(entry["sha256"] != NOT_RECORDED for entry in run.inputs.values())
    if same_code and hashed and not absent:
        return VALID, "code and inputs are those recorded"
    if isinstance(task, Training) and run.checkpoint is not None:  # the weights suffice
        absent = [name for name in absent if name in task.images.inputs]
    if absent:
        same = "; its code is the recorded one" if same_code else ""
        names = " ".join(absent)
        return NOT_HERE, f"without {names.replace(' ', ' and ')}{same}: mnlib fetch {names}"
    if isinstance(task, Measurement):
        if run.seconds > PATIENCE:
            return NOT_HERE, f"it takes {_minutes(run)}: mnlib verify --rerun {run.name}"
        found = evaluations.kept(
            lambda: _plain(task.carry_out(run.which)),
            fingerprint.code(task),
            [_here(name) for name in run.inputs],
            run.seed,
        )
        return _compared(run, found)
    if run.checkpoint is None:
        return NOT_HERE, f"no weights are kept; {_minutes(run)}: mnlib verify --rerun {run.name}"
    accuracy = experiments.evaluate(run)
    assert accuracy is not None
    assert run.accuracy is not None
    off = abs(accuracy - run.accuracy)
    why = f"accuracy {accuracy:.4f}, recorded {run.accuracy:.4f}"
    return (AGAIN if off <= SAME else FAILS), why


def _minutes(run: Run) -> str:
    return f"{max(1, round(run.seconds / 60))} min on {run.hardware}"


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {"accuracy": outcome.accuracy, "results": outcome.results}


def _compared(run: Run, found: dict[str, Any]) -> tuple[str, str]:
    """Compare a measurement made again with its record, number by number."""
    shares = others = 0.0
    for path, recorded in _numbers({"accuracy": run.accuracy, "results": run.results}):
        now: Any = found
        try:
            for key in path:
                now = now[key]
            off = abs(now - recorded)
        except (KeyError, IndexError, TypeError):
            return FAILS, f"the measurement no longer gives {'.'.join(map(str, path))}"
        if {"accuracy", "probabilities"} & {*path}:
            shares = max(shares, off)
        else:
            others = max(others, off / max(abs(recorded), 1e-3))
    why = f"accuracies differ by at most {shares:.4f}, others by {others:.1e} of their size"
    return (AGAIN if shares <= SAME and others <= 1e-3 else FAILS), why


def _numbers(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, float]]:
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in pairs:
            yield from _numbers(part, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def _rerun(run: Run) -> tuple[str, str]:
    """Carry a run out again, elsewhere, and compare it with its record."""
    try:
        with TemporaryDirectory() as folder:
            (again,) = experiments.run(
                run.experiment,
                models=[run.model],
                protocol=run.protocol,
                seeds=[run.seed],
                folder=Path(folder),
            )
    except FileNotFoundError as error:
        return NOT_HERE, str(error)
    same = (again.accuracy, again.sha256) == (run.accuracy, run.sha256)
    if same and [*_lasting(again.results)] == [*_lasting(run.results)]:
        return IDENTICAL, f"on {again.hardware}"
    measured = isinstance(experiments.task(run), Measurement)
    if measured or again.accuracy is None or run.accuracy is None:
        return _compared(run, {"accuracy": again.accuracy, "results": again.results})
    why = f"accuracy {again.accuracy:.4f}, recorded {run.accuracy:.4f} on {run.hardware}"
    return (CLOSE if abs(again.accuracy - run.accuracy) <= SPREAD else FAILS), why


def _lasting(results: dict) -> Iterator[tuple[tuple, float]]:
    """Yield the numbers that do not depend on the time of day."""
    return (pair for pair in _numbers(results) if "seconds" not in pair[0])


def _claim(claim: claims.Claim) -> tuple[str, str]:
    row = claims.measure(claim)
    value = row["live"] if row["tier"] == "live" else row["recorded"]
    said = "" if value is None else f", {value:.4g} {claim.unit}, {row['tier']}"
    if row["verdict"] != claim.expected:
        return FAILS, f"{row['verdict']} instead of {claim.expected}{said}"
    if row["live"] is not None and row["recorded"] is not None:
        if not math.isclose(row["live"], row["recorded"], abs_tol=100 * SAME):
            return FAILS, f"now {row['live']:.4g}, recorded {row['recorded']:.4g} {claim.unit}"
    if row["tier"] == "none":
        return NOT_HERE, row["verdict"]
    return VALID, row["verdict"] + said
