from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mnlib import separable
from mnlib.separable import DecoupledConv2d, DepthwiseSeparableConv2d, decouple

few = settings(deadline=None, max_examples=20)
ordered = pytest.mark.parametrize("order", separable.ORDERS)
orders = st.sampled_from(separable.ORDERS)
sizes = st.integers(1, 6)
kernels = st.tuples(st.integers(1, 3), st.integers(1, 3))


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def module(form, n_i, n_o, kernel, stride=1, padding=0, dilation=1, bias=False):
    options = {"stride": stride, "padding": padding, "dilation": dilation, "bias": bias}
    if form == "regular":
        return nn.Conv2d(n_i, n_o, kernel, **options)
    return DepthwiseSeparableConv2d(n_i, n_o, kernel, order=form, **options)


@few
@given(
    st.sampled_from(list(separable.SLIDES_PARAMETERS)),
    sizes,
    sizes,
    kernels,
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
)
def test_counts_are_those_of_the_modules(form, n_i, n_o, kernel, stride, padding, dilation, bias):
    conv = module(form, n_i, n_o, kernel, stride, padding, dilation, bias)
    parameters = sum(p.numel() for p in conv.parameters())
    assert separable.parameter_count(form, n_i, n_o, kernel, bias) == parameters
    counter = FlopCounterMode(display=False)
    with counter:
        conv(torch.randn(1, n_i, 9, 7))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    multiply_adds = separable.multiply_adds(form, n_i, n_o, kernel, (9, 7), **geometry)
    assert 2 * multiply_adds == counter.get_total_flops()


@given(sizes, sizes, kernels)
def test_the_slides_growth_is_exact_without_bias(n_i, n_o, kernel):
    names = {"n_i": n_i, "n_o": n_o, "k_h": kernel[0], "k_w": kernel[1]}
    for form, formula in separable.SLIDES_PARAMETERS.items():
        value = eval(formula.replace("·", "*"), names)
        assert separable.parameter_count(form, n_i, n_o, kernel) == value


@given(st.integers(1, 600), st.integers(1, 600), kernels)
def test_reduction_is_the_papers_and_the_order_with_more_outputs_costs_more(n_i, n_o, kernel):
    k = kernel[0] * kernel[1]
    first = separable.reduction("depthwise_first", n_i, n_o, kernel)
    last = separable.reduction("pointwise_first", n_i, n_o, kernel)
    assert first == Fraction(1, n_o) + Fraction(1, k)
    assert last == Fraction(1, n_i) + Fraction(1, k)
    assert (last > first) == (n_o > n_i)


@ordered
def test_a_separable_convolution_is_its_two_convolutions(order):
    conv = module(order, 3, 5, 3, stride=2, padding=1, bias=True).double()
    assert conv.depthwise.groups == (3 if order == "depthwise_first" else 5)
    x = random(2, 3, 9, 9)
    # The regular convolution whose kernels are the products of the two.
    mixing = conv.pointwise.weight[:, :, 0, 0]
    filters = conv.depthwise.weight[:, 0]
    channel = "i" if order == "depthwise_first" else "o"
    weight = torch.einsum(f"oi,{channel}hw->oihw", mixing, filters)
    bias = (conv.pointwise if order == "depthwise_first" else conv.depthwise).bias
    expected = nn.functional.conv2d(x, weight, bias, stride=2, padding=1)
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-12)


@few
@given(orders, sizes, sizes, kernels, st.integers(0, 10**6))
def test_all_blocks_reconstruct_the_weight_and_fewer_are_the_best(order, n_i, n_o, kernel, seed):
    weight = random(n_o, n_i, *kernel, seed=seed)
    whole = decouple(weight, order)
    k = kernel[0] * kernel[1]
    assert whole.rank == min(k, n_o if order == "depthwise_first" else n_i)
    torch.testing.assert_close(whole.weight(), weight, rtol=0, atol=1e-10)
    assert whole.error == 0
    axis = 1 if order == "depthwise_first" else 0
    slices = [m.flatten(1).numpy() for m in weight.unbind(axis)]
    values = np.array([np.linalg.svd(m, compute_uv=False) for m in slices])
    for rank in range(1, whole.rank + 1):
        parts = decouple(weight, order, rank)
        achieved = (parts.weight() - weight).norm() / weight.norm()
        best = np.sqrt((values[:, rank:] ** 2).sum() / (values**2).sum())
        assert parts.error == pytest.approx(best, abs=1e-10)
        assert float(achieved) == pytest.approx(best, abs=1e-10)


