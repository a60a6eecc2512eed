"""What the pieces that play in the page start from: tables for print, numbers for the scripts.

The scripts of ``book/play/`` compute the same as the functions here, which the tests compare. Rows
are dicts of texts, for a table of the book.
"""

import warnings

import torch
from torch import Tensor, nn

from mnlib import cost
from mnlib.gates import round_channels
from mnlib.lab import vgg
from mnlib.mobilenet import InvertedResidual, Row
from mnlib.ode import odeint, tableaux
from mnlib.separable import ORDERS, Order, decouple, multiply_adds, parameter_count

__all__ = [
    "COST",
    "FLOW",
    "FORMS",
    "GOAL",
    "THETA",
    "cost_counts",
    "cost_rows",
    "flow_data",
    "flow_gradient",
    "flow_rows",
    "rank_data",
    "rank_rows",
]

#: The settings with which the cost calculator starts: a block in MobileNetV2's middle.
COST = {"n_i": 64, "n_o": 64, "k": 3, "stride": 1, "alpha": 1.0, "resolution": 14, "expansion": 6}

FORMS = {
    "regular": "regular",
    "depthwise_first": "separable, depthwise first",
    "pointwise_first": "separable, pointwise first",
    "inverted_residual": "inverted residual",
}


def cost_counts(
    n_i: int, n_o: int, k: int, stride: int, alpha: float, resolution: int, expansion: int
) -> dict[str, tuple[int, int]]:
    """Return weights and multiply-adds of a convolution by form, without biases and norms.

    ``alpha`` multiplies both numbers of channels, rounded by :func:`round_channels` unless it is 1;
    the k×k kernel is padded by k//2. The inverted residual expands n_i ``expansion`` times.

    Raises:
        ValueError: a stride other than 1 and 2, or what :mod:`mnlib.separable` refuses.

    >>> cost_counts(64, 128, 3, 1, 1.0, 56, 6)["regular"]
    (73728, 231211008)
    """
    if alpha != 1:
        n_i, n_o = round_channels(n_i * alpha), round_channels(n_o * alpha)
    size = (resolution, resolution)
    found = {
        form: (
            parameter_count(form, n_i, n_o, k),
            multiply_adds(form, n_i, n_o, k, size, stride, padding=k // 2),
        )
        for form in ("regular", *ORDERS)
    }
    with torch.device("meta"):
        block = InvertedResidual(n_i, Row(k, expansion * n_i, n_o, False, "RE", stride))
    weights = sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Conv2d))
    return {**found, "inverted_residual": (weights, cost.count_macs(block, (n_i, *size)))}


def cost_rows() -> list[dict[str, str]]:
    """Return the calculator's table for :data:`COST`."""
    counts = cost_counts(**COST)
    weights, macs = counts["regular"]
    return [
        {
            "form": FORMS[form],
            "parameters": f"{own:,}",
            "share of its parameters": f"{100 * own / weights:.1f} %",
            "multiply-adds": f"{work:,}",
            "share of its multiply-adds": f"{100 * work / macs:.1f} %",
        }
        for form, (own, work) in counts.items()
    ]


#: The example of the chapter on the flow: the layer's weights, the goal of the loss.
THETA = ((0.2, -1.5), (1.5, -0.4))
GOAL = (-1.0, 1.0)

#: The settings with which the flow bench starts.
FLOW = {"start": [1.0, 0.0], "tau": 4.0, "method": "euler", "steps": 16}

#: The most slices that go to the rank slider, for the reader's sake: some kilobytes each.
SLICES = 8


def flow_gradient(
    start: list[float], tau: float, gradient: str, **options: object
) -> tuple[Tensor, Tensor]:
    """Return dL/dh(0), 2, and dL/dθ, 2×2, in float64 of L = |h(τ) − goal|²/2 for dh/dt = tanh(θh).

    ``gradient`` and ``options`` are those of :func:`mnlib.ode.odeint`.
    """
    h = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    theta = torch.tensor(THETA, dtype=torch.float64, requires_grad=True)
    span = torch.tensor([0, tau], dtype=torch.float64)
    given = {"gradient": gradient, "params": [theta], **options}
    with warnings.catch_warnings():  # that the adjoint goes astray is what the bench shows
        warnings.simplefilter("ignore")
        end = odeint(lambda _t, h: torch.tanh(theta @ h), h, span, **given)[-1]
        loss = (end - end.new_tensor(GOAL)).square().sum() / 2
        return torch.autograd.grad(loss, [h, theta])


