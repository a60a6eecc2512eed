"""The networks of Table 1: ResNet-20, and a Neural ODE of no more parameters, for 32×32 images."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnlib.residual import ODEBlock, VectorField

__all__ = ["BasicBlock", "NeuralODE", "ResNet20"]


class BasicBlock(nn.Module):
    """``relu(shortcut(h) + branch(h))`` with two 3×3 convolutions (He et al., 2016, fig. 2).

    Maps N×before×H×W to N×after×H/s×W/s. Where s = 2 the shortcut drops every other pixel and
    pads the new channels with zeros, which takes no parameters (their option A).

    >>> BasicBlock(16, 32)(torch.ones(1, 16, 8, 8)).shape
    torch.Size([1, 32, 4, 4])
    """

    def __init__(self, before: int, after: int):
        super().__init__()
        self.stride, self.new = 1 if before == after else 2, after - before
        self.branch = nn.Sequential(
            nn.Conv2d(before, after, 3, self.stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, h: Tensor) -> Tensor:
        """Map features to features."""
        kept = h[:, :, :: self.stride, :: self.stride]
        return F.relu(F.pad(kept, (0, 0, 0, 0, 0, self.new)) + self.branch(h))


class ResNet20(nn.Sequential):
    """ResNet-20 for CIFAR-10 (He et al., 2016, §4.2), 3 stages of 3 blocks: N×3×H×W to N×classes.

    >>> sum(parameter.numel() for parameter in ResNet20().parameters())
    269722
    """

    def __init__(self, classes: int = 10):
        widths = [16] * 4 + [32] * 3 + [64] * 3
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            *(BasicBlock(*pair) for pair in pairwise(widths)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


class NeuralODE(nn.Module):
    """Three ODEs in a row (after Chen et al., 2018), 262,746 parameters with 10 classes.

    Maps float N×``channels``×H×W to N×``classes``. Each of ``blocks`` solves dh/dt = f(t, h) from 0
    to 1, f being two 3×3 convolutions with a SiLU between them, so that all of a stage's depth
    shares its weights. A convolution of stride 2 leads from stage to stage. Batch norm stands
    before the flows and after the last, never in f: f is smooth and the same for every image and at
    every evaluation, without which finer steps would not converge to a flow. ``widths`` are the
    channels of the stages, and the solver's arguments those of :class:`mnlib.residual.ODEBlock`.

    >>> model = NeuralODE()
    >>> model(torch.ones(2, 3, 32, 32)).shape, model.nfe  # a midpoint step is two evaluations
    (torch.Size([2, 10]), 6)
    """

    blocks: Any  # an nn.ModuleList of ODEBlock

    def __init__(
        self,
        classes: int = 10,
        channels: int = 3,
        widths: Sequence[int] = (16, 48, 96),
        method: str = "midpoint",
        steps: int = 1,
        gradient: str = "backprop",
    ):
        super().__init__()
        self.entries, self.blocks = nn.ModuleList(), nn.ModuleList()
        self._slopes: list[list[Tensor]] = []
        self._noting = False
        for stage, (before, after) in enumerate(pairwise((channels, *widths))):
            entry = nn.Conv2d(before, after, 3, 2 if stage else 1, padding=1, bias=False)
            self.entries.append(nn.Sequential(entry, nn.BatchNorm2d(after), nn.SiLU()))
            first, second = (nn.Conv2d(after, after, 3, padding=1) for _ in range(2))
            field = VectorField(nn.Sequential(first, nn.SiLU(), second), after)
            field.register_forward_hook(self._keep_slope)
            self.blocks.append(ODEBlock(field, method, steps, gradient=gradient))
        pooled = nn.BatchNorm2d(after), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.head = nn.Sequential(*pooled, nn.Linear(after, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        self._slopes, self._noting = [], self.training
        for entry, block in zip(self.entries, self.blocks, strict=True):
            block.nfe = 0
            self._slopes.append([])
            x = block(entry(x))
        self._noting = False  # not those that a backward pass takes again
        return self.head(x)

    def __getstate__(self) -> dict:
        """Leave the last batch's graph out of copies, which PyTorch could not copy."""
        return {**self.__dict__, "_slopes": []}

    def _keep_slope(self, _field: nn.Module, _inputs: tuple, slope: Tensor) -> None:
        if self._noting:
            self._slopes[-1][1:] = [slope]  # the first and the last

    def penalty(self) -> Tensor:
        """Return how far from straight the flows of the last training batch were.

        The mean over stages of the squared change of dh/dt from a flow's first evaluation to its
        last, over its square: for one step the solver's own estimate of its error (after Pal et
        al., 2021), which costs nothing. A network trained with a penalty on it is solved well by
        one step. Only ``"backprop"`` lets it carry a gradient.
        """
        if not self._slopes or not all(self._slopes):
            raise RuntimeError("no slopes were kept: call penalty() after a pass in training mode")
        ends = [(slopes[0], slopes[-1]) for slopes in self._slopes]
        changes = torch.stack([(last - first).square().mean() for first, last in ends])
        sizes = torch.stack([last.square().mean() for _, last in ends])
        return (changes / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)).mean()

    def solve_with(self, method: str, steps: int = 1, tolerance: float = 1e-3) -> None:
        """Have every stage solved otherwise from now on, with the same weights."""
        for block in self.blocks:
            block.method, block.steps, block.tolerance = method, steps, tolerance

    def trajectory(self, x: Tensor, times: Tensor) -> list[Tensor]:
        """Return each stage's features at ``times``, 0 first and 1 last, len(times)×N×C×H×W."""
        flows = []
        for entry, block in zip(self.entries, self.blocks, strict=True):
            flows.append(block.trajectory(entry(x), times))
            x = flows[-1][-1]
        return flows

    @property
    def nfe(self) -> int:
        """Evaluations of all right-hand sides in the last forward pass, and in its backward."""
        return sum(block.nfe for block in self.blocks)
