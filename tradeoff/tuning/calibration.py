r"""Whether a prior's confidence is earned, and the sharpest prior of which it is.

A prior is tried on earlier tasks: it is given the first i observations and predicts the rest. It is calibrated at a level of
confidence when at least that share of the rest lies inside the interval of that level.
"""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfinv
from jaxtyping import Array, ArrayLike, Bool, Float

from tradeoff._records import record
from tradeoff.tuning.gaussian_process import Prior, SquaredExponential, Standardised, Units, conditioned

LEVELS = 20
"""Levels of confidence between the least one and 1."""


class Calibration(NamedTuple):
    """How a prior does on earlier tasks.

    Args:
        frequency: the share of levels, context sizes and tasks at which it is calibrated, in [1/20, 1].
        std: its mean predictive standard deviation (observation noise included), in the unit of the values.
    """

    frequency: Array
    std: Array


def calibration_frequency(
    errors: Float[Array, " m"], least: ArrayLike = 0.8, counted: Bool[Array, " m"] | None = None
) -> Float[Array, ""]:
    r"""The share of 20 levels c from `least` to 1 for which at least cm of m errors lie inside the interval of level c.

    Args:
        errors: prediction errors over predicted standard deviations, shape (m,).
        least: the lowest level, in [0, 1).
        counted: which of the errors count, shape (m,); all, unless given.

    Returns:
        A number in [1/20, 1]: the interval of level 1 is the whole line. Perfect predictions score about 0.64 of 5 points and
        tend to 21/40 for many, since coverage falls on either side of its level as often; overstated doubt scores 1.

    Example:
        >>> float(calibration_frequency(jnp.zeros(5))), float(calibration_frequency(jnp.full(5, 10.0)))
        (1.0, 0.05)

    Source: [fpacoh2022]; methods.md 11.
    """
    counted = jnp.ones(errors.shape, bool) if counted is None else counted
    levels = jnp.linspace(least, 1.0, LEVELS)
    inside = jnp.abs(errors)[None, :] <= jnp.sqrt(2.0) * erfinv(levels)[:, None]
    share = jnp.where(counted, 1.0, 0.0) / jnp.sum(jnp.where(counted, 1.0, 0.0))
    coverage = jnp.sum(jnp.where(inside, share[None, :], 0.0), 1)
    return jnp.mean(jnp.where(coverage >= levels, 1.0, 0.0))


@jax.jit
def calibration_of(
    prior: Prior, x: Float[Array, "n m k"], y: Float[Array, "n m"], least: ArrayLike = 0.8
) -> Calibration:
    """Calibration and sharpness of a prior on earlier tasks, over contexts of 2 to m - 1 observations.

    Args:
        prior: in the units of the data.
        x: points of n tasks, m of each, shape (n, m, k), m at least 3.
        y: observations there, shape (n, m).
        least: the lowest level of confidence.

    Source: [fpacoh2022]; methods.md 11.
    """
    m = y.shape[1]
    if m < 3:
        raise ValueError(f"each earlier task has {m} observations; calibration needs at least 3, two to learn from.")
    order = jnp.arange(m)

    def of_task(x: Array, y: Array) -> Calibration:
        law = prior.law(x)

        def with_context(size: Array) -> Calibration:
            mean, std = conditioned(law, prior.noise, order, y, order < size)
            std, rest = jnp.sqrt(std**2 + prior.noise), order >= size
            frequency = calibration_frequency((y - mean) / std, least, rest)
            return Calibration(frequency, jnp.mean(std, where=rest))

        return jax.lax.map(with_context, jnp.arange(2, m))

    return jax.tree.map(jnp.mean, jax.lax.map(lambda task: of_task(*task), (x, y)))


@record
class FrontierSearch:
    """A search for the sharpest calibrated prior, query by query.

    Args:
        lengthscale: shape (Q,).
        variance: shape (Q,).
        frequency: calibration frequency there, shape (Q,).
        std: mean predictive standard deviation there, shape (Q,).
        threshold: the frequency that was demanded.
    """

    lengthscale: Float[np.ndarray, " Q"]
    variance: Float[np.ndarray, " Q"]
    frequency: Float[np.ndarray, " Q"]
    std: Float[np.ndarray, " Q"]
    threshold: float

    @property
    def feasible(self) -> Bool[np.ndarray, " Q"]:
        """Which queries were calibrated."""
        return self.frequency >= self.threshold

    @property
    def best(self) -> int:
        """The number of the sharpest calibrated query."""
        return int(np.argmin(np.where(self.feasible, self.std, np.inf)))

    @property
    def best_std(self) -> Float[np.ndarray, " Q"]:
        """The least standard deviation of a calibrated query up to each, shape (Q,)."""
        return np.minimum.accumulate(np.where(self.feasible, self.std, np.inf))