def flow_data() -> dict:
    """Return what the flow bench is given: the example, the settings, the methods' coefficients."""
    methods = {name: getattr(tableaux, name.upper()) for name in ("euler", "midpoint", "rk4")}
    return {
        "theta": THETA,
        "goal": GOAL,
        "settings": FLOW,
        "tableaux": {name: {"a": method.a, "b": method.b} for name, method in methods.items()},
    }


def flow_rows() -> list[dict[str, str]]:
    """Return the gradients by all ways for :data:`FLOW`."""
    ends = {"start": FLOW["start"], "tau": FLOW["tau"]}
    steps = {"method": FLOW["method"], "step_size": FLOW["tau"] / FLOW["steps"]}
    ways = {
        "of the flow": flow_gradient(**ends, gradient="backprop", rtol=1e-12, atol=1e-12),
        "backpropagation through the steps": flow_gradient(**ends, gradient="backprop", **steps),
        "checkpoints": flow_gradient(**ends, gradient="checkpoint", **steps),
        "continuous adjoint": flow_gradient(**ends, gradient="adjoint", **steps),
    }
    truth = ways["of the flow"]
    rows = []
    for name, found in ways.items():
        errors = [float((x - y).norm() / y.norm()) for x, y in zip(found, truth, strict=True)]
        rows.append(
            {
                "gradient": name,
                "∂L/∂h(0)": "({:.3f}, {:.3f})".format(*found[0].tolist()).replace("-", "−"),
                "its relative error": f"{errors[0]:.2f}" if name != "of the flow" else "",
                "relative error of dL/dθ": f"{errors[1]:.2f}" if name != "of the flow" else "",
            }
        )
    return rows


def _layer() -> tuple[str, Tensor]:
    """Return the network's name and the weights of its second convolution, in float64."""
    name, network, _ = vgg.subject(count=1)
    return name, vgg.parameters(network)[0][1].double()


def rank_data() -> dict:
    """Return what the rank slider is given: a few slices' blocks, and the layer's errors, by order.

    Block r of a slice is ``kernels[r]``, of k numbers, times the r-th column of ``mixing``.
    """
    name, weight = _layer()
    return {
        "network": name,
        "layer": "the second convolution",
        "side": weight.shape[3],
        "orders": {order: _order(weight, order) for order in ORDERS},
    }


def _order(weight: Tensor, order: Order) -> dict:
    first = order == "depthwise_first"
    parts = decouple(weight, order)
    kernels = parts.depthwise.flatten(2)  # C×R×k
    mixing = parts.pointwise if not first else parts.pointwise.transpose(0, 1)  # C×n×R
    return {
        "name": order.replace("_", " "),
        "reads": "input channel" if first else "output channel",
        "errors": parts.errors.tolist(),
        "slices": [
            {"kernels": _short(kernels[c]), "mixing": _short(mixing[c])}
            for c in range(min(SLICES, len(kernels)))
        ],
    }


def _short(matrix: Tensor) -> list[list[float]]:
    """Return the rows with ten digits, half of what they would take in the page."""
    return [[float(f"{x:.10g}") for x in row] for row in matrix.tolist()]


def rank_rows() -> list[dict[str, str]]:
    """Return the relative error of the slider's layer by number of blocks and order."""
    errors = {order: about["errors"] for order, about in rank_data()["orders"].items()}
    return [
        {
            "blocks R": str(r),
            **{
                f"error, {order.replace('_', ' ')}": f"{found[r]:.3f}" if r < len(found) else ""
                for order, found in errors.items()
            },
        }
        for r in range(max(len(found) for found in errors.values()))
    ]
