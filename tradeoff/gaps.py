r"""The two gaps that everything is measured in, for any policy: a table, a toy model or a language model.

A policy is a table of log-probabilities, shape (contexts, responses). Rows may sum to less than one: a language model
scored on a list of responses puts the rest of its mass elsewhere, and the gaps count that mass as lost. A gap is the
excess loss over the entropy of the data, in nats, so 0 is the best that any policy can do.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from tradeoff import divergences as dv
from tradeoff._records import Numbers, is_concrete, record
from tradeoff.worlds.world import DataLaw, World

LogPolicy = Numbers
"""Log-probabilities, shape (X, Y)."""


@record
class Gaps:
    """A pair of gaps in nats, of one policy or (with a leading axis) of many.

    Args:
        safety: safety gap, shape (...).
        capability: capability gap, shape (...).
    """

    safety: Float[Array, "*batch"]
    capability: Float[Array, "*batch"]


def safety_gap(world: World, log_policy: LogPolicy) -> Float[Array, ""]:
    r"""Safety gap $G_s(P)=\sum_x p_s(x)\,\mathrm{KL}(P_s(\cdot|x)\,\|\,P(\cdot|x))$.

    Args:
        world: the world; its true safety data count, whatever the proxy.
        log_policy: log-probabilities, shape (X, Y); rows may sum to less than one.

    Returns:
        Nats; `inf` when the policy rules out what the safety data contain.

    Raises:
        ValueError: when the shape differs from the world's, an entry is NaN, or a row has mass above one.

    Example:
        >>> from tradeoff import loss_constraint, worlds
        >>> world = worlds.golden()
        >>> round(float(safety_gap(world, loss_constraint.optimal_policy(world, 1.0))), 13)
        0.0865564926087

    Source: framework section 3.0; the set-up of [chen2025tradeoffs].
    """
    return _gap(world.safety, check_policy(world, log_policy))


def capability_gap(world: World, log_policy: LogPolicy) -> Float[Array, ""]:
    r"""Capability gap $G_f(P)=\sum_x p_f(x)\,\mathrm{KL}(P_f(\cdot|x)\,\|\,P(\cdot|x))$, as `safety_gap`.

    Example:
        >>> from tradeoff import loss_constraint, worlds
        >>> world = worlds.golden()
        >>> round(float(capability_gap(world, loss_constraint.optimal_policy(world, 1.0))), 13)
        0.113279276419
    """
    return _gap(world.capability, check_policy(world, log_policy))


def proxy_gap(world: World, log_policy: LogPolicy) -> Float[Array, ""]:
    r"""Proxy gap $\hat G_s(P)$: the safety gap as the proxy data show it, equal to it when the proxy is exact.

    Example:
        >>> from tradeoff import loss_constraint, worlds
        >>> world = worlds.over_penalised()
        >>> policy = loss_constraint.optimal_policy(world, 1.0)
        >>> round(float(safety_gap(world, policy)), 12), round(float(proxy_gap(world, policy)), 5)
        (0.0, 0.36806)
    """
    return _gap(world.training_safety, check_policy(world, log_policy))


def both(world: World, log_policy: LogPolicy) -> Gaps:
    """Safety and capability gap of one policy, as `safety_gap` and `capability_gap`."""
    return Gaps(safety_gap(world, log_policy), capability_gap(world, log_policy))


def weighted_sum(world: World, log_policy: LogPolicy, lam: ArrayLike) -> Float[Array, ""]:
    r"""The penalised objective in gap form, $G_f(P)+\lambda\hat G_s(P)$, for a finite penalty.

    Example:
        >>> from tradeoff import loss_constraint, worlds
        >>> world = worlds.golden()
        >>> round(float(weighted_sum(world, loss_constraint.optimal_policy(world, 1.0), 1.0)), 13)
        0.1998357690277
    """
    return capability_gap(world, log_policy) + lam * proxy_gap(world, log_policy)


def surplus(world: World, log_policy: LogPolicy, lam: ArrayLike) -> Float[Array, ""]:
    r"""What a policy pays above the best: $G_f+\lambda\hat G_s-\hat V(\lambda)=\sum_x\hat m_\lambda\mathrm{KL}(\hat M_\lambda\|P)$.

    The right side is computed, so a surplus is never negative and small ones are exact (T2(b)).

    Args:
        world: the world.
        log_policy: log-probabilities, shape (X, Y).
        lam: a finite penalty λ ≥ 0.

    Returns:
        Nats.

    Example:
        >>> from tradeoff import loss_constraint, worlds
        >>> world = worlds.golden()
        >>> round(float(surplus(world, loss_constraint.optimal_policy(world, 3.0), 1.0)), 4)
        0.0414
    """
    log_policy = check_policy(world, log_policy)
    p_f, seen = world.capability.p, world.training_safety
    lam = jnp.asarray(lam, jnp.float64)
    mass = p_f + lam * seen.p
    w = (p_f / jnp.where(mass > 0, mass, 1))[:, None]
    return weighted(mass, dv.kl_log(w * world.capability.P + (1 - w) * seen.P, log_policy))


def check_policy(world: World, log_policy: LogPolicy) -> Float[Array, "X Y"]:
    """`log_policy` as a float64 array, after the checks that it is a policy for this world."""
    shape = world.safety.P.shape
    given = np.shape(log_policy)
    if given != shape:
        raise ValueError(
            f"log_policy has shape {given} and the world has {shape[0]} contexts x {shape[1]} responses; "
            "give log-probabilities of shape (X, Y)."
        )
    if is_concrete(log_policy):
        values = np.asarray(log_policy, np.float64)
        with np.errstate(over="ignore"):
            mass = np.exp(values).sum(axis=-1)
        wrong = np.isnan(mass) | (mass - 1 > dv.NORMALISED_TO * np.finfo(np.float64).eps)
        if wrong.any():
            x = int(np.argmax(wrong))
            raise ValueError(
                f"log_policy[{x}] has mass {mass[x]:.17g}; log-probabilities must not be NaN and a row must have mass "
                "at most 1. Give log-probabilities, for instance jax.nn.log_softmax(logits)."
            )
    return jnp.asarray(log_policy, jnp.float64)


@jax.jit
def _gap(law: DataLaw, log_policy: Array) -> Array:
    return weighted(law.p, dv.kl_log(law.P, log_policy))


@jax.custom_jvp
def weighted(weights: Array, values: Array) -> Array:
    """`Σ weights · values` over contexts, the first axis, where a weight of zero silences even an infinite value.

    An infinite sum has the derivative 0, so that it spoils no other derivative.
    """
    weights = _beside(weights, values)
    # NaN is heard: a mistake in a law must not read as a gap of zero.
    return jnp.sum(jnp.where(weights <= 0, 0, weights * values), axis=0)


@weighted.defjvp
def _weighted_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    total, (weights, values) = weighted(*primals), primals
    heard = ~((_beside(weights, values) <= 0) | jnp.isposinf(values))
    moved = jnp.where(
        heard, _beside(tangents[0], values) * jnp.where(heard, values, 0) + _beside(weights, values) * tangents[1], 0
    )
    return total, jnp.where(jnp.isposinf(total), 0, jnp.sum(moved, axis=0))


def _beside(weights: Array, values: Array) -> Array:
    """With an axis of one after the first for each that the values have more."""
    return weights[(..., *[None] * (values.ndim - 1))]