def frontier_search(
    evaluate: Callable[[float, float], tuple[Any, Any]],
    *,
    lengthscale: tuple[float, float] = (0.1, 5.0),
    variance: tuple[float, float] = (0.9, 2.0),
    threshold: float = 0.9,
    queries: int = 50,
) -> FrontierSearch:
    r"""Minimise the standard deviation subject to calibration frequency ≥ threshold, over lengthscale and variance.

    Assumes, as the source does, that both rise with the variance and fall with the lengthscale. Then a calibrated query decides
    every more cautious point and an uncalibrated one every bolder point; between the two staircases lies what is undecided. Each
    query is the centre of the largest undecided rectangle (by area, in logarithms): whatever the answer, no rectangle inside it
    that is still undecided has more than half of its area, and no other point does as well.

    Args:
        evaluate: from (lengthscale, variance) to (frequency, standard deviation).
        lengthscale: the two ends, positive.
        variance: the two ends, positive.
        threshold: in (0, 1].
        queries: how many in all; the first is the most cautious corner.

    Returns:
        A `FrontierSearch` with at least one calibrated query.

    Raises:
        ValueError: when the arguments make no sense, or not even the most cautious corner is calibrated.

    Unknown: the authors' code takes the most cautious corner for calibrated and measures rectangles by distances between corners of
    the staircases; here that corner is tried first, and area makes the best query a centre.

    Example:
        >>> found = frontier_search(lambda length, nu: (nu / length / 10, nu / length), queries=30)
        >>> round(float(found.variance[found.best] / found.lengthscale[found.best]), 1)
        9.1

    Source: [fpacoh2022]; methods.md 11.
    """
    _check_search(lengthscale, variance, threshold, queries)
    low = np.array([np.log(variance[0]), -np.log(lengthscale[1])])
    high = np.array([np.log(variance[1]), -np.log(lengthscale[0])])
    asked: list[tuple[float, float, float, float]] = []
    safe: list[np.ndarray] = []
    unsafe: list[np.ndarray] = []
    point: np.ndarray | None = high
    while point is not None and len(asked) < queries:
        length, nu = float(np.exp(-point[1])), float(np.exp(point[0]))
        frequency, std = (float(value) for value in evaluate(length, nu))
        asked.append((length, nu, frequency, std))
        (safe if frequency >= threshold else unsafe).append(point)
        if not safe:
            raise ValueError(
                f"the most cautious prior (lengthscale {length:g}, variance {nu:g}) has calibration frequency {frequency:.3g}, and "
                f"{threshold:g} is demanded; allow a larger variance or a smaller lengthscale, or demand less."
            )
        point = _next_query(safe, unsafe, low, high)
    lengths, variances, frequencies, stds = np.array(asked).T
    return FrontierSearch(lengths, variances, frequencies, stds, threshold)


def sharpest_calibrated(
    x: Float[Array, "n m k"], y: Float[Array, "n m"], *, noise: float = 1e-2, least: float = 0.8, **search: Any
) -> tuple[Standardised, FrontierSearch]:
    """The sharpest squared-exponential prior that is calibrated on earlier tasks, by `frontier_search`.

    Its lengthscale and variance are in standardised units, so they may also serve as those of `FPACOH`.

    Args:
        x: points of n tasks, m of each, shape (n, m, k).
        y: observations there, shape (n, m).
        noise: variance of an observation, in standardised units.
        least: the lowest level of confidence.
        **search: of `frontier_search`.
    """
    units = Units.of(x, y)

    def prior(lengthscale: float, variance: float) -> Standardised:
        return Standardised(SquaredExponential(jnp.asarray(lengthscale), jnp.asarray(variance), noise), units)

    def evaluate(lengthscale: float, variance: float) -> Calibration:
        return calibration_of(prior(lengthscale, variance), x, y, least)

    found = frontier_search(evaluate, **search)
    return prior(found.lengthscale[found.best], found.variance[found.best]), found


def _next_query(
    safe: list[np.ndarray], unsafe: list[np.ndarray], low: np.ndarray, high: np.ndarray
) -> np.ndarray | None:
    """The centre of the largest rectangle that no answer has decided; None when there is none."""
    below = _corners(unsafe, low)
    above = [-corner for corner in _corners([-point for point in safe], -high)]
    rectangles = [(a, b) for a, b in product(below, above) if np.all(a < b)]
    if not rectangles:
        return None
    a, b = max(rectangles, key=lambda rectangle: float(np.prod(rectangle[1] - rectangle[0])))
    return (a + b) / 2


def _corners(points: list[np.ndarray], low: np.ndarray) -> list[np.ndarray]:
    """The inner corners of the staircase over the points: the least points that lie strictly below none of them."""
    if not points:
        return [low]
    steps: list[np.ndarray] = []
    for point in sorted(points, key=lambda z: (-z[0], -z[1])):
        if not steps or point[1] > steps[-1][1]:
            steps.append(point)
    steps.reverse()
    firsts = [low[0], *(step[0] for step in steps)]
    seconds = [*(step[1] for step in steps), low[1]]
    return [np.array(corner) for corner in zip(firsts, seconds, strict=True)]


def _check_search(
    lengthscale: tuple[float, float], variance: tuple[float, float], threshold: float, queries: int
) -> None:
    for name, (low, high) in (("lengthscale", lengthscale), ("variance", variance)):
        if not 0 < low < high < float("inf"):
            raise ValueError(f"the {name} goes from {low} to {high}; give two positive finite ends in order.")
    if not 0 < threshold <= 1 or queries < 1:
        raise ValueError(
            f"threshold is {threshold} and queries is {queries}; give a threshold in (0, 1] and at least 1 query."
        )
