"""The two networks of Table 1: He et al.'s ResNet-20, and a Neural ODE that is one."""

import copy
import math

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional as F

from mnlib.cifar import BasicBlock, NeuralODE, ResNet20
from mnlib.lab.images import prepare
from mnlib.lab.training import Recipe, fit


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture
def ode():
    torch.manual_seed(0)
    return NeuralODE(widths=(4, 8, 8)).double()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_resnet20_has_the_published_size_and_the_ode_no_more():
    assert parameters(ResNet20()) == 269_722  # He et al. (2016), table 6: 0.27 M
    assert parameters(NeuralODE()) == 262_746


def test_networks_begin_with_he_s_variance_for_relus_and_with_pytorch_s_uniform_rule_otherwise():
    """He et al. (2015), eq. (10): 2/fan_in before a ReLU. PyTorch's own: uniform, 1/(3 fan_in)."""
    torch.manual_seed(0)
    resnet, ode = ResNet20(), NeuralODE()
    for model, gain in ((resnet, 2.0), (ode, 1 / 3)):
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                variance = module.weight.detach().square().mean().item()
                spread = 5 * (2 / module.weight.numel()) ** 0.5  # of the mean square
                assert variance * fan_in == pytest.approx(gain, rel=spread)
                bound = (fan_in**-0.5, math.inf)[model is resnet]
                assert module.weight.abs().max() <= bound
                assert module.bias is None or 0 < module.bias.abs().max() <= bound
            elif isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all()
                assert not module.bias.any()
            elif isinstance(module, nn.Linear):
                assert module.weight.abs().max() <= module.in_features**-0.5
                assert module.weight.std() > 0.5 * module.in_features**-0.5


def test_resnet20_has_nine_blocks_in_three_stages_of_falling_resolution():
    model = ResNet20(classes=7)
    shapes = []
    for module in model:
        if isinstance(module, BasicBlock):
            module.register_forward_hook(lambda m, i, out: shapes.append(tuple(out.shape[1:])))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert shapes == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3


def test_shortcut_of_a_wider_block_subsamples_and_pads_with_zeros():
    block = BasicBlock(3, 5)
    torch.nn.init.zeros_(block.branch[-1].weight)  # silences the branch
    h = torch.randn(2, 3, 6, 6)
    out = block(h)
    torch.testing.assert_close(out[:, :3], F.relu(h[:, :, ::2, ::2]))
    assert not out[:, 3:].any()


