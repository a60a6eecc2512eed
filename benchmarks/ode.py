"""The ODE block's forward and backward pass with mnlib.ode beside torchdiffeq.

    python benchmarks/ode.py            # the setting below, some minutes
    python benchmarks/ode.py --quick    # a small one, seconds, for a smoke test

Setting: 64 channels, 16×16, batch 64, two 3×3 convolutions with group norm and ReLU; RK4 (3/8 rule)
with 8 steps on [0, 1], or dopri5 at tolerance 1e-3; mean squared output as loss. RK4 is timed with
images and weights as PyTorch makes them and then with both channels last, as ``mnlib run`` trains.
Times come from turns within one process; "the field alone" is its evaluations without a solver, the
least that backpropagation can take. Memory is the growth of the peak resident set in a process of
its own. The gradient error is relative to backpropagation through the same steps, RK4 in float64.
At the end dopri5's evaluations at equal error on the problems of the test set DETEST, t = 0 to
20, relative to torchdiffeq's: lines fitted to the logarithms, in the middle of the errors that all
reach. Our step control was chosen on these problems, and looked at on t = 0 to 3 and to 7 as well.
"""

import argparse
import math
import os
import platform
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchdiffeq
from _timing import compare, report
from scipy.integrate import solve_ivp
from torch import nn

from mnlib.ode import Counted, odeint
from mnlib.residual import group_norm

RK4 = {"method": "rk4"}
DOPRI5 = {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3}
THEIRS = {"options": {"step_size": 1 / 8}}
OURS = {"step_size": 1 / 8}
NORM = {"adjoint_options": {"norm": "seminorm"}}
ADJOINT = {"gradient": "adjoint"}

VARIANTS = {
    "rk4, torchdiffeq odeint": (torchdiffeq.odeint, RK4 | THEIRS),
    "rk4, backprop": (odeint, RK4 | OURS),
    "rk4, torchdiffeq odeint_adjoint": (torchdiffeq.odeint_adjoint, RK4 | THEIRS),
    "rk4, adjoint": (odeint, RK4 | OURS | ADJOINT),
    "rk4, checkpoint (exact)": (odeint, RK4 | OURS | {"gradient": "checkpoint"}),
    "dopri5, torchdiffeq odeint": (torchdiffeq.odeint, DOPRI5),
    "dopri5, backprop": (odeint, DOPRI5),
    "dopri5, checkpoint (exact)": (odeint, DOPRI5 | {"gradient": "checkpoint"}),
    "dopri5, torchdiffeq adjoint": (torchdiffeq.odeint_adjoint, DOPRI5),
    "dopri5, adjoint": (odeint, DOPRI5 | ADJOINT),
    "dopri5, torchdiffeq adjoint, seminorm": (torchdiffeq.odeint_adjoint, DOPRI5 | NORM),
    "dopri5, adjoint, seminorm": (odeint, DOPRI5 | ADJOINT | {"seminorm": True}),
}


