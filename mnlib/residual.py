"""Residual blocks, h + branch(h), and the ODE block that they are a step of."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mnlib.ode import odeint

__all__ = [
    "Bottleneck",
    "LinearBottleneck",
    "ODEBlock",
    "ODEStage",
    "Residual",
    "VectorField",
    "group_norm",
]

Layer = Callable[..., nn.Module]


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group norm of eight groups, or of the greatest common divisor with ``channels``.

    It depends on no other image and on no running statistics, so that a right-hand side made of
    it is a function of its argument alone.

    >>> [group_norm(channels).num_groups for channels in (64, 12, 7)]
    [8, 4, 1]
    """
    return nn.GroupNorm(math.gcd(8, channels), channels)


class Residual(nn.Module):
    """``h + tau·branch(h)``: the shortcut, and with it one Euler step of length ``tau``.

    ``branch`` keeps the shape of ``h``.

    >>> Residual(nn.Identity(), tau=0.25)(torch.ones(1))
    tensor([1.2500])
    """

    def __init__(self, branch: nn.Module, tau: float = 1.0):
        super().__init__()
        self.branch, self.tau = branch, tau

    def forward(self, h: Tensor) -> Tensor:
        """Map a tensor to one of its shape."""
        return h + self.tau * self.branch(h)


class Bottleneck(nn.Sequential):
    """Wide, narrow, wide: 1×1, 3×3 and 1×1 convolutions (He et al., 2016).

    The general residual block is ``Residual(Bottleneck(channels, narrow))``, N×channels×H×W. Every
    convolution but the last has a nonlinearity after its norm; He et al. put the last one after
    the addition.

    >>> [m.out_channels for m in Bottleneck(256, 64) if isinstance(m, nn.Conv2d)]
    [64, 64, 256]
    """

    def __init__(
        self, channels: int, narrow: int, norm: Layer = nn.BatchNorm2d, activation: Layer = nn.ReLU
    ):
        super().__init__(
            nn.Conv2d(channels, narrow, 1, bias=False),
            norm(narrow),
            activation(),
            nn.Conv2d(narrow, narrow, 3, padding=1, bias=False),
            norm(narrow),
            activation(),
            nn.Conv2d(narrow, channels, 1, bias=False),
            norm(channels),
        )


