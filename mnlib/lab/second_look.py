"""What chapter 5 asks its recorded networks again: image by image, and by other solvers."""

from collections.abc import Iterable

import numpy as np

from mnlib.lab import comparison, runs, training
from mnlib.lab.runs import Which
from mnlib.lab.tasks import Mirrored, Outcome, Training, digits, outputs, restored

__all__ = ["SOLVERS", "marks", "packed", "which_are_right"]

#: Half as dear as the one midpoint step of the training, that step, and one that is a flow but for
#: some 0.02 % of the outputs (0.9 % without the penalty), with fewer evaluations than dopri5.
SOLVERS = (
    {"method": "midpoint", "steps": 1},
    {"method": "euler", "steps": 1},
    {"method": "rk4", "steps": 2},
)


def packed(right: np.ndarray) -> str:
    """Return bool N, an image each, as hexadecimal digits: an eighth of the length."""
    return np.packbits(right).tobytes().hex()


def marks(text: str, n: int = 10_000) -> np.ndarray:
    """Return the bool N that :func:`packed` made ``text`` of.

    Raises:
        ValueError: it was not of ``n`` images.

    """
    found = np.frombuffer(bytes.fromhex(text), np.uint8)
    if len(found) != -(-n // 8):
        raise ValueError(f"{8 * len(found)} marks for {n} images: they belong to others")
    return np.unpackbits(found, count=n).astype(bool)


def which_are_right(
    source: str, trained: Training | Mirrored, solvers: Iterable[dict], which: Which
) -> Outcome:
    """Ask the network of experiment ``source`` that has the other names of ``which``.

    Its weights are the record's, and where another training takes their place the record no longer
    holds. ``results["asked"]`` has, for each of ``solvers`` (none: as it was tested), the accuracy
    and which images' answers are right; labels themselves are not recorded.

    Raises:
        FileNotFoundError: it is not recorded, or kept no weights.

    """
    run = runs.recorded(source, which.protocol, which.model, which.seed)
    model = restored(trained.network, run)
    test = trained.images.load("test")
    mirrored = isinstance(trained, Mirrored)
    asked = []
    for solver in solvers or ({},):
        if solver:
            model.solve_with(**solver)
        found = outputs(model, run.results["recipe"], test.images, mirrored=mirrored)
        right = comparison.right(digits(found), test.labels)
        cost = {"evaluations": model.nfe} if solver else {}
        accuracy = training.accuracy(found, test.labels)
        asked.append({**solver, **cost, "accuracy": accuracy, "right": packed(right)})
    return Outcome(
        parameters=run.parameters,
        accuracy=asked[0]["accuracy"],
        results={"of": run.name, "asked": asked},
        checkpoint=run.checkpoint,
        sha256=run.sha256,
    )
