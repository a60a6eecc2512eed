"""Two ways to differentiate a solve without its graph: exact, and the continuous adjoint."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from mnlib.ode.fixed import FixedSteps
from mnlib.ode.runge_kutta import Field, State, Time, laid_out, retake, stack


def solve(solver, field: Field, y: State, ts: Sequence[Time]) -> list[State]:
    """Return the states at all requested times, differentiable if autograd records."""
    found = {0: y}
    for _, _, outputs in solver.steps(field, y, ts):
        found.update(outputs)
    return [found[i] for i in range(len(ts))]


def _refuse_second_derivatives() -> None:
    """Raise if a backward pass is to be differentiated: what it returns would have no graph."""
    if torch.is_grad_enabled():  # which create_graph=True asks for
        raise RuntimeError(
            "gradient='checkpoint' and 'adjoint' have no second derivatives, which "
            "create_graph=True asks for; choose gradient='backprop'"
        )


class Checkpointed(torch.autograd.Function):
    """The gradient of the solver's own steps, from a few of its states and its last fixed step.

    ``apply(solver, field, size, t, *y0, *params)`` with ``size`` tensors in ``y0`` returns the
    stacked solution of each. See :func:`mnlib.ode.odeint` for the properties.
    """

    @staticmethod
    def forward(ctx, solver, field, size, t, *tensors):
        """Solve, keeping every ``ctx.stride``-th state and the record of the steps."""
        ctx.save_for_backward(t, *tensors)
        ctx.solver, ctx.field, ctx.size, ctx.autocast = solver, field, size, _autocast(tensors[0])
        y = list(tensors[:size])
        ctx.record, ctx.kept, ctx.stride, ctx.graph = [], [], 1, None
        found, times = {0: y}, t.tolist()
        # The backward pass begins with the last step: where steps are fixed and many, its graph,
        # a small part of the whole, is left to it.
        planned = len(solver.plan(times)) if isinstance(solver, FixedSteps) else 0
        final = planned - 1 if planned >= 8 and not t.requires_grad else None
        steps = solver.steps(field, y, times)
        while True:
            keep = len(ctx.record) == final
            if keep:
                y[:] = [x.detach().requires_grad_() for x in y]
            with ctx.autocast, torch.set_grad_enabled(keep):
                taken = next(steps, None)
            if taken is None:
                break
            step, new, outputs = taken
            if keep:
                ctx.graph = y, new
            if len(ctx.record) % ctx.stride == 0:
                # The initial state is saved above, where autograd sees whether it is overwritten.
                ctx.kept.append(y if ctx.record else None)
            ctx.record.append(step)
            # At most 8√steps states: nothing is computed twice up to 64 steps, and beyond only
            # the states, not the graph, of `stride` steps at a time.
            if len(ctx.kept) > 8 * math.sqrt(max(64, len(ctx.record))):
                ctx.kept, ctx.stride = ctx.kept[::2], 2 * ctx.stride
            found.update(outputs)
            y = new
        ctx.end = [x.detach() for x in y]
        return tuple(stack([found[i][n] for i in range(len(t))]) for n in range(size))

    @staticmethod
    def backward(ctx, *grads):
        """Retake the steps from the last to the first, each with its graph."""
        _refuse_second_derivatives()
        t, *tensors = ctx.saved_tensors
        field, tableau, size = ctx.field, ctx.solver.tableau, ctx.size
        wanted = [x for x in tensors[size:] if x.requires_grad]
        totals = [torch.zeros_like(x) for x in wanted]
        grad_t = torch.zeros_like(t)
        a = [torch.zeros_like(x) for x in tensors[:size]]
        times, strides = t.tolist(), [x.stride() for x in a]
        after, looked = ctx.end, False
        miss = torch.zeros((), dtype=torch.float64, device=a[0].device)
        with ctx.autocast, _without_hooks(wanted):
            for first in reversed(range(0, len(ctx.record), ctx.stride)):
                steps = ctx.record[first : first + ctx.stride]
                states = [ctx.kept[first // ctx.stride] or tensors[:size]]
                for step in steps[:-1]:
                    states.append(retake(field, tableau, times, step, states[-1])[0])
                for step in reversed(steps):
                    y = [x.detach().requires_grad_() for x in states.pop()]
                    leaf = t.detach().requires_grad_(ctx.needs_input_grad[3])
                    if ctx.graph:
                        (y, new), ctx.graph = ctx.graph, None
                    else:
                        with torch.enable_grad():
                            ts = list(leaf.unbind()) if leaf.requires_grad else times
                            new, outputs = retake(field, tableau, ts, step, y)
                    if after:
                        miss = miss.maximum(_miss(new, after))
                    # the state before this step is known, and not merely computed again, if kept
                    after = ctx.kept[first // ctx.stride] if not states else None
                    if step.last is not None:
                        a = [x + g[step.last] for x, g in zip(a, grads, strict=True)]
                    cotangents = list(a)
                    for j in step.inside:
                        new = new + outputs[j]
                        cotangents += map(laid_out, (g[j] for g in grads), strides)
                    inputs = [*y, *wanted, *([leaf] if leaf.requires_grad else [])]
                    if not looked:
                        _refuse_other_leaves(new, inputs)
                        looked = True
                    found = _pull_back(new, inputs, cotangents)
                    a = found[:size]
                    totals = [s + g for s, g in zip(totals, found[size:], strict=False)]
                    if leaf.requires_grad:
                        grad_t = grad_t + found[-1]
        if not float(miss) <= 0.01:
            raise RuntimeError(
                "func gave other values when the backward pass called it again: it may draw random "
                "numbers (dropout), use batch statistics or change its own buffers; make it a "
                "function of its arguments or choose gradient='backprop'"
            )
        a = [x + g[0] for x, g in zip(a, grads, strict=True)]
        return None, None, None, grad_t, *a, *_place(totals, tensors[size:])


class Adjoint(torch.autograd.Function):
    """The continuous adjoint of Chen et al. (2018): an ODE solved backwards in time.

    ``apply(solver, field, size, seminorm, t, *y0, *params)`` with ``size`` tensors in ``y0``
    returns the stacked solution of each. See :func:`mnlib.ode.odeint` for the properties.
    """

    @staticmethod
    def forward(ctx, solver, field, size, seminorm, t, *tensors):
        """Solve, keeping the solution at the requested times only."""
        states = solve(solver, field, list(tensors[:size]), t.tolist())
        solution = tuple(stack(parts) for parts in zip(*states, strict=True))
        ctx.save_for_backward(t, *solution, *tensors[size:])
        ctx.solver, ctx.field, ctx.size, ctx.seminorm = solver, field, size, seminorm
        ctx.autocast = _autocast(tensors[0])
        return solution

    @staticmethod
    def backward(ctx, *grads):
        """Solve state, adjoint and parameter gradient from each requested time to the one before.

        The gradient with respect to a time is the work done there: ``dL/dt_j = g_j f(t_j, y_j)``
        for a requested time and ``-a(t_0) f(t_0, y_0)`` for the initial one.
        """
        _refuse_second_derivatives()
        t, *tensors = ctx.saved_tensors
        solution, params = tensors[: ctx.size], tensors[ctx.size :]
        size, field, times = ctx.size, ctx.field, t.tolist()
        wanted = [x for x in params if x.requires_grad]
        totals = [torch.zeros_like(x)[None] for x in wanted]  # no samples, to the error control
        grad_t, looked = torch.zeros_like(t), False
        if not all(bool(g.isfinite().all()) for g in grads):
            raise RuntimeError("the gradient that comes in is not finite; check the loss")

        def work(i: int, a: State) -> Tensor:
            slope = field(times[i], [x[i] for x in solution])
            return sum((x * k).sum() for x, k in zip(a, slope, strict=True))

        def augmented(time: float, state: State) -> State:
            nonlocal looked
            with torch.enable_grad():
                y = [x.detach().requires_grad_() for x in state[:size]]
                slope = field(time, y)
            if not looked:
                _refuse_other_leaves(slope, [*y, *wanted])
                looked = True
            pulled = _pull_back(slope, [*y, *wanted], [-a for a in state[size : 2 * size]])
            return [*(k.detach() for k in slope), *pulled[:size], *(g[None] for g in pulled[size:])]

        a = [torch.zeros_like(x[0]) for x in solution]
        with ctx.autocast, _without_hooks(wanted):
            for i in range(len(times) - 1, 0, -1):
                a = [x + g[i] for x, g in zip(a, grads, strict=True)]
                if ctx.needs_input_grad[4]:
                    grad_t[i] = work(i, [g[i] for g in grads])
                state = [*(x[i] for x in solution), *a, *totals]
                scales = _tolerance_scales(a, len(wanted), ctx.seminorm)
                for _, new, _ in ctx.solver.steps(
                    augmented, state, [times[i], times[i - 1]], scales
                ):
                    state = new
                _warn_if_astray(state[:size], [x[i - 1 : i + 1] for x in solution], times[i - 1])
                a, totals = state[size : 2 * size], state[2 * size :]
            if ctx.needs_input_grad[4]:
                grad_t[0] = -work(0, a)
        a = [x + g[0] for x, g in zip(a, grads, strict=True)]
        return None, None, None, None, grad_t, *a, *_place([x[0] for x in totals], params)


def _pull_back(outputs: State, inputs: State, cotangents: State) -> State:
    """Vector-Jacobian product, zero where an input has no influence."""
    pairs = [(x, g) for x, g in zip(outputs, cotangents, strict=True) if x.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    ends, given = zip(*pairs, strict=True)
    return list(torch.autograd.grad(ends, inputs, given, allow_unused=True, materialize_grads=True))


def _refuse_other_leaves(outputs: State, inputs: State) -> None:
    """Raise if ``outputs`` depend on a leaf that wants a gradient and is not among ``inputs``."""
    known = {get_gradient_edge(x).node for x in inputs}
    waiting = [get_gradient_edge(x).node for x in outputs if x.requires_grad]
    seen, others = set(), []
    while waiting:
        node = waiting.pop()
        if node in seen or node in known:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            others.append(f"{tuple(node.variable.shape)} {node.variable.dtype}")
        waiting += [before for before, _ in node.next_functions if before is not None]
    if others:
        raise RuntimeError(
            f"func uses {len(others)} tensor(s) that want a gradient and are neither in y0 nor in "
            f"params, by default func.parameters(): {', '.join(others[:5])}; pass params with "
            "them, detach them, or choose gradient='backprop'"
        )


@contextmanager
def _without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Silence hooks of the parameters, which are to see the whole gradient once, not its parts."""
    hooked = [(x, x._backward_hooks) for x in tensors if x._backward_hooks]
    try:
        for x, _ in hooked:
            x._backward_hooks = None
        yield
    finally:
        for x, hooks in hooked:
            x._backward_hooks = hooks