@few
@given(
    orders,
    kernels,
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
    st.sampled_from(["zeros", "reflect", "circular"]),
)
def test_the_blocks_are_the_convolution(order, kernel, stride, padding, dilation, bias, mode):
    conv = nn.Conv2d(
        4, 11, kernel, stride, padding, dilation, bias=bias, padding_mode=mode, dtype=torch.float64
    )
    x = random(2, 4, 9, 8)
    blocks = DecoupledConv2d(conv, order)
    torch.testing.assert_close(blocks(x), conv(x), rtol=0, atol=1e-10)
    assert blocks.error == 0


@ordered
def test_a_sum_of_separate_modules_is_the_fused_one(order):
    conv = nn.Conv2d(4, 6, 3, padding="same", dtype=torch.float64)
    parts = decouple(conv.weight, order, rank=3)
    x = random(2, 4, 7, 7)
    total = conv.bias[:, None, None].expand(2, 6, 7, 7)
    for r in range(3):
        block = module(order, 4, 6, 3, padding=1).double()
        block.depthwise.weight.data = parts.depthwise[:, r : r + 1].contiguous()
        block.pointwise.weight.data = parts.pointwise[:, :, r, None, None].contiguous()
        total = total + block(x)
    fused = DecoupledConv2d(conv, order, rank=3)
    torch.testing.assert_close(fused(x), total, rtol=0, atol=1e-12)
    assert fused.error == parts.error > 0


@ordered
def test_the_bound_is_tight_and_separable_kernels_need_one_block(order):
    errors = decouple(random(12, 10, 3, 3), order).errors
    assert len(errors) == 10
    assert (errors[:-1] > 1e-3).all()
    few_channels = decouple(
        random(2, 4, 3, 3) if order == "depthwise_first" else random(4, 2, 3, 3), order
    )
    assert few_channels.rank == 2
    conv = module(order, 4, 6, 3).double()
    channel = "i" if order == "depthwise_first" else "o"
    weight = torch.einsum(
        f"oi,{channel}hw->oihw", conv.pointwise.weight[:, :, 0, 0], conv.depthwise.weight[:, 0]
    )
    assert decouple(weight, order, rank=1).error < 1e-12


@ordered
@pytest.mark.parametrize("n", [2, 40])
def test_float32_is_as_good_as_its_precision(order, n):
    weight = random(n, n, 3, 3, dtype=torch.float32)
    # Singular values over seven decades along rotated axes, so that the Gram matrix's square is
    # hard: along the positions themselves each entry of it would keep its own precision.
    axes = torch.linalg.qr(random(9, 9, seed=1)).Q.float()
    weight = (weight.flatten(2) * torch.logspace(0, -7, 9) @ axes).view(n, n, 3, 3)
    for rank in range(1, min(9, n) + 1):
        parts = decouple(weight, order, rank)
        exact = decouple(weight.double(), order, rank)
        achieved = (parts.weight().double() - weight).norm() / weight.norm()
        assert float(achieved) <= exact.error + 3e-7
        assert parts.error == pytest.approx(exact.error, abs=3e-7)
        assert {parts.depthwise.dtype, parts.pointwise.dtype} == {torch.float32}


@ordered
def test_a_zero_weight_has_zero_error(order):
    parts = decouple(torch.zeros(3, 4, 3, 3), order)
    assert not parts.errors.any()
    assert not parts.weight().any()


@ordered
@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e160, 1e300])
def test_errors_see_no_scale(order, scale):
    weight = random(5, 4, 3, 3)
    expected, parts = (decouple(w, order, rank=2) for w in (weight, scale * weight))
    torch.testing.assert_close(parts.errors, expected.errors)
    torch.testing.assert_close(parts.weight() / scale, expected.weight())


@ordered
def test_blocks_take_an_image_without_a_batch(order):
    conv = nn.Conv2d(4, 6, 3)
    x = random(4, 7, 8, dtype=torch.float32)
    blocks = DecoupledConv2d(conv, order)
    assert blocks(x).shape == (6, 5, 6)
    torch.testing.assert_close(blocks(x), conv(x), rtol=0, atol=1e-5)


