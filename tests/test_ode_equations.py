"""The slides' equations (1) to (7): each as it should stand, and its errata as they are printed.

The general problem is dh/dt = tanh(W h + t b), whose Jacobian is not symmetric, so that rows and
columns cannot be confused; the scalar one dz/dt = 0.7 z with L = z²/2 has everything in closed
form. Autograd through the solver's steps is the referee.
"""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import nn

from mnlib.blocks import InvertedResidual
from mnlib.models import mobilenet
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


def adjoint_path(convention=lambda a, jacobian: a @ jacobian, terminal=gradient):
    """Equation (5) solved backwards beside (2), on SPAN in ascending order."""

    def both(t, state):
        h, a = state
        return sigma(t, h), -convention(a, jacobian(t, h))

    end = path()[-1]
    return odeint(both, (end, terminal(end)), SPAN.flip(0), **TIGHT)[1].flip(0)


def true_adjoint(i):
    """∂L/∂h(t_i) by autograd through the rest of the solve."""
    h = path()[i].detach().requires_grad_()
    end = odeint(sigma, h, SPAN[i:], **TIGHT)[-1]
    return torch.autograd.grad(loss(end), h)[0]


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


def test_erratum_equation_3_limit_is_not_the_variable():
    """From 0 to t = 1 with t as limit and variable: a constant integrand, a product t σ(h(t))."""
    h = path()
    printed = H0 + SPAN[-1] * sigma(SPAN[-1], h[-1])
    constant = sigma(SPAN[-1], h[-1]).expand(len(SPAN), 3)
    assert close(printed, H0 + integral(constant))
    assert not close(printed, h[-1], 0.05)


@pytest.mark.parametrize("i", [0, 40, 90])
def test_equation_4_the_adjoint_is_the_gradient_at_an_earlier_state(i):
    h, step = path()[i], 1e-5
    differences = torch.stack(
        [
            (
                loss(odeint(sigma, h + step * e, SPAN[i:], **TIGHT)[-1])
                - loss(odeint(sigma, h - step * e, SPAN[i:], **TIGHT)[-1])
            )
            / (2 * step)
            for e in torch.eye(3, dtype=torch.float64)
        ]
    )
    assert close(adjoint_path()[i], differences, 1e-7)


@pytest.mark.parametrize("i", [0, 40, 90])
def test_equation_5_with_its_terminal_condition_as_a_row(i):
    assert close(adjoint_path()[i], true_adjoint(i))


def test_erratum_equation_5_as_a_column():
    found = adjoint_path(convention=lambda a, jacobian: jacobian @ a)[0]
    assert not close(found, true_adjoint(0), 0.1)
    # What is integrated is −J a: had J been transposed, as a column wants it, it would be right.
    transposed = adjoint_path(convention=lambda a, jacobian: jacobian.T @ a)[0]
    assert close(transposed, true_adjoint(0))


def test_erratum_equation_5_without_terminal_condition():
    """It says how a changes and not what it is: a = 0 solves it as well."""
    found = adjoint_path(terminal=torch.zeros_like)[0]
    assert torch.equal(found, torch.zeros_like(found))
    assert float(true_adjoint(0).norm()) > 0.1


def products():
    pairs = zip(SPAN, path(), adjoint_path(), strict=True)
    return torch.stack([a @ jacobian(t, h) for t, h, a in pairs])


def test_equation_6_with_its_boundary_term():
    assert close(gradient(path()[-1]) + integral(products()), true_adjoint(0))


def test_erratum_equation_6_as_printed():
    assert not close(integral(-products()), true_adjoint(0), 0.5)
    # Mending one of its two faults is not enough.
    assert not close(integral(products()), true_adjoint(0), 0.1)
    assert not close(gradient(path()[-1]) + integral(-products()), true_adjoint(0), 0.1)


def test_erratum_equation_6_in_numbers():
    """dz/dt = 0.7 z, z(0) = 1, L = z(1)²/2: a(s) = exp(0.7) exp(0.7 (1 - s))."""
    a = torch.exp(0.7 * (2 - SPAN))
    assert float(a[0]) == pytest.approx(math.exp(1.4))
    assert float(a[0]) == pytest.approx(4.055, abs=5e-4)
    assert float(integral(-a * 0.7)) == pytest.approx(-2.04, abs=5e-3)
    assert float(a[-1] + integral(a * 0.7)) == pytest.approx(math.exp(1.4))


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
def test_erratum_not_every_inverted_residual_has_a_shortcut(build, total):
    """A block without its shortcut is no Euler step: it has no h to add to."""
    blocks = [m for m in build().modules() if isinstance(m, InvertedResidual)]
    assert len(blocks) == total
    assert sum(block.shortcut for block in blocks) == 10
