"""Dormand and Prince's adaptive method of order 5(4) with dense output."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mnlib.ode.runge_kutta import (
    Field,
    State,
    Step,
    Time,
    advance,
    combine,
    evaluate,
    interpolate,
    moment,
    plain,
)
from mnlib.ode.tableaux import DOPRI5, Tableau


@dataclass(frozen=True)
class Dopri5:
    """Steps whose estimated error is below ``atol + rtol |y|`` in the root mean square.

    With ``per_sample`` that mean is taken of each sample, each index of the first dimension, by
    itself, and the largest counts.

    The step control and the first step are after Hairer, Nørsett and Wanner (1993), section II.4:
    safety factor 0.85, growth at most tenfold and none after a rejection, shrinkage at most
    fivefold, local extrapolation. The last two steps share what is left of the interval.
    """

    rtol: float
    atol: float
    max_steps: int
    per_sample: bool
    tableau: Tableau = DOPRI5

    def steps(
        self, field: Field, y: State, ts: Sequence[Time], scales: Sequence[float] = ()
    ) -> Iterator[tuple[Step, State, dict[int, State]]]:
        """Yield each accepted step, the state after it and those at the requested times in it.

        ``scales`` multiplies ``atol`` for each tensor; infinity leaves one out of the error norm.
        """
        atol = [self.atol * scale for scale in scales or [1.0] * len(y)]
        times = plain(ts)
        span = times[-1] - times[0]
        slope = evaluate(field, ts[0], y, [])
        length = self._first_step(field, times, y, slope, atol)
        start, wanted, ratio, growth = (0, -1, 0.0), 1, 0.0, 10.0
        for _ in range(self.max_steps):
            t0 = float(moment(times, start))
            if abs(length * span) <= torch.finfo(y[0].dtype).eps * abs(t0):
                why = "" if math.isfinite(ratio) else "func returned a value that is not finite; "
                raise RuntimeError(
                    f"the step size fell to {abs(length * span):.3g} at t = {t0:.6g}, too small "
                    f"for {y[0].dtype}; {why}check func there, loosen rtol={self.rtol} and "
                    f"atol={self.atol}, or use float64"
                )
            rest = 1 - start[2]
            if rest <= 2 * length:
                length = rest if rest <= length else rest / 2
            end = (0, -1, start[2] + length)  # s + (1 - s) is 1 exactly, rounded to even
            ends = moment(ts, start), moment(ts, end)
            new, slopes = advance(field, self.tableau, *ends, y, slope)
            slopes.append(evaluate(field, ends[1], new, slopes))
            t1 = float(moment(times, end))
            ratio = self._error(t1 - t0, y, new, slopes, atol)
            if ratio <= 1:  # false for NaN
                forward, inside = math.copysign(1.0, span), []
                while wanted < len(ts) and forward * times[wanted] < forward * t1:
                    inside.append(wanted)
                    wanted += 1
                last = wanted if wanted < len(ts) and times[wanted] == t1 else None
                wanted += last is not None
                outputs = {j: interpolate(self.tableau, *ends, ts[j], y, slopes) for j in inside}
                if last is not None:
                    outputs[last] = new
                yield Step(start, end, tuple(inside), last), new, outputs
                if end[2] == 1:
                    return
                start, y, slope = end, new, slopes[-1]
            factor = 0.85 * ratio ** (-1 / self.tableau.order) if ratio > 0 else math.inf
            length *= min(growth, max(0.2, factor if math.isfinite(ratio) else 0.0))
            growth = 10.0 if ratio <= 1 else 1.0
        raise RuntimeError(
            f"max_steps={self.max_steps} steps reached only t = {moment(times, start):.6g} of "
            f"{times[-1]:.6g}; the problem may be stiff: loosen rtol and atol or raise max_steps"
        )

    @torch.no_grad()
    def _error(self, dt: float, y: State, new: State, slopes: list[State], atol: list) -> float:
        """Return the root mean square of error over tolerance, the largest over the tensors."""
        used = [n for n in range(len(y)) if atol[n] < math.inf]
        zero = [torch.zeros_like(y[n]) for n in used]
        errors = combine(zero, dt, self.tableau.error, [[k[n] for n in used] for k in slopes])
        ratios = [
            self._rms(error, atol[n] + self.rtol * torch.maximum(y[n].abs(), new[n].abs()))
            for n, error in zip(used, errors, strict=True)
        ]
        return float(torch.stack(ratios).max())

    @torch.no_grad()
    def _first_step(
        self, field: Field, times: list[float], y: State, slope: State, atol: list
    ) -> float:
        """Return a first step as a fraction of the whole interval."""
        span = times[-1] - times[0]
        used = [n for n in range(len(y)) if atol[n] < math.inf]

        def size(values: State) -> float:
            scaled = [self._rms(values[n], atol[n] + self.rtol * y[n].abs()) for n in used]
            return float(torch.stack(scaled).max())

        d0, d1 = size(y), size(slope)
        if not (math.isfinite(d0) and math.isfinite(d1)):
            raise RuntimeError(
                f"y0 or func is not finite at the initial time t = {times[0]:.6g}; check both"
            )
        guess = min(abs(span), 1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1)
        dt = math.copysign(guess, span)
        ahead = evaluate(field, times[0] + dt, combine(y, dt, (1.0,), [slope]), [slope])
        d2 = size([a - b for a, b in zip(ahead, slope, strict=True)]) / guess
        steepest = max(d1, d2)
        if not 1e-15 < steepest < math.inf:
            better = max(1e-6, 1e-3 * guess)
        else:
            better = (0.01 / steepest) ** (1 / self.tableau.order)
        smallest = 10 * torch.finfo(y[0].dtype).eps * abs(times[0])  # that moves the time
        return min(max(min(100 * guess, better), smallest), abs(span)) / abs(span)

    def _rms(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the root mean square of a ratio, 0 for an empty one, as a float64."""
        if not x.numel():
            return torch.zeros((), dtype=torch.float64, device=x.device)
        squares = (x / scale).square()
        if self.per_sample and x.ndim:
            squares = squares.reshape(len(x), -1).mean(1).max()
        size = squares.mean().sqrt()
        if x.dtype != torch.float64 and not bool(size.isfinite()):  # the square may overflow
            return self._rms(x.double(), scale)
        return size.double()