def orbit(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the derivative of place and velocity of a body about a mass at the origin."""
    return torch.cat([y[2:], -y[:2] / y[:2].norm() ** 3])


def linear(matrix: torch.Tensor):
    """Return the right-hand side of y' = My, and the first unit vector to start at."""
    return lambda t, y: matrix @ y, [1.0] + [0.0] * (len(matrix) - 1)


def diffusion(n: int) -> torch.Tensor:
    """Return the n×n matrix of second differences."""
    ones = torch.ones(n - 1, dtype=torch.float64)
    return torch.diag(ones, 1) + torch.diag(ones, -1) - 2 * torch.eye(n, dtype=torch.float64)


def chain(rates: torch.Tensor) -> torch.Tensor:
    """Return the matrix of a decay through one stage more than there are rates."""
    rates = rates.double()
    return torch.diag(rates, -1) - torch.diag(torch.cat([rates, torch.zeros(1).double()]))


# Hull, Enright, Fellen and Sedgwick (1972), without the five bodies of C5.
DETEST = {
    "A1, decay": (lambda t, y: -y, [1.0]),
    "A2, a cube": (lambda t, y: -(y**3) / 2, [1.0]),
    "A3, oscillating rate": (lambda t, y: y * t.cos(), [1.0]),
    "A4, logistic growth": (lambda t, y: y / 4 * (1 - y / 20), [1.0]),
    "A5, a spiral": (lambda t, y: (y - t) / (y + t), [4.0]),
    "B1, predator and prey": (
        lambda t, y: torch.stack([2 * y[0] * (1 - y[1]), y[1] * (y[0] - 1)]),
        [1.0, 3.0],
    ),
    "B2, linear reaction": (
        lambda t, y: torch.stack([y[1] - y[0], y[0] - 2 * y[1] + y[2], y[1] - y[2]]),
        [2.0, 0.0, 1.0],
    ),
    "B3, nonlinear reaction": (
        lambda t, y: torch.stack([-y[0], y[0] - y[1] ** 2, y[1] ** 2]),
        [1.0, 0.0, 0.0],
    ),
    "B4, a torus": (
        lambda t, y: torch.cat(
            [
                torch.stack([-y[1], y[0]]) - y[:2] * y[2] / y[:2].norm(),
                y[:1] / y[:2].norm(),
            ]
        ),
        [3.0, 0.0, 0.0],
    ),
    "B5, rigid body": (
        lambda t, y: torch.stack([y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]]),
        [0.0, 1.0, 1.0],
    ),
    "C1, decay in a chain": linear(chain(torch.ones(9))),
    "C2, faster and faster": linear(chain(torch.arange(1, 10))),
    "C3, diffusion, 10 places": linear(diffusion(10)),
    "C4, diffusion, 51 places": linear(diffusion(51)),
    **{
        f"D{i}, orbit of eccentricity {e}": (
            orbit,
            [1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e))],
        )
        for i, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9), 1)
    },
    "E1, Bessel's equation": (
        lambda t, y: torch.stack([y[1], (0.25 / (t + 1) ** 2 - 1) * y[0] - y[1] / (t + 1)]),
        [0.6713967071418030, 0.09540051444747446],
    ),
    "E2, van der Pol": (
        lambda t, y: torch.stack([y[1], (1 - y[0] ** 2) * y[1] - y[0]]),
        [2.0, 0.0],
    ),
    "E3, Duffing's oscillator": (
        lambda t, y: torch.stack([y[1], y[0] ** 3 / 6 - y[0] + 2 * (2.78535 * t).sin()]),
        [0.0, 0.0],
    ),
    "E4, falling in air": (
        lambda t, y: torch.stack([y[1], 0.032 - 0.4 * y[1] ** 2]),
        [30.0, 0.0],
    ),
    "E5, pursuit": (
        lambda t, y: torch.stack([y[1], (1 + y[1] ** 2).sqrt() / (25 - t)]),
        [0.0, 0.0],
    ),
}


def scipy(func, y0: torch.Tensor, tolerance: float, method: str = "RK45") -> torch.Tensor:
    def right(t: float, y: np.ndarray) -> np.ndarray:
        return func(torch.tensor(t, dtype=y0.dtype), torch.from_numpy(y.copy())).numpy()

    options = {"method": method, "rtol": tolerance, "atol": tolerance}
    return torch.from_numpy(solve_ivp(right, (0, 20), y0.numpy(), **options).y[:, -1])


def adaptive(solve, func, y0: torch.Tensor, tolerance: float) -> torch.Tensor:
    ends = torch.tensor([0.0, 20.0], dtype=y0.dtype)
    return solve(func, y0, ends, method="dopri5", rtol=tolerance, atol=tolerance)[-1]


def logarithms(solve, func, y0: torch.Tensor, exact: torch.Tensor) -> np.ndarray:
    """Return the line that fits log(evaluations) to log(error), and the range of the latter."""
    rows = []
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
        counted = Counted(func)
        error = float((solve(counted, y0, tolerance) - exact).norm())
        rows.append([math.log(error), math.log(counted.nfe)])
    errors, counts = np.array(rows).T
    return np.array([*np.polyfit(errors, counts, 1), errors.min(), errors.max()])


def efficiency() -> None:
    """Print the evaluations at equal error, relative to torchdiffeq's."""
    theirs, ours = partial(adaptive, torchdiffeq.odeint), partial(adaptive, odeint)
    print(f"\n{'dopri5, evaluations at equal error':40}{'mnlib':>12}{'SciPy RK45':>12}")
    logs = []
    for name, (func, start) in DETEST.items():
        y0 = torch.tensor(start, dtype=torch.float64)
        exact = scipy(func, y0, 1e-13, "DOP853")
        lines = np.array([logarithms(s, func, y0, exact) for s in (theirs, ours, scipy)])
        middle = (lines[:, 2].max() + lines[:, 3].min()) / 2
        reference, *found = lines[:, 0] * middle + lines[:, 1]
        logs.append([x - reference for x in found])
        print(f"{name:40}" + "".join(f"{math.exp(x):12.2f}" for x in logs[-1]))
    means = np.exp(np.mean(logs, axis=0))
    print(f"{'geometric mean':40}" + "".join(f"{x:12.3f}" for x in means))


