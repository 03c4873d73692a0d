"""What counts as equal: one table, by the way a number was made. Nothing else in the project holds a tolerance.

Two numbers agree when they differ by at most `absolute + relative * max(|a|, |b|)`. The theory is in closed form and in
float64, so 1e-10 to 1e-12 is the rule, and anything looser says why.
"""

from typing import NamedTuple


class Tolerance(NamedTuple):
    """A relative and an absolute allowance."""

    relative: float
    absolute: float


EXACT = Tolerance(1e-12, 1e-300)
"""Closed forms against high-precision arithmetic: relative only, also where the gaps are 1e-9."""

IDENTITY = Tolerance(1e-10, 1e-13)
"""Two formulas for one number, one of which may subtract numbers of order one."""

BOUND = Tolerance(1e-9, 1e-13)
"""How far the left side of a proved inequality may pass the right one before it counts as a violation: rounding."""

DERIVATIVE = Tolerance(1e-8, 1e-12)
"""Automatic derivatives against formulas: a derivative of order 1e-12 comes out of terms of order one."""

ROOT = Tolerance(1e-7, 1e-9)
"""Numbers on either side of a root search: the root is exact to rounding, its conditioning is not."""

LIMIT = Tolerance(1e-4, 0.0)
"""An asymptotic law, evaluated where its next term is below 1e-5 of the first."""

FLOW = Tolerance(0.0, 1e-6)
"""A gradient flow run to equilibrium against the closed form, in nats: the solver's tolerance, not rounding."""

RATE = Tolerance(2e-2, 0.0)
"""A decay rate read off a solved flow eight time constants on: the next order of the gap is e^-4 there, and later the
solver's own error shows."""

SCORE = Tolerance(0.0, 1e-5)
"""A sum of some ten log-probabilities that a model computed in float32, nats; also how far below the frontier its
rounding may put a point."""

SCORE_DEEP = Tolerance(0.0, 2e-4)
"""The same through thirty layers, for sums of tens of nats."""

BATCH = Tolerance(0.0, 1e-6)
"""One sequence scored in batches of different sizes, nats."""

MODEL_GRADIENT = Tolerance(1e-5, 0.0)
"""Two ways to a model's gradient, relative to its largest entry; transformers' norms pass through float32 on the way."""

PRINTED = Tolerance(1e-9, 1e-9)
"""Numbers copied from print with nine or more digits."""


def agree(a: float, b: float, tolerance: Tolerance) -> bool:
    """Whether two finite numbers agree within a tolerance; infinities agree with themselves only."""
    if a == b:
        return True
    return bool(abs(a - b) <= tolerance.absolute + tolerance.relative * max(abs(a), abs(b)))