@pytest.mark.parametrize("after", [4, 8])
def test_a_block_adds_its_branch_to_its_shortcut_before_the_relu(after):
    torch.manual_seed(0)
    block = BasicBlock(4, after).double().eval()
    h = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    shortcut = h if after == 4 else torch.cat([h[:, :, ::2, ::2], torch.zeros(2, 4, 4, 4)], 1)
    x = F.conv2d(h, block.branch[0].weight, stride=after // 4, padding=1)
    x = F.conv2d(F.relu(x / (1 + 1e-5) ** 0.5), block.branch[3].weight, padding=1)
    expected = F.relu(shortcut + x / (1 + 1e-5) ** 0.5)  # batch norm as it begins
    torch.testing.assert_close(block(h), expected)


def test_one_euler_step_is_the_residual_network(ode):
    ode.solve_with("euler", steps=1)
    h = X
    for entry, block in zip(ode.entries, ode.blocks, strict=True):
        h = entry(h)
        h = h + block.field.branch(h)
    torch.testing.assert_close(ode(X), ode.head(h), rtol=1e-12, atol=1e-12)


def test_finer_steps_converge_to_the_flow_at_the_midpoint_rules_order(ode):
    ode.solve_with("dopri5", tolerance=1e-10)
    with torch.no_grad():
        flow = ode(X)
        errors = []
        for steps in (32, 64, 128):
            ode.solve_with("midpoint", steps=steps)
            errors.append((ode(X) - flow).abs().max().item())
    assert 3.4 < errors[0] / errors[1] < 4.6
    assert 3.6 < errors[1] / errors[2] < 4.4


def test_evaluations_are_counted(ode):
    ode(X)
    assert ode.nfe == 3 * 1 * 2  # stages, steps, evaluations a midpoint step
    ode.solve_with("rk4", steps=3)
    ode(X)
    assert ode.nfe == 3 * 3 * 4


def test_trajectories_run_from_each_entry_to_the_next(ode):
    times = torch.linspace(0, 1, 3, dtype=torch.float64)
    ode.solve_with("midpoint", steps=2)  # as many as there are intervals
    flows = ode.trajectory(X, times)
    assert [tuple(f.shape) for f in flows] == [
        (3, 2, 4, 8, 8),
        (3, 2, 8, 4, 4),
        (3, 2, 8, 2, 2),
    ]
    torch.testing.assert_close(flows[0][0], ode.entries[0](X))
    torch.testing.assert_close(flows[1][0], ode.entries[1](flows[0][-1]))
    torch.testing.assert_close(ode.head(flows[2][-1]), ode(X))


@pytest.mark.parametrize(
    ("gradient", "method", "tolerance"),
    [("checkpoint", "midpoint", 1e-12), ("adjoint", "dopri5", 1e-4)],
)
def test_it_trains_with_each_gradient_method(gradient, method, tolerance):
    grads = []
    for how in ("backprop", gradient):
        torch.manual_seed(0)
        model = NeuralODE(widths=(4, 8, 8), gradient=how).double()
        model.solve_with(method, steps=16, tolerance=1e-8)
        F.cross_entropy(model(X), torch.tensor([1, 2])).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (grads[1] - grads[0]).norm() < tolerance * grads[0].norm()


def test_penalty_is_zero_for_straight_flows_and_the_change_of_slope_otherwise(ode):
    ode.solve_with("midpoint", steps=1)
    ode(X)
    parts = []
    h = X
    for entry, block in zip(ode.entries, ode.blocks, strict=True):
        h = entry(h)
        k1 = block.field(torch.tensor(0.0), h)
        k2 = block.field(torch.tensor(0.5), h + k1 / 2)
        parts.append((k2 - k1).square().sum() / k2.square().sum())
        h = h + k2
    ode(X)  # the calls above were noted, too
    torch.testing.assert_close(ode.penalty(), sum(parts) / 3)
    assert ode.penalty() > 1e-3
    for block in ode.blocks:  # a field that does not depend on h has straight flows
        torch.nn.init.zeros_(block.field.branch[-1].weight)
        torch.nn.init.ones_(block.field.branch[-1].bias)
    ode(X)
    torch.testing.assert_close(ode.penalty(), torch.zeros((), dtype=torch.float64))


def test_penalty_needs_a_pass_in_training_mode(ode):
    for forward in (lambda: None, lambda: ode.eval()(X)):
        forward()
        with pytest.raises(RuntimeError, match="call penalty\\(\\) after a pass in training mode"):
            ode.penalty()


def test_penalty_of_a_flow_that_stands_still_is_zero_and_has_a_gradient(ode):
    for block in ode.blocks:
        for parameter in block.field.branch[-1].parameters():
            torch.nn.init.zeros_(parameter)
    ode(X)
    penalty = ode.penalty()
    assert penalty == 0
    penalty.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ode.parameters())


def test_training_with_the_penalty_straightens():
    x = torch.randint(0, 256, (64, 8, 8, 3), dtype=torch.uint8)
    y = torch.arange(64) % 10
    bent = []
    for weight in (0.0, 4.0):
        torch.manual_seed(0)
        model = NeuralODE(widths=(4, 8, 8))
        recipe = Recipe(sizes=(8,) * 4, batch=16, rate=0.1, penalties=(weight,) * 4)
        fit(model, x, y, recipe, fabric=Fabric(accelerator="cpu", devices=1))
        model(prepare(x, 8, "cifar10"))
        bent.append(model.penalty().item())
    assert bent[1] < bent[0] / 2


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
def test_the_backward_pass_leaves_the_slopes_alone_and_a_copy_can_be_made(gradient):
    model = NeuralODE(widths=(4, 8, 8), gradient=gradient)
    out = model(torch.randn(2, 3, 8, 8))
    before = model.penalty()
    out.sum().backward()
    assert model.penalty() == before
    copy.deepcopy(model)
