"""Depthwise separable convolutions, what they cost, and convolutions as exact sums of them.

``n_i`` and ``n_o`` are the numbers of input and output channels, k = k_h·k_w the positions of the
kernel. Two orders: "depthwise_first" filters each input channel and then mixes (Howard et al.,
2017), "pointwise_first" mixes and then filters each output channel (Chollet, 2017). Everything here
is linear: no batch norm or activation stands between the two convolutions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

__all__ = [
    "ORDERS",
    "SLIDES_PARAMETERS",
    "DecoupledConv2d",
    "Decoupling",
    "DepthwiseSeparableConv2d",
    "Form",
    "Order",
    "decouple",
    "multiply_adds",
    "parameter_count",
    "rank_bound",
    "reduction",
]

Order = Literal["depthwise_first", "pointwise_first"]
Size = int | tuple[int, int]
Form = Literal["regular", "depthwise_first", "pointwise_first"]
ORDERS: tuple[Order, ...] = get_args(Order)

#: Parameters by form, as the slides' O(), which are exact when there is no bias.
SLIDES_PARAMETERS = {
    "regular": "n_i·k_h·k_w·n_o",
    "depthwise_first": "k_h·k_w·n_i + n_i·n_o",
    "pointwise_first": "n_i·n_o + k_h·k_w·n_o",
}


def parameter_count(form: Form, n_i: int, n_o: int, kernel_size: Size, bias: bool = False) -> int:
    """Return the parameters of a convolution in one of its three forms, ``bias`` adding n_o.

    >>> [parameter_count(form, 64, 128, 3) for form in SLIDES_PARAMETERS]
    [73728, 8768, 9344]
    """
    k_h, k_w = _checked(form, n_i, n_o, kernel_size)
    filters = {"regular": n_i * n_o, "depthwise_first": n_i, "pointwise_first": n_o}[form]
    return k_h * k_w * filters + (form != "regular") * n_i * n_o + bias * n_o


def multiply_adds(
    form: Form,
    n_i: int,
    n_o: int,
    kernel_size: Size,
    size: tuple[int, int],
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> int:
    """Return the multiply-adds of one image of height and width ``size``; bias adds none.

    Taps on the padding count, as in ``torch.utils.flop_counter``. The 1×1 convolution sees the
    output's positions if it is last and the input's if it is first: with a stride the two orders
    differ by more than their parameters do.

    >>> [multiply_adds(order, 64, 64, 3, (56, 56), 2, padding=1) for order in ORDERS]
    [3662848, 13296640]
    """
    kernel = _checked(form, n_i, n_o, kernel_size)
    out = [
        (s + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        for s, k in zip(size, kernel, strict=True)
    ]
    if min(out) < 1:
        raise ValueError(
            f"a kernel of {kernel} with dilation {dilation} does not fit an image of {size} with "
            f"padding {padding}: give a larger image or more padding"
        )
    positions, taps = out[0] * out[1], kernel[0] * kernel[1]
    if form == "regular":
        return n_i * taps * n_o * positions
    if form == "depthwise_first":
        return (taps * n_i + n_i * n_o) * positions
    return n_i * n_o * size[0] * size[1] + taps * n_o * positions


def reduction(order: Order, n_i: int, n_o: int, kernel_size: Size) -> Fraction:
    """Return the parameters of a separable convolution over those of the regular one, exactly.

    1/n_o + 1/k depth-wise first, 1/n_i + 1/k point-wise first (Howard et al., 2017, section 3.1).

    >>> reduction("depthwise_first", n_i=3, n_o=16, kernel_size=3)  # 1/16 + 1/9
    Fraction(25, 144)
    """
    parameters = parameter_count(order, n_i, n_o, kernel_size)
    return Fraction(parameters, parameter_count("regular", n_i, n_o, kernel_size))


def rank_bound(order: Order, n_i: int, n_o: int, kernel_size: Size) -> int:
    """Return how many separable blocks suffice for any, and are needed by almost every, kernel.

    min(k, n_o) depth-wise first and min(k, n_i) point-wise first: the largest rank of a slice.

    >>> [rank_bound(order, 3, 64, kernel_size=3) for order in ORDERS]
    [9, 3]
    """
    k_h, k_w = _checked(order, n_i, n_o, kernel_size, ORDERS)
    return min(k_h * k_w, n_o if order == "depthwise_first" else n_i)


class DepthwiseSeparableConv2d(nn.Module):
    """A depth-wise and a 1×1 convolution, or the sum of several such pairs, fused.

    Maps (N×)n_i×H×W to (N×)n_o×H'×W' as ``nn.Conv2d`` does with the same stride, padding and
    dilation, which the depth-wise convolution takes; the bias belongs to the last of the two.
    ``blocks`` pairs share one depth-wise and one 1×1 convolution: between them, channel c of block
    r is channel c·blocks + r.

    >>> DepthwiseSeparableConv2d(16, 32, 3, stride=2, padding=1)(torch.ones(1, 16, 8, 8)).shape
    torch.Size([1, 32, 4, 4])
    """

    def __init__(
        self,
        n_i: int,
        n_o: int,
        kernel_size: Size,
        order: Order = "depthwise_first",
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        bias: bool = True,
        blocks: int = 1,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    ):
        super().__init__()
        kernel_size = _checked(order, n_i, n_o, kernel_size, ORDERS)
        first = order == "depthwise_first"
        inside = blocks * (n_i if first else n_o)
        groups = n_i if first else inside
        self.order, self.blocks = order, blocks
        window = kernel_size, stride, padding, dilation
        self.depthwise = nn.Conv2d(
            groups, inside, *window, groups, bias and not first, padding_mode
        )
        ends = (inside, n_o) if first else (n_i, inside)
        self.pointwise = nn.Conv2d(*ends, 1, bias=bias and first)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, (N×)n_o×H'×W'."""
        if self.order == "depthwise_first":
            return self.pointwise(self.depthwise(x))
        y = self.depthwise(self.pointwise(x))
        # Summing afterwards is four times as fast as a convolution with `blocks` inputs a group.
        return y if self.blocks == 1 else y.unflatten(-3, (-1, self.blocks)).sum(-3)


