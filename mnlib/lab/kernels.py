"""Twins of PyTorch's layers and of the squeeze that train faster on a CPU; nobody needs to read it.

Networks are made of PyTorch's own layers, which other tools know. A training swaps the twins in by
:func:`faster` and out again by :func:`plain`: they differ in their methods only.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from mnlib import gates

__all__ = ["faster", "plain"]


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
    """``nn.ReLU6`` that, in place, keeps no copy of its input for the backward pass, as that does.

    The output alone tells where the derivative is 1 and where 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` clamped to 0..6."""
        fast = self.inplace and x.requires_grad
        return _Clamp.apply(x) if fast else super().forward(x)


class Hardswish(nn.Hardswish):
    """``nn.Hardswish`` that is never in place where a gradient is wanted, which needs the input."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x * relu6(x + 3) / 6``."""
        return F.hardswish(x, self.inplace and not x.requires_grad)


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


class SqueezeExcitation(gates.SqueezeExcitation):
    """A squeeze whose gradient, unlike that of a mean, is spread over H×W without being stored."""

    def _squeeze(self, u: Tensor) -> Tensor:
        total = u.sum((2, 3), keepdim=True, dtype=torch.promote_types(u.dtype, torch.float32))
        return (total / (u.shape[2] * u.shape[3])).to(u.dtype)


_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: Conv2d,
    nn.ReLU6: ReLU6,
    nn.Hardswish: Hardswish,
    gates.SqueezeExcitation: SqueezeExcitation,
}


def faster(model: nn.Module) -> nn.Module:
    """Give the layers of ``model`` their faster twins, in place, and return it.

    Only layers of exactly PyTorch's classes change; their parameters, buffers, hooks and names in
    the state dict stay.

    >>> model = faster(nn.Sequential(nn.Hardswish()))
    >>> type(model[0]) is nn.Hardswish, type(plain(model)[0]) is nn.Hardswish
    (False, True)
    """
    return _swap(model, _TWINS)


def plain(model: nn.Module) -> nn.Module:
    """Undo :func:`faster`, in place, and return the model."""
    return _swap(model, {twin: layer for layer, twin in _TWINS.items()})


def _swap(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> nn.Module:
    for module in model.modules():
        module.__class__ = classes.get(type(module), type(module))
    return model
