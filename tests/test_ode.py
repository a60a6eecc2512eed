"""Solvers: values against exact solutions and torchdiffeq, and the calling convention."""

import contextlib
import math

import pytest
import torch
import torchdiffeq
from hypothesis import given, settings
from hypothesis import strategies as st

from mnlib.ode import FIXED, Counted, odeint
from mnlib.ode.dopri5 import Dopri5
from mnlib.ode.fixed import FixedSteps
from mnlib.ode.runge_kutta import advance, combine, interpolate
from mnlib.ode.tableaux import DOPRI5

METHODS = [*FIXED, "dopri5"]


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def seasons(t, y):
    """Has the solution y = y(0) exp(sin t)."""
    return y * torch.cos(t)


def winding(power):
    """A rotation at speed (1 + t) |y|^power: from |y| = 1 its angle is t + t²/2."""

    def func(t, y):
        return (1 + t) * y.norm() ** power * torch.stack([y[1], -y[0]])

    return func


def wound(t):
    angle = tensor(t + t**2 / 2)
    return torch.cat([angle.cos(), -angle.sin()])


def pendulum(t, y):
    """A harmonic oscillator: the exact flow is a rotation."""
    return torch.stack([y[..., 1], -y[..., 0]], -1)


def slope(lengths, errors):
    """Least-squares slope of log error over log step."""
    x, y = torch.log(tensor(*lengths)), torch.log(tensor(*errors))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


@pytest.mark.parametrize("end", [1.0, -1.0])
@pytest.mark.parametrize(
    ("method", "power"), [*((m, p) for m in FIXED for p in (0, 2)), ("dopri5", 0)]
)
def test_order_of_convergence(method, power, end):
    tableau, func, lengths, errors = FIXED.get(method, DOPRI5), winding(power), [], []
    for n in (8, 16, 32, 64):
        solver = FixedSteps(tableau, 1 / n, 10_000)
        *_, (_, y, _) = solver.steps(
            lambda t, y: [func(tensor(t)[0], y[0])], [tensor(1.0, 0.0)], [0.0, end]
        )
        lengths.append(1 / n)
        errors.append(float((y[0] - wound(end)).norm()))
    assert slope(lengths, errors) == pytest.approx(tableau.order, abs=0.1)


@pytest.mark.parametrize("tableau", [*FIXED.values(), DOPRI5])
def test_tableau_is_consistent(tableau):
    assert sum(tableau.b) == pytest.approx(1, abs=1e-15)
    for c, row in zip(tableau.c, tableau.a, strict=True):
        assert sum(row) == pytest.approx(c, abs=1e-14)
    if tableau.error:
        assert sum(tableau.error) == pytest.approx(0, abs=1e-15)
        assert sum(tableau.dense) == pytest.approx(0, abs=1e-14)


def test_dense_output_and_error_estimate_have_local_order_five():
    def field(t, y):
        return [winding(2)(t, y[0])]

    lengths, dense, estimate = [0.1 / 2**n for n in range(4)], [], []
    for h in lengths:
        new, slopes = advance(field, DOPRI5, 0.3, 0.3 + h, [wound(0.3)])
        slopes.append(field(0.3 + h, new))
        between = 0.3 + 0.7 * h
        value = interpolate(DOPRI5, 0.3, 0.3 + h, between, [wound(0.3)], slopes)[0]
        dense.append(float((value - wound(between)).norm()))
        zero = [torch.zeros(2, dtype=torch.float64)]
        estimate.append(float(combine(zero, h, DOPRI5.error, slopes)[0].norm()))
    assert slope(lengths, dense) == pytest.approx(5, abs=0.1)
    assert slope(lengths, estimate) == pytest.approx(5, abs=0.1)


