"""The slides' claims and errors: what they say, what is measured, and the verdict.

``data/claims.toml`` and ``data/errata.toml`` are the ledgers; ``MEASURES`` says how each claim is
measured, now and in the recorded runs. Chapters and the closing table show the same measurement.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import nn

from mnlib import mobilenet, pca
from mnlib.cifar import NeuralODE, ResNet20
from mnlib.cost import count_macs, count_parameters
from mnlib.gates import SqueezeExcitation
from mnlib.lab import data, experiments, flowers, runs
from mnlib.lab.deck import ledger
from mnlib.separable import ORDERS, decouple, parameter_count, reduction

__all__ = [
    "KINDS",
    "MEASURES",
    "NOT_MEASURED",
    "Claim",
    "Erratum",
    "Measure",
    "load_claims",
    "load_errata",
    "measure",
]

NOT_MEASURED = "not measured"
#: what sort of statement a claim is: see data/claims.toml
KINDS = ("count", "measurement", "reading")


@dataclass(frozen=True)
class Claim:
    """Something that a slide claims.

    ``quote`` is the slide's text and ``claim`` what is measured, in this book's words; ``kind`` is
    one of :data:`KINDS`. ``value`` is the slide's number or, for a reading of words, our threshold,
    in ``unit``. The claim is reproduced by a measurement at most ``tolerance`` away from it or, by
    another ``rule``, at most ``tolerance`` on the wrong side (``"more than"`` excludes equality).
    ``remark`` says what a reader should know all the same; ``expected`` is the verdict that the
    project stands by, so that a change does not go unnoticed. ``place`` is the book's page and
    anchor, ``test`` a test of the code that measures, ``run`` the recorded run that it rests on.
    """

    id: str
    slide: int
    kind: str
    quote: str
    claim: str
    unit: str
    place: str
    expected: str
    value: float | None = None
    tolerance: float = 0.0
    rule: str = "equal"
    test: str = ""
    run: str = ""
    remark: str = ""

    @property
    def chapter(self) -> str:
        """Return the page that works the claim out."""
        return self.place.partition("#")[0]

    def verdict(self, measured: float | None) -> str:
        """Return the verdict on a measurement in the claim's unit, None if none was made."""
        if measured is None or self.value is None:
            return NOT_MEASURED
        over = measured - self.value
        short = {"equal": abs(over), "at least": -over, "more than": -over, "at most": over}
        wrong = not short[self.rule] <= self.tolerance  # true for NaN
        if wrong or (self.rule == "more than" and over == 0):
            return "not reproduced"
        return "reproduced with remark" if self.remark else "reproduced"


@dataclass(frozen=True)
class Erratum:
    """Something that a slide prints and that is not, or not quite, so.

    ``quote`` is the slide's text, ``right`` what holds, ``kind`` how they differ: ``"wrong"``,
    ``"imprecise"`` or ``"sharpened"``. ``test`` shows it, where there is something to run.
    """

    id: str
    slide: int
    kind: str
    quote: str
    right: str
    place: str
    test: str = ""


def load_claims() -> list[Claim]:
    """Return the claims in the slides' order."""
    return ledger("claims", Claim)


def load_errata() -> list[Erratum]:
    """Return the errata in the slides' order."""
    return ledger("errata", Erratum)


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
    v2 = _percent(_recorded("flowers", "mobilenet_v2", "frozen"))
    vgg = _percent(_recorded("flowers", "vgg19", "frozen"))
    return None if v2 is None or vgg is None else v2 - vgg


def _vgg19_over(build: Callable[[], nn.Module], count: Callable[[nn.Module], int]) -> float:
    import torchvision

    with torch.device("meta"):
        return count(torchvision.models.vgg19()) / count(build())


def _more_pointwise_first() -> float:
    first, last = (parameter_count(order, 64, 128, 3) for order in ORDERS)
    return 100 * (last / first - 1)


def _blocks_needed() -> int:
    weight = torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(0))
    return int((decouple(weight).errors > 1e-5).sum())


def _compression_saves() -> float:
    """Return what two layers from C to C channels would add to V3-Large's multiply-adds."""
    with torch.device("meta"):
        model = mobilenet.mobilenet_v3_large()
    gates = [m for m in model.modules() if isinstance(m, SqueezeExcitation)]
    wider = sum(2 * m.fc1.in_channels * (m.fc1.in_channels - m.fc1.out_channels) for m in gates)
    return 100 * wider / (count_macs(model) + wider)


def _resnet_ahead() -> float | None:
    """Return by how many points the ResNet leads in the short protocol, on average over seeds."""

    every = runs.load_runs("table1")

    def mean(model: str) -> float | None:
        found = [r.accuracy for r in every if (r.protocol, r.model) == ("slides", model)]
        return 100 * sum(found) / len(found) if found else None

    resnet, ode = mean("resnet20"), mean("neural_ode")
    return None if resnet is None or ode is None else resnet - ode


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
    "ode-similar": (_no_measurement, _resnet_ahead),
    "pointwise-first": (_more_pointwise_first, _no_measurement),
    "decoupling": (_blocks_needed, _no_measurement),
    "first-layer": (_compression_saves, _no_measurement),
    "flowers-images": (
        partial(_live_flowers, lambda found: len(found.labels)),
        lambda: len(flowers.published_split()),
    ),
    "flowers-classes": (
        partial(_live_flowers, lambda found: len(set(found.labels.tolist()))),
        lambda: flowers.published_split()["class"].nunique(),
    ),
    "competitive-with-vgg": (_no_measurement, _against_vgg),
    "sometimes-better": (_no_measurement, _against_vgg),
    "efficiency": (
        partial(_vgg19_over, mobilenet.mobilenet_v3_large, count_macs),
        _no_measurement,
    ),
    "fewer-parameters": (
        partial(_vgg19_over, mobilenet.mobilenet_v2, count_parameters),
        _no_measurement,
    ),
    **{
        name: (_no_measurement, _no_measurement)
        for name in (
            "low-latency",
            "last-stage-accuracy",
            "last-stage-milliseconds",
            "last-stage-share",
            "v3-large-imagenet",
            "left-out",
            "gates-efficiency",
        )
    },
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
        "slide": claim.slide,
        "kind": claim.kind,
        "quote": claim.quote,
        "claim": claim.claim,
        "slides": claim.value,
        "live": live,
        "recorded": recorded,
        "unit": claim.unit,
        "tier": tier,
        "verdict": claim.verdict(judged),
        "remark": claim.remark,
        "place": claim.place,
        "test": claim.test,
    }
