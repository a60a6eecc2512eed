"""The slides' equations (1) to (7): what holds, and where their text is wrong or imprecise.

The problem is dh/dt = tanh(W h + t b), whose Jacobian is not symmetric, so that rows and columns
cannot be confused. Autograd through the solver's steps is the referee.
"""

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import nn

from mnlib import mobilenet
from mnlib.mobilenet import InvertedResidual
from mnlib.ode import odeint
from mnlib.residual import Residual

TIGHT = {"rtol": 1e-11, "atol": 1e-12}
W = torch.tensor([[0.3, -1.2, 0.5], [0.9, -0.4, 0.2], [-0.1, 1.1, 0.6]], dtype=torch.float64)
B = torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64)
H0 = torch.tensor([0.4, -0.7, 0.2], dtype=torch.float64)
GOAL = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
SPAN = torch.linspace(0, 1, 101, dtype=torch.float64)


def sigma(t, h, weight=W):
    return torch.tanh(weight @ h + t * B)


def jacobian(t, h):
    """∂σ/∂h, row i being the gradient of σ_i."""
    return (1 - sigma(t, h) ** 2)[:, None] * W


def loss(h):
    return ((h - GOAL) ** 2).sum() / 2


def gradient(h):
    h = h.detach().requires_grad_()
    return torch.autograd.grad(loss(h), h)[0]


@cache
def path():
    return odeint(sigma, H0, SPAN, **TIGHT)


def integral(values):
    """Simpson's rule over SPAN."""
    weights = torch.ones(len(SPAN), dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    shape = (-1, *[1] * (values.ndim - 1))
    return (weights.reshape(shape) * values).sum(0) * float(SPAN[1]) / 3


def vjp(a, jacobian):
    """The row aᵀ ∂σ/∂h as a vector."""
    return a @ jacobian


def adjoint_path(product=vjp):
    """Equation (5) solved backwards beside (2), from a(t+τ) = ∂L/∂h(t+τ), in ascending order."""

    def both(t, state):
        h, a = state
        return sigma(t, h), -product(a, jacobian(t, h))

    end = path()[-1]
    return odeint(both, (end, gradient(end)), SPAN.flip(0), **TIGHT)[1].flip(0)


def last(h, i):
    """The state at the end of SPAN, from h at its time i; at the last time it is h itself."""
    return odeint(sigma, h, SPAN[i:], **TIGHT)[-1] if i < len(SPAN) - 1 else h


def true_adjoint(i):
    """∂L/∂h(t_i) by autograd through the rest of the solve."""
    h = path()[i].detach().requires_grad_()
    return torch.autograd.grad(loss(last(h, i)), h)[0]


def close(a, b, tolerance=1e-8):
    return float((a - b).norm()) <= tolerance * float(b.norm())


def test_equation_1_is_an_euler_step_of_length_one():
    layer = nn.Linear(3, 3).double()
    step = odeint(lambda t, h: layer(h), H0, torch.tensor([0.0, 1.0]).double(), method="euler")[-1]
    assert torch.equal(Residual(layer)(H0), step)


def test_equation_2_is_the_limit_of_residual_steps_with_tau():
    exact, errors = path()[-1], []
    for n in (16, 32, 64, 128):
        h = H0
        for k in range(n):
            h = h + sigma(k / n, h) / n
        errors.append(float((h - exact).norm()))
    ratios = [a / b for a, b in pairwise(errors)]
    assert all(r == pytest.approx(2, abs=0.1) for r in ratios)


def test_erratum_equation_1_without_tau_has_no_limit():
    """As printed n layers go to time n: with this σ, ever further away from h(1)."""
    exact, errors = path()[-1], []
    for n in (4, 8, 16, 32):
        h = H0
        for k in range(n):
            h = h + sigma(k / n, h)
        # n Euler steps of length one, with a field that changes n times more slowly
        times = torch.arange(n + 1, dtype=torch.float64)
        euler = odeint(lambda t, h, n=n: sigma(t / n, h), H0, times, method="euler")[-1]
        assert close(h, euler)
        errors.append(float((h - exact).norm()))
    assert all(b > 1.5 * a for a, b in pairwise(errors))


def test_equation_3_is_the_integral_along_the_path():
    h = path()
    values = torch.stack([sigma(t, x) for t, x in zip(SPAN, h, strict=True)])
    assert close(H0 + integral(values), h[-1])


def test_equation_3_read_literally_is_one_euler_step():
    """With t as left end and as variable the integrand stands still: (1) with its τ."""
    errors = []
    for n in (100, 50, 25):  # τ = 1, 1/2, 1/4
        times = SPAN[: n + 1]
        still = sigma(times[0], H0).expand(n + 1, 3)
        literal = H0 + torch.trapezoid(still, times, dim=0)
        euler = odeint(sigma, H0, times[[0, -1]], method="euler")[-1]
        assert close(literal, euler, 1e-14)
        assert float(loss(literal)) == pytest.approx(float(loss(euler)), rel=1e-14)
        errors.append(float((literal - path()[n]).norm()))
    assert errors[0] > 0.05
    assert errors[1] / errors[2] == pytest.approx(4, abs=1)  # the error of one step is of order τ²


@pytest.mark.parametrize("i", [0, 40, 90, 100])
def test_equation_4_the_adjoint_is_the_gradient_at_every_state(i):
    """At the last, a(t+τ), too: (4) contains the condition from which (5) starts."""
    h, step = path()[i], 1e-5
    differences = torch.stack(
        [
            (loss(last(h + step * e, i)) - loss(last(h - step * e, i))) / (2 * step)
            for e in torch.eye(3, dtype=torch.float64)
        ]
    )
    assert close(adjoint_path()[i], differences, 1e-7)


@pytest.mark.parametrize("i", [0, 40, 90])
def test_equation_5_solved_from_the_end_is_the_gradient(i):
    assert close(adjoint_path()[i], true_adjoint(i))


def test_erratum_equation_5_column_and_row():
    """With a column a, a column stands on the left of (5) and a row on its right."""
    a, J = gradient(path()[-1])[:, None], jacobian(SPAN[-1], path()[-1])
    left, right = a, -a.T @ J
    assert left.shape == (3, 1)
    assert right.shape == (1, 3)
    # da/dt = −Jᵀ a has the row's numbers in a column; the transpose cannot be left out.
    assert torch.allclose(-J.T @ a, right.T, rtol=1e-14)
    assert close(adjoint_path(lambda a, jacobian: jacobian.T @ a)[0], true_adjoint(0))
    assert not close(adjoint_path(lambda a, jacobian: jacobian @ a)[0], true_adjoint(0), 0.1)


def test_the_adjoint_times_a_variation_is_constant():
    """A variation δh obeys dδh/dt = (∂σ/∂h) δh, and a(s)ᵀ δh(s) is the change of the loss."""

    def both(t, state):
        h, variation = state
        return sigma(t, h), jacobian(t, h) @ variation

    variations = odeint(both, (H0, torch.eye(3, dtype=torch.float64)), SPAN, **TIGHT)[1]
    changes = torch.stack([a @ v for a, v in zip(adjoint_path(), variations, strict=True)])
    assert close(changes, true_adjoint(0).expand_as(changes))
    assert not close(variations[-1], variations[0], 0.1)  # the factors are not constant


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_backpropagation_is_the_discrete_adjoint(method):
    """The steps' Jacobians, transposed, from the last to the first: exactly autograd's gradient."""
    times = SPAN[::10]
    states = odeint(sigma, H0, times, method=method)
    a = gradient(states[-1])
    for i in reversed(range(10)):
        step = torch.autograd.functional.jacobian(
            lambda h, i=i: odeint(sigma, h, times[i : i + 2], method=method)[-1], states[i]
        )
        if method == "euler":
            expected = torch.eye(3) + 0.1 * jacobian(times[i], states[i])
            assert torch.allclose(step, expected, rtol=1e-12)
        a = step.T @ a
    start = H0.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(odeint(sigma, start, times, method=method)[-1]), start)
    assert close(a, found, 1e-14)
    # The gradient of these steps is not that of the flow, which it approaches at their order.
    assert not close(found, true_adjoint(0), 1e-9)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
