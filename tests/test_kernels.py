"""The faster twins: PyTorch's values and gradients, used only where they are right, and undone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mnlib import gates
from mnlib.lab import kernels
from mnlib.lab.kernels import Conv2d, Hardswish, ReLU6, _FiveByFive
from mnlib.mobilenet import V3_SMALL, mobilenet_v2, mobilenet_v3_small

few = settings(deadline=None, max_examples=25)


def test_relu6_is_pytorchs_and_keeps_its_output_only():
    x = torch.cat([torch.randn(200) * 5, torch.tensor([0.0, 6.0, -0.0])]).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = ReLU6(inplace=True)(x * 1)
    assert [t.data_ptr() for t in kept] == [y.data_ptr()]
    weight = torch.randn(203)
    expected = nn.ReLU6()(x)
    assert torch.equal(y, expected)
    (found,), (known,) = (torch.autograd.grad((weight * v).sum(), x) for v in (y, expected))
    assert torch.equal(found, known)
    with torch.no_grad():
        assert torch.equal(ReLU6(inplace=True)(x.clone()), expected)


def test_hardswish_is_pytorchs_and_in_place_only_where_no_gradient_wants_the_input():
    x = torch.linspace(-4, 4, 50)
    expected = nn.Hardswish()(x)
    y = x.clone().requires_grad_() * 1
    assert torch.equal(Hardswish(inplace=True)(y), expected)
    assert torch.equal(y, x)
    assert Hardswish()(x).data_ptr() != x.data_ptr()
    assert Hardswish(inplace=True)(x).data_ptr() == x.data_ptr()
    assert torch.equal(x, expected)


def five_by_five(channels=3, stride=1, **options):
    return Conv2d(channels, channels, 5, stride, 2, groups=channels, bias=False, **options)


@few
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
    st.integers(0, 99),
)
def test_a_depthwise_5x5_convolution_has_pytorchs_gradients(height, width, stride, frozen, seed):
    torch.manual_seed(seed)
    conv = five_by_five(stride=stride).double()
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_(not frozen)
    y, expected = conv(x), nn.Conv2d.forward(conv, x)
    assert torch.equal(y, expected)
    wanted = [conv.weight] if frozen else [conv.weight, x]
    cotangent = torch.randn_like(y)
    for found, known in zip(
        *(torch.autograd.grad(out, wanted, cotangent) for out in (y, expected)), strict=True
    ):
        torch.testing.assert_close(found, known, rtol=1e-12, atol=1e-12)


def test_a_depthwise_5x5_convolution_keeps_the_layout_of_its_input():
    x = torch.randn(2, 3, 7, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    found, known = (
        torch.autograd.grad(conv(x).square().sum(), x)[0]
        for conv in (five_by_five(), nn.Conv2d(3, 3, 5, padding=2, groups=3))
    )
    assert found.stride() == known.stride() == x.stride()


@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_5x5_convolution_has_second_derivatives_and_one_for_each_image(stride):
    conv = five_by_five(2, stride).double()
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(conv, (x,))

    def loss(weight, image):
        return torch.func.functional_call(conv, {"weight": weight}, (image[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(conv.weight, x)
    known = [torch.autograd.grad(loss(conv.weight, image), conv.weight)[0] for image in x]
    torch.testing.assert_close(found, torch.stack(known))


def test_the_faster_gradient_is_used_where_it_is_right_and_only_there(monkeypatch):
    calls = []
    apply = _FiveByFive.apply
    monkeypatch.setattr(_FiveByFive, "apply", lambda *args: calls.append(1) or apply(*args))
    model = kernels.faster(mobilenet_v3_small(classes=2)).train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert len(calls) == sum(row.kernel == 5 for row in V3_SMALL) == 8
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    x = torch.randn(1, 3, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        y = five_by_five()(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    five_by_five(padding_mode="reflect")(x)
    five_by_five(dilation=2)(x)
    five_by_five(stride=3)(x)
    five_by_five().requires_grad_(False)(x)
    five_by_five()(x[0])
    Conv2d(3, 3, 5, padding=2, groups=3)(x)
    Conv2d(3, 3, 5, padding=2, bias=False)(x)
    Conv2d(3, 6, 5, padding=2, groups=3, bias=False)(x)
    assert len(calls) == 8


def test_a_relu6_that_is_not_in_place_leaves_its_input_alone():
    x = torch.randn(20) * 9
    before = x.clone()
    ReLU6()(x.requires_grad_())
    assert torch.equal(x, before)


def test_the_faster_squeeze_is_the_plain_one():
    torch.manual_seed(0)
    gate = gates.SqueezeExcitation(16).double()
    results = []
    for swap in (kernels.faster, kernels.plain):
        u = torch.randn(2, 16, 7, 7, dtype=torch.float64, generator=torch.manual_seed(1))
        y = swap(gate)(u.requires_grad_())
        (gradient,) = torch.autograd.grad(y.square().sum(), u)
        results.append((y, gradient))
    for found, known in zip(*results, strict=True):
        torch.testing.assert_close(found, known)


@pytest.mark.parametrize("build", [mobilenet_v2, mobilenet_v3_small])
def test_swapping_keeps_the_state_the_outputs_and_is_undone(build):
    torch.manual_seed(0)
    model = build(classes=3).train()
    kinds = [type(m) for m in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(2, 3, 64, 64)
    grads = []
    for swap in (kernels.plain, kernels.faster):
        model.load_state_dict(state)
        torch.manual_seed(1)  # the dropout's
        model.zero_grad()
        swap(model)(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for found, known in zip(*grads, strict=True):
        assert (found - known).norm() <= 1e-3 * known.norm() + 1e-6
    assert [type(m) for m in model.modules()] != kinds
    assert list(model.state_dict()) == list(state)
    assert [type(m) for m in kernels.plain(model).modules()] == kinds