class Field(nn.Module):
    """The branch as an autonomous right-hand side."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            group_norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            group_norm(channels),
        )

    def forward(self, t: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Return dh/dt."""
        return self.branch(h)


class Problem:
    """The block, its input, and one training pass by a variant."""

    def __init__(
        self,
        quick: bool,
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.contiguous_format,
    ):
        torch.manual_seed(0)
        channels, size, batch = (8, 8, 4) if quick else (64, 16, 64)
        self.field = Field(channels).to(dtype, memory_format=layout)
        self.x = torch.randn(batch, channels, size, size, dtype=dtype).to(memory_format=layout)
        self.t = torch.tensor([0.0, 1.0], dtype=dtype)

    def run(self, name: str, summed: bool = False) -> int:
        """Compute the gradients; return the number of evaluations of the field."""
        solve, options = VARIANTS[name]
        self.field.zero_grad()
        x = self.x.clone().requires_grad_()
        ours = solve is odeint
        counted = Counted(self.field)
        if not ours and "adjoint" in name:
            options = options | {"adjoint_params": tuple(self.field.parameters())}
        loss = solve(counted, x, self.t, **options)[-1].square()
        (loss.sum() if summed else loss.mean()).backward()
        self.gradient = torch.cat([x.grad.ravel(), *(p.grad.ravel() for p in self.parameters())])
        return counted.nfe

    def alone(self) -> None:
        """Evaluate the field as often as RK4 does, each time on the result before, and go back."""
        self.field.zero_grad()
        h = self.x.clone().requires_grad_()
        for _ in range(32):
            h = self.field(self.t[0], h)
        h.square().mean().backward()

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the field."""
        return list(self.field.parameters())


def peak() -> float:
    """Return the peak resident set of this process in MB, on Linux.

    ``getrusage`` would start from the peak of the process that started this one.
    """
    (line,) = [s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s]
    return int(line.split()[1]) / 1024


def megabytes(name: str, quick: bool) -> float:
    command = [sys.executable, __file__, "--memory", name, *(["--quick"] if quick else [])]
    # what is freed goes back to the system at once, else the peak is glibc's as much as ours
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout)


def gradient_error(problem: Problem, name: str, reference: str) -> float:
    problem.run(reference)
    expected = problem.gradient
    problem.run(name)
    return float((problem.gradient - expected).norm() / expected.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small problem, one repeat")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each variant")
    parser.add_argument("--memory", metavar="VARIANT", help="print this variant's peak in MB")
    arguments = parser.parse_args()
    problem = Problem(arguments.quick)
    if arguments.memory:
        before = peak()
        problem.run(arguments.memory)
        print(peak() - before)
        return

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    channels_last = Problem(arguments.quick, layout=torch.channels_last)
    for method, given, layout in (
        ("rk4", problem, ""),
        ("rk4", channels_last, ", channels last"),
        ("dopri5", problem, ""),
    ):
        names = [name for name in VARIANTS if name.startswith(method)]
        variants = {name: partial(given.run, name) for name in names}
        if method == "rk4":
            variants["rk4, the field alone"] = given.alone
        times = compare(variants, 1 if arguments.quick else arguments.repeats)
        report(times, title=f"{method}, forward and backward{layout}")
        if method == "rk4":
            report(times, reference="rk4, torchdiffeq odeint_adjoint")

    double = Problem(arguments.quick, torch.float64)
    print(f"{'':40}{'evaluations':>12}{'peak MB':>10}{'gradient error':>16}")
    for name in VARIANTS:
        error = ""
        if name.startswith("rk4"):
            error = f"{gradient_error(double, name, 'rk4, torchdiffeq odeint'):.1e}"
        nfe = problem.run(name)
        print(f"{name:40}{nfe:12}{megabytes(name, arguments.quick):10.0f}{error:>16}")
    nfe = problem.run("dopri5, adjoint, seminorm", summed=True)
    print(f"{'dopri5, adjoint, seminorm, summed loss':40}{nfe:12}")
    nfe = problem.run("dopri5, adjoint", summed=True)
    print(f"{'dopri5, adjoint, summed loss':40}{nfe:12}")
    efficiency()


if __name__ == "__main__":
    main()
