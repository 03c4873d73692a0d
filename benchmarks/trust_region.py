"""Case II at 200 radii on an indefinite second-order model, against SciPy's exact subproblem solver."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
from scipy.optimize._trustregion_exact import IterativeSubproblem

from benchmarks.protocol import Benchmark, Contender
from tradeoff import parameter_constraint
from tradeoff.problems.quadratic import LocalModel

RADII = np.geomspace(1e-2, 1e2, 200)
FEASIBLE, STATIONARY = 1e-12, 1e-10
"""The gate: how far outside the ball, relative to the radius, and how large a KKT residual."""
DEFAULTS: dict[str, float] = {}
TIGHT = {"k_easy": 1e-12, "k_hard": 1e-12, "maxiter": 50}


class Problem(NamedTuple):
    """A loss with curvatures from -1 to 3 and a pull of length one; safety is plain distance."""

    H: np.ndarray
    g: np.ndarray


@cache
def problem(d: int, hard: bool) -> Problem:
    """One problem by size; the pull of a hard one has no part along the lowest curvature."""
    rng = np.random.default_rng(d)
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    rates, pull = np.linspace(-1, 3, d), rng.normal(size=d)
    pull[0] *= not hard
    H, g = (Q * rates) @ Q.T, Q @ (pull / np.linalg.norm(pull))
    return Problem((H + H.T) / 2, g)


def _contenders(d: int, hard: bool) -> Callable[[], Sequence[Contender]]:
    def build() -> Sequence[Contender]:
        H, g = problem(d, hard)
        flat, origin = np.eye(d), np.zeros(d)

        def ours() -> tuple[np.ndarray, np.ndarray]:
            at = jax.block_until_ready(parameter_constraint.path(LocalModel(H, g, flat, origin), RADII))
            return np.asarray(at.displacement), np.asarray(at.multiplier)

        def scipy_with(options: dict[str, float]) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
            def run() -> tuple[np.ndarray, np.ndarray]:
                found = []
                for radius in RADII:
                    # A fresh solver for each radius: reusing one keeps bounds that growing radii invalidate.
                    solver = IterativeSubproblem(origin, lambda _: 0.0, lambda _: -g, lambda _: H, **options)
                    found.append((solver.solve(radius)[0], solver.lambda_current))
                steps, multipliers = zip(*found, strict=True)
                return np.array(steps), np.array(multipliers)

            return run

        return [
            Contender("tradeoff", ours, repeats=20),
            Contender("scipy exact", scipy_with(TIGHT), repeats=1),
            Contender("scipy exact, its defaults", scipy_with(DEFAULTS), repeats=1),
        ]

    return build


def _error(d: int, hard: bool) -> Callable[[tuple[np.ndarray, np.ndarray]], float]:
    """The largest violation of the conditions that make a point the global optimum, in units of the gate on stationarity."""

    def error(result: tuple[np.ndarray, np.ndarray]) -> float:
        H, g = problem(d, hard)
        steps, mu = result
        lengths = np.linalg.norm(steps, axis=1)
        outside = lengths / RADII - 1
        left = np.linalg.norm(steps @ H + mu[:, None] * steps - g, axis=1) / (1 + mu * lengths)
        slack = np.where(mu > 0, np.abs(outside), 0)
        curvature = -(mu + np.linalg.eigvalsh(H)[0])
        violations = [outside.max() * STATIONARY / FEASIBLE, left.max(), slack.max(), curvature.max(), -mu.min()]
        return float(max(violations))

    return error


BENCHMARKS = tuple(
    Benchmark(
        name=f"trust_region_{'hard' if hard else 'path'}_d{d}",
        title=f"Case II at 200 radii, {d} parameters, indefinite Hessian{', hard case' if hard else ''}",
        contenders=_contenders(d, hard),
        error=_error(d, hard),
        tolerance=STATIONARY,
        bars={"scipy exact": bar},
    )
    for d, bar in ((50, 250.0), (200, 600.0))
    for hard in (False, True)
)