def test_dense_output_meets_both_ends_with_their_slopes():
    def field(t, y):
        return [pendulum(t, y[0])]

    y = [tensor(1.0, 0.5)]
    new, slopes = advance(field, DOPRI5, 0.0, 0.8, y)
    slopes.append(field(0.8, new))
    for time, value, derivative in ((0.0, y[0], slopes[0][0]), (0.8, new[0], slopes[-1][0])):
        at = torch.tensor(time, dtype=torch.float64)

        def read(t):
            return interpolate(DOPRI5, torch.zeros_like(t), torch.full_like(t, 0.8), t, y, slopes)[
                0
            ]

        assert torch.allclose(read(at), value, atol=1e-14)
        assert torch.allclose(torch.autograd.functional.jacobian(read, at), derivative, atol=1e-13)


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, -1.0)])
def test_fixed_steps_are_those_of_torchdiffeq(method, ends):
    t = torch.linspace(*ends, 9, dtype=torch.float64)
    y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)

    def func(t, y):
        return torch.sin(y) * t + pendulum(t, y)

    ours = odeint(func, y0, t, method=method)
    assert torch.allclose(ours, torchdiffeq.odeint(func, y0, t, method=method), rtol=1e-13)
    step = abs(float(t[1] - t[0])) / 4
    ours = odeint(func, y0, t, method=method, step_size=step)
    theirs = torchdiffeq.odeint(func, y0, t, method=method, options={"step_size": step})
    assert torch.allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("ends", [(0.0, 6.0), (3.0, -3.0)])
def test_dopri5_agrees_with_torchdiffeq_and_the_exact_solution(ends):
    t = torch.linspace(*ends, 31, dtype=torch.float64)
    start = math.exp(math.sin(ends[0]))
    ours = odeint(seasons, tensor(start), t, rtol=1e-10, atol=1e-10)
    theirs = torchdiffeq.odeint(seasons, tensor(start), t, rtol=1e-10, atol=1e-10)
    assert torch.allclose(ours, theirs, rtol=1e-8)
    assert torch.allclose(ours[:, 0], torch.exp(torch.sin(t)), rtol=1e-8)


def test_dopri5_error_follows_the_tolerance_and_costs_no_more_than_torchdiffeq():
    t, y0 = tensor(0.0, 10.0), tensor(1.0, 0.0)
    exact = tensor(math.cos(10), -math.sin(10))
    for exponent in (4, 6, 8, 10):
        tolerance = {"rtol": 10.0**-exponent, "atol": 10.0**-exponent}
        ours, theirs = Counted(pendulum), Counted(pendulum)
        error = float((odeint(ours, y0, t, **tolerance)[-1] - exact).norm())
        torchdiffeq.odeint(theirs, y0, t, **tolerance)
        assert error < 30 * 10.0**-exponent
        assert ours.nfe <= 1.2 * theirs.nfe  # Dormand and Prince's own estimate is 3/2 of theirs


def test_dopri5_needs_fewer_evaluations_than_torchdiffeq_for_the_same_error():
    def rigid(t, y):
        return torch.stack([y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]])

    def cost(solve):
        """The logarithm of its evaluations at an error of 1e-6, by a line through those found."""
        errors, counts = [], []
        for tolerance in (10.0 ** (-k / 2) for k in range(6, 17)):
            counted, options = Counted(rigid), {"rtol": tolerance, "atol": tolerance}
            end = solve(counted, y0, ends, method="dopri5", **options)[-1]
            errors.append(float((end - exact).norm()))
            counts.append(counted.nfe)
        x, y = tensor(*errors).log(), tensor(*counts).log()
        return float(y.mean() + slope(errors, counts) * (math.log(1e-6) - x.mean()))

    y0, ends = tensor(0.0, 1.0, 1.0), tensor(0.0, 12.0)
    exact = odeint(rigid, y0, ends, rtol=1e-13, atol=1e-13)[-1]
    assert cost(odeint) < cost(torchdiffeq.odeint) + math.log(0.95)


def test_requested_times_do_not_change_the_steps_of_dopri5():
    y0 = tensor(1.0, 0.0)
    coarse, fine = Counted(pendulum), Counted(pendulum)
    few = odeint(coarse, y0, tensor(0.0, 7.0))
    many = odeint(fine, y0, torch.linspace(0, 7, 50, dtype=torch.float64))
    assert torch.equal(few[-1], many[-1])
    assert coarse.nfe == fine.nfe


def test_dopri5_repeats_no_attempt_that_has_failed():
    attempts = []

    def field(t, y):
        attempts.append(float(t))
        return torch.where(t > 0.1195, 30 * torch.cos(2e4 * t), 0.0) + 0 * y

    ends = torch.tensor([0.0, 0.12], dtype=torch.float64)
    odeint(field, torch.zeros(1).double(), ends, rtol=1e-6, atol=1e-6)
    # the first evaluation within an attempt tells its start and its length
    firsts = attempts[2::6]
    assert len(set(firsts)) == len(firsts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.7, 0.1), (0.1, 0.7), (-0.7, 1e-3)])
