"""The blocks against torchvision's modules, against their equations and against counts by hand."""

from itertools import product

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from mnlib.cost import (
    PeakMemory,
    count_macs,
    count_parameters,
    fold_batch_norm,
    layers,
    time_in_turns,
)
from mnlib.gates import SqueezeExcitation, changed_gates, round_channels
from mnlib.mobilenet import (
    V3_LARGE,
    V3_SMALL,
    ConvNormActivation,
    InvertedResidual,
    Row,
)

few = settings(deadline=None, max_examples=25)


@few
@given(st.floats(0.1, 5000))
@example(80 / 9)  # of which 8 are exactly 90 %
@example(18)  # of which 16 are less
def test_rounded_channels_are_a_near_multiple_of_8_as_torchvisions(channels):
    from torchvision.models._utils import _make_divisible

    rounded = round_channels(channels)
    assert rounded % 8 == 0
    assert rounded >= max(8, 0.9 * channels)
    assert rounded == _make_divisible(channels, 8)


def test_squeeze_excitation_sums_in_single_precision_at_least():
    u = torch.full((1, 16, 56, 56), 30.0, dtype=torch.float16)
    assert SqueezeExcitation(16).half()(u).isfinite().all()


@pytest.mark.parametrize("gate", [nn.Sigmoid, nn.Hardsigmoid])
@pytest.mark.parametrize(("channels", "reduction"), [(16, 4), (72, 4), (64, 8), (96, 1)])
def test_squeeze_excitation_equals_torchvisions(gate, channels, reduction):
    from torchvision.ops import SqueezeExcitation as Reference

    torch.manual_seed(0)
    ours = SqueezeExcitation(channels, reduction, gate)
    reference = Reference(channels, round_channels(channels / reduction), scale_activation=gate)
    reference.load_state_dict(ours.state_dict())
    u = torch.randn(3, channels, 5, 7, requires_grad=True)
    v = u.detach().clone().requires_grad_()
    a, b = ours(u), reference(v)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    a.square().sum().backward()
    b.square().sum().backward()
    torch.testing.assert_close(u.grad, v.grad, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.fc1.weight.grad, reference.fc1.weight.grad)


