"""Every kind of bad input gives one sentence that names the value and the time, if there is one."""

import math

import pytest
import torch

from mnlib.ode import odeint

ONE = torch.ones(2)
UNIT = torch.tensor([0.0, 1.0])
GRADIENTS = ("backprop", "checkpoint", "adjoint")
EULER = {"method": "euler"}


def decay(t, y):
    return -y


@pytest.mark.parametrize(
    ("y0", "t", "options", "error", "words"),
    [
        (ONE, torch.tensor([0.0]), {}, ValueError, r"shape \(1,\); give at least two"),
        (ONE, torch.tensor(1.0), {}, ValueError, r"shape \(\)"),
        (ONE, torch.tensor([0.0, 1.0, 1.0]), {}, ValueError, r"t\[2\] = 1 follows 1"),
        (ONE, torch.tensor([0.0, 1.0, 0.5]), {}, ValueError, r"t\[2\] = 0.5 follows 1"),
        (ONE, torch.tensor([2.0, 1.0, 1.5]), {}, ValueError, r"t\[2\] = 1.5 follows 1"),
        (ONE, torch.tensor([1.0, 1.0]), {}, ValueError, r"t\[1\] = 1 follows 1"),
        (ONE, torch.tensor([0.0, math.nan]), {}, ValueError, r"t\[1\] = nan"),
        (ONE, torch.tensor([0.0, math.inf]), {}, ValueError, "infinite time"),
        (ONE, torch.tensor([0, 1]), {}, TypeError, "floating point, not torch.int64"),
        (ONE, UNIT.double(), {}, TypeError, "y0 holds torch.float32.*t is torch.float64"),
        ((ONE, ONE.double()), UNIT, {}, TypeError, "y0 holds torch.float64"),
        (ONE, UNIT.to("meta"), {}, TypeError, "on cpu, t is torch.float32 on meta"),
        ((ONE, ONE.to("meta")), UNIT, {}, TypeError, "y0 holds torch.float32 on meta"),
        ([ONE], UNIT, {}, TypeError, "holds a list"),
        ((), UNIT, {}, TypeError, "must hold a tensor"),
        (ONE, UNIT, {"method": "rk5"}, ValueError, "'rk5' is unknown; choose one of euler"),
        (
            ONE,
            UNIT,
            {"gradient": "magic"},
            ValueError,
            "'magic' is unknown; choose one of backprop",
        ),
        (ONE, UNIT, {"step_size": 0.1}, ValueError, "step_size=0.1 means nothing to dopri5"),
        (ONE, UNIT, {"method": "rk4", "step_size": 0.0}, ValueError, "step_size=0.0 must be"),
        (ONE, UNIT, {"method": "rk4", "step_size": math.nan}, ValueError, "step_size=nan must"),
        (ONE, UNIT, {"atol": 0.0}, ValueError, "atol=0.0"),
        (ONE, UNIT, {"rtol": -1.0}, ValueError, "rtol=-1.0"),
        (ONE, UNIT, {"atol": math.inf}, ValueError, "atol=inf"),
        (ONE, UNIT, {"rtol": math.inf}, ValueError, "rtol=inf"),
        (ONE, UNIT, {"method": "rk4", "step_size": math.inf}, ValueError, "step_size=inf must"),
        (ONE, UNIT, {"gradient": "adjoint"}, ValueError, "pass params"),
        (ONE, UNIT, {"gradient": "checkpoint"}, ValueError, "pass params"),
        (
            ONE,
            torch.tensor([0.0, 0.5, 1.0]),
            {"method": "rk4", "step_size": 0.1, "max_steps": 7},
            RuntimeError,
            "needs 10 steps and would pass max_steps=7 after t = 0.5",
        ),
    ],
)
def test_bad_input(y0, t, options, error, words):
    with pytest.raises(error, match=words):
        odeint(decay, y0, t, **options)