@pytest.mark.parametrize("kind", ["backprop", "checkpoint", "adjoint"])
def test_the_gradients_converge_at_the_order_of_the_solver(kind, method, order):
    def error(n):
        start, options = H0.clone().requires_grad_(), {"method": method, "step_size": 1 / n}
        end = odeint(sigma, start, SPAN[[0, -1]], gradient=kind, params=(), **options)[-1]
        loss(end).backward()
        return float((start.grad - true_adjoint(0)).norm())

    assert torch.tensor(error(16) / error(32)).log2() == pytest.approx(order, abs=0.25)


def products():
    pairs = zip(SPAN, path(), adjoint_path(), strict=True)
    return torch.stack([a @ jacobian(t, h) for t, h, a in pairs])


def test_erratum_equation_6_lacks_the_gradient_at_the_start():
    """∂L/∂z(t+τ) = ∂L/∂z(t) − ∫ aᵀ ∂σ/∂z: as printed, without the first term on the right."""
    left, printed = gradient(path()[-1]), -integral(products())
    missing = true_adjoint(0)
    assert close(left - printed, missing)
    assert close(missing + printed, left)
    assert not close(printed, left, 0.5)
    # Sign and limits are right: with the other sign the term would not mend it.
    assert not close(missing - printed, left, 0.5)


def test_equation_6_solved_for_the_start_is_the_adjoint():
    assert close(gradient(path()[-1]) + integral(products()), true_adjoint(0))


def parameter_gradient():
    """∂L/∂W by autograd, and ∫ a ∂σ/∂W ds over [t, t+τ] by quadrature."""
    weight = W.clone().requires_grad_()
    end = odeint(lambda t, h: sigma(t, h, weight), H0, SPAN, **TIGHT)[-1]
    (true,) = torch.autograd.grad(loss(end), weight)
    pairs = zip(SPAN, path(), adjoint_path(), strict=True)
    values = [torch.outer(a * (1 - sigma(t, h) ** 2), h) for t, h, a in pairs]
    return true, integral(torch.stack(values))


def test_equation_7_with_its_sign():
    true, found = parameter_gradient()
    assert close(found, true)


def test_erratum_equation_7_as_printed_ascends():
    true, found = parameter_gradient()
    printed = -found
    assert close(printed, -true)

    def value(weight):
        return float(loss(odeint(lambda t, h: sigma(t, h, weight), H0, SPAN, **TIGHT)[-1]))

    assert value(W - 0.1 * found) < value(W) < value(W - 0.1 * printed)


@pytest.mark.parametrize(
    ("build", "total"), [(mobilenet.mobilenet_v3_large, 15), (mobilenet.mobilenet_v2, 17)]
)
def test_not_every_inverted_residual_has_a_shortcut(build, total):
    """A block without its shortcut is no Euler step: it has no h to add to."""
    blocks = [m for m in build().modules() if isinstance(m, InvertedResidual)]
    assert len(blocks) == total
    assert sum(block.shortcut for block in blocks) == 10