@dataclass(frozen=True)
class Decoupling:
    """A convolution weight as a sum of R separable blocks; see :func:`decouple`.

    >>> parts = decouple(torch.eye(9, dtype=torch.float64).view(9, 1, 3, 3), rank=3)
    >>> parts.rank, round(parts.error**2, 6)  # six of nine equal squares are missing
    (3, 0.666667)

    ``errors`` are the relative Frobenius errors ‖W − Ŵ‖/‖W‖ of the best sum of 0, 1, … up to
    ``rank_bound`` blocks, in float64.
    """

    order: Order
    depthwise: Tensor  # C×R×k_h×k_w, C = n_i depth-wise first and n_o point-wise first
    pointwise: Tensor  # n_o×n_i×R
    errors: Tensor

    @property
    def rank(self) -> int:
        """Number of blocks R."""
        return self.depthwise.shape[1]

    @property
    def error(self) -> float:
        """Relative error of these R blocks, which no other R blocks of this order undercut."""
        return float(self.errors[self.rank])

    def weight(self) -> Tensor:
        """Return the sum of the blocks as one weight Ŵ, n_o×n_i×k_h×k_w."""
        channel = "i" if self.order == "depthwise_first" else "o"
        return torch.einsum(f"oir,{channel}rhw->oihw", self.pointwise, self.depthwise)


def decouple(
    weight: Tensor, order: Order = "depthwise_first", rank: int | None = None
) -> Decoupling:
    """Write a convolution as a sum of separable ones (network decoupling, Guo et al., 2018).

    The n_o×k matrix of each input channel (depth-wise first), or the n_i×k matrix of each output
    channel (point-wise first), is replaced by its singular value decomposition: the r-th right
    singular vectors are the kernels of the r-th depth-wise convolution, the r-th left ones times
    the singular values the r-th 1×1 convolution. The sum of ``rank_bound`` blocks is exact; fewer
    are the best approximation in the Frobenius norm, by Eckart and Young for each slice on its own.

    >>> weight = torch.arange(72, dtype=torch.float64).view(4, 2, 3, 3)
    >>> torch.allclose(decouple(weight, rank=2).weight(), weight)  # of rank 2, for it is a + b·t
    True

    float64 goes through ``torch.linalg.svd``. float32 (and half precision, computed in float32)
    goes through k×k Gram matrices in float64, which is faster and as good: squaring the condition
    number costs 1.5e-8 of the norm at worst, less than float32 resolves.
    The weight is n_o×n_i×k_h×k_w, floating and finite; the factors are of its dtype. ``rank`` is
    the number of blocks, 1 to ``rank_bound``, by default all.
    """
    x = slices_of(weight, vertical=order == "depthwise_first")
    n_o, n_i, k_h, k_w = weight.shape
    bound = rank_bound(order, n_i, n_o, (k_h, k_w))
    rank = bound if rank is None else rank
    if not 1 <= rank <= bound:
        raise ValueError(f"rank {rank} is out of range: give 1 to {bound} for {order}")
    if x.dtype == torch.float64:
        check_real(x)
        left, values, right = torch.linalg.svd(x, full_matrices=False)
        mixed, kernels = (left * values[:, None])[..., :rank], right[:, :rank]
        squares = (values / (values.max() or 1)).square()
    else:
        gram = gram_matrices(x, torch.float64)
        check_real(gram)
        squares, vectors = torch.linalg.eigh(gram)
        squares = squares.flip(1)[:, :bound].clamp(min=0)
        kernels = vectors.flip(2)[..., :rank].mT.to(x)
        mixed = x @ kernels.mT
    tails = squares.sum(0).flip(0).cumsum(0).flip(0)
    tails = torch.cat([tails, tails.new_zeros(1)])
    return Decoupling(
        order,
        kernels.unflatten(2, (k_h, k_w)).to(weight.dtype),
        (mixed.transpose(0, 1) if order == "depthwise_first" else mixed).to(weight.dtype),
        (tails / (tails[0] or 1)).sqrt(),
    )