@pytest.mark.parametrize(
    "options", [{"method": "euler", "step_size": 0.1, "max_steps": 10}, {"rtol": 0.0, "atol": 1e-4}]
)
def test_what_just_meets_a_limit_is_taken(options):
    assert odeint(decay, ONE, UNIT, **options).isfinite().all()


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda y: y[:1], r"returned \(1,\) .* but the state is \(2,\)"),
        (lambda y: y.double(), "returned .*float64 .* state is .*float32"),
        (lambda y: y.to("meta"), "on meta"),
        (lambda y: (y, y), r"returned \(\(2,\) .*, \(2,\) .*\) at .* state is \(2,\)"),
        (lambda y: (y,), r"returned \(\(2,\) .*\) at .* state is \(2,\)"),
        (lambda y: [y], "returned list at"),
        (lambda y: None, "returned NoneType at"),
    ],
)
def test_func_that_changes_shape_dtype_device_or_structure(method, wrong, words):
    def func(t, y):
        return wrong(y) if t > 0.5 else -y

    t = torch.tensor([0.0, 0.2, 2.0])
    options = {"step_size": 0.1} if method == "rk4" else {"rtol": 1e-3, "atol": 1e-3}
    with pytest.raises(TypeError, match=words) as caught:
        odeint(func, ONE, t, method=method, **options)
    time = float(str(caught.value).split("t = ")[1].split(",")[0])
    assert 0.5 < time < 2


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "dopri5"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_func_that_is_not_finite(method, bad, gradient):
    def func(t, y):
        return torch.where(t > 0.52, bad, -y)

    options = {} if method == "dopri5" else {"step_size": 0.1}
    with pytest.raises(RuntimeError, match="finite") as caught:
        odeint(
            func,
            ONE.double(),
            UNIT.double(),
            method=method,
            gradient=gradient,
            params=(),
            **options,
        )
    time = float(str(caught.value).split("t = ")[1].split(",")[0].split(";")[0])
    assert 0.5 < time < 0.75


def test_dopri5_finds_its_way_round_an_overshoot():
    def func(t, y):  # not a number outside of the solution's range
        return -torch.sqrt(y)

    found = odeint(func, torch.ones(1).double(), UNIT.double())
    assert float(found[-1]) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("y0", [math.nan, math.inf])
def test_initial_state_that_is_not_finite(y0):
    with pytest.raises(RuntimeError, match="initial time t = 0"):
        odeint(decay, torch.tensor([y0]), UNIT)
    with pytest.raises(RuntimeError, match="not finite at t = 0"):
        odeint(decay, torch.tensor([y0]), UNIT, method="rk4")


def test_step_underflow_at_a_singularity():
    with pytest.raises(RuntimeError, match=r"step size fell to .* at t = (1|0\.99)"):
        odeint(lambda t, y: y**2, torch.ones(1).double(), torch.tensor([0.0, 2.0]).double())


def test_step_underflow_at_the_start():
    """From t = 0 a step can shrink to nothing, by way of lengths whose inverse overflows."""
    with pytest.raises(RuntimeError, match=r"fell to 0 at t = 0, .* not finite"):
        odeint(lambda t, y: torch.where(t > 0, math.nan, y), ONE.double(), UNIT.double())


def test_too_many_steps():
    with pytest.raises(RuntimeError, match=r"max_steps=20 steps reached only t = 0\.\d+ of 1"):
        odeint(lambda t, y: -1e3 * (y - torch.cos(t)), ONE, UNIT, max_steps=20)


@pytest.mark.parametrize(("method", "count"), [("rk4", 2), ("dopri5", 2), ("dopri5", 7)])
def test_buffers_returned_in_turn_are_refused(method, count):
    """Of seven the last evaluation of dopri5's step meets the first, which the error needs."""
    buffers = [torch.empty(3) for _ in range(count)]

    def func(t, y):
        buffers.append(buffers.pop(0))
        return torch.mul(y, -1, out=buffers[0])

    with pytest.raises(RuntimeError, match="overwrote the tensor"):
        odeint(func, torch.ones(3), UNIT, method=method, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5"])
def test_a_state_that_func_overwrites_is_refused(method):
    with pytest.raises(RuntimeError, match=r"overwrote the tensor .* or the state"):
        odeint(lambda t, y: y.neg_(), torch.ones(3), UNIT, method=method)


@pytest.mark.parametrize(
    ("y0", "slope"), [(1.0, math.nan), (1.0, math.inf), (math.inf, 0.0), (math.nan, 0.0)]
)
def test_dopri5_names_the_initial_time_if_either_is_not_finite(y0, slope):
    with pytest.raises(RuntimeError, match=r"not finite at the initial time t = 0\.5"):
        odeint(lambda t, y: torch.full_like(y, slope), torch.tensor([y0]), torch.tensor([0.5, 1.0]))


def test_a_sum_beyond_half_precision_is_no_infinity():
    t = UNIT.half()
    found = odeint(lambda t, y: torch.zeros_like(y), torch.full((1000,), 100.0).half(), t, **EULER)
    assert (found == 100).all()
