"""Networks as ONNX graphs for the reader's own device, run in the page by onnxruntime-web.

Two pieces of the site load them when asked for: chapter 8's network that looks at the reader's
photograph, and chapter 7's graphs, of weights without a meaning, that are timed on the reader's
device.
"""

import copy
import gzip
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mnlib import mobilenet
from mnlib.cost import count_macs, count_parameters, fold_batch_norm
from mnlib.gates import SqueezeExcitation, changed_gates
from mnlib.lab import data, experiments, flowers
from mnlib.lab.architecture import without_gates
from mnlib.lab.comparison import wilson
from mnlib.lab.deck import load_slides
from mnlib.lab.images import STATISTICS
from mnlib.lab.runs import Run
from mnlib.mobilenet import ConvNormActivation, MobileNet

__all__ = [
    "GROUPS",
    "TIMED",
    "Opened",
    "alike",
    "best_small",
    "export",
    "photograph",
    "photograph_rows",
    "telephone",
    "telephone_rows",
    "write_photograph",
    "write_telephone",
]

_IMAGE = (3, 224, 224)


class Opened(nn.Module):
    """A MobileNet that also shows its class maps and its gates.

    Maps N×3×H×W to logits, N×classes; class maps, N×classes×h×w, as
    :func:`mnlib.lab.flowers.class_maps` has them; and the gates of each squeeze-and-excitation
    module, N×C.
    """

    def __init__(self, model: MobileNet):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return logits, maps, and gates one module after the other."""
        seen: list[Tensor] = []
        with changed_gates(self.model, lambda i, s: seen.append(s.flatten(1))):
            features = self.model.features(x)
        # the mean goes through the classifier as one more position: in the graph it stands once
        places = torch.cat([features.mean((2, 3))[..., None], features.flatten(2)], 2)
        answers = self.model.classifier(places.transpose(1, 2)).transpose(1, 2)
        return answers[..., 0], answers[..., 1:].unflatten(2, features.shape[2:]), *seen


def export(model: nn.Module, shape: Sequence[int] = _IMAGE, names: Sequence[str] = ("logits",)):
    """Return ``model`` in evaluation mode as the bytes of an ONNX graph.

    Its input is ``x``, float32 N×``shape`` for any N, its outputs are float32 and called ``names``.
    Batch norms are folded into the convolutions before them.
    """
    content, ends = io.BytesIO(), ["x", *names]
    with warnings.catch_warnings():
        # the newer exporter needs one more package and traces ten times as long
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            copy.deepcopy(model).eval(),
            (torch.zeros(1, *shape),),
            content,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=list(names),
            dynamic_axes={name: {0: "n"} for name in ends},
        )
    return content.getvalue()


def alike(model: nn.Module) -> nn.Module:
    """Return a copy with folded batch norms, in which all weights of a layer are the same.

    Time does not depend on the weights, but for denormals, and these make none: every layer takes
    a mean, more or less. Alike, they shrink to a thousandth when compressed; no two layers have the
    same, or the graph would hold one for both.
    """
    model = fold_batch_norm(model)
    for i, module in enumerate(model.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.constant_(module.weight, (1 + i / 10_000) / module.weight[0].numel())
            nn.init.constant_(module.bias, i * 1e-6)
    return model


def _separable(channels: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNormActivation(channels, channels, 3, "RE", groups=channels),
        ConvNormActivation(channels, channels, 1, "RE"),
    )


#: Graphs that are timed, by the name of their file: what builds the network, and an input's shape.
TIMED = {
    "last_stage_before": (mobilenet.last_stage_before, (160, 7, 7)),
    "last_stage_after": (mobilenet.last_stage_after, (160, 7, 7)),
    "v3_large": (mobilenet.mobilenet_v3_large, _IMAGE),
    "v3_large_ungated": (lambda: without_gates(mobilenet.mobilenet_v3_large()), _IMAGE),
    "regular": (lambda: ConvNormActivation(512, 512, 3, "RE"), (512, 14, 14)),
    "separable": (lambda: _separable(512), (512, 14, 14)),
    "v1": (mobilenet.mobilenet_v1, _IMAGE),
    "v2": (mobilenet.mobilenet_v2, _IMAGE),
    "v3_small": (mobilenet.mobilenet_v3_small, _IMAGE),
}

#: What takes turns, by title: :data:`TIMED` by the names that the piece shows.
GROUPS = {
    "V3-Large’s last stage": {
        "before the redesign": "last_stage_before",
        "after": "last_stage_after",
        "all of V3-Large": "v3_large",
    },
    "Squeeze-and-excitation": {
        "V3-Large": "v3_large",
        "without its gates": "v3_large_ungated",
    },
    "A 3×3 convolution, 512 → 512 channels, 14×14": {
        "regular": "regular",
        "separable": "separable",
    },
    "MobileNets": {
        "V1": "v1",
        "V2": "v2",
        "V3-Large": "v3_large",
        "V3-Small": "v3_small",
    },
}


def best_small() -> Run:
    """Return the recorded training of V3-Small with the highest accuracy that kept its weights.

    Raises:
        FileNotFoundError: none is recorded; the message names the remedy.

    """
    trained = flowers.trainings().values()
    kept = [r for r in trained if r.model == "mobilenet_v3_small" and r.checkpoint and r.epochs]
    if not kept:
        raise FileNotFoundError("no V3-Small is recorded: run: mnlib run flowers")
    return max(kept, key=lambda run: run.accuracy)


def photograph() -> dict:
    """Return what the piece that looks at a photograph is told of its network, as JSON."""
    mean, std = STATISTICS["imagenet"]
    (row,) = photograph_rows()
    about = ", ".join(row.values())
    return {"classes": flowers.CLASSES, "mean": mean, "std": std, "about": about}


def photograph_rows() -> list[dict[str, str]]:
    """Return the table of the network that looks at a photograph."""
    run, n = best_small(), flowers.HELD_OUT
    low, high = wilson(run.accuracy, n)
    return [
        {
            "network": flowers.NAMES[run.model],
            "trained": flowers.PROTOCOLS[run.protocol],
            "accuracy": f"right on {100 * run.accuracy:.1f} % "
            f"({100 * low:.1f} to {100 * high:.1f} %) of {n} photographs held out",
            "record": run.name,
        }
    ]


def telephone() -> dict:
    """Return :data:`GROUPS` with the cost of each network, and the slide's sentence, as JSON."""
    costs = {}
    with torch.device("meta"):
        for graph, (build, shape) in TIMED.items():
            model = build()
            macs, parameters = count_macs(model, shape), count_parameters(model)
            costs[graph] = {"shape": shape, "madds": macs, "parameters": parameters}
    groups = [
        {
            "title": title,
            "variants": [{"name": n, "graph": graph, **costs[graph]} for n, graph in rows.items()],
        }
        for title, rows in GROUPS.items()
    ]
    (quote,) = (
        item.quote
        for slide in load_slides()
        for item in slide.items
        if item.place == "detailed_architecture#sec-arch-latency"
    )
    return {"groups": groups, "quote": quote}