def test_no_evaluation_leaves_the_interval(method, ends):
    """Nor by a rounding, as a + (b - a) may."""
    times = []

    def func(t, y):
        times.append(float(t))
        return -y

    odeint(func, tensor(1.0), tensor(*ends), method=method)
    assert times[0] == ends[0]
    assert min(ends) <= min(times) <= max(times) <= max(ends)
    if method in ("rk4", "dopri5"):
        assert times[-1] == ends[1]


def test_the_last_step_of_dopri5_ends_at_the_last_time():
    solver = Dopri5(1e-6, 1e-6, 1000, False)
    *before, (last, _, _) = solver.steps(lambda t, y: [-y[0]], [tensor(1.0)], [0.0, 0.5, 2.0])
    assert [j for step, _, _ in before for j in step.inside] == [1]
    assert (last.inside, last.last) == ((), 2)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from(["rk4", "dopri5"]))
def test_linear_systems_follow_the_matrix_exponential(seed, method):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    y0 = torch.randn(3, generator=generator, dtype=torch.float64)
    t = tensor(0.5, 1.0, 1.5)
    options = {"step_size": 0.005} if method == "rk4" else {"rtol": 1e-10, "atol": 1e-12}
    found = odeint(lambda t, y: matrix @ y, y0, t, method=method, **options)
    exact = torch.linalg.matrix_exp((t - 0.5)[:, None, None] * matrix) @ y0
    assert torch.allclose(found, exact, rtol=1e-7, atol=1e-8)


