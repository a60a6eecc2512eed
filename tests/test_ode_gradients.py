"""The three gradients: against torchdiffeq, analysis, finite differences and one another."""

import math
import warnings

import pytest
import torch
import torchdiffeq
from torch import nn

from mnlib.ode import Counted, odeint
from mnlib.ode.gradients import _tolerance_scales
from mnlib.residual import ODEBlock, VectorField

TIGHT = {"method": "dopri5", "rtol": 1e-11, "atol": 1e-12}


class Field(nn.Module):
    """A small smooth non-autonomous network."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(3, dtype=dtype), requires_grad=False)

    def forward(self, t, y):
        return self.net(y) * torch.cos(t) + self.frozen * y


def gradients(solve, t, **options):
    """Gradients of a loss that sees every requested time, and the number of evaluations."""
    field = Field()
    counted = Counted(field)
    y0 = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3).requires_grad_()
    t = t.clone().requires_grad_()
    func = counted if solve is odeint else field
    solution = solve(func, y0, t, **options)
    weights = torch.linspace(1, 2, len(t), dtype=torch.float64)[:, None, None]
    (solution.square() * weights).sum().backward()
    assert field.frozen.grad is None
    parameters = torch.cat([p.grad.ravel() for p in field.net.parameters()])
    return {"y0": y0.grad, "t": t.grad, "parameters": parameters}, counted.nfe


def distances(found, expected):
    return {k: float((found[k] - expected[k]).norm() / expected[k].norm()) for k in found}


def times(*ends, count=5):
    return torch.linspace(*ends, count, dtype=torch.float64)


@pytest.mark.parametrize("ends", [(0.0, 2.0), (1.0, -1.0)])
@pytest.mark.parametrize(
    "options",
    [
        {"method": "euler", "step_size": 0.1},
        {"method": "midpoint", "step_size": 0.1},
        {"method": "rk4"},
        {"method": "rk4", "step_size": 0.005},  # 400 steps: states are dropped and computed again
        {"method": "dopri5", "rtol": 1e-6, "atol": 1e-6},
        {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3},
    ],
)
def test_checkpoint_is_backpropagation_to_1e12(ends, options):
    expected, _ = gradients(odeint, times(*ends), **options)
    found, _ = gradients(odeint, times(*ends), gradient="checkpoint", **options)
    assert max(distances(found, expected).values()) < 1e-12


@pytest.mark.parametrize("seminorm", [False, True])
@pytest.mark.parametrize("ends", [(0.0, 2.0), (1.0, -1.0)])
def test_adjoint_is_backpropagation_to_1e8_at_tight_tolerance(ends, seminorm):
    expected, _ = gradients(odeint, times(*ends), **TIGHT)
    found, _ = gradients(odeint, times(*ends), gradient="adjoint", seminorm=seminorm, **TIGHT)
    assert max(distances(found, expected).values()) < 1e-8


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
@pytest.mark.parametrize("ends", [(0.0, 2.0), (1.0, -1.0)])
def test_gradients_are_those_of_torchdiffeq(gradient, ends):
    expected, _ = gradients(torchdiffeq.odeint_adjoint, times(*ends), rtol=1e-11, atol=1e-12)
    found, _ = gradients(odeint, times(*ends), gradient=gradient, **TIGHT)
    assert max(distances(found, expected).values()) < 1e-8
    # Fixed steps: the same discrete adjoint, and the same continuous one.
    theirs = torchdiffeq.odeint_adjoint if gradient == "adjoint" else torchdiffeq.odeint
    expected, _ = gradients(theirs, times(*ends), method="rk4")
    found, _ = gradients(odeint, times(*ends), method="rk4", gradient=gradient)
    if gradient == "adjoint":  # torchdiffeq integrates the start's, which we have in closed form
        assert torch.allclose(found.pop("t")[1:], expected["t"][1:], rtol=1e-12)
    assert max(distances(found, expected).values()) < 1e-12


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
def test_gradcheck_of_the_solvers_own_steps(method, gradient):
    def solve(q, p, t, rate):
        def func(t, y):
            q, (p,) = y
            return rate * p, (-torch.sin(q) * t,)

        q, (p,) = odeint(
            func,
            (q, (p,)),
            t,
            method=method,
            step_size=0.15,
            gradient=gradient,
            params=(rate,),
        )
        return q, p

    start = torch.linspace(0.2, 1, 4, dtype=torch.float64)
    inputs = (start[:2], start[2:], times(0.3, 1.0, count=3), torch.tensor(1.3).double())
    assert torch.autograd.gradcheck(solve, [x.clone().requires_grad_() for x in inputs])


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
def test_gradcheck_of_dopri5(gradient):
    def solve(y0, t, rate):
        return odeint(
            lambda t, y: -rate * torch.sin(y) * t, y0, t, **TIGHT, gradient=gradient, params=(rate,)
        )

    inputs = (times(0.2, 1.0, count=2), times(0.3, 1.0, count=3), torch.tensor(1.3).double())
    inputs = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(solve, inputs, atol=1e-6)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("ends", [(0.5, 2.0), (2.0, 0.5)])
def test_exponential_growth_in_closed_form(gradient, method, ends):
    """y = y₀ exp(r (T - s)): every partial derivative is known, the one by the start s as well."""
    y0, rate, t = (
        torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.5, 0.7, ends)
    )
    options = {"step_size": 0.005} if method == "rk4" else {"rtol": 1e-11, "atol": 1e-12}
    end = odeint(
        lambda t, y: rate * y, y0, t, method=method, gradient=gradient, params=(rate,), **options
    )[-1]
    end.backward()
    length = ends[1] - ends[0]
    exact = 1.5 * math.exp(0.7 * length)
    assert end.item() == pytest.approx(exact, rel=1e-9)
    assert y0.grad.item() == pytest.approx(exact / 1.5, rel=1e-9)
    assert rate.grad.item() == pytest.approx(exact * length, rel=1e-9)
    assert t.grad.tolist() == pytest.approx([-0.7 * exact, 0.7 * exact], rel=1e-9)


def test_backpropagation_can_be_differentiated_twice():
    y0 = torch.tensor(0.7).double().requires_grad_()

    def solve(y0):
        return odeint(lambda t, y: torch.sin(y), y0, times(0.0, 1.0, count=2), method="rk4")[-1]

    assert torch.autograd.gradgradcheck(solve, [y0])


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
def test_states_channels_last_meet_gradients_that_are(gradient, method):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1).double()
    image = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    layouts = []

    def field(t, y):
        slope = torch.tanh(conv(y))
        if slope.requires_grad:
            slope.register_hook(lambda g: layouts.append(g.stride()))
        return slope

    def solve(y0):
        options = {"rtol": 1e-3, "atol": 1e-3} if method == "dopri5" else {"step_size": 0.1}
        options |= {"method": method, "gradient": gradient, "params": tuple(conv.parameters())}
        solution = odeint(field, y0, times(0.0, 1.0, count=3), **options)
        assert all(y.stride() == y0.stride() for y in solution)
        conv.zero_grad()
        solution[1:].square().sum().backward()
        return solution.detach(), y0.grad, conv.weight.grad.clone()

    expected = solve(image.clone().requires_grad_())
    layouts.clear()
    channels_last = image.contiguous(memory_format=torch.channels_last)
    found = solve(channels_last.clone().requires_grad_())
    assert set(layouts) == {channels_last.stride()}
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("y0", [torch.rand(3, 2), torch.rand(2, 3).t()], ids=["rows", "columns"])
def test_transforms_go_through_a_solve(y0):
    def total(y):
        return odeint(lambda t, y: -y.square(), y, times(0.0, 1.0).float(), method="rk4")[-1].sum()

    expected = (1 + y0).square().reciprocal()  # of y0 / (1 + y0)
    for found in (torch.func.grad(total)(y0), torch.func.jacfwd(total)(y0)):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    assert torch.func.hessian(total)(y0).shape == (3, 2, 3, 2)


def test_the_derivative_with_respect_to_the_times_is_the_same_forward_and_backward():
    def end(t):
        return odeint(lambda t, y: y, torch.ones(()).double(), t, method="rk4", step_size=0.1)[-1]

    backward = torch.func.jacrev(end)(times(0.0, 1.0, count=2))
    torch.testing.assert_close(torch.func.jacfwd(end)(times(0.0, 1.0, count=2)), backward)
    assert backward.tolist() == pytest.approx([-math.e, math.e], rel=1e-4)


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
def test_parameters_replaced_for_the_forward_pass_only_are_noticed(gradient):
    block = ODEBlock(VectorField(nn.Linear(2, 2), 2), steps=4, gradient=gradient)
    h = torch.ones(1, 2, 1, 2)
    block(h).sum().backward()
    swapped = {"field.branch.weight": torch.eye(2, requires_grad=True)}
    end = torch.func.functional_call(block, swapped, (h,)).sum()
    with pytest.raises(RuntimeError, match="other parameters in the backward pass"):
        end.backward()


def test_a_solution_channels_last_can_be_differentiated_twice():
    y0 = torch.rand(1, 2, 2, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last)

    def solve(y0):
        return odeint(lambda t, y: torch.sin(y), y0, times(0.0, 1.0, count=2), method="rk4")

    assert torch.autograd.gradgradcheck(solve, [y0.requires_grad_()])


def test_checkpoint_may_be_differentiated_again():
    """The graph that the forward pass left is used up; the second time every step is retaken."""
    weight, y0 = torch.tensor([0.3], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    counted = Counted(lambda t, y: weight * y.square())
    options = {"method": "rk4", "step_size": 0.1, "gradient": "checkpoint", "params": [weight]}
    loss = odeint(counted, y0, torch.tensor([0.0, 1.0]), **options)[-1].square().sum()
    once = torch.autograd.grad(loss, [y0, weight], retain_graph=True)
    assert counted.nfe == 4 * (10 + 9)
    again = torch.autograd.grad(loss, [y0, weight])
    assert counted.nfe == 4 * (10 + 9 + 10)
    assert once == again


def test_checkpoint_keeps_root_many_states_and_costs_what_it_says():
    for steps in (10, 64, 100, 1000, 5000):
        counted = Counted(lambda t, y: -y * t)
        y0 = torch.ones(2, requires_grad=True)
        found = odeint(
            counted,
            y0,
            torch.tensor([0.0, 1.0]),
            method="euler",
            step_size=1 / steps,
            gradient="checkpoint",
            params=(),
        )
        assert counted.nfe == steps
        node = (
            found.grad_fn.next_functions[0][0]
            if not hasattr(found.grad_fn, "kept")
            else (found.grad_fn)
        )
        assert len(node.kept) <= 8 * math.sqrt(max(64, steps))
        assert len(node.record) == steps
        found[-1].sum().backward()
        assert counted.nfe == 2 * steps - 1 if steps <= 64 else counted.nfe < 3 * steps


def test_evaluations_are_counted_forward_and_backward():
    _, forward = gradients(odeint, times(0.0, 2.0), method="rk4", step_size=0.1)
    assert forward == 4 * 20
    _, both = gradients(odeint, times(0.0, 2.0), method="rk4", step_size=0.1, gradient="checkpoint")
    assert both == 2 * 4 * 20  # the times want a gradient, too
    _, both = gradients(odeint, times(0.0, 2.0), method="rk4", step_size=0.1, gradient="adjoint")
    assert both == 2 * 4 * 20 + 5  # and one at each time for its own gradient


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
def test_little_is_saved_but_states(gradient):
    """The graph holds O(1) tensors of the state's size, however many steps."""
    field, sizes = Field(), []

    def pack(x):
        sizes.append(x.numel())
        return x

    saved = {}
    for steps in (5, 8, 500):
        sizes.clear()
        y0 = torch.ones(100, 3, dtype=torch.float64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            odeint(
                field,
                y0,
                times(0.0, 1.0, count=2),
                method="rk4",
                step_size=1 / steps,
                gradient=gradient,
            )
        saved[steps] = sum(sizes)
    assert saved[5] <= 2 * 300 + 2 + sum(p.numel() for p in field.parameters())
    assert saved[8] == saved[500]  # with the graph of one step, if checkpointed


@pytest.mark.parametrize("seminorm", [False, True])
def test_the_units_of_the_loss_do_not_change_the_adjoints_steps(seminorm):
    found = []
    for scale in (2.0**-20, 1.0, 2.0**20):
        counted = Counted(Field())
        y0 = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
        end = odeint(
            counted,
            y0,
            times(0.0, 1.0),
            rtol=1e-5,
            atol=1e-5,
            gradient="adjoint",
            seminorm=seminorm,
        )[-1]
        (scale * end.square().sum()).backward()
        found.append((counted.nfe, y0.grad / scale))
    assert found[0][0] == found[1][0] == found[2][0]
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[2][1], found[1][1])


