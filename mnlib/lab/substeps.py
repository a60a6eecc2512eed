"""Is a trained MobileNet an ODE? Its residual blocks as steps: refined, left out, exchanged.

A block with a shortcut, h + σ(h), is one Euler step of length 1 of dh/dt = σ(h); with N substeps it
is N of length 1/N, the weights held, and goes to that equation's flow. Batch norms are those of
evaluation. Block k is ``model.features[k]``, counted from 1: ``features[0]`` is the stem.

Sources: lesions and other orders after Veit et al. (2016), smoothness in depth after Sander et al.
(2022).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mnlib.lab import runs
from mnlib.lab.comparison import right
from mnlib.lab.images import prepare
from mnlib.lab.runs import Which
from mnlib.lab.tasks import Outcome, Training, digits, restored
from mnlib.mobilenet import InvertedResidual, MobileNet
from mnlib.residual import ODEStage, Residual

__all__ = ["LENGTHS", "SUBSTEPS", "branches", "changes", "neighbours", "study", "study_recorded"]

#: The numbers of substeps, each twice the one before it.
SUBSTEPS = (2, 4, 8)

#: The lengths of a single step that stops too early or goes too far.
LENGTHS = (0.5, 1.5)

#: What stands in for which block.
Change = Mapping[int, Callable[[Tensor], Tensor]]


def branches(model: MobileNet) -> dict[int, nn.Module]:
    """Return σ of each block with a shortcut, by the block's number."""
    return {
        k: block.conv if block.flat else block.block
        for k, block in enumerate(model.features)
        if isinstance(block, InvertedResidual) and block.shortcut
    }


def neighbours(model: MobileNet) -> list[tuple[int, int]]:
    """Return the pairs of blocks with a shortcut that follow each other, and so have one shape."""
    steps = branches(model)
    return [(k, k + 1) for k in steps if k + 1 in steps]


def changes(model: MobileNet, substeps: tuple[int, ...] = SUBSTEPS) -> dict[str, Change]:
    """Return what is done to the network, by name: what stands in for which of its blocks.

    ``N substeps, signs drawn`` is the control of the fewest and the most substeps: what these
    change in a block's output is added with a sign drawn for each image and channel, so that it
    has the same size and pattern, and another direction.
    """
    steps = branches(model)
    found: dict[str, Change] = {"untouched": {}}
    for n in substeps:
        fine = {k: ODEStage([branch], steps=n) for k, branch in steps.items()}
        found[f"{n} substeps"] = fine
        if n in (substeps[0], substeps[-1]):
            found[f"{n} substeps, signs drawn"] = {
                k: _with_signs(model.features[k], step, k) for k, step in fine.items()
            }
    for length in LENGTHS:
        found[f"length {length}"] = {k: Residual(branch, length) for k, branch in steps.items()}
    found |= {f"without {k}": {k: nn.Identity()} for k in steps}
    found["without all"] = {k: nn.Identity() for k in steps}
    for a, b in neighbours(model):
        found[f"{a} and {b} exchanged"] = {a: model.features[b], b: model.features[a]}
    return found


def _with_signs(block: nn.Module, other: nn.Module, seed: int) -> Callable[[Tensor], Tensor]:
    chance = torch.Generator().manual_seed(seed)

    def forward(h: Tensor) -> Tensor:
        whole = block(h)
        signs = 2 * torch.randint(2, (*h.shape[:2], 1, 1), generator=chance) - 1
        return whole + signs * (other(h) - whole)

    return forward