@settings(deadline=None, max_examples=10)
@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.1, 3))
def test_backward_in_time_undoes_forward(a, b, length):
    y0 = tensor(a, b)
    there = odeint(pendulum, y0, tensor(0.0, length))[-1]
    back = odeint(pendulum, there, tensor(length, 0.0))[-1]
    assert torch.allclose(back, y0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_nested_tuples_are_solved_as_their_concatenation(method):
    t = torch.linspace(0, 1, 4, dtype=torch.float64)
    q, p, c = tensor(1.0, 2.0), tensor(0.0, -1.0), torch.ones(2, 3, dtype=torch.float64)

    def nested(t, y):
        (q, p), (c,) = y
        return (p, -q), (-c * t,)

    (found_q, found_p), (found_c,) = odeint(nested, ((q, p), (c,)), t, method=method)
    assert found_q.shape == (4, 2)
    assert found_c.shape == (4, 2, 3)
    both = odeint(pendulum, torch.stack([q, p], -1), t, method=method)
    assert torch.allclose(torch.stack([found_q, found_p], -1), both, rtol=1e-6)
    if method == "dopri5":
        assert torch.allclose(found_c[:, 0, 0], torch.exp(-(t**2) / 2), rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("device", "clock"), [("cpu", "cpu"), ("cuda", "cuda"), ("cuda", "cpu")])
def test_dtype_and_device_are_kept(method, dtype, device, clock):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    y0 = torch.ones(2, 3, dtype=dtype, device=device, requires_grad=True)
    t = torch.linspace(0, 1, 3, dtype=dtype, device=clock, requires_grad=True)
    seen = set()

    def func(t, y):
        seen.add((t.dtype, t.device, t.shape))
        return -0.1 * y * t

    for gradient in ("backprop", "checkpoint", "adjoint"):
        found = odeint(
            func, y0, t, method=method, rtol=1e-3, atol=1e-4, gradient=gradient, params=()
        )
        assert (found.dtype, found.device.type, found.shape) == (dtype, device, (3, 2, 3))
        for x, grad in zip((y0, t), torch.autograd.grad(found[-1].sum(), (y0, t)), strict=True):
            assert (grad.dtype, grad.device) == (dtype, x.device)
    assert seen == {(dtype, y0.device, torch.Size([]))}


def test_steps_divide_each_interval_equally():
    times = []

    def func(t, y):
        times.append(round(float(t), 6))
        return y

    odeint(func, torch.ones(1), torch.tensor([0.0, 0.5, 1.2]), method="euler", step_size=0.25)
    assert times == [0, 0.25, 0.5, 0.733333, 0.966667]
    times.clear()
    odeint(func, torch.ones(1), torch.tensor([0.0, 1.0]), method="euler", step_size=0.1)
    assert len(times) == 10


def test_counted_counts_and_hands_on_parameters():
    module = torch.nn.Linear(2, 2)
    counted = Counted(lambda t, y: -y)
    odeint(counted, torch.ones(2), torch.tensor([0.0, 1.0]), method="rk4", step_size=0.25)
    assert counted.nfe == 16
    assert not hasattr(counted, "parameters")
    assert list(Counted(module).parameters()) == list(module.parameters())


def visited(func, y0, ends):
    """The times at which dopri5 evaluates ``func`` at the tolerance 1e-3, till it gives up."""
    times = []

    def noting(t, y):
        times.append(float(t))
        return func(float(t), y) + 0 * y

    with contextlib.suppress(RuntimeError):
        odeint(noting, tensor(y0), tensor(*ends), rtol=1e-3, atol=1e-3)
    return times


@pytest.mark.parametrize(
    ("func", "y0", "end", "guess", "first"),
    [
        # in tolerances of 0.002: y0 is 500, the slope 1,000 and its change 2,000 in a unit of time
        (lambda t, y: -2 * y, 1.0, 1.0, 0.005, (0.01 / 2000) ** 0.2),
        (lambda t, y: -2 * y, 1.0, -2.0, -0.005, -((0.01 / 2000) ** 0.2)),
        (lambda t, y: -2 * y, 1.0, 0.003, 0.003, 0.003),
        (lambda t, y: 3.0, 1.0, 1.0, 0.01 / 3, (0.01 / 1500) ** 0.2),
        (lambda t, y: 3.0, 0.0, 1.0, 1e-6, 1e-4),  # at most a hundred guesses
        (lambda t, y: 2.1e-8, 1.0, 1.0, 1.0, 1.0),  # a slope of 1.05e-5 tolerances
        (lambda t, y: 1.9e-8, 1.0, 1.0, 1e-6, 1e-4),  # one of 0.95e-5 says nothing
        (lambda t, y: 0.0, 1.0, 1.0, 1e-6, 1e-6),
        (lambda t, y: math.inf if 0.09 < t < 0.11 else 0.1, 1.0, 1.0, 0.1, 1e-4),
    ],
)
def test_the_first_step_is_that_of_hairer_norsett_and_wanner(func, y0, end, guess, first):
    start, ahead, stage, *_ = visited(func, y0, (0.0, end))
    assert (start, ahead, 5 * stage) == pytest.approx((0, guess, first), rel=1e-9)


def test_the_first_step_suits_the_tensor_that_changes_most():
    times = []

    def func(t, y):
        times.append(float(t))
        return 0 * y[0], -2 * y[1]

    odeint(func, (tensor(0.0), tensor(1.0)), tensor(0.0, 1.0), rtol=1e-3, atol=1e-3)
    assert times[:3] == visited(lambda t, y: -2 * y, 1.0, (0.0, 1.0))[:3]


@pytest.mark.parametrize(
    "func",
    [
        lambda t: 1 / (1e-3 + (t - 0.5) ** 2),  # a step is refused before the peak
        lambda t: 0.0,
        lambda t: math.nan if t > 0.07 else 3 * math.cos(90 * t),  # shrinks fivefold
    ],
)
@pytest.mark.parametrize("end", [1.0, 0.111111 + 1.08, 0.111111 + 1.12])
def test_the_steps_are_controlled_as_hairer_norsett_and_wanner_do(func, end):
    """Written down again for a mere integral: 0.85 ratio^(-1/5), within 1/5 and 10.

    No step grows after a refused one, and the last two halve what is left.
    """
    found = visited(lambda t, y: func(t), 1.0, (0.0, end))
    t, y, h, ends, growth = 0.0, 1.0, found[2] * 5, [], 10
    for _ in range(min(40, len(found) // 6)):
        if t + 2 * h >= end:
            h = end - t if t + h >= end else (end - t) / 2
        slopes = [func(t + c * h) for c in (*DOPRI5.c, 1.0)]
        new = y + h * sum(b * k for b, k in zip(DOPRI5.b, slopes, strict=False))
        error = abs(h * sum(e * k for e, k in zip(DOPRI5.error, slopes, strict=True)))
        ratio = error / (1e-3 + 1e-3 * max(abs(y), abs(new)))
        ends.append(t + h)
        accepted = ratio <= 1
        if accepted:
            t, y = t + h, new
        factor = math.inf if ratio == 0 else 0.85 * ratio**-0.2 if math.isfinite(ratio) else 0
        h *= min(growth, max(0.2, factor))
        growth = 10 if accepted else 1
        if t == end:
            break
    assert found[7::6][: len(ends)] == pytest.approx(ends, rel=1e-6)