def test_the_adjoints_tolerance_has_the_scale_of_the_gradient():
    a = [torch.tensor([3.0, -4.0]), torch.tensor([[12.0]])]
    assert _tolerance_scales(a, 1, False) == [1, 1, 13, 13, 19]
    assert _tolerance_scales(a, 2, True) == [1, 1, 13, 13, math.inf, math.inf]


def test_rows_of_weights_are_no_samples():
    """Of one sample alone its norm is the usual one, in the adjoint's solve too."""
    counts = []
    for per_sample in (False, True):
        counted, y0 = Counted(Field()), torch.ones(1, 3, dtype=torch.float64)
        options = {"rtol": 1e-6, "atol": 1e-6, "gradient": "adjoint", "per_sample": per_sample}
        odeint(counted, y0, times(0.0, 3.0), **options)[-1].square().sum().backward()
        counts.append(counted.nfe)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("scale", [2.0**-75, 1.0, 2.0**75])
def test_the_adjoint_is_controlled_where_squares_leave_single_precision(scale):
    """The state rests at zero, so that nothing but the adjoint asks for short steps."""
    y0 = torch.zeros(3, requires_grad=True)
    options = {"rtol": 1e-4, "atol": 1e-4, "gradient": "adjoint", "params": ()}
    end = odeint(lambda t, y: 9 * torch.cos(9 * t) * y, y0, torch.tensor([0.0, 1.0]), **options)
    (scale * end[-1].sum()).backward()
    assert (y0.grad / scale).tolist() == pytest.approx([math.exp(math.sin(9))] * 3, rel=1e-2)


