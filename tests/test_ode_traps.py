"""What would make a solve or its gradient silently wrong is refused, with the remedy.

Most cases are public bug reports of torchdiffeq, diffrax and torchdyn.
"""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from mnlib.ode import odeint
from mnlib.residual import ODEBlock, VectorField

SAVING = pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
UNIT = torch.tensor([0.0, 1.0])
RK4 = {"method": "rk4", "step_size": 0.25}


class Hidden(nn.Module):
    """A field whose layer ``parameters()`` does not list."""

    def __init__(self):
        super().__init__()
        self.__dict__["layer"] = nn.Linear(2, 2)

    def forward(self, t, y):
        return self.layer(y)


def replica():
    """A field like a replica of DataParallel: its weight is no parameter, but has a graph."""
    field = nn.Linear(2, 2, bias=False)
    weight = field.weight * 1
    del field.weight
    field.weight = weight
    field.forward = lambda t, y: y @ weight.T
    return field


def conditioned():
    encoder = nn.Linear(2, 2)
    condition = encoder(torch.ones(2))
    field = VectorField(nn.Identity(), 1)
    field.forward = lambda t, y: condition * y
    return field


@SAVING
@pytest.mark.parametrize("build", [Hidden, replica, conditioned])
def test_tensors_that_the_parameters_do_not_list_are_refused(build, gradient):
    y0 = torch.ones(3, 2, requires_grad=True)
    end = odeint(build(), y0, UNIT, **RK4, gradient=gradient)[-1]
    with pytest.raises(RuntimeError, match=r"func uses \d tensor\(s\) .* \(2, 2\)"):
        end.sum().backward()
    odeint(build(), y0, UNIT, **RK4)[-1].sum().backward()


@SAVING
def test_tensors_that_are_named_are_not_refused(gradient):
    field, y0 = Hidden(), torch.ones(3, 2, requires_grad=True)
    found = []
    for how, params in (("backprop", None), (gradient, tuple(field.layer.parameters()))):
        field.layer.zero_grad()
        odeint(field, y0, UNIT, gradient=how, params=params)[-1].sum().backward()
        found.append(field.layer.weight.grad.clone())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@SAVING
@pytest.mark.parametrize("create", ["sum", "square"])
def test_a_gradient_that_is_to_be_differentiated_is_refused(gradient, create):
    """Of a sum the incoming gradient wants none itself, and the penalty's would vanish."""
    block = ODEBlock(VectorField(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), 2), gradient=gradient)
    x = torch.ones(1, 2, 1, 2, requires_grad=True)
    y = block(x)
    loss = y.sum() if create == "sum" else y.square().sum()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss, x, create_graph=True)


@SAVING
def test_a_hook_of_a_parameter_acts_once(gradient):
    field = VectorField(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), 2)
    weight = field.branch[0].weight
    found = []
    for how, hooked in ((gradient, False), (gradient, True)):
        handle = weight.register_hook(lambda g: 0.5 * g) if hooked else None
        weight.grad = None
        odeint(field, torch.ones(1, 2, 1, 2), UNIT, **RK4, gradient=how)[-1].sum().backward()
        found.append(weight.grad.clone())
    torch.testing.assert_close(found[1], 0.5 * found[0])
    handle.remove()
    weight.grad = None
    odeint(field, torch.ones(1, 2, 1, 2), UNIT, **RK4, gradient=gradient)[-1].sum().backward()
    torch.testing.assert_close(weight.grad, found[0])


@SAVING
def test_a_block_that_keeps_its_output_is_not_kept_by_it(gradient):
    field = VectorField(nn.Linear(2, 2), 2)
    y0 = torch.ones(1, 2, 1, 2, requires_grad=True)
    field.last = odeint(field, y0, UNIT, **RK4, gradient=gradient)
    field.last.sum().backward()
    ghost = weakref.ref(field)
    del field
    gc.collect()
    assert ghost() is None


@pytest.mark.parametrize("method", ["midpoint", "rk4", "dopri5"])
def test_a_buffer_that_is_returned_again_and_again_is_refused(method):
    buffer = torch.empty(3)

    def func(t, y):
        return torch.mul(y, -1, out=buffer)

    with pytest.raises(RuntimeError, match="overwrote the tensor"):
        odeint(func, torch.ones(3), UNIT, method=method)
    constant = torch.ones(3)
    assert torch.allclose(
        odeint(lambda t, y: constant, constant, UNIT, method=method)[-1] - 1, torch.ones(3)
    )


@pytest.mark.parametrize("method", ["midpoint", "rk4", "dopri5"])
@pytest.mark.parametrize("kind", ["new tensors", "one tensor", "tensor's own", "inference"])
def test_a_buffer_whose_changes_pytorch_does_not_see_is_copied(kind, method):
    """NumPy writes into it, or tensors of inference mode have no version that tells."""
    tensor = torch.empty(3)
    buffer = tensor.numpy() if kind == "tensor's own" else np.empty(3, dtype=np.float32)
    shared = tensor if kind == "tensor's own" else torch.from_numpy(buffer)

    def func(t, y):
        if kind == "inference":
            return torch.mul(y, -1, out=shared)
        np.multiply(y.numpy(), -1, out=buffer)
        return torch.from_numpy(buffer) if kind == "new tensors" else shared

    with torch.inference_mode(kind == "inference"):
        shared = torch.empty(3) if kind == "inference" else shared
        found = odeint(func, torch.ones(3), UNIT, method=method, rtol=1e-5, atol=1e-5)
        expected = odeint(lambda t, y: -y, torch.ones(3), UNIT, method=method, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["dropout", "buffer after", "buffer before"])
