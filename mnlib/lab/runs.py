"""Recorded runs: what was trained or measured, with which code and machine, and what came out.

A run is one JSON file under ``data/runs``, its weights a file under ``data/checkpoints``. Both are
committed, so that a reader without the data or the hours still sees results with their provenance.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import platform
import shlex
import subprocess
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mnlib.lab import places
from mnlib.lab.files import checked, written_whole

if TYPE_CHECKING:  # listing what is recorded needs no PyTorch
    import torch

__all__ = [
    "FOLDER",
    "NOT_RECORDED",
    "ROOT",
    "SCHEMA",
    "Run",
    "Which",
    "as_dicts",
    "environment",
    "load_checkpoint",
    "load_runs",
    "provenance",
    "recorded",
    "save_run",
]

ROOT = places.CHECKOUT
FOLDER = places.FOLDER

#: The number of the records' form. Since 2 they name inputs, versions and code.
SCHEMA = 2
NOT_RECORDED = "not recorded"


class Which(NamedTuple):
    """What is run: the names of an experiment, and the seed."""

    experiment: str
    model: str
    protocol: str
    seed: int

    @property
    def name(self) -> str:
        """The stem of the run's files."""
        return "-".join(map(str, self))

    @property
    def progress(self) -> Path:
        """The file that keeps a training's state meanwhile."""
        from mnlib.lab import data

        return data.folders()[0] / "runs" / f"{self.name}.pt"


@dataclass(frozen=True)
class Run:
    """One recorded run.

    ``accuracy`` is a fraction of the test set (None where nothing is classified), ``seconds`` the
    wall time (a training's: of its epochs), ``commit`` and ``date`` those of the process that
    finished it, at its start, ``checkpoint`` a file name under ``data/checkpoints`` with its
    ``sha256``, ``results`` whatever else was measured (curves, per-layer values), as JSON types.
    ``inputs`` holds source and sha256 of each input by its name, ``versions`` those of Python and
    packages, ``code`` the hash of the code that the run could reach (:mod:`fingerprint`): in runs
    that were recorded before schema 2 there are no versions, and a hash is ``"not recorded"``.
    """

    experiment: str
    model: str
    dataset: str
    protocol: str
    seed: int
    epochs: int
    parameters: int
    accuracy: float | None
    hardware: str
    seconds: float
    commit: str
    date: str
    command: str
    versions: dict[str, str]
    inputs: dict[str, dict[str, str]]
    code: str
    checkpoint: str | None = None
    sha256: str | None = None
    results: dict = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def name(self) -> str:
        """The stem of the run's files: experiment, model, protocol and seed."""
        return self.which.name

    @property
    def which(self) -> Which:
        """What was run."""
        return Which(self.experiment, self.model, self.protocol, self.seed)


def environment() -> dict[str, typing.Any]:
    """Return ``hardware``, ``commit``, ``date``, ``command`` and ``versions`` of this process.

    ``commit`` ends in ``-dirty`` where tracked files outside ``data`` differ from it (an earlier
    run recorded anew changes nothing that runs), and is ``unknown`` outside a git checkout.
    """
    from mnlib.lab import fingerprint

    return {
        "hardware": _hardware(),
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        # started as a module, the program's name would be cli.py, which is no command
        "command": shlex.join([Path(sys.argv[0]).name.replace("cli.py", "mnlib"), *sys.argv[1:]]),
        "versions": fingerprint.versions(),
    }


def _hardware() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} × {torch.cuda.device_count()}"
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a processor that /proc does not name
    threads = torch.get_num_threads()  # on which the last digits depend
    return f"{cpu} × {os.cpu_count()}, {threads} thread{'s' * (threads != 1)}"


@functools.cache  # of the code that was imported, even if the checkout moves on
def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if ROOT is None:  # and git would tell of whatever repository the package is installed below
        return "unknown"
    try:
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!data")
        return git("rev-parse", "HEAD") + "-dirty" * bool(dirty)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def save_run(
    run: Run,
    state: Mapping[str, "torch.Tensor"] | None = None,
    *,
    folder: Path = places.WRITTEN,
) -> Run:
    """Write a run, and its weights ``state`` if there are any; return it as it reads back.

    Args:
        run: the run; its ``checkpoint`` and ``sha256`` are set here.
        state: a state dict, written to ``checkpoints/<run.name>.pt`` with its floating-point
            tensors as float16: measure ``accuracy`` with weights rounded likewise.
        folder: holds ``runs`` and ``checkpoints``.

    Raises:
        OSError: the folder cannot be written to; no half-written file is left.
        ValueError: ``run`` holds what JSON cannot (NaN, a tensor).

    """
    _encode(run)  # refuse what JSON cannot hold before a checkpoint is written
    path = folder / "runs" / f"{run.name}.json"
    with contextlib.ExitStack() as both:  # each is written before either is put in place
        part = both.enter_context(written_whole(path))
        if state is not None:
            import torch

            kept = {
                key: (value.half() if value.is_floating_point() else value).cpu().contiguous()
                for key, value in state.items()
            }
            checkpoint = folder / "checkpoints" / f"{run.name}.pt"
            weights = both.enter_context(written_whole(checkpoint))
            content = io.BytesIO()  # a file's name would get into its bytes
            torch.save(kept, content)
            weights.write_bytes(content.getbuffer())
            run = dataclasses.replace(run, checkpoint=checkpoint.name, sha256=_sha256(weights))
        text = _encode(run)
        part.write_text(text + "\n", encoding="utf-8")
    return _decode(text)