@pytest.mark.parametrize("row", [r for r in (*V3_LARGE, *V3_SMALL) if r.se])
def test_the_convolution_before_a_squeeze_has_one_term(row):
    """Equation (8): of the kernels v_c^s only those with s = c are not zero."""
    torch.manual_seed(1)
    *_, (conv, norm, nonlinearity), gates, _ = InvertedResidual(16, row).double().eval().block
    x = torch.randn(1, row.expanded, 7, 7, dtype=torch.float64)
    assert isinstance(gates, SqueezeExcitation)
    assert conv.weight.shape == (row.expanded, 1, row.kernel, row.kernel)
    padded = nn.functional.pad(x, [row.kernel // 2] * 4)
    u = torch.zeros_like(conv(x))
    side = u.shape[-1]
    for i, j in product(range(row.kernel), repeat=2):  # the sum of v_c^c * x^c written out
        window = padded[:, :, i :: row.stride, j :: row.stride][..., :side, :side]
        u += conv.weight[:, 0, i, j, None, None] * window
    torch.testing.assert_close(conv(x), u, rtol=0, atol=1e-12)
    changed = nonlinearity(norm(conv(x + (torch.arange(row.expanded) == 3)[:, None, None])))
    others = torch.arange(row.expanded) != 3
    assert torch.equal(changed[:, others], nonlinearity(norm(conv(x)))[:, others])


def test_squeeze_excitation_is_equations_9_and_10_around_an_excitation():
    """Each sum is written out over indices, in float64."""
    torch.manual_seed(1)
    module = SqueezeExcitation(16, 2).double()
    u = torch.randn(2, 16, 3, 4, dtype=torch.float64)
    z = torch.stack([u[:, c].reshape(2, -1).sum(1) / (3 * 4) for c in range(16)], 1)
    w1, w2 = module.fc1.weight[:, :, 0, 0], module.fc2.weight[:, :, 0, 0]
    hidden = (z @ w1.T + module.fc1.bias).clamp(min=0)
    s = 1 / (1 + torch.exp(-(hidden @ w2.T + module.fc2.bias)))
    torch.testing.assert_close(module(u), u * s[:, :, None, None], rtol=0, atol=1e-12)


def test_a_gate_of_half_halves_and_hard_sigmoid_saturates():
    module = SqueezeExcitation(8, gate=nn.Hardsigmoid)
    u = torch.randn(1, 8, 4, 4)
    nn.init.zeros_(module.fc2.weight)
    for bias, factor in [(0.0, 0.5), (3.0, 1.0), (-3.0, 0.0), (1.5, 0.75)]:
        nn.init.constant_(module.fc2.bias, bias)
        torch.testing.assert_close(module(u), factor * u)


def test_changed_gates_reach_every_module_in_order_and_leave_no_trace():
    model = nn.Sequential(SqueezeExcitation(8), SqueezeExcitation(16), nn.Identity())
    model[1] = nn.Sequential(nn.Conv2d(8, 16, 1), model[1])
    u = torch.randn(2, 8, 4, 4)
    before, seen = model(u), []
    with changed_gates(model, lambda i, s: seen.append((i, tuple(s.shape)))):
        assert torch.equal(model(u), before)
    assert seen == [(0, (2, 8, 1, 1)), (1, (2, 16, 1, 1))]
    with changed_gates(model, lambda i, s: torch.ones_like(s)):
        torch.testing.assert_close(model(u), model[1][0](u))
    assert torch.equal(model(u), before)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("out", [16, 24])
@pytest.mark.parametrize("expanded", [16, 40])
def test_inverted_residual_is_its_layers_in_a_row(stride, out, expanded):
    torch.manual_seed(2)
    row = Row(5, expanded, out, True, "HS", stride)
    block = InvertedResidual(16, row).eval()
    x = torch.randn(2, 16, 9, 9)
    y = x
    for layer in block.block:
        y = layer(y)
    if stride == 1 and out == 16:
        y = y + x
    torch.testing.assert_close(block(x), y)
    assert y.shape == (2, out, -(-9 // stride), -(-9 // stride))
    expansions = [m for m in block.block if isinstance(m, ConvNormActivation)]
    assert len(expansions) == (2 if expanded == 16 else 3)
    assert not any(isinstance(m, nn.Hardswish) for m in block.block[-1])  # linear bottleneck


def test_counts_of_one_block_by_hand():
    """1×1 16→48 at 8×8, depth-wise 3×3 stride 2, gates 48→16→48, 1×1 48→24 at 4×4."""
    block = InvertedResidual(16, Row(3, 48, 24, True, "RE", 2))
    convolutions = 16 * 48 + 48 * 9 + (48 * 16 + 16) + (16 * 48 + 48) + 48 * 24
    assert count_parameters(block) == convolutions + 2 * (48 + 48 + 24)
    macs = 16 * 48 * 64 + 48 * 9 * 16 + 2 * 48 * 16 + 48 * 24 * 16
    assert count_macs(block, (16, 8, 8)) == macs


def test_layers_are_listed_with_shapes_and_sum_up():
    model = nn.Sequential(ConvNormActivation(3, 8, 3, "RE", stride=2), nn.Flatten())
    rows = {row.name: row for row in layers(model, (3, 6, 6))}
    assert list(rows) == ["0.0", "0.1", "0.2", "0", "1", ""]
    assert rows["0"].input == (3, 6, 6)
    assert rows["0"].output == (8, 3, 3)
    assert rows["1"].output == (72,)
    assert rows[""].macs == rows["0.0"].macs == 3 * 8 * 9 * 9
    assert rows[""].parameters == 3 * 8 * 9 + 16
    assert next(model.parameters()).device.type == "cpu"  # the caller's model stays where it was


def randomised(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights that folding cannot get right by accident."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


@pytest.mark.parametrize("flat", [False, True])
def test_folding_keeps_the_function_and_drops_every_norm(flat):
    block = randomised(InvertedResidual(8, Row(3, 24, 8, True, "HS", 1), flat=flat)).double()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    folded = fold_batch_norm(block)
    torch.testing.assert_close(folded(x), block(x), rtol=0, atol=1e-12)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in block.modules())


def test_bad_rows_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="stride 3 is not that of an inverted residual: give 1"):
        InvertedResidual(8, Row(3, 8, 8, False, "RE", 3))
    with pytest.raises(ValueError, match="'SWISH' is unknown: choose one of RE, RE6, HS or None"):
        InvertedResidual(8, Row(3, 8, 8, False, "SWISH", 1))


def test_counting_bytes_leaves_operations_as_they_are():
    with PeakMemory() as memory:
        y = torch.full((4,), 3, dtype=torch.float64)
    assert y.tolist() == [3.0] * 4
    assert y.dtype == torch.float64
    assert memory.peak == 32


def test_the_seconds_are_those_of_the_calls_on_this_thread(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("mnlib.cost.time.thread_time", lambda: clock[0])
    spent = iter([7.0, 1.0, 2.0, 3.0])  # the first is the warm-up

    def variant():
        clock[0] += next(spent)

    assert time_in_turns({"a": variant}, 3) == {"a": [1.0, 2.0, 3.0]}


def test_variants_are_called_in_turns_after_a_warm_up():
    calls, threads = [], torch.get_num_threads()
    seconds = time_in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert "".join(calls) == "abababab"
    assert {name: len(s) for name, s in seconds.items()} == {"a": 3, "b": 3}
    time_in_turns({"a": lambda: calls.append(torch.get_num_threads())}, 1)
    assert calls[-1] == 1
    assert torch.get_num_threads() == threads
