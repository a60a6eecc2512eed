"""One explicit Runge–Kutta step on a list of tensors, and the record from which it can be retaken.

Times are Python floats, or 0-dimensional tensors where a gradient with respect to them is wanted;
a step knows its ends only as fractions of the interval between two requested times, so that it can
be retaken with either.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mnlib.ode.tableaux import Tableau

State = list[Tensor]
Time = float | Tensor
Field = Callable[[Time, State], State]
Knot = tuple[int, int, float]


class Step(NamedTuple):
    """A step from one knot to another, a knot (i, j, s) being the time ``t_i + s (t_j - t_i)``.

    ``inside`` lists the requested times strictly within the step, ``last`` the one at its end.
    """

    start: Knot
    end: Knot
    inside: tuple[int, ...] = ()
    last: int | None = None


def moment(ts: Sequence[Time], knot: Knot) -> Time:
    """Return the time of a knot."""
    i, j, s = knot
    return ts[j] if s == 1 else ts[i] + s * (ts[j] - ts[i])


def plain(ts: Sequence[Time]) -> list[float]:
    """Return times as floats, without their gradient."""
    return [float(t.detach()) if isinstance(t, Tensor) else t for t in ts]


def laid_out(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return ``x`` with these strides, copied only if it has others."""
    return x if x.stride() == strides else x.new_empty_strided(x.shape, strides).copy_(x)


def stack(states: State | tuple[Tensor, ...]) -> Tensor:
    """Return ``torch.stack(states)``, its slices and their gradients laid out like the first state.

    Else states channels last would meet gradients that are not, which makes convolutions slow.
    """
    if states[0].is_contiguous():
        return torch.stack(states)
    strides = torch.empty_like(states[0]).stride()
    order = sorted(range(len(strides)), key=lambda i: -strides[i])
    laid = tuple(strides[i] for i in order)
    rows = [x.permute(order) for x in states]  # contiguous, and not the caller's own tensors
    for row in rows:
        if row.requires_grad:
            row.register_hook(partial(laid_out, strides=laid))
    return torch.stack(rows).permute(0, *(1 + order.index(i) for i in range(len(order))))


def combine(y: State, dt: Time, weights: Sequence[Time], slopes: Sequence[State]) -> State:
    """Return ``y + dt Σ weights_i slopes_i``."""
    terms = [
        (w, k) for w, k in zip(weights, slopes, strict=False) if isinstance(w, Tensor) or w != 0
    ]
    result = []
    for n, value in enumerate(y):
        if isinstance(dt, Tensor):
            value = value + dt * sum(w * k[n] for w, k in terms)
        else:  # one pass over memory a term
            for m, (w, k) in enumerate(terms):
                add = torch.Tensor.add_ if m else torch.add
                value = add(value, k[n], alpha=dt * float(w))
        result.append(value)
    return result


def advance(
    field: Field, tableau: Tableau, t0: Time, t1: Time, y: State, slope: State | None = None
) -> tuple[State, list[State]]:
    """Take one step from ``t0`` to ``t1``; return the new state and the stages' slopes.

    ``slope`` is the derivative at ``t0`` if it is known already.
    """
    dt = t1 - t0
    slopes = [evaluate(field, t0, y, []) if slope is None else slope]
    for c, row in zip(tableau.c[1:], tableau.a[1:], strict=True):
        t = t1 if c == 1 else t0 + c * dt  # whose rounding may pass t1
        slopes.append(evaluate(field, t, combine(y, dt, row, slopes), slopes))
    return combine(y, dt, tableau.b, slopes), slopes


def evaluate(field: Field, t: Time, y: State, slopes: Sequence[State]) -> State:
    """Return ``field(t, y)``, which must leave ``y`` and the ``slopes`` before as they were."""
    kept = [x for state in (y, *slopes) for x in state if not x.is_inference()]
    marks = [x._version for x in kept]
    slope = field(t, y)
    if marks != [x._version for x in kept]:
        raise RuntimeError(
            "func overwrote the tensor that it had returned at a stage before, or the state; "
            "return a new one each time"
        )
    return slope


def interpolate(
    tableau: Tableau, t0: Time, t1: Time, t: Time, y: State, slopes: list[State]
) -> State:
    """Return the dense output at ``t`` of a step from ``(t0, y)`` to ``t1``.

    It is the cubic Hermite interpolant plus ``h θ²(1-θ)² Σ dense_i k_i``, of order four.
    ``slopes`` ends with the derivative at ``t1``.
    """
    s = (t - t0) / (t1 - t0)
    weights = [
        b * s**2 * (3 - 2 * s) + d * (s * (1 - s)) ** 2
        for b, d in zip((*tableau.b, 0.0), tableau.dense, strict=True)
    ]
    weights[0] = weights[0] + s * (1 - s) ** 2
    weights[-1] = weights[-1] - s**2 * (1 - s)
    return combine(y, t1 - t0, weights, slopes)


def retake(
    field: Field, tableau: Tableau, ts: Sequence[Time], step: Step, y: State
) -> tuple[State, dict[int, State]]:
    """Take a recorded step again; return the new state and those at the requested times."""
    t0, t1 = moment(ts, step.start), moment(ts, step.end)
    new, slopes = advance(field, tableau, t0, t1, y)
    if step.inside:
        slopes.append(evaluate(field, t1, new, slopes))
    outputs = {j: interpolate(tableau, t0, t1, ts[j], y, slopes) for j in step.inside}
    return new, outputs if step.last is None else {**outputs, step.last: new}