class DecoupledConv2d(DepthwiseSeparableConv2d):
    """A regular convolution with its weight replaced by a sum of ``rank`` separable blocks.

    Stride, padding (and its mode), dilation, bias, the mode (training or evaluation) and what is
    frozen are those of ``conv``; ``error`` is the relative error of the weight. Without ``rank``
    the function is that of ``conv``.

    >>> conv, x = nn.Conv2d(4, 8, 3, padding=1), torch.rand(1, 4, 6, 6)
    >>> torch.allclose(DecoupledConv2d(conv)(x), conv(x), atol=1e-5)
    True
    """

    def __init__(self, conv: nn.Conv2d, order: Order = "depthwise_first", rank: int | None = None):
        if not isinstance(conv, nn.Conv2d):
            raise ValueError(f"a {type(conv).__name__} cannot be decoupled: give an nn.Conv2d")
        if conv.groups != 1:
            raise ValueError(f"a convolution of {conv.groups} groups cannot be decoupled: give 1")
        parts = decouple(conv.weight, order, rank)
        window: Any = (conv.kernel_size, order, conv.stride, conv.padding, conv.dilation)
        rest: Any = conv.bias is not None, parts.rank, conv.padding_mode
        super().__init__(conv.in_channels, conv.out_channels, *window, *rest)
        self.to(conv.weight).train(conv.training).requires_grad_(conv.weight.requires_grad)
        self.error = parts.error
        first = order == "depthwise_first"
        pointwise = parts.pointwise if first else parts.pointwise.transpose(1, 2)
        bias = (self.pointwise if first else self.depthwise).bias
        with torch.no_grad():
            self.depthwise.weight.copy_(parts.depthwise.reshape(self.depthwise.weight.shape))
            self.pointwise.weight.copy_(pointwise.reshape(self.pointwise.weight.shape))
            if conv.bias is not None and bias is not None:
                bias.zero_()  # point-wise first the first block has it all
                bias[:: 1 if first else parts.rank] = conv.bias
                bias.requires_grad_(conv.bias.requires_grad)


def slices_of(weight: Tensor, vertical: bool) -> Tensor:
    """Return the slices of a weight, n_i×n_o×k vertical, else n_o×n_i×k: a view, if not half."""
    if weight.ndim != 4 or not weight.numel() or not weight.is_floating_point():
        raise ValueError(
            f"a {weight.dtype} weight of shape {tuple(weight.shape)} has no slices: give floating "
            "numbers n_o×n_i×k_h×k_w, none of these 0"
        )
    x = weight.detach().flatten(2)
    x = x if x.dtype == torch.float64 else x.float()
    return x.transpose(0, 1) if vertical else x


def gram_matrices(slices: Tensor, dtype: torch.dtype) -> Tensor:
    """Return XᵀX of every slice X, S×k×k from S×n×k, computed in ``dtype``."""
    count, _, k = slices.shape
    # Vertical slices lie side by side in memory. BLAS is faster with four of them (two in float64)
    # as one matrix, of whose product only the diagonal blocks are kept.
    wide = 16 // dtype.itemsize
    wide = wide if slices.stride(0) == k < 16 and count % wide == 0 else 1
    x = slices.transpose(0, 1).unflatten(1, (-1, wide)).flatten(2).transpose(0, 1)
    grams = []
    # A few converted ones at a time stay in the cache.
    for part in x.split(count if dtype == x.dtype else 64):
        part = part.to(dtype)
        grams.append(part.mT @ part)
    blocks = torch.cat(grams).unflatten(2, (wide, k)).unflatten(1, (wide, k))
    return blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).flatten(0, 1)


def check_real(*tensors: Tensor) -> None:
    """Raise ValueError unless all numbers are floating and finite."""
    for tensor in tensors:
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            why = "is not floating or holds a NaN or an infinity: give floating numbers, all finite"
            raise ValueError(f"a tensor of {tensor.dtype} {why}")


def _checked(
    form: str, n_i: int, n_o: int, kernel_size: Size, allowed: Iterable[str] = SLIDES_PARAMETERS
) -> tuple[int, int]:
    """Return the kernel's height and width, or raise ValueError for what cannot be meant."""
    if form not in allowed:
        raise ValueError(f"{form!r} is unknown: choose one of {', '.join(allowed)}")
    kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if min(n_i, n_o, *kernel) < 1:
        raise ValueError(f"n_i={n_i}, n_o={n_o} and kernel {kernel} must all be at least 1")
    return kernel