class LinearBottleneck(nn.Sequential):
    """Narrow, wide, narrow: expand by 1×1, filter depth-wise by 3×3, project by 1×1.

    The projection to the few ``channels`` is linear, since a nonlinearity there would lose what
    they hold (Sandler et al., 2018). The inverted residual block is
    ``Residual(LinearBottleneck(channels, wide))``, N×channels×H×W;
    :class:`mnlib.mobilenet.InvertedResidual` is MobileNet's, with its strides, widths and gates.

    >>> [tuple(m.weight.shape) for m in LinearBottleneck(24, 144) if isinstance(m, nn.Conv2d)]
    [(144, 24, 1, 1), (144, 1, 3, 3), (24, 144, 1, 1)]
    """

    def __init__(
        self, channels: int, wide: int, norm: Layer = nn.BatchNorm2d, activation: Layer = nn.ReLU6
    ):
        super().__init__(
            nn.Conv2d(channels, wide, 1, bias=False),
            norm(wide),
            activation(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            norm(wide),
            activation(),
            nn.Conv2d(wide, channels, 1, bias=False),
            norm(channels),
        )


class VectorField(nn.Module):
    """A branch as the right-hand side ``f(t, h)`` of an ODE in N×channels×H×W features.

    Time enters as a learnt shift of each channel, ``branch(h + t·shift)``, zero at first. For the
    solvers' orders to hold the branch must be smooth: :func:`group_norm` and, say, ``nn.SiLU``
    rather than a ReLU. Batch norm makes f depend on the batch and, in training, on how often it
    is evaluated.

    >>> field = VectorField(nn.Identity(), channels=1)
    >>> _ = nn.init.constant_(field.shift, 2.0)
    >>> field(torch.tensor(0.5), torch.zeros(1, 1, 1, 1)).item()
    1.0
    """

    def __init__(self, branch: nn.Module, channels: int):
        super().__init__()
        self.branch = branch
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        """Return dh/dt for a 0-dimensional time."""
        return self.branch(h + t * self.shift)


class ODEBlock(nn.Module):
    """The flow of ``field`` from t = 0 to t = 1, a residual block of as many layers as steps.

    With ``method="euler", steps=1`` it is ``h + field(0, h)``. The solver's settings are plain
    attributes, so that a trained block can be solved otherwise; ``nfe`` counts the evaluations of
    ``field``, backward but not compiled ones too, since it was last set to zero.

    Args:
        field: module with ``forward(t, h)``, such as :class:`VectorField`.
        method: as in :func:`mnlib.ode.odeint`, as are ``gradient`` and ``per_sample``.
        steps: number of equal steps on [0, 1] of a fixed-step method.
        tolerance: absolute and relative tolerance of dopri5.

    >>> block = ODEBlock(VectorField(nn.Identity(), 1), "euler", steps=4)
    >>> block(torch.ones(1, 1, 1, 1)).item() == (1 + 1 / 4) ** 4, block.nfe
    (True, 4)
    """

    def __init__(
        self,
        field: nn.Module,
        method: str = "rk4",
        steps: int = 2,
        tolerance: float = 1e-3,
        gradient: str = "backprop",
        per_sample: bool = False,
    ):
        super().__init__()
        self.field = field
        self.method, self.steps, self.tolerance = method, steps, tolerance
        self.gradient, self.per_sample = gradient, per_sample
        self.nfe = 0

    def forward(self, h: Tensor) -> Tensor:
        """Map the features at t = 0 to those at t = 1, of the same shape."""
        return self.trajectory(h, torch.tensor([0.0, 1.0], dtype=h.dtype))[-1]

    def trajectory(self, h: Tensor, t: Tensor) -> Tensor:
        """Return the features at the times ``t``, which start at that of ``h``; len(t)×h.shape."""
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} is no number of steps; give 1 or more")

        def field(time: Tensor, state: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():  # each value would be compiled for
                self.nfe += 1
            return self.field(time, state)

        vars(field).update(parameters=self.field.parameters, buffers=self.field.buffers)
        return odeint(
            field,
            h,
            t,
            method=self.method,
            step_size=None if self.method == "dopri5" else 1 / self.steps,
            rtol=self.tolerance,
            atol=self.tolerance,
            gradient=self.gradient,
            per_sample=self.per_sample,
        )


class ODEStage(nn.Module):
    """The flow of a field that is piecewise constant in time: weights θ^(t) for each depth t.

    Branch n of N is the right-hand side dh/dt = branch_n(h) on [n, n + 1). With ``"euler"`` and one
    step an interval the flow *is* a residual stage with weights of its own in each block,
    ``h + branch_n(h)`` for n = 0, …, N − 1, the slides' equation (1); more steps refine it towards
    their (2). Each interval is solved by itself, since a method that evaluates at the end of a
    step would meet the next branch there, and lose its order at each jump.

    Args:
        branches: N modules that keep the shape of the features.
        method: as in :class:`ODEBlock`, for each interval, as are the other settings.

    >>> stage = ODEStage([nn.Identity(), nn.Identity()])
    >>> stage(torch.ones(1))
    tensor([4.])
    """

    def __init__(
        self,
        branches: Iterable[nn.Module],
        method: str = "euler",
        steps: int = 1,
        tolerance: float = 1e-3,
        gradient: str = "backprop",
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            ODEBlock(_Held(branch), method, steps, tolerance, gradient) for branch in branches
        )

    def forward(self, h: Tensor) -> Tensor:
        """Map the features at t = 0 to those at t = N, of the same shape."""
        for block in self.blocks:
            h = block(h)
        return h


class _Held(nn.Module):  # a branch as a field that does not look at the time
    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, _t: Tensor, h: Tensor) -> Tensor:
        return self.branch(h)