def _encode(run: Run) -> str:
    try:
        return json.dumps(dataclasses.asdict(run), indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"run {run.name} holds what JSON cannot ({error}); use numbers") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_runs(experiment: str | None = None, *, folder: Path | None = None) -> list[Run]:
    """Return the recorded runs, all or one experiment's, ordered by file name.

    They are those of ``folder``, by default those of the user and what came with the code.

    Raises:
        ValueError: a file is no run: broken JSON, a field that is missing, unknown or of another
            type, another schema, another file's name.

    """
    found = []
    every = [path for each in _searched(folder) for path in (each / "runs").glob("*.json")]
    first = {path.name: path for path in reversed(every)}  # a user's own hides the same run of ours
    for _, path in sorted(first.items()):
        try:
            run = _decode(path.read_text(encoding="utf-8"))
            if run.name != path.stem:
                raise ValueError(f"it is the record of {run.name}")
        except ValueError as error:
            raise ValueError(
                f"{path.name} is no recorded run ({error}); restore it from git or remove it"
            ) from error
        found.append(run)
    return [run for run in found if experiment in (None, run.experiment)]


def recorded(experiment: str, protocol: str, model: str, seed: int = 0) -> Run:
    """Return the run of these names.

    Raises:
        FileNotFoundError: it is not recorded; the message names the command.

    """
    which = Which(experiment, model, protocol, seed)
    found = next((run for run in load_runs(experiment) if run.which == which), None)
    if found is None:
        raise FileNotFoundError(
            f"{which.name} is not recorded: run: mnlib run {experiment} --protocol {protocol} "
            f"--model {model} --seed {seed}"
        )
    return found


def _searched(folder: Path | None) -> tuple[Path, ...]:
    return places.READ if folder is None else (folder,)


def _decode(text: str) -> Run:
    """Return the run that a text records; a ValueError says what it lacks."""
    entries = json.loads(text)
    found = entries.get("schema") if isinstance(entries, dict) else SCHEMA
    if found != SCHEMA:
        raise ValueError(f"its schema is {found!r}, this version reads {SCHEMA}")
    return checked(Run, entries)


def load_checkpoint(run: Run, *, folder: Path | None = None) -> dict[str, "torch.Tensor"]:
    """Return the state dict of ``run`` as float32 on the CPU, once its checksum has been verified.

    Raises:
        FileNotFoundError: the run has no checkpoint, or its file is not there.
        ValueError: the file's sha256 is not the recorded one.

    """
    if run.checkpoint is None:
        raise FileNotFoundError(f"run {run.name} has no checkpoint; train one with: {run.command}")
    import torch

    there = [each / "checkpoints" / run.checkpoint for each in _searched(folder)]
    path = next((path for path in there if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{run.checkpoint} of run {run.name} is missing; git restore it in a checkout, "
            f"or train it with: {run.command}"
        )
    if (found := _sha256(path)) != run.sha256:
        raise ValueError(
            f"{run.checkpoint} has sha256 {found[:12]}…, its run recorded {str(run.sha256)[:12]}…; "
            "git restore both"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def provenance(run: Run) -> str:
    """Return one readable line: what ran when, on what, how long, at which commit and how."""
    dirty = " with local changes" if run.commit.endswith("-dirty") else ""
    trained = f"{run.epochs} epoch{'s' * (run.epochs != 1)}, " if run.epochs else ""
    duration = f"{run.seconds:.0f} s" if run.seconds < 120 else f"{run.seconds / 60:.0f} min"
    return (
        f"{run.experiment}: {run.model} on {run.dataset}, protocol {run.protocol}, {trained}"
        f"seed {run.seed}, {duration} on {run.hardware}, {run.date[:10]}, "
        f"commit {run.commit[:10]}{dirty}, {run.command}"
    )


def as_dicts(experiment: str | None = None, *, folder: Path | None = None) -> list[dict]:
    """Return the recorded runs as JSON-ready dicts, for ``mnlib runs --json``."""
    return [dataclasses.asdict(run) for run in load_runs(experiment, folder=folder)]
