"""The building blocks of MobileNetV2 and V3, and counts of what a network costs.

Parameter names are torchvision's, so that state dicts interchange with it.
Sources: Sandler et al. (2018), Howard et al. (2019), Hu et al. (2018).
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        y = x.clamp_(0, 6)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, y, 0, 6)


class ReLU6(nn.ReLU6):
    """``nn.ReLU6`` in place that keeps no copy of its input for the backward pass, as that does.

    The output alone tells where the derivative is 1 and where 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Clamp ``x`` to 0..6 and return it."""
        return _Clamp.apply(x) if x.requires_grad else super().forward(x)


class Hardswish(nn.Hardswish):
    """``nn.Hardswish`` that is never in place where a gradient is wanted, which needs the input."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x * relu6(x + 3) / 6``."""
        return F.hardswish(x, self.inplace and not x.requires_grad)


NONLINEARITIES = {"RE": nn.ReLU, "RE6": ReLU6, "HS": Hardswish}


class _FiveByFive(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, stride):
        return F.conv2d(x, weight, None, stride, 2, groups=len(weight))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, ctx.stride = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        s, channels = ctx.stride, len(weight)
        to_x = None
        if ctx.needs_input_grad[0]:
            # what nn.Conv2d calls: given x, and not its shape alone, it keeps x's layout in memory
            rest = (None, (s, s), (2, 2), (1, 1), False, (0, 0), channels, (True, False, False))
            to_x = torch.ops.aten.convolution_backward(grad, x, weight, *rest)[0]
        # Shifted by a column, the output's gradient meets the outer columns of the kernel where
        # it met inner ones; at strides 1 and 2 the column that falls out only met padding.
        after, before = grad.roll(-1, 3), grad.roll(1, 3)
        after[..., -1] = before[..., 0] = 0
        left, middle, right = (
            conv2d_weight(x, (channels, 1, 5, 3), g, s, (2, 1), groups=channels)
            for g in (after, grad, before)
        )
        to_weight = torch.cat([left[..., s - 1 : s], middle, right[..., 3 - s : 4 - s]], 3)
        return to_x, to_weight, None


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` whose depthwise 5×5 kernels, as MobileNetV3 has them, train faster on the CPU.

    oneDNN takes the gradient of a depthwise kernel of at most three columns channel by channel, but
    that of a wider one as if it were dense in blocks of 16 channels. Here it comes in three parts
    of 5×3, outside mixed precision.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``."""
        fast = (
            (self.kernel_size, self.padding, self.dilation) == ((5, 5), (2, 2), (1, 1))
            and self.stride in ((1, 1), (2, 2))
            and self.groups == self.in_channels == self.out_channels
            and self.bias is None
            and self.padding_mode == "zeros"
            and torch.is_grad_enabled()
            and self.weight.requires_grad
            and x.is_cpu
            and x.ndim == 4
            and not torch.is_autocast_enabled("cpu")
        )
        if fast:
            return _FiveByFive.apply(x, self.weight, self.stride[0])
        return super().forward(x)


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
            Conv2d(
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

    For an input u of shape N×C×H×W, z = mean of u over H and W (8), s = σ(W₂ δ(W₁ z + b₁) + b₂)
    (9) with δ the ReLU, and the output is s·u (10). W₁ squeezes to C/reduction channels, rounded
    by :func:`round_channels`. σ is ``gate``: the sigmoid of Hu et al. or, in MobileNetV3,
    ``nn.Hardsigmoid``.
    """

    def __init__(self, channels: int, reduction: float = 4, gate: type[nn.Module] = nn.Sigmoid):
        super().__init__()
        squeezed = round_channels(channels / reduction)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, u: Tensor) -> Tensor:
        """Return s·u, N×C×H×W."""
        # The gradient of a sum, unlike that of a mean, is spread over H×W without being stored.
        total = u.sum((2, 3), keepdim=True, dtype=torch.promote_types(u.dtype, torch.float32))
        z = (total / (u.shape[2] * u.shape[3])).to(u.dtype)
        s = self.gate(self.fc2(self.fc1(z).relu()))
        return s * u


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
        if flat:
            self.conv = nn.Sequential(*layers, *projection)
        else:
            self.block = nn.Sequential(*layers, projection)
        self.shortcut = stride == 1 and in_channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Return the projection, plus ``x`` where the shape is kept."""
        (body,) = self.children()
        return x + body(x) if self.shortcut else body(x)


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


def optimize_for_inference(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a compiled copy of ``model`` for evaluation, with frozen weights and folded norms.

    It computes the same function up to float rounding, without gradients. The first call with a
    new shape compiles for 10 to 20 s and needs a C++ compiler: where either is too much, use
    :func:`fold_batch_norm`.
    """
    from torch._inductor import config  # takes a second to import

    compiled = torch.compile(copy.deepcopy(model).eval().to(memory_format=torch.channels_last))

    def run(x: Tensor) -> Tensor:
        # set as torch.compile's option, freezing leaves the weights in their slower layout
        with torch.no_grad(), config.patch(freezing=True):
            return compiled(x)

    return run


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
