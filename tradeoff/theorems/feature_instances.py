"""Random softmax-linear policies for T17: contexts share features, and training on some moves the others."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.problems.quadratic import length
from tradeoff.problems.softmax_linear import SoftmaxLinear
from tradeoff.theorems import instances as draw
from tradeoff.theorems.claim import Assumption, Family
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.instances import CONTEXTS, RESPONSES
from tradeoff.tolerances import IDENTITY
from tradeoff.worlds.world import DataLaw, World

FEATURES = 2
"""Features of a softmax-linear policy: fewer than contexts, so that they must share."""
MORE_THAN_ROUNDING = 2.0**-21
"""Less than this share of a random change is none."""
PARALLEL_WITHIN = 2.0**-44
"""A vector of which less than this share is left outside the span of others lies in it."""


class Featured(NamedTuple):
    """A softmax-linear policy, its aligned parameters, and parameters that training on the task can reach.

    Args:
        problem: the policy class and its world.
        theta_s: aligned parameters.
        step: displacement from them.
    """

    problem: SoftmaxLinear
    theta_s: Array
    step: Array


FEATURES_APART = Assumption(
    "features apart",
    "the features of the safety data's contexts are orthogonal to those of the task's",
    lambda i: i.problem.feature_overlap() <= IDENTITY.relative * jnp.sum(i.problem.features**2),
)
ONE_HOT = Assumption(
    "one-hot features",
    "every context has a feature of its own, of length one",
    lambda i: (
        jnp.all(i.problem.features == jnp.eye(*i.problem.features.shape))
        & jnp.array(i.problem.features.shape[0] == i.problem.features.shape[1])
    ),
)
STATIONARY = Assumption(
    "stationary start",
    "the aligned parameters minimise the safety loss over the class",
    lambda i: length(_safety_pull(i)) <= IDENTITY.relative * length(i.problem.features),
)
IN_SPAN = Assumption(
    "task features only",
    "the displacement is a combination of gradients of the capability loss",
    lambda i: length(i.step - i.problem.task_span() @ i.step) <= IDENTITY.relative * (1 + length(i.step)),
)


def _safety_pull(instance: Featured) -> Array:
    """The gradient of the safety loss at the aligned parameters."""
    problem = instance.problem
    residual = jnp.exp(problem.log_policy(instance.theta_s)) - problem.world.safety.P
    return problem.features.T @ (problem.world.safety.p[:, None] * residual)


def featured(*, apart: bool = False, one_hot: bool = False) -> Family:
    """Softmax-linear policies at an attained minimiser of the safety loss, and a displacement in the task's features.

    The safety data are the aligned policy plus a part that no parameters can represent: what the moment condition of the
    minimiser leaves free.

    Args:
        apart: whether the features of safety contexts are orthogonal to those of task contexts.
        one_hot: whether every context has a feature of its own.
    """
    count = CONTEXTS if one_hot or apart else FEATURES

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        context = jnp.arange(CONTEXTS)
        in_f = (context == 0) | draws.flip(0.5, (CONTEXTS,))
        in_s = (context == CONTEXTS - 1) | draws.flip(0.8, (CONTEXTS,))
        if apart:
            in_f = (context < 2) & in_f
            in_s = (context >= 2) & in_s
        return {
            "features": draws.normal((CONTEXTS, count)) * 10 ** draws.uniform(-1, 1),
            "along": draws.flip(0.5),
            "theta": draws.normal((count, RESPONSES)),
            "p_s": draws.normal((CONTEXTS,)),
            "p_f": draws.normal((CONTEXTS,)),
            "in_s": in_s,
            "in_f": in_f,
            "P_f": draws.normal((CONTEXTS, RESPONSES)) * 10 ** draws.uniform(-1, 0.9),
            "beyond": draws.normal((CONTEXTS, RESPONSES)),
            "how_much": 2 * draws.normal(),
            "steps": draws.normal((CONTEXTS, RESPONSES)) * 10 ** draws.uniform(-4, 1.5),
        }

    def build(p: dict[str, Any]) -> Featured:
        features = p["features"]
        if one_hot:
            features = jnp.eye(CONTEXTS)
        if apart:
            half = jnp.arange(CONTEXTS) < 2
            features = jnp.where(half[:, None] == half[None, :], features, 0)
        # Task contexts often lie along one direction, so that part of the features is out of their reach.
        task = draw.law(p["p_f"], p["in_f"])
        if not (one_hot or apart):
            line = features * jnp.where(jnp.arange(count) == 0, 1.0, 0.0)[None, :]
            features = jnp.where((p["along"] & p["in_f"])[:, None], line, features)
        safety = draw.law(p["p_s"], p["in_s"])
        z = features @ p["theta"]
        theta = p["theta"] * (draw.LOGIT_BOUND / 2 / jnp.maximum(jnp.max(jnp.abs(z)), draw.LOGIT_BOUND / 2))
        aligned = jax.nn.softmax(features @ theta, axis=-1)
        P_s = aligned + jax.nn.sigmoid(p["how_much"]) * _unseen(p["beyond"], features, safety, aligned)
        P_s = jnp.where(safety[:, None] > 0, P_s, aligned)
        P_f = jax.nn.softmax(draw.bounded(p["P_f"]), axis=-1)
        problem = SoftmaxLinear(World(DataLaw(safety, P_s), DataLaw(task, P_f)), features)
        step = jnp.where(task[:, None] > 0, features, 0).T @ p["steps"]
        return Featured(problem, theta, step)

    return Family(sample, build)


def _unseen(beyond: Array, features: Array, p: Array, law: Array) -> Array:
    r"""A random change N of the law that no parameters see, $E_p\varphi N^\top=0$, as large as keeps it a law."""
    change = jnp.where(p[:, None] > 0, beyond - jnp.mean(beyond, axis=-1, keepdims=True), 0)
    left = change
    for axis in _axes((p[:, None] * features).T):
        left = left - jnp.outer(axis, axis @ left)
    # Where the moments leave nothing free, what is left is rounding.
    left = jnp.where(length(left) > MORE_THAN_ROUNDING * length(change), left, 0)
    falls = left < 0
    most = jnp.min(jnp.where(falls, law / jnp.where(falls, -left, 1), jnp.inf))
    return 0.9 * jnp.where(jnp.isfinite(most), most, 0) * left


def _axes(vectors: Array) -> list[Array]:
    """Orthonormal axes of the span of some vectors, 0 for one within the span of those before it.

    By Gram-Schmidt, twice: a span taken from the eigenvalues of the Gram matrix would lose what is short of 1e-7 in it.
    """
    axes: list[Array] = []
    for vector in vectors:
        rest = vector
        for axis in 2 * axes:
            rest = rest - axis * jnp.dot(axis, rest)
        beyond = length(rest) > PARALLEL_WITHIN * length(vector)
        axes.append(jnp.where(beyond, rest / jnp.where(beyond, length(rest), 1), 0))
    return axes