def study(
    model: MobileNet,
    images: Tensor | np.ndarray,
    recipe: Mapping,
    substeps: tuple[int, ...] = SUBSTEPS,
) -> dict:
    """Measure a network's blocks as steps, and what it answers when they are changed.

    Args:
        model: in evaluation mode.
        images: uint8 N×H×W×3.
        recipe: as recorded with a training, which the images are prepared by.
        substeps: each twice the one before it, the first 2.

    Returns:
        ``answers`` has for each of :func:`changes` a digit an image. ``logits`` has for
        ``"N to 2N"`` the length of the difference that twice the substeps make to an image's
        logits (less their mean over the classes), over the root mean square over the images of
        the untouched network's logits' distance from their mean.

        ``blocks`` and ``pairs`` have a row for each of :func:`branches` and :func:`neighbours`, at
        the untouched network's features h. Every value is a median over the images, with the 5th
        and 95th percentiles. For a block: ``ratio`` ‖σ(h)‖/‖h‖, ``angle`` between σ(h) and h in
        degrees, ``N to 2N`` and ``1 to`` the most substeps, the distances between the block's
        outputs with so many, over ‖σ(h)‖. For a pair a, b: ``angle`` between σ_a(h) and σ_b(h) at
        the h before a, ``turn`` between σ_a(h) and σ_b(h + σ_a(h)), the network's two steps.

    """
    counts = (1, *substeps)
    steps, pairs, wanted = branches(model), neighbours(model), changes(model, substeps)
    outputs, seen = defaultdict(list), defaultdict(list)
    size, statistics, batch = recipe["sizes"][-1], recipe["statistics"], recipe["batch"]
    with torch.inference_mode():
        for part in tqdm(torch.as_tensor(images).split(batch), disable=None):
            inputs = [prepare(part, size, statistics)]
            for block in model.features:
                inputs.append(block(inputs[-1]))
            for name, change in wanted.items():
                outputs[name].append(_logits(model, inputs, change))
            for k, branch in steps.items():
                for name, values in _of_a_block(branch, inputs[k], counts).items():
                    seen[k, name].append(values)
            for a, b in pairs:
                first = steps[a](inputs[a])
                seen[a, b, "angle"].append(_angle(first, steps[b](inputs[a])))
                seen[a, b, "turn"].append(_angle(first, steps[b](inputs[b])))
    logits = {name: torch.cat(parts) for name, parts in outputs.items()}
    rows = {key: _summary(torch.cat(parts)) for key, parts in seen.items()}
    # a constant added to all logits of an image changes no probability
    refined = [
        z - z.mean(1, keepdim=True)
        for z in (logits["untouched"], *(logits[f"{n} substeps"] for n in substeps))
    ]
    spread = _norm(refined[0] - refined[0].mean(0)).square().mean().sqrt()
    return {
        "images": len(images),
        "answers": {name: digits(found) for name, found in logits.items()},
        "logits": {
            f"{n} to {m}": _summary(_norm(finer - z) / spread)
            for (n, z), (m, finer) in pairwise(zip(counts, refined, strict=True))
        },
        "blocks": [{"block": k} | {n: v for (*a, n), v in rows.items() if a == [k]} for k in steps],
        "pairs": [
            {"blocks": [*pair]} | {n: v for (*a, n), v in rows.items() if a == [*pair]}
            for pair in pairs
        ],
    }


def _logits(model: MobileNet, inputs: list[Tensor], change: Change) -> Tensor:
    """Go on from the first changed block; what comes before it is known."""
    first = min(change, default=len(model.features))
    h = inputs[first]
    for k in range(first, len(model.features)):
        h = change.get(k, model.features[k])(h)
    return model.classifier(h.mean((2, 3)))


def _of_a_block(branch: nn.Module, h: Tensor, counts: tuple[int, ...]) -> dict[str, Tensor]:
    sigma = branch(h)
    ends = {n: ODEStage([branch], steps=n)(h) if n > 1 else h + sigma for n in counts}
    found = {"ratio": _norm(sigma) / _norm(h), "angle": _angle(sigma, h)}
    for n, m in [*pairwise(counts), (1, counts[-1])]:
        found[f"{n} to {m}"] = _norm(ends[m] - ends[n]) / _norm(sigma)
    return found


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _angle(x: Tensor, y: Tensor) -> Tensor:
    return F.cosine_similarity(x.flatten(1), y.flatten(1)).clamp(-1, 1).acos() * 180 / math.pi


def _summary(values: Tensor) -> list[float]:
    return [round(x, 4) for x in values.quantile(torch.tensor([0.5, 0.05, 0.95])).tolist()]


def study_recorded(of: Training, which: Which) -> Outcome:
    """Study the network that ``of`` trained on photographs, recorded by the names of ``which``.

    Raises:
        FileNotFoundError: its training is not recorded, or the photographs are not there; the
            message names the remedy.

    """
    source = runs.recorded("flowers", which.protocol, which.model, which.seed)
    model, test = restored(of.network, source), of.images.load("test")
    results = study(model, test.images, source.results["recipe"])
    return Outcome(
        parameters=source.parameters,
        accuracy=float(right(results["answers"]["untouched"], test.labels).mean()),
        results={"of": source.name, **results},
        checkpoint=source.checkpoint,
        sha256=source.sha256,
    )
