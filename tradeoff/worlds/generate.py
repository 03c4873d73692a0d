"""Worlds with knobs, and the named worlds of the theory."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from tradeoff._records import is_concrete
from tradeoff.worlds.world import DataLaw, World


def random(
    key: PRNGKeyArray | Array,
    contexts: int = 32,
    responses: int = 8,
    overlap: ArrayLike = 0.5,
    similarity: ArrayLike = 1.0,
    conflict: ArrayLike = 1.0,
) -> World:
    r"""A random world with three knobs, each monotone in the quantity that it names.

    Safety data live on the first half of the contexts, the task's own contexts are the second half. The knobs mix:

    * `overlap` ρ: $p_f=(1-\rho)u+\rho p_s$ with `u` off the safety contexts, so that $\Omega=\rho$ (T5);
    * `conflict` c: $P_f=(1-c)P_s+cR$ on the safety contexts, `R` independent, so that δ and Δ scale with c;
    * `similarity` σ: $\hat P_s=\sigma P_s+(1-\sigma)N$, `N` independent, so that Φ falls to 0 at σ = 1.

    The same key draws the same `u`, `R` and `N` whatever the knobs, so a sweep moves along one line of worlds.

    Args:
        key: a JAX random key.
        contexts: number of contexts X, at least 2.
        responses: number of responses Y, at least 2.
        overlap: ρ in [0, 1].
        similarity: σ in [0, 1].
        conflict: c in [0, 1].

    Returns:
        A world with full-support conditional laws and a proxy that shares the safety data's contexts.

    Raises:
        ValueError: when a knob leaves [0, 1] or a size is below 2.

    Example:
        >>> import jax
        >>> world = random(jax.random.key(0), overlap=0.25)
        >>> round(float(world.overlap), 12)
        0.25
    """
    if contexts < 2 or responses < 2:
        raise ValueError(
            f"random was given contexts={contexts}, responses={responses}; both must be at least 2: one context for "
            "safety and one for the task, two responses to tell apart."
        )
    for name, value in (("overlap", overlap), ("similarity", similarity), ("conflict", conflict)):
        if is_concrete(value) and not 0 <= float(np.asarray(value)) <= 1:
            raise ValueError(f"random was given {name}={value}; {name} is a mixing weight and must lie in [0, 1].")
    k_s, k_u, k_Ps, k_R, k_N = jax.random.split(key, 5)
    kept = contexts - contexts // 2
    p_s = jnp.zeros(contexts).at[:kept].set(_laws(k_s, (kept,)))
    own = jnp.zeros(contexts).at[kept:].set(_laws(k_u, (contexts - kept,)))
    shape = (contexts, responses)
    P_s, R, N = _laws(k_Ps, shape), _laws(k_R, shape), _laws(k_N, shape)
    p_f = (1 - overlap) * own + overlap * p_s
    P_f = jnp.where((p_s > 0)[:, None], (1 - conflict) * P_s + conflict * R, R)
    return World(
        safety=DataLaw(p_s, P_s),
        capability=DataLaw(p_f, P_f),
        proxy=DataLaw(p_s, similarity * P_s + (1 - similarity) * N),
    )


def _laws(key: Array, shape: tuple[int, ...]) -> Array:
    """Laws drawn uniformly from the simplex, along the last axis (normalised exponentials)."""
    draws = jax.random.exponential(key, shape, jnp.float64)
    return draws / jnp.sum(draws, axis=-1, keepdims=True)


# --- the named worlds of the theory -----------------------------------------------------------------------------


def golden() -> World:
    r"""The 4 x 3 instance behind the golden table: two shared contexts of four, $\Delta_s=.48$, $\Delta_f=.30$.

    Example:
        >>> golden()
        World(4 contexts x 3 responses, exact proxy)
    """
    third = [1 / 3, 1 / 3, 1 / 3]
    return World(
        safety=DataLaw([0.5, 0.3, 0.2, 0.0], [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4], third]),
        capability=DataLaw([0.1, 0.4, 0.0, 0.5], [[0.1, 0.6, 0.3], [0.5, 0.3, 0.2], third, [0.2, 0.5, 0.3]]),
    )


def over_penalised() -> World:
    r"""T6(g): the safety gap is 0 at λ* = 1 and rises to Φ = .51083 beyond; one context, Γ = 32/9.

    Example:
        >>> round(float(over_penalised().proxy_mismatch), 5)
        0.51083
    """
    return _with_proxy([1.0], [1.0], [[0.5, 0.5]], [[0.1, 0.9]], [[0.9, 0.1]])


def late_minimum() -> World:
    r"""T6(g): Γ < 0, so the gap falls towards its limit Φ = .053793845, and yet its least value is far away, at λ = .19388.

    Example:
        >>> round(float(late_minimum().proxy_mismatch), 9)
        0.053793845
    """
    return _with_proxy(
        [0.5, 0.5], [0.9, 0.1], [[0.5, 0.5], [0.5, 0.5]], [[0.7, 0.3], [0.35, 0.65]], [[0.6, 0.4], [0.7, 0.3]]
    )


def two_minima() -> World:
    r"""T6(g): the safety gap has two equal minima, at λ = .025812 and 1.534188, with a ridge between.

    Example:
        >>> round(float(two_minima().overlap), 2)
        0.51
    """
    return _with_proxy([0.5, 0.5], [0.01, 0.99], [[0.5, 0.5]] * 2, [[0.1, 0.9]] * 2, [[0.9, 0.1]] * 2)


def one_conflict(overlap: float) -> World:
    r"""T5(e): one conflicting context among two; `overlap` is the weight ρ that the task puts on it.

    Example:
        >>> round(float(one_conflict(0.2).overlap), 12)
        0.2
    """
    return World(
        safety=DataLaw([1.0, 0.0], [[0.8, 0.2], [0.5, 0.5]]),
        capability=DataLaw([overlap, 1 - overlap], [[0.2, 0.8], [0.5, 0.5]]),
    )


def _with_proxy(
    p_s: Sequence[Any], p_f: Sequence[Any], P_s: Sequence[Any], P_f: Sequence[Any], proxy: Sequence[Any]
) -> World:
    return World(safety=DataLaw(p_s, P_s), capability=DataLaw(p_f, P_f), proxy=DataLaw(p_s, proxy))
