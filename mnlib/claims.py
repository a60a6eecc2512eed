"""The slides' claims and errors: what they say, what the project measures, and the verdict.

``data/claims.toml`` and ``data/errata.toml`` are the ledgers; ``MEASURES`` says how each claim is
measured, now and in the recorded runs. Chapters and the closing table show the same measurement.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from mnlib import data, experiments, flowers, pca, runs
from mnlib.blocks import count_parameters
from mnlib.models import mobilenet
from mnlib.models.cifar import NeuralODE, ResNet20
from mnlib.separable import reduction

CLAIMS = Path(__file__).parents[1] / "data" / "claims.toml"
ERRATA = Path(__file__).parents[1] / "data" / "errata.toml"

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Claim:
    """A number that the slides state.

    ``value`` is theirs, in ``unit``. It is reproduced by a measurement at most ``tolerance`` away
    from it or, where ``rule`` is ``"at least"``, at most ``tolerance`` below. ``remark`` says what
    a reader should know all the same; ``expected`` is the verdict that the project stands by, so
    that a change does not go unnoticed. ``chapter`` is a page of the book, ``test`` a test of the
    code that measures.
    """

    id: str
    section: str
    claim: str
    value: float
    tolerance: float
    unit: str
    chapter: str
    test: str
    expected: str
    rule: str = "equal"
    remark: str = ""

    def verdict(self, measured: float | None) -> str:
        """Return the verdict on a measurement in the claim's unit, None if none was made."""
        if measured is None:
            return NOT_MEASURED
        short = self.value - measured if self.rule == "at least" else abs(self.value - measured)
        if not short <= self.tolerance:  # true for NaN
            return "not reproduced"
        return "reproduced with remark" if self.remark else "reproduced"


@dataclass(frozen=True)
class Erratum:
    """Something that the slides get wrong; ``test`` shows it, where there is something to run."""

    id: str
    section: str
    printed: str
    right: str
    chapter: str
    test: str = ""


def load_claims() -> list[Claim]:
    """Return the claims in the slides' order."""
    return [Claim(**entry) for entry in tomllib.loads(CLAIMS.read_text("utf-8"))["claim"]]


def load_errata() -> list[Erratum]:
    """Return the errata in the slides' order."""
    return [Erratum(**entry) for entry in tomllib.loads(ERRATA.read_text("utf-8"))["erratum"]]


def _recorded(experiment: str, model: str, protocol: str) -> runs.Run | None:
    """Return the recorded run of the lowest seed, None where there is none."""
    found = [r for r in runs.load_runs(experiment) if (r.model, r.protocol) == (model, protocol)]
    return min(found, key=lambda r: r.seed, default=None)


def _percent(run: runs.Run | None) -> float | None:
    return run and 100 * run.accuracy


@cache
def _live_vgg19(slices: str, which: int) -> float | None:
    """Return the number of layers (0) or slices (1), or the first component's share in percent."""
    if which == 2:
        if data.tier("vgg19") == "embedded":
            return None
        weights = [w for key, w in data.load("vgg19").items() if key.endswith("weight")]
        return 100 * pca.first_component(weights, slices=slices, samples="positions")
    import torchvision

    with torch.device("meta"):
        layers = torchvision.models.vgg19().features
    shapes = [layer.weight.shape for layer in layers if isinstance(layer, nn.Conv2d)]
    return (len(shapes), sum(shape[slices == "vertical"] for shape in shapes))[which]


def _recorded_vgg19(slices: str, which: int) -> float | None:
    run = _recorded("vgg19_slices", "vgg19", "slides")
    if run is None:
        return None
    found = run.results[slices]
    return (len(found["layers"]), found["slices"], found["percent"])[which]


@cache
def _live_accuracy(experiment: str, model: str, protocol: str) -> float | None:
    run = _recorded(experiment, model, protocol)
    live = run and experiments.evaluate(run)
    return None if live is None else 100 * live


def _live_flowers(count: Callable[[data.Dataset], int]) -> int | None:
    return count(data.load("tf_flowers")) if data.tier("tf_flowers") == "real data" else None


def _against_vgg() -> float | None:
    v2 = _percent(_recorded("flowers", "mobilenet_v2", "imagenet"))
    vgg = _percent(_recorded("flowers", "vgg19", "frozen"))
    return None if v2 is None or vgg is None else v2 - vgg


def _vgg19_over_v2() -> float:
    import torchvision

    with torch.device("meta"):
        vgg, v2 = torchvision.models.vgg19(), mobilenet.mobilenet_v2()
    return count_parameters(vgg) / count_parameters(v2)


def _no_measurement() -> None:
    return None


Measure = Callable[[], float | None]


def _accuracy(experiment: str, model: str, protocol: str) -> tuple[Measure, Measure]:
    """Return the two measures of the percentage that a recorded network is right on."""
    return (
        partial(_live_accuracy, experiment, model, protocol),
        lambda: _percent(_recorded(experiment, model, protocol)),
    )


#: claim id → its value now (None on a tier that cannot) and in the recorded runs
MEASURES: dict[str, tuple[Measure, Measure]] = {
    "reduction": (
        lambda: 100 * float(reduction("depthwise_first", 512, 512, 3)),
        _no_measurement,
    ),
    "vgg19-convolutions": (
        partial(_live_vgg19, "vertical", 0),
        partial(_recorded_vgg19, "vertical", 0),
    ),
    **{
        f"vgg19-{slices}-{name}": (
            partial(_live_vgg19, slices, which),
            partial(_recorded_vgg19, slices, which),
        )
        for slices in ("vertical", "horizontal")
        for which, name in ((1, "slices"), (2, "variance"))
    },
    "resnet-accuracy": _accuracy("table1", "resnet20", "slides"),
    "resnet-parameters": (lambda: count_parameters(ResNet20()) / 1e6, _no_measurement),
    "ode-accuracy": _accuracy("table1", "neural_ode", "slides"),
    "ode-parameters": (lambda: count_parameters(NeuralODE()) / 1e6, _no_measurement),
    "ode-mnist": _accuracy("mnist", "neural_ode", "good"),
    "last-stage-milliseconds": (_no_measurement, _no_measurement),
    "last-stage-share": (_no_measurement, _no_measurement),
    "flowers-images": (
        partial(_live_flowers, lambda found: len(found.labels)),
        lambda: len(flowers.split()),
    ),
    "flowers-classes": (
        partial(_live_flowers, lambda found: len(set(found.labels.tolist()))),
        lambda: flowers.split()["class"].nunique(),
    ),
    "competitive-with-vgg": (_no_measurement, _against_vgg),
    "fewer-parameters": (_vgg19_over_v2, _no_measurement),
}


def measure(claim: Claim) -> dict:
    """Return a claim's fields with ``live``, ``recorded``, ``tier`` and ``verdict``.

    The verdict is on the live value and, on a tier that has none, on the recorded one. ``tier`` is
    ``"live"``, ``"recorded"`` or ``"none"`` accordingly.
    """
    live, recorded = (value() for value in MEASURES[claim.id])
    judged = recorded if live is None else live
    tier = "live" if live is not None else "none" if recorded is None else "recorded"
    return {
        "id": claim.id,
        "section": claim.section,
        "claim": claim.claim,
        "slides": claim.value,
        "live": live,
        "recorded": recorded,
        "unit": claim.unit,
        "tier": tier,
        "verdict": claim.verdict(judged),
        "remark": claim.remark,
        "chapter": claim.chapter,
        "test": claim.test,
    }
