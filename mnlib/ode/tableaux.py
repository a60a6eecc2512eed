"""Explicit Runge–Kutta methods as Butcher tableaux: the solvers' only data."""

from typing import NamedTuple

Row = tuple[float, ...]


class Tableau(NamedTuple):
    """An explicit Runge–Kutta method.

    Its stages are ``k_i = f(t + c_i h, y + h Σ a_ij k_j)``, its step is ``y + h Σ b_i k_i``. The
    embedded pair adds ``error``, the weights of the local error estimate, and ``dense``, those of
    the quartic term of the dense output; both count one stage more, the derivative at the end of
    the step.
    """

    order: int
    c: Row
    a: tuple[Row, ...]
    b: Row
    error: Row = ()
    dense: Row = ()


EULER = Tableau(order=1, c=(0.0,), a=((),), b=(1.0,))

MIDPOINT = Tableau(order=2, c=(0.0, 1 / 2), a=((), (1 / 2,)), b=(0.0, 1.0))

# Kutta's 3/8 rule, which is also what torchdiffeq calls "rk4" (not the classic 1/6 rule).
RK4 = Tableau(
    order=4,
    c=(0.0, 1 / 3, 2 / 3, 1.0),
    a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
)

# Dormand and Prince (1980); `dense` from Hairer, Nørsett and Wanner (1993), section II.6.
DOPRI5 = Tableau(
    order=5,
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    dense=(
        -12715105075 / 11282082432,
        0.0,
        87487479700 / 32700410799,
        -10690763975 / 1880347072,
        701980252875 / 199316789632,
        -1453857185 / 822651844,
        69997945 / 29380423,
    ),
)
