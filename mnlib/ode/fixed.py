"""Fixed-step solvers: Euler, the midpoint rule and RK4 differ in their tableau only."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import torch

from mnlib.ode.runge_kutta import Field, State, Step, Time, moment, plain, retake
from mnlib.ode.tableaux import Tableau


@dataclass(frozen=True)
class FixedSteps:
    """Steps of equal length, at most ``step_size``, between each two requested times.

    ``step_size=None`` takes one step from each requested time to the next.
    """

    tableau: Tableau
    step_size: float | None
    max_steps: int

    def steps(
        self, field: Field, y: State, ts: Sequence[Time], scales: Sequence[float] = ()
    ) -> Iterator[tuple[Step, State, dict[int, State]]]:
        """Yield each step, the state after it and those at the requested times in it."""
        times = plain(ts)
        # A sum is not finite as soon as one entry is not; it is looked at only once, at the end,
        # for a look makes the host wait for the device; a CUDA graph being recorded has no values.
        looking = not (y[0].is_cuda and torch.cuda.is_current_stream_capturing())
        sums, ends = [_total(y)] if looking else [], [times[0]]
        for step in self.plan(times):
            y, outputs = retake(field, self.tableau, ts, step, y)
            if looking:
                sums.append(_total(y))
            ends.append(float(moment(times, step.end)))
            yield step, y, outputs
        finite = torch.stack(sums).isfinite().tolist() if looking else []
        if not all(finite):
            raise RuntimeError(
                f"the state is not finite at t = {ends[finite.index(False)]:.6g}; "
                "check func there, or give a smaller step_size"
            )

    def plan(self, times: Sequence[float]) -> list[Step]:
        """Return the steps that :meth:`steps` takes."""
        counts = [self._count(*ends) for ends in pairwise(times)]
        if sum(counts) > self.max_steps:
            reached = next(i for i in range(len(counts)) if sum(counts[: i + 1]) > self.max_steps)
            raise RuntimeError(
                f"step_size={self.step_size} needs {sum(counts)} steps and would pass "
                f"max_steps={self.max_steps} after t = {times[reached]:.6g}; "
                "give a larger step_size or max_steps"
            )
        return [
            Step((i, i + 1, n / count), (i, i + 1, (n + 1) / count), last=last)
            for i, count in enumerate(counts)
            for n, last in enumerate([None] * (count - 1) + [i + 1])
        ]

    def _count(self, start: float, end: float) -> int:
        if self.step_size is None:
            return 1
        # The allowance keeps 1 / 0.1 in single precision at ten steps.
        return max(1, math.ceil(abs(end - start) / self.step_size * (1 - 1e-6)))


def _total(y: State) -> torch.Tensor:
    # in half precision the sum itself would overflow
    totals = (x.detach().sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in y)
    return reduce(torch.add, totals)
