"""Residual and ODE blocks."""

import copy
import math

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from mnlib.lab.diagrams import residual_block
from mnlib.ode import odeint
from mnlib.residual import (
    Bottleneck,
    LinearBottleneck,
    ODEBlock,
    ODEStage,
    Residual,
    VectorField,
    group_norm,
)


def two_convolutions(channels, norm=nn.BatchNorm2d, activation=nn.ReLU):
    """The basic branch of a residual block (He et al., 2016)."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        norm(channels),
        activation(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        norm(channels),
    )


BRANCHES = {
    "bottleneck": lambda: Bottleneck(16, 4, group_norm, nn.SiLU),
    "linear bottleneck": lambda: LinearBottleneck(16, 48, group_norm, nn.SiLU),
    "two convolutions": lambda: two_convolutions(16, group_norm, nn.SiLU),
}


def convolutions(branch):
    return [m for m in branch if isinstance(m, nn.Conv2d)]


def test_widths_of_the_general_and_the_inverted_block():
    general = [m.out_channels for m in convolutions(Bottleneck(256, 64))]
    assert general == [64, 64, 256]  # wide, narrow, narrow, wide
    inverted = convolutions(LinearBottleneck(24, 144))
    assert [m.out_channels for m in inverted] == [144, 144, 24]
    assert inverted[1].groups == 144
    assert [m.kernel_size for m in inverted] == [(1, 1), (3, 3), (1, 1)]


@pytest.mark.parametrize("build", [Bottleneck, LinearBottleneck])
def test_convolutions_leave_the_bias_to_the_norm(build):
    assert all(m.bias is None for m in convolutions(build(8, 16)))


@pytest.mark.parametrize("name", BRANCHES)
def test_last_layer_is_linear(name):
    """Nothing follows the projection but the norm, so that outputs take both signs freely."""
    branch = BRANCHES[name]()
    assert isinstance(branch[-1], nn.GroupNorm)
    assert isinstance(branch[-2], nn.Conv2d)


def test_linear_bottleneck_has_the_parameters_of_the_paper():
    """h·w·t d' (d' + k² + d'') multiplications a position (Sandler et al., 2018, section 3.2)."""
    count = sum(m.weight.numel() for m in convolutions(LinearBottleneck(24, 6 * 24)))
    assert count == 6 * 24 * (24 + 9 + 24)


def test_residual_is_an_euler_step_of_length_tau():
    branch = nn.Linear(3, 3)
    h = torch.randn(2, 3)
    assert torch.equal(Residual(branch, 0.25)(h), h + 0.25 * branch(h))
    assert torch.equal(Residual(branch)(h), h + branch(h))


@pytest.mark.parametrize("name", BRANCHES)
def test_one_euler_step_of_an_ode_block_is_the_residual_block(name):
    torch.manual_seed(0)
    field = VectorField(BRANCHES[name](), 16)
    h = torch.randn(2, 16, 6, 6)
    block = ODEBlock(field, "euler", steps=1)
    assert torch.allclose(block(h), Residual(field.branch)(h), atol=1e-6)
    assert block.nfe == 1
    stacked = ODEBlock(field, "euler", steps=4)(h)
    for n in range(4):
        h = h + field(torch.tensor(n / 4), h) / 4
    assert torch.allclose(stacked, h, atol=1e-5)


def test_time_shifts_the_channels():
    field = VectorField(nn.Identity(), 2)
    h = torch.zeros(1, 2, 3, 3)
    assert torch.equal(field(torch.tensor(0.5), h), h)
    nn.init.constant_(field.shift, 3.0)
    assert torch.equal(field(torch.tensor(0.5), h), h + 1.5)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("name", BRANCHES)
def test_gradients_of_a_block_agree(name, method):
    torch.manual_seed(0)
    block = ODEBlock(VectorField(BRANCHES[name](), 16), method, steps=16, tolerance=1e-8).double()
    nn.init.normal_(block.field.shift)
    h = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    found = {}
    for gradient in ("backprop", "checkpoint", "adjoint"):
        block.gradient = gradient
        block.zero_grad()
        x = h.clone().requires_grad_()
        block(x).square().sum().backward()
        found[gradient] = torch.cat([x.grad.ravel(), *(p.grad.ravel() for p in block.parameters())])
    size = found["backprop"].norm()
    assert (found["checkpoint"] - found["backprop"]).norm() < 1e-12 * size
    assert (found["adjoint"] - found["backprop"]).norm() < 1e-3 * size


def test_smooth_blocks_converge_to_a_flow_at_the_solvers_order():
    torch.manual_seed(0)
    block = ODEBlock(VectorField(BRANCHES["linear bottleneck"](), 16), "rk4").double()
    h = torch.randn(1, 16, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        block.steps = 256
        exact = block(h)
        errors = []
        for block.steps in (16, 32):
            errors.append((block(h) - exact).norm())
    assert 12 < errors[0] / errors[1] < 20


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda branch: ODEBlock(VectorField(branch, 8)),
        lambda branch: ODEStage([branch], "rk4", 2),
        Residual,
    ],
    ids=["block", "stage", "residual"],
)
def test_a_branch_stays_frozen_and_evaluating(wrap, gradient):
    torch.manual_seed(0)
    branch = two_convolutions(8).requires_grad_(False).eval()
    net = wrap(branch)
    for block in (m for m in net.modules() if isinstance(m, ODEBlock)):
        block.gradient = gradient
    h = torch.randn(2, 8, 4, 4, requires_grad=True)
    before = copy.deepcopy(branch.state_dict())
    net(h).square().sum().backward()
    assert h.grad.isfinite().all()
    assert h.grad.norm() > 0
    assert not any(m.training for m in branch.modules())
    assert all(p.grad is None and not p.requires_grad for p in branch.parameters())
    for name, value in branch.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
def test_under_autocast_tuples_keep_their_precision(gradient):
    layer = nn.Linear(4, 4)
    y0 = torch.ones(2, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        both = odeint(
            lambda t, y: (layer(y[1]), (layer(y[0]))),
            (y0, y0 * 2),
            torch.tensor([0.0, 1.0]),
            method="rk4",
            gradient=gradient,
            params=tuple(layer.parameters()),
        )
    assert {x.dtype for x in both} == {torch.float32}
    both[0][-1].sum().backward()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
def test_under_autocast_the_state_keeps_its_precision(gradient):
    torch.manual_seed(0)
    block = ODEBlock(VectorField(two_convolutions(8, group_norm, nn.SiLU), 8), gradient=gradient)
    h = torch.randn(2, 8, 4, 4, requires_grad=True)
    expected = block(h)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        end = block(h)
    assert end.dtype == torch.float32
    torch.testing.assert_close(end, expected, rtol=0.05, atol=0.05)
    end.sum().backward()
    assert h.grad.isfinite().all()


def test_a_block_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="steps=0"):
        ODEBlock(VectorField(two_convolutions(4), 4), steps=0)(torch.zeros(1, 4, 4, 4))


def test_trajectory_starts_at_the_input_and_ends_at_the_output():
    torch.manual_seed(0)
    block = ODEBlock(VectorField(two_convolutions(8, group_norm, nn.SiLU), 8), steps=4)
    h = torch.randn(1, 8, 4, 4)
    path = block.trajectory(h, torch.linspace(0, 1, 3))
    assert torch.equal(path[0], h)
    assert torch.allclose(path[-1], block(h), atol=1e-6)


def test_block_can_be_copied_saved_and_solved_otherwise():
    torch.manual_seed(0)
    block = ODEBlock(VectorField(two_convolutions(8, group_norm, nn.SiLU), 8))
    twin = copy.deepcopy(block)
    twin.load_state_dict(block.state_dict())
    h = torch.randn(1, 8, 4, 4)
    assert torch.equal(twin(h), block(h))
    twin.method, twin.tolerance = "dopri5", 1e-6
    block.steps = 64
    assert torch.allclose(twin(h), block(h), atol=1e-3)
    assert block.nfe == 4 * (2 + 64)


def test_figure_3_is_read_off_the_layers():
    fig, ax = plt.subplots()
    residual_block(ax, LinearBottleneck(24, 144), "inverted")
    texts = [text.get_text() for text in ax.texts]
    plt.close(fig)
    assert [t for t in texts if t.isdigit()] == ["24", "144", "144", "24"]
    assert [t for t in texts if "×" in t] == ["1×1\nReLU6", "3×3\ndepthwise\nReLU6", "1×1"]
    hatched = [p for p in ax.patches if p.get_hatch()]
    assert len(hatched) == 1


def linear(matrix):
    layer = nn.Linear(len(matrix), len(matrix), bias=False).double()
    layer.weight.data = matrix
    return layer


def test_euler_steps_of_a_stage_are_residual_blocks_with_weights_of_their_own():
    torch.manual_seed(0)
    branches = [LinearBottleneck(8, 16, group_norm) for _ in range(3)]
    h = torch.randn(2, 8, 5, 5)
    assert torch.equal(ODEStage(branches)(h), nn.Sequential(*map(Residual, branches))(h))


def test_a_stage_follows_each_branch_for_one_unit_of_time_at_the_methods_order():
    """Of matrices that do not commute, so that the order of the intervals matters."""
    torch.manual_seed(0)
    first, last = torch.randn(2, 3, 3, dtype=torch.float64)
    h = torch.randn(3, dtype=torch.float64)
    exact = torch.matrix_exp(last) @ torch.matrix_exp(first) @ h
    branches = [linear(first), linear(last)]
    errors = {
        method: [(ODEStage(branches, method, n)(h) - exact).norm().item() for n in (8, 16)]
        for method in ("euler", "midpoint", "rk4")
    }
    orders = [math.log2(a / b) for a, b in errors.values()]
    assert orders == pytest.approx([1, 2, 4], abs=0.4)
    assert (ODEStage(branches, "dopri5", tolerance=1e-9)(h) - exact).norm() < 1e-7

    def floor(t, y):  # what a field that looks its branch up by the time would do
        return branches[min(int(t), 1)](y)

    span = torch.tensor([0.0, 2.0], dtype=torch.float64)
    lost = odeint(floor, h, span, method="rk4", step_size=1 / 16)[-1] - exact
    assert lost.norm() > 100 * errors["rk4"][1]


def test_a_stages_gradients_are_those_of_its_blocks():
    torch.manual_seed(0)
    stage = ODEStage([LinearBottleneck(8, 16, group_norm, nn.SiLU) for _ in range(2)]).double()
    grads = {}
    for how in ("backprop", "checkpoint", "adjoint"):
        for block in stage.blocks:
            block.gradient, block.method, block.steps = how, "rk4", 8
        h = torch.randn(1, 8, 4, 4, dtype=torch.float64, generator=torch.manual_seed(1))
        stage.zero_grad()
        stage(h.requires_grad_()).square().sum().backward()
        grads[how] = torch.cat([h.grad.ravel(), *(p.grad.ravel() for p in stage.parameters())])
    torch.testing.assert_close(grads["checkpoint"], grads["backprop"])
    assert (grads["adjoint"] - grads["backprop"]).norm() < 1e-2 * grads["backprop"].norm()


def test_a_compiled_block_is_compiled_once():
    """A counter that the compiled code read would have it compiled anew at each of its values."""
    from torch._dynamo.testing import CompileCounter

    backend = CompileCounter()
    block = ODEBlock(VectorField(nn.Linear(2, 2), 2), steps=1, method="euler")
    compiled, counts = torch.compile(block, backend=backend), []
    for _ in range(3):
        compiled(torch.ones(1, 2, 1, 2))
        counts.append(backend.frame_count)
    assert counts[0] == counts[-1] > 0
