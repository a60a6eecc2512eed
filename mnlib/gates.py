"""Squeeze-and-excitation, and what its gates do: do they follow the class, what are they worth?

Source: Hu et al. (2018); in MobileNetV3, Howard et al. (2019).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import torch
from torch import Tensor, nn

__all__ = [
    "SqueezeExcitation",
    "between_classes",
    "changed_gates",
    "replacements",
    "round_channels",
    "study",
    "summary",
    "watch",
]


def round_channels(channels: float) -> int:
    """Return the multiple of 8 nearest to ``channels``, at least 8 and at least 90 % of it.

    The rule of MobileNet's authors for every width that a multiplier or a reduction makes.

    >>> [round_channels(channels) for channels in (3, 18, 100)]  # 16 is less than 90 % of 18
    [8, 24, 104]
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate that sees the mean of all channels (Hu et al., 2018).

    For an input u of shape N×C×H×W, z is the mean of u over H and W, the slides' equation (9),
    s = gate(W₂ ReLU(W₁ z + b₁) + b₂) the excitation, and the output s·u, their (10). W₁ squeezes to
    C/reduction channels, rounded by :func:`round_channels`. ``gate`` is the sigmoid of Hu et al.
    or, in MobileNetV3, ``nn.Hardsigmoid``.

    >>> SqueezeExcitation(64).fc1
    Conv2d(64, 16, kernel_size=(1, 1), stride=(1, 1))
    """

    def __init__(self, channels: int, reduction: float = 4, gate: type[nn.Module] = nn.Sigmoid):
        super().__init__()
        squeezed = round_channels(channels / reduction)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, u: Tensor) -> Tensor:
        """Return s·u, N×C×H×W."""
        return self.gate(self.fc2(self.fc1(self._squeeze(u)).relu())) * u

    def _squeeze(self, u: Tensor) -> Tensor:
        return u.mean((2, 3), keepdim=True)


@contextmanager
def changed_gates(model: nn.Module, change: Callable[[int, Tensor], Tensor | None]) -> Iterator:
    """Within the context, let ``change(i, s)`` replace the gates s (N×C×1×1) of the i-th SE module.

    A ``change`` that returns None only watches.

    >>> module, u = SqueezeExcitation(8), torch.rand(1, 8, 2, 2)
    >>> with changed_gates(module, lambda i, s: torch.ones_like(s)):
    ...     torch.equal(module(u), u)
    True
    """
    modules = [m for m in model.modules() if isinstance(m, SqueezeExcitation)]
    hooks = [
        m.gate.register_forward_hook(lambda _module, _args, s, i=i: change(i, s))
        for i, m in enumerate(modules)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def watch(model: nn.Module, evaluate: Callable[[], Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return the gates, N×C for each squeeze-and-excitation module, and what ``evaluate`` returned.

    ``evaluate`` lets N images pass through ``model``, in one or more batches.

    >>> watch(module := SqueezeExcitation(8), lambda: module(torch.ones(5, 8, 2, 2)))[0][0].shape
    torch.Size([5, 8])
    """
    seen = defaultdict(list)
    with changed_gates(model, lambda i, s: seen[i].append(s.flatten(1))):
        outputs = evaluate()
    return [torch.cat(parts) for parts in seen.values()], outputs


def between_classes(gates: Tensor, labels: Tensor) -> float:
    """Return η², the share of the gates' variance over images that lies between the classes.

    With gates s (N×C), Σ_c Σ_k n_k (mean of s_c in class k − mean of s_c)² over
    Σ_c Σ_i (s_ic − mean of s_c)². It is 1 for gates that the class determines, and 0 for gates that
    never change, of which it is undefined.

    >>> between_classes(torch.tensor([[0.0], [0.0], [1.0], [1.0]]), torch.tensor([0, 0, 1, 1]))
    1.0
    """
    centred = gates.double() - gates.double().mean(0)
    between = sum(
        len(members) * members.mean(0).square().sum()
        for members in (centred[labels == k] for k in labels.unique())
    )
    total = centred.square().sum()
    return (between / total).item() if total > 1e-12 * gates.numel() else 0.0


def replacements(gates: list[Tensor]) -> dict[str, Callable[[int, Tensor], Tensor]]:
    """Return what can stand in for the learned gates, by name, for use with ``changed_gates``.

    ``gates`` are those that :func:`watch` returned for N images, which must pass in the same order.
    ``mean`` is each channel's average over one random half of them, for the images of the other;
    ``another image's`` gives each image all gates of one other; ``another channel's`` deals each
    image's own gates out anew, to each in its own way; ``open`` is 1.

    >>> list(replacements([torch.rand(5, 8)]))
    ['learned', 'mean', "another image's", "another channel's", 'open']
    """
    chance = torch.Generator().manual_seed(0)
    # in a circle, each image's neighbour is another image
    circle = torch.randperm(len(gates[0]), generator=chance)
    other = circle.roll(1)[circle.argsort()]
    row = [cycle(g[other]) for g in gates]
    half = circle % 2
    mean = [cycle(torch.stack([g[half == 1].mean(0), g[half == 0].mean(0)])[half]) for g in gates]
    return {
        "learned": lambda i, s: s,
        "mean": lambda i, s: torch.stack([next(mean[i]) for _ in s]).view_as(s),
        "another image's": lambda i, s: torch.stack([next(row[i]) for _ in s]).view_as(s),
        "another channel's": lambda i, s: s.gather(
            1, torch.rand(s.shape, generator=chance).argsort(1)
        ),
        "open": lambda i, s: torch.ones_like(s),
    }


def summary(gates: Tensor, labels: Tensor) -> dict[str, float]:
    """Return what a table of the gates (N×C) of one module shows, as :func:`study` lists it.

    >>> summary(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1]))["open"]
    0.75
    """
    return {
        "channels": gates.shape[1],
        "mean": round(gates.mean().item(), 4),
        "spread": round(gates.std(0, correction=0).mean().item(), 4),
        "closed": round((gates == 0).double().mean().item(), 4),
        "open": round((gates == 1).double().mean().item(), 4),
        "between_classes": round(between_classes(gates, labels), 4),
    }


def study(model: nn.Module, evaluate: Callable[[], Tensor], labels: Tensor) -> dict:
    """Measure a network's gates on N images.

    ``evaluate`` returns its outputs for the images, N×classes, always in the same order. Of the
    result, ``modules`` has for each its number of channels, mean gate, a gate's standard deviation
    over the images, shares of gates that are closed (0) and open (1), and η²; ``accuracy`` is that
    with each of :func:`replacements`; ``only[a][b]`` counts the images that are right with a and
    wrong with b, for paired comparisons.

    >>> model, x = nn.Sequential(SqueezeExcitation(8), nn.Flatten()), torch.eye(8)[:, :, None, None]
    >>> study(model, lambda: model(x), torch.arange(8))["accuracy"]["mean"]
    1.0
    """
    gates, _ = watch(model, evaluate)
    right = {}
    for name, change in replacements(gates).items():
        with changed_gates(model, change):
            right[name] = evaluate().argmax(1) == labels
    return {
        "modules": [summary(g, labels) for g in gates],
        "accuracy": {name: r.double().mean().item() for name, r in right.items()},
        "only": {a: {b: int((right[a] & ~right[b]).sum()) for b in right} for a in right},
    }
