"""Kill trainings and downloads at random moments, and count what comes of it. Out of CI.

Usage: python scripts/kills.py SECONDS training|INPUT ...

A training of six epochs on drawn flowers, or ``mnlib fetch INPUT`` for each input named, is
started, killed (SIGKILL) after a random time, and started again until it ends; the outcome is
compared with that of one that was not killed. Prints a row a subject, as JSON.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]

TRAIN = """
import sys
from pathlib import Path
from mnlib.lab import experiments
from mnlib.lab.tasks import Training
from mnlib.lab.training import Recipe
from mnlib.lab.vgg import SmallConvNet

def load(split):
    n, seed = {"train": (300, 0), "test": (100, 1)}[split]
    return experiments.Dataset(*experiments.data.drawn_flowers(n, 32, seed))

recipe = Recipe(sizes=(24,) * 4 + (32,) * 2, batch=50, rate=0.02, statistics="imagenet")
task = Training(experiments.Images("drawn flowers", load), SmallConvNet, recipe, held_out=50)
experiments.EXPERIMENTS["kills"] = {"short": {"small": task}}
experiments.run("kills", folder=Path(sys.argv[1]) / "out")
"""


def trained(folder: Path) -> str:
    """Return what a training left behind, times and dates left out."""
    (record,) = (folder / "out" / "runs").glob("*.json")
    run = json.loads(record.read_text(encoding="utf-8"))
    run["results"]["curves"].pop("seconds")
    kept = [run["accuracy"], run["sha256"], run["results"]]
    left = [p.name for p in (folder / "runs").rglob("*") if p.is_file() and ".part" not in p.name]
    return json.dumps([kept, left])


def fetched(name: str, folder: Path) -> str:
    """Return the hash of a fetched input's content: a store's bytes differ from run to run."""
    code = f"from mnlib.lab import fingerprint; print(fingerprint.inputs({name!r})['sha256'])"
    environment = {**os.environ, "MNLIB_DATA": str(folder)}
    command = [sys.executable, "-c", code]
    return subprocess.check_output(command, cwd=ROOT, env=environment, text=True)


def attempt(command: list[str], folder: Path, seconds: float | None) -> bool:
    """Start a command; return whether it ended by itself before ``seconds``."""
    environment = {**os.environ, "MNLIB_DATA": str(folder), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, error = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return False
    if child.returncode:
        raise RuntimeError(f"{command} ended with {child.returncode}: {error.decode()[-300:]}")
    return True


def count(
    command: Callable[[Path], list[str]], outcome: Callable[[Path], str], until: float
) -> dict:
    """Kill and restart until the time is up; return the counts."""
    rng = random.Random(0)
    with TemporaryDirectory() as folder:
        start = time.monotonic()
        attempt(command(Path(folder)), Path(folder), None)
        whole, expected = time.monotonic() - start, outcome(Path(folder))
    counts = {"kills": 0, "ended": 0, "identical": 0, "failed": []}
    while time.monotonic() < until:
        with TemporaryDirectory() as folder:
            try:
                while not attempt(command(Path(folder)), Path(folder), rng.uniform(0, whole)):
                    counts["kills"] += 1
                counts["ended"] += 1
                counts["identical"] += outcome(Path(folder)) == expected
            except RuntimeError as error:
                counts["failed"].append(str(error))
    return counts


def main() -> None:
    """Share the time among the subjects and print a row each."""
    seconds, names = float(sys.argv[1]), sys.argv[2:]
    for name in names:
        fetch = [sys.executable, "-m", "mnlib.lab.cli", "fetch", name]
        subject, command, outcome = f"fetch {name}", lambda _, f=fetch: f, partial(fetched, name)
        if name == "training":
            subject, outcome = name, trained
            command = lambda folder: [sys.executable, "-c", TRAIN, str(folder)]  # noqa: E731
        counts = count(command, outcome, time.monotonic() + seconds / len(names))
        print(json.dumps({"subject": subject, **counts}), flush=True)


if __name__ == "__main__":
    main()