def test_summed_loss_of_many_entries_is_no_more_work_than_the_mean():
    counts = []
    for reduce in (torch.mean, torch.sum):
        counted = Counted(Field(torch.float32))
        y0 = torch.linspace(-1, 1, 30_000).reshape(-1, 3).requires_grad_()
        t = torch.tensor([0.0, 1.0])
        end = odeint(counted, y0, t, rtol=1e-3, atol=1e-3, gradient="adjoint")[-1]
        reduce(end.square()).backward()
        counts.append(counted.nfe)
    assert counts[1] == pytest.approx(counts[0], abs=6)


def test_adjoint_warns_when_the_backward_solve_goes_astray():
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    t = times(0.0, 1.0, count=2)
    options = {"rtol": 1e-3, "atol": 1e-3, "params": ()}
    with pytest.warns(UserWarning, match=r"misses the forward one by .* at t = 0"):
        odeint(lambda t, y: -30 * y, y0, t, gradient="adjoint", **options)[-1].backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odeint(lambda t, y: -3 * y, y0, t, gradient="adjoint", **options)[-1].backward()


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
def test_initial_state_overwritten_before_backward_is_noticed(gradient):
    y0 = torch.ones(2)
    weight = torch.ones((), requires_grad=True)
    found = odeint(
        lambda t, y: weight * y,
        y0,
        torch.tensor([0.0, 1.0]),
        method="rk4",
        gradient=gradient,
        params=(weight,),
    )
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found[-1].sum().backward()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_checkpoint_retakes_the_steps_under_the_forwards_autocast(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    layer, kinds = nn.Linear(4, 4).to(device), []
    x, t = torch.linspace(-1, 1, 8).reshape(2, 4).to(device), torch.tensor([0.0, 1.0])

    def func(t, y):
        value = torch.tanh(layer(y))
        kinds.append(value.dtype)
        return value.float()

    found = []
    for gradient in ("backprop", "checkpoint"):
        layer.zero_grad()
        params = tuple(layer.parameters())
        with torch.autocast(device, dtype=torch.bfloat16):
            end = odeint(func, x, t, method="midpoint", gradient=gradient, params=params)[-1]
        end.sum().backward()
        found.append(layer.weight.grad.clone())
    assert set(kinds) == {torch.bfloat16}
    assert len(kinds) == 2 + 4
    assert torch.allclose(*found, rtol=0.02, atol=0.02)


def test_solution_where_nothing_depends_on_the_input():
    y0 = torch.ones(2, requires_grad=True)
    t = torch.tensor([0.0, 1.0])
    for gradient in ("checkpoint", "adjoint"):
        y0.grad = None
        odeint(lambda t, y: torch.ones(2), y0, t, method="rk4", gradient=gradient, params=())[
            -1
        ].sum().backward()
        assert y0.grad.tolist() == [1, 1]


def test_a_state_that_starts_at_zero_is_not_astray():
    q = torch.ones(3, dtype=torch.float64, requires_grad=True)
    p = torch.zeros(3, dtype=torch.float64)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = odeint(lambda t, y: (y[1], -y[0]), (q, p), t, gradient="adjoint", params=())
        found[-1].sum().backward()
    assert torch.allclose(q.grad, torch.full_like(q, math.cos(1)), atol=1e-7)


def test_the_seminorm_saves_evaluations():
    torch.manual_seed(0)
    layer = nn.Linear(3, 3).double()
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    counts = []
    for seminorm in (False, True):
        counted = Counted(lambda t, y: torch.tanh(layer(y)) * torch.cos(9 * t))
        y0 = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
        adjoint = {"gradient": "adjoint", "seminorm": seminorm, "params": layer.parameters()}
        odeint(counted, y0, t, rtol=1e-6, atol=1e-6, **adjoint)[-1].square().sum().backward()
        counts.append(counted.nfe)
    assert counts[1] < counts[0]


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
def test_a_parameter_given_twice_counts_once(gradient):
    w = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    y0 = torch.ones(1, dtype=torch.float64)
    odeint(lambda t, y: w * y, y0, t, gradient=gradient, params=(w, w))[-1].sum().backward()
    assert w.grad.item() == pytest.approx(math.exp(0.5), abs=1e-6)


def test_dopri5_starts_late_in_single_precision():
    t = torch.tensor([1000.0, 1001.0])
    found = odeint(lambda t, y: torch.ones_like(y), torch.zeros(1), t, rtol=1e-3, atol=1e-3)
    assert found[-1].item() == pytest.approx(1, abs=1e-3)