def _miss(found: State, known: State) -> Tensor:
    """Return the largest distance of a state from the known one, relative to the latter's size."""
    tiny = torch.finfo(torch.float32).tiny
    ratios = [
        (x - y).abs().amax().double() / (y.abs().amax().double() + tiny)
        for x, y in zip(found, known, strict=True)
        if y.numel()
    ]
    return torch.stack(ratios).max() if ratios else torch.zeros((), dtype=torch.float64)


def _place(found: State, params: Sequence[Tensor]) -> list[Tensor | None]:
    """Put the gradients of the parameters that want one at their places."""
    rest = iter(found)
    return [next(rest) if x.requires_grad else None for x in params]


def _tolerance_scales(a: State, params: int, seminorm: bool) -> list[float]:
    """Scale the absolute tolerance with the loss, so that its units do not change the steps.

    The scale of the adjoint's entries is their Euclidean norm; that of the parameters' gradient,
    which is a sum over all these entries, is the sum of their absolute values.
    """
    # in double precision, since the squares of single ones may be infinite or zero
    norm = math.hypot(*(float(torch.linalg.vector_norm(x, dtype=torch.float64)) for x in a))
    total = math.inf if seminorm else float(sum(x.double().abs().sum() for x in a))
    return [1.0] * len(a) + [max(norm, 1e-25)] * len(a) + [max(total, 1e-25)] * params


def _warn_if_astray(found: State, known: State, time: float) -> None:
    """Compare the state solved backwards with the first of ``known``, the forward solve's there.

    The larger of that and the one at the interval's other end is the measure: one may be zero.
    """
    for x, ends in zip(found, known, strict=True):
        size = max(float(y.norm()) for y in ends) or torch.finfo(x.dtype).tiny
        miss = float((x - ends[0]).norm()) / size
        if not miss <= 0.1:
            warnings.warn(
                f"the state solved backwards misses the forward one by {miss:.0%} at t = {time:.6g}"
                ", so the continuous adjoint's gradient is not to be trusted; use "
                "gradient='checkpoint' or smaller steps",
                stacklevel=2,
            )


def _autocast(state: Tensor) -> torch.autocast:
    kind = state.device.type
    return torch.autocast(
        kind,
        dtype=torch.get_autocast_dtype(kind),
        enabled=torch.is_autocast_enabled(kind),
        cache_enabled=False,  # casts made without a graph must not serve the steps with one
    )