def test_a_replay_that_gives_other_values_is_noticed(kind):
    torch.manual_seed(0)
    branch = {
        "dropout": lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)),
        "buffer after": lambda: nn.Sequential(nn.Linear(8, 8), Drifting()),
        "buffer before": lambda: nn.Sequential(Drifting(), nn.Linear(8, 8)),
    }[kind]()

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = branch

        def forward(self, t, y):
            return self.branch(y)

    field = Field().train()
    y0 = torch.randn(16, 8, requires_grad=True)
    params = tuple(field.parameters())
    end = odeint(
        field.forward,
        y0,
        UNIT,
        method="euler",
        step_size=0.25,
        gradient="checkpoint",
        params=params,
    )[-1]
    with pytest.raises(RuntimeError, match="gave other values"):
        end.sum().backward()


class Drifting(nn.Module):
    """A layer whose buffer changes at each call, as a power iteration's does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        self.scale.mul_(1.2)
        return self.scale * x


@SAVING
def test_a_buffer_changed_between_the_passes_is_noticed(gradient):
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("rate", torch.tensor(-1.0))

        def forward(self, t, y):
            return self.rate * y

    field, y0 = Field(), torch.ones(3, requires_grad=True)
    end = odeint(field, y0, UNIT, **RK4, gradient=gradient)[-1]
    field.rate.mul_(2)
    with pytest.raises(RuntimeError, match="a buffer of func has changed"):
        end.sum().backward()


def test_the_tolerance_can_hold_for_each_sample_of_a_batch():
    """One fast oscillation among 1,024 slow ones, of which the mean does not see the error."""
    rate = torch.full((1024, 1), 0.01, dtype=torch.float64)
    rate[0] = 30.0
    y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(1024, 1)

    def func(t, y):
        return torch.cat([-rate * y[:, 1:], rate * y[:, :1]], 1)

    exact = torch.tensor([torch.tensor(30.0).cos(), torch.tensor(30.0).sin()])
    errors = []
    for more in ({}, {"per_sample": False}, {"per_sample": True}):
        end = odeint(func, y0, UNIT.double(), rtol=1e-5, atol=1e-5, **more)[-1, 0]
        errors.append(float((end - exact).norm()))
    assert errors[0] == errors[1]  # torchdiffeq's norm, by default
    assert errors[2] < errors[1] / 10
    assert errors[2] < 1e-3


def test_each_number_of_a_state_with_one_dimension_is_a_sample():
    rate = torch.full((1024,), 0.01, dtype=torch.float64)
    rate[0] = 30.0
    options = {"rtol": 1e-5, "atol": 1e-5}
    errors = [
        odeint(lambda t, y: rate * (rate * t).cos(), 0 * rate, UNIT.double(), **options, **more)[-1]
        - rate.sin()
        for more in ({"per_sample": False}, {"per_sample": True})
    ]
    assert errors[1].abs().max() < 1e-4 < errors[0].abs().max()


class Wheels(nn.Module):
    """Pairs of numbers that go round, at the speed of their squared radius."""

    def forward(self, t, h):
        return (h * h).sum(1, keepdim=True) * torch.cat([-h[:, 1:], h[:, :1]], 1)


def test_a_block_keeps_the_tolerance_of_one_fast_image_among_slow_ones():
    tolerance = 1e-6
    h = torch.zeros(256, 2, 1, 1, dtype=torch.float64)
    h[:, 0], h[0, 0] = 0.1, 4.0
    exact = 4 * torch.tensor([16.0, 16.0 + torch.pi / 2 * 3]).double().cos()
    errors, changes = [], []
    for more in ({}, {"per_sample": True}):
        block = ODEBlock(Wheels(), "dopri5", tolerance=tolerance, **more)
        end = block(h)[0].ravel()
        errors.append((end - exact).norm() / 4)
        changes.append((end - block(h[:1])[0].ravel()).norm() / 4)
    assert errors[1] < 30 * tolerance < errors[0]
    assert changes[1] < 1e-12  # beside slower neighbours an image's features are its own
    assert changes[0] > 30 * tolerance


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_an_empty_batch_has_an_empty_solution(method):
    found = odeint(lambda t, y: -y, torch.empty(0, 3), UNIT, method=method)
    assert found.shape == (2, 0, 3)


def test_large_but_finite_slopes_are_no_infinity():
    """1e30 over a tolerance of 1e-9 is more than single precision holds."""
    found = odeint(lambda t, y: torch.full_like(y, 1e30), torch.zeros(2), UNIT)
    assert torch.allclose(found[-1], torch.full((2,), 1e30))


def test_an_infinite_gradient_that_comes_in_blames_the_loss():
    y0 = torch.ones(2, requires_grad=True)
    options = {**RK4, "gradient": "adjoint", "params": ()}
    one, other = odeint(lambda t, y: (-y[1], -y[0]), (y0, 2 * y0), UNIT, **options)
    with pytest.raises(RuntimeError, match="check the loss"):
        (one[-1].sum() + other[-1].sum() * float("inf")).backward()
