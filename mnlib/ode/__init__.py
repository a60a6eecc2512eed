"""Solve initial value problems and differentiate the solution.

The calling convention is torchdiffeq's, so that the two can be exchanged and compared.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from mnlib.ode.dopri5 import Dopri5
from mnlib.ode.fixed import FixedSteps
from mnlib.ode.gradients import Adjoint, Checkpointed, solve
from mnlib.ode.runge_kutta import Field, State, Time, stack
from mnlib.ode.tableaux import EULER, MIDPOINT, RK4

__all__ = ["Counted", "odeint"]

FIXED = {"euler": EULER, "midpoint": MIDPOINT, "rk4": RK4}
CPU = torch.device("cpu")
GRADIENTS = ("backprop", "checkpoint", "adjoint")

# A tensor or nested tuples of tensors.
Tree = Tensor | tuple["Tree", ...]
T = TypeVar("T", bound="Tensor | tuple")


class Counted:
    """Wrap ``func`` and count its evaluations, in the backward pass too, as ``nfe``.

    >>> decay = Counted(lambda t, y: -y)
    >>> t = torch.tensor([0.0, 1.0])
    >>> odeint(decay, torch.ones(1), t, method="euler", step_size=0.5)[-1], decay.nfe
    (tensor([0.2500]), 2)
    """

    def __init__(self, func: Callable[[Tensor, Any], Any]):
        self.func = func
        self.nfe = 0
        if isinstance(func, nn.Module):
            self.parameters, self.buffers = func.parameters, func.buffers

    def __call__(self, t: Tensor, y: Any) -> Any:
        """Evaluate ``func``."""
        self.nfe += 1
        return self.func(t, y)


def odeint(
    func: Callable[[Tensor, T], T],
    y0: T,
    t: Tensor,
    *,
    method: str = "dopri5",
    rtol: float = 1e-7,
    atol: float = 1e-9,
    step_size: float | None = None,
    gradient: str = "backprop",
    params: Iterable[Tensor] | None = None,
    seminorm: bool = False,
    per_sample: bool = False,
    max_steps: int = 10_000,
) -> T:
    """Solve ``dy/dt = func(t, y)``, ``y(t[0]) = y0`` and return ``y`` at all times ``t``.

    Args:
        func: right-hand side; takes a 0-dimensional time, on the state's device, and the state,
            returns a tensor, or nested tuples, of the state's shape, dtype (any under autocast)
            and device.
        y0: initial state, a tensor or nested tuples of tensors, float32 or float64 (bfloat16 in
            mixed precision), all of one dtype on one device.
        t: at least two strictly increasing or strictly decreasing times, of y0's dtype, on its
            device or, which spares a GPU the waiting, on the CPU.
        method: ``"euler"``, ``"midpoint"``, ``"rk4"`` (Kutta's 3/8 rule, as in torchdiffeq), or
            ``"dopri5"``, Dormand–Prince 5(4), whose steps follow ``rtol`` and ``atol`` and whose
            values between steps are its dense output, of order 4.
        rtol: relative tolerance of dopri5.
        atol: absolute tolerance of dopri5.
        step_size: longest step of a fixed-step method, which divides each interval of ``t`` into
            equal steps; None takes one step an interval. (torchdiffeq lays its grid from ``t[0]``
            and interpolates linearly; the two agree where ``step_size`` divides the intervals.)
        gradient: how ``backward`` works. All three give gradients to ``y0``, to ``t`` and to the
            parameters; the steps that dopri5 chose count as constant fractions of the interval.

            ``"backprop"`` keeps the graph of every step: exact, O(steps) memory. It is the only
            one that can be differentiated twice and that finds the parameters by itself.

            ``"checkpoint"`` is exact too: it keeps at most 8√steps states, not graphs, which are
            worth dozens of states each, and retakes the steps backwards with one graph at a time;
            of eight or more fixed steps it holds the last one's since the forward pass. Up to 64
            steps nothing is computed twice but the forward pass, beyond that up to one forward
            pass more. The backward pass calls ``func`` again, as ``"adjoint"`` does, which must
            give the same value: no dropout, no batch statistics; others are noticed where a state
            was kept.

            ``"adjoint"``, the continuous adjoint (Chen et al., 2018), O(1) memory in the steps, is
            **approximate**: it solves another equation backwards, with an error of its own. That
            error vanishes with the tolerance only if ``func`` is smooth, and can be of any size
            where the flow is contracting or chaotic, since the state is solved backwards with it;
            a warning tells when that state misses the known one by a tenth.
        params: all tensors that ``func`` uses and that want a gradient; by default the parameters
            of ``func`` if it is a module. ``"checkpoint"`` and ``"adjoint"`` refuse others.
        seminorm: leave the parameters' gradient out of the adjoint's error control. It is a mere
            integral that does not act back on the dynamics, so that its error does not grow, and
            controlling it can cost several times the evaluations (Kidger et al., 2021).
        per_sample: hold dopri5's tolerance for each sample, each index of the first dimension of
            the state's tensors. By default, as in torchdiffeq, it holds for the root mean square
            over all: that is cheaper where they are alike, but one that is fast among many that
            are slow may be wrong by a hundred tolerances. The steps, and with them a sample's last
            digits, depend on the whole batch in either case.
        max_steps: most steps, for dopri5 with the rejected ones, of one solve.

    Returns:
        The solution in the structure of ``y0``, each tensor with a new first dimension len(t).

    Raises:
        TypeError: y0 or t is not of floating point, the dtypes or devices differ, or ``func``
            returns another structure, shape, dtype or device than y0's.
        ValueError: an unknown name, a time or option out of its range, or parameters not given.
        RuntimeError: dopri5's step underflows, too many steps, the state is not finite (not looked
            at while a CUDA graph is recorded) or ``func`` overwrites it or a slope. In the backward
            pass of ``"checkpoint"`` and ``"adjoint"``: ``func`` uses tensors that want a gradient
            and are not in ``params``, has other parameters or buffers, or gives other values than
            in the forward pass, or a second derivative is asked for.

    >>> odeint(lambda t, y: 2 * t, torch.tensor(0.0), torch.tensor([0.0, 1.0, 2.0]), method="rk4")
    tensor([0., 1., 4.])
    """
    leaves = list(_flatten(y0))
    _check_state(leaves, t)
    _check_times(t)
    solver = _solver(method, rtol, atol, step_size, max_steps, per_sample)
    field = _field(func, y0, leaves, t)
    if gradient == "backprop":
        wanted = t.requires_grad or unpack_dual(t).tangent is not None
        ts = list(t.unbind()) if wanted else t.tolist()
        solution = [stack(x) for x in zip(*solve(solver, field, leaves, ts), strict=True)]
    elif gradient in GRADIENTS:
        given = params
        if params is None:
            if not hasattr(func, "parameters"):
                raise ValueError(
                    f"gradient={gradient!r} needs to know the parameters of func, which is no "
                    "module; pass params, or params=() if it has none"
                )
            params = list(func.parameters())
        rest = (t, *leaves, *dict.fromkeys(params))  # one given twice would count twice
        if gradient == "checkpoint":
            solution = Checkpointed.apply(solver, field, len(leaves), *rest)
        else:
            solution = Adjoint.apply(solver, field, len(leaves), seminorm, *rest)
        if given is None:  # to look once, as the backward pass begins
            # weakly: the solution keeps func, and func may keep the solution
            look = partial(_check_parameters, weakref.ref(func), _marks(func))
            for x in (x for x in solution if x.requires_grad):
                x.register_hook(look)
    else:
        raise ValueError(f"gradient={gradient!r} is unknown; choose one of {', '.join(GRADIENTS)}")
    return _unflatten(y0, iter(solution))


def _flatten(tree: Tree) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for part in tree:
            yield from _flatten(part)
    else:
        raise TypeError(f"the state holds a {type(tree).__name__}; give tensors and tuples of them")


def _unflatten(like: Tree, leaves: Iterator[Tensor]) -> Any:
    if isinstance(like, Tensor):
        return next(leaves)
    return tuple(_unflatten(part, leaves) for part in like)


def _field(func, y0: Tree, leaves: State, t: Tensor) -> Field:
    """Turn ``func`` into a function of lists that checks what ``func`` returns."""
    device, dtype, expected = leaves[0].device, leaves[0].dtype, _describe(y0)

    def field(time: Time, y: State) -> State:
        if isinstance(time, Tensor):
            now = time.to(device)
        else:  # made on the device, which then need not wait for the host
            now = torch.full((), time, dtype=t.dtype, device=device)
        slope = func(now, _unflatten(y0, iter(y)))
        found = _describe(slope, dtype if torch.is_autocast_enabled(device.type) else None)
        if found != expected:
            raise TypeError(
                f"func returned {found} at t = {float(time):.6g}, but the state is {expected}; "
                "they must agree"
            )
        return [_own(x.to(dtype)) for x in _flatten(slope)]

    return field


def _own(x: Tensor) -> Tensor:
    """Return a slope, copied if it could be overwritten without a trace in its version."""
    try:  # memory shared with NumPy cannot be resized
        shared = x.is_inference() or not x.untyped_storage().resizable()
    except NotImplementedError:  # a transform of torch.func
        return x
    return x.clone() if shared else x


def _marks(func) -> tuple[list[int], list[tuple[int, int]]]:
    """Return what tells parameters from others and buffers from what they were before."""
    buffers = func.buffers() if hasattr(func, "buffers") else ()
    return [*map(id, func.parameters())], [(id(b), b._version) for b in buffers]


def _check_parameters(func: weakref.ref, before: tuple[list, list], _gradient: Tensor) -> None:
    parameters, buffers = _marks(func())  # the graph keeps it
    if parameters != before[0]:
        raise RuntimeError(
            "func has other parameters in the backward pass than in the forward one; go back "
            "within torch.func.functional_call too, or choose gradient='backprop'"
        )
    if buffers != before[1]:
        raise RuntimeError(
            "a buffer of func has changed since the forward pass, which the backward pass calls "
            "it again for; go back first, or choose gradient='backprop'"
        )


def _describe(tree: object, dtype: torch.dtype | None = None) -> str:
    """Tell structure, shapes and devices of a tree, and its dtypes or the one it is cast to."""
    if isinstance(tree, tuple):
        return f"({', '.join(_describe(part, dtype) for part in tree)})"
    if isinstance(tree, Tensor):
        return f"{tuple(tree.shape)} {dtype or tree.dtype} on {tree.device}"
    return type(tree).__name__


def _check_state(leaves: State, t: Tensor) -> None:
    if not leaves or not t.dtype.is_floating_point:
        raise TypeError(f"y0 must hold a tensor and t be of floating point, not {t.dtype}")
    for x in leaves:
        if x.dtype != t.dtype or x.device != leaves[0].device or t.device not in (x.device, CPU):
            raise TypeError(
                f"y0 holds {x.dtype} on {x.device}, t is {t.dtype} on {t.device}; "
                "convert one to the other"
            )


def _check_times(t: Tensor) -> None:
    if t.ndim != 1 or len(t) < 2:
        raise ValueError(f"t has shape {tuple(t.shape)}; give at least two times in one dimension")
    steps = t.detach().diff()
    if not (bool((steps > 0).all()) or bool((steps < 0).all())):
        bad = int(torch.nonzero(~(steps * steps[0] > 0))[0]) + 1
        raise ValueError(
            f"t[{bad}] = {float(t[bad]):.6g} follows {float(t[bad - 1]):.6g}; "
            "the times must strictly increase or strictly decrease"
        )
    if not bool(t.detach().isfinite().all()):
        raise ValueError("t holds an infinite time; give finite ones")


def _solver(
    method: str, rtol: float, atol: float, step_size: float | None, max_steps: int, per_sample: bool
) -> Dopri5 | FixedSteps:
    if method == "dopri5":
        if step_size is not None:
            raise ValueError(
                f"step_size={step_size} means nothing to dopri5, which follows rtol and atol; "
                "leave it out or choose a fixed-step method"
            )
        if not (0 <= rtol < math.inf and 0 < atol < math.inf):
            raise ValueError(f"rtol={rtol}, atol={atol}: rtol must be 0 or more, atol positive")
        return Dopri5(rtol, atol, max_steps, per_sample)
    if method not in FIXED:
        raise ValueError(f"method={method!r} is unknown; choose one of {', '.join(FIXED)}, dopri5")
    if step_size is not None and not 0 < step_size < math.inf:
        raise ValueError(f"step_size={step_size} must be positive and finite")
    return FixedSteps(FIXED[method], step_size, max_steps)