def telephone_rows() -> list[dict[str, str]]:
    """Return the table of what is timed."""
    return [
        {
            "comparison": group["title"] if i == 0 else "",
            "of": variant["name"],
            "multiply-adds (M)": f"{variant['madds'] / 1e6:.1f}",
            "parameters (M)": f"{variant['parameters'] / 1e6:.2f}",
        }
        for group in telephone()["groups"]
        for i, variant in enumerate(group["variants"])
    ]


def write_photograph(folder: Path) -> None:
    """Write what "Your photograph" loads to ``folder``: the network of :func:`best_small`, opened.

    Raises:
        FileNotFoundError: onnxruntime-web is not there, or no V3-Small is recorded; the message
            names the remedy.

    """
    _write_runtime(folder)
    opened = Opened(experiments.trained(best_small()))
    gates = sum(isinstance(m, SqueezeExcitation) for m in opened.modules())
    names = ["logits", "maps", *(f"gates{i}" for i in range(gates))]
    (folder / "photograph.onnx").write_bytes(export(opened, names=names))


def write_telephone(folder: Path) -> None:
    """Write what "Your telephone" loads to ``folder``: the graphs of :data:`TIMED`, gzipped.

    Raises:
        FileNotFoundError: onnxruntime-web is not there; the message names the remedy.

    """
    _write_runtime(folder)
    for graph, (build, shape) in TIMED.items():
        content = gzip.compress(export(alike(build()), shape), mtime=0)
        (folder / f"{graph}.onnx.gz").write_bytes(content)


def _write_runtime(folder: Path) -> None:
    runtime = data.load("onnxruntime_web")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in runtime.items():
        (folder / name).write_bytes(content)
