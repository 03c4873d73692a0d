"""Merge weights of related quadratics: many cheap tasks whose safe boundary is known exactly."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from tradeoff.gaps import Gaps
from tradeoff.tuning import FPACOH, Standardised

LIMIT = 0.5
GRID = jnp.linspace(0.0, 1.0, 41)[:, None]
SEEN = 10


def sweeps(seed: int, tasks: int, safer: float = 1.0) -> Gaps:
    """Gaps on the grid of merge weights: ½(1-λ)² dᵀH_f d and ½λ² dᵀH_s d, with curvatures that vary from task to task."""
    rng = np.random.default_rng(seed)
    task, safety = 2 * np.exp(0.4 * rng.normal(size=tasks)), 3 * np.exp(0.5 * rng.normal(size=tasks)) / safer
    weight = np.asarray(GRID)[None, :, 0]
    return Gaps(jnp.asarray(safety[:, None] * weight**2), jnp.asarray(task[:, None] * (1 - weight) ** 2))


@cache
def logged(safer: float = 1.0) -> tuple[jax.Array, Gaps]:
    """Ten runs of each of twenty earlier tasks."""
    rng = np.random.default_rng(2)
    picked = jnp.asarray(np.stack([rng.permutation(len(GRID))[:SEEN] for _ in range(20)]))
    sweep = sweeps(0, 20, safer)
    return GRID[picked], jax.tree.map(lambda gap: jnp.take_along_axis(gap, picked, 1), sweep)


@cache
def learned(prior_factor: float = 0.1, safer: float = 1.0) -> tuple[Standardised, Standardised]:
    """Priors of the capability and the safety gap that the earlier tasks teach."""
    settings = FPACOH(prior_factor=prior_factor, iterations=600, learning_rate=1e-2)
    x, gaps = logged(safer)
    ends = jnp.zeros(1), jnp.ones(1)
    one, two = (settings.fit(x, gap, *ends, jax.random.key(0)) for gap in (gaps.capability, gaps.safety))
    return one, two
