"""The building blocks of MobileNetV2 and V3, and counts of what a network costs.

Parameter names are torchvision's, so that state dicts interchange with it.
Sources: Sandler et al. (2018), Howard et al. (2019), Hu et al. (2018).
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

NONLINEARITIES = {"RE": nn.ReLU, "RE6": nn.ReLU6, "HS": nn.Hardswish}


class Row(NamedTuple):
    """One row of a MobileNet table, which is one block (Tables 1 and 2 of Howard et al., 2019).

    ``expanded`` is the number of channels between expansion and projection, ``out`` that after the
    projection, ``nonlinearity`` a key of :data:`NONLINEARITIES`, ``stride`` 1 or 2.
    """

    kernel: int
    expanded: int
    out: int
    se: bool
    nonlinearity: str
    stride: int


def round_channels(channels: float) -> int:
    """Return the multiple of 8 nearest to ``channels``, at least 8 and at least 90 % of it.

    The rule of MobileNet's authors for every width that a multiplier or a reduction makes.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class ConvNormActivation(nn.Sequential):
    """Convolution without bias, batch norm and, unless None, a nonlinearity.

    Maps N×in_channels×H×W to N×out_channels×⌈H/stride⌉×⌈W/stride⌉ for an odd ``kernel``.

    Raises:
        ValueError: ``nonlinearity`` is neither None nor a key of :data:`NONLINEARITIES`.

    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        nonlinearity: str | None,
        stride: int = 1,
        groups: int = 1,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ):
        layers = [
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel,
                stride,
                padding=kernel // 2,
                groups=groups,
                bias=False,
            ),
            norm(out_channels),
        ]
        if nonlinearity is not None:
            if nonlinearity not in NONLINEARITIES:
                raise ValueError(
                    f"nonlinearity {nonlinearity!r} is unknown: choose one of "
                    f"{', '.join(NONLINEARITIES)} or None"
                )
            layers.append(NONLINEARITIES[nonlinearity](inplace=True))
        super().__init__(*layers)


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate that sees the mean of all channels (Hu et al., 2018).

    For an input u of shape N×C×H×W, z is the mean of u over H and W, the slides' equation (9),
    s = gate(W₂ ReLU(W₁ z + b₁) + b₂) the excitation, and the output s·u, their (10). W₁ squeezes to
    C/reduction channels, rounded by :func:`round_channels`. ``gate`` is the sigmoid of Hu et al.
    or, in MobileNetV3, ``nn.Hardsigmoid``.
    """

    def __init__(self, channels: int, reduction: float = 4, gate: type[nn.Module] = nn.Sigmoid):
        super().__init__()
        squeezed = round_channels(channels / reduction)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, u: Tensor) -> Tensor:
        """Return s·u, N×C×H×W."""
        z = u.mean((2, 3), keepdim=True)
        return self.gate(self.fc2(self.fc1(z).relu())) * u


@contextmanager
def changed_gates(model: nn.Module, change: Callable[[int, Tensor], Tensor | None]) -> Iterator:
    """Within the context, let ``change(i, s)`` replace the gates s (N×C×1×1) of the i-th SE module.

    A ``change`` that returns None only watches.
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


class InvertedResidual(nn.Module):
    """Expand by 1×1, filter depth-wise, gate if asked for, project linearly by 1×1 (one row).

    Maps N×in_channels×H×W to N×row.out×⌈H/stride⌉×⌈W/stride⌉. The input is added when the shape is
    kept: stride 1 and equal channels. There is no expansion layer when ``row.expanded`` equals
    ``in_channels``. ``flat`` names the layers as torchvision's MobileNetV2 does (``conv``, with
    the projection not nested), otherwise as its MobileNetV3 (``block``).

    Raises:
        ValueError: the stride is neither 1 nor 2, or the nonlinearity is unknown.

    """

    flat: Final[bool]  # a constant, for TorchScript leaves the other branch out

    def __init__(
        self,
        in_channels: int,
        row: Row,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        flat: bool = False,
    ):
        super().__init__()
        kernel, expanded, out, se, nonlinearity, stride = row
        if stride not in (1, 2):
            raise ValueError(f"stride {stride} is not that of an inverted residual: give 1 or 2")
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers += [ConvNormActivation(in_channels, expanded, 1, nonlinearity, norm=norm)]
        layers += [
            ConvNormActivation(expanded, expanded, kernel, nonlinearity, stride, expanded, norm)
        ]
        if se:
            layers += [SqueezeExcitation(expanded, gate=nn.Hardsigmoid)]
        projection = ConvNormActivation(expanded, out, 1, None, norm=norm)
        self.flat = flat
        if flat:
            self.conv = nn.Sequential(*layers, *projection)
        else:
            self.block = nn.Sequential(*layers, projection)
        self.shortcut = stride == 1 and in_channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Return the projection, plus ``x`` where the shape is kept."""
        y = self.conv(x) if self.flat else self.block(x)
        return x + y if self.shortcut else y


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, channels last, with batch norms folded into convolutions.

    A norm is folded that follows its convolution in an ``nn.Sequential``. The copy computes the
    same function up to float rounding and is not meant to be trained.
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            for i, (conv, norm) in enumerate(pairwise(module)):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[i], module[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return model.to(memory_format=torch.channels_last)


class Layer(NamedTuple):
    """A module of a network: dotted name, class, shapes for one input, and what it costs.

    ``parameters`` and ``macs`` (multiply-adds) include those of the modules inside it.
    """

    name: str
    kind: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    parameters: int
    macs: int


def layers(model: nn.Module, shape: tuple[int, ...] = (3, 224, 224)) -> list[Layer]:
    """Return every module of ``model`` that one input of ``shape`` passes, in order of execution.

    The network itself, named ``""``, stands last. Multiply-adds are those of convolutions and
    matrix products, counted by ``torch.utils.flop_counter`` on meta tensors: nothing is computed.
    Batch norm (which folds into a convolution), nonlinearities, pooling and the scaling by gates
    do not count.
    """
    model = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    passed = []
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda module, args, out, name=name: passed.append(
                (name, module, tuple(args[0].shape[1:]), tuple(out.shape[1:]))
            )
        )
    with counter, torch.no_grad():
        model(torch.empty(1, *shape, device="meta"))
    flops = counter.get_flop_counts()
    root = type(model).__name__
    return [
        Layer(
            name,
            type(module).__name__,
            input_shape,
            output_shape,
            count_parameters(module),
            sum(flops.get(f"{root}.{name}".rstrip("."), {}).values()) // 2,
        )
        for name, module, input_shape, output_shape in passed
    ]


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters; running statistics do not count."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, shape: tuple[int, ...] = (3, 224, 224)) -> int:
    """Return the multiply-adds of ``model`` for one input of ``shape``, as :func:`layers` does."""
    return layers(model, shape)[-1].macs


def time_in_turns(
    variants: dict[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Return the seconds on one core of each call, ``repeats`` a variant, after one to warm up.

    PyTorch is held to one thread and that thread's own time is taken, so that other work on the
    machine counts little (MobileNets' papers measure on a single core, too). The variants take
    turns, so that what does count meets all of them: compare them by ratio, turn by turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(repeats + 1):
            for name, variant in variants.items():
                start = time.thread_time()
                variant()
                if turn:
                    seconds[name].append(time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    return seconds