@ordered
def test_what_is_frozen_or_evaluating_stays_so(order):
    conv = nn.Conv2d(4, 6, 3)
    blocks = DecoupledConv2d(conv, order, 2)
    assert blocks.training
    assert all(p.requires_grad for p in blocks.parameters())
    conv.weight.requires_grad_(False)
    blocks = DecoupledConv2d(conv.eval(), order, 2)
    assert not any(m.training for m in blocks.modules())
    trainable = [name for name, p in blocks.named_parameters() if p.requires_grad]
    assert trainable == [f"{'pointwise' if order == 'depthwise_first' else 'depthwise'}.bias"]
    assert not any(
        p.requires_grad for p in DecoupledConv2d(conv.requires_grad_(False)).parameters()
    )


def test_slices_are_a_view_and_their_grams_are_exact_in_any_layout():
    weight = random(6, 8, 3, 3)
    for w in (weight, weight.to(memory_format=torch.channels_last), weight[:, :7], weight[:, ::2]):
        for vertical, axis in ((True, 1), (False, 0)):
            slices = separable.slices_of(w, vertical)
            matrices = [m.flatten(1) for m in w.unbind(axis)]
            torch.testing.assert_close(slices, torch.stack(matrices), rtol=0, atol=0)
            for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
                grams = separable.gram_matrices(slices, dtype)
                assert grams.dtype == dtype
                expected = torch.stack([m.T @ m for m in matrices]).to(dtype)
                torch.testing.assert_close(grams, expected, rtol=0, atol=tolerance)
    assert separable.slices_of(weight, True).data_ptr() == weight.data_ptr()
    many = random(2, 200, 1, 2)  # more than are converted at a time
    torch.testing.assert_close(
        separable.gram_matrices(separable.slices_of(many.float(), True), torch.float64),
        torch.einsum("oih,oij->ihj", *2 * [many.float().double().flatten(2)]),
    )


def test_what_is_not_given_is_as_in_pytorch():
    ours, theirs = DepthwiseSeparableConv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
    assert ours(torch.ones(1, 4, 7, 7)).shape == theirs(torch.ones(1, 4, 7, 7)).shape
    assert ours.pointwise.bias is not None
    for name in ("stride", "padding", "dilation", "padding_mode"):
        assert getattr(ours.depthwise, name) == getattr(theirs, name)
    assert separable.multiply_adds("regular", 4, 6, 3, (7, 7)) == 4 * 6 * 9 * 25


def test_an_image_that_the_kernel_just_fits():
    assert separable.multiply_adds("regular", 3, 4, 5, (5, 5)) == 3 * 4 * 25
    assert separable.multiply_adds("depthwise_first", 3, 4, 3, (5, 5), dilation=2) == 27 + 12


def test_a_bias_is_counted_only_if_asked_for():
    assert separable.parameter_count("regular", 3, 4, 1) == 12
    assert separable.parameter_count("regular", 3, 4, 1, bias=True) == 16


def test_one_sentence_for_bad_input():
    weight = random(3, 4, 3, 3)
    with pytest.raises(ValueError, match="rank 4 is out of range: give 1 to 3"):
        decouple(weight, rank=4)
    with pytest.raises(ValueError, match="rank 0"):
        decouple(weight, rank=0)
    with pytest.raises(ValueError, match="'regular' is unknown"):
        decouple(weight, "regular")
    with pytest.raises(ValueError, match=r"shape \(3, 4\)"):
        decouple(weight[..., 0, 0])
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(ValueError, match="NaN"):
            decouple(weight.to(dtype) / 0)
    for dtype in (torch.int64, torch.complex64):
        with pytest.raises(ValueError, match=f"{dtype}.* give floating numbers"):
            decouple(weight.to(dtype))
    for other in (nn.ConvTranspose2d(4, 4, 3), nn.Conv1d(4, 4, 3), nn.Linear(4, 4)):
        with pytest.raises(ValueError, match=f"a {type(other).__name__} cannot .* give an nn.Conv"):
            DecoupledConv2d(other)
    with pytest.raises(ValueError, match="2 groups"):
        DecoupledConv2d(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match="'sideways' is unknown"):
        DepthwiseSeparableConv2d(3, 4, 3, order="sideways")
    with pytest.raises(ValueError, match="n_i=0"):
        separable.parameter_count("regular", 0, 4, 3)
    with pytest.raises(ValueError, match="does not fit"):
        separable.multiply_adds("regular", 3, 4, 5, (4, 4))
