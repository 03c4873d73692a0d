"""Families of random instances: worlds, penalties and policies over the regimes in which the theory can fail.

Every family has one static shape (a handful of contexts and responses); smaller instances have entries of weight zero.
Regimes are drawn as well: one context or many, full or escaping supports, conditional laws that nearly agree or are
nearly disjoint, penalties over twelve decades, policies near the optimum and far from it.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff import loss_constraint
from tradeoff.theorems.claim import Assumption, Family
from tradeoff.worlds.world import DataLaw, World

CONTEXTS, RESPONSES = 4, 3
LOGIT_BOUND = 14.0
"""Beyond it a law has entries below 1e-12 and float64 reports false violations (framework, section 3.2)."""
DECADES = 6.0
"""Penalties are drawn log-uniformly from 10^-6 to 10^6."""


class AtPenalty(NamedTuple):
    """A world and a penalty."""

    world: World
    lam: Array


class WithPolicy(NamedTuple):
    """A world, a penalty and an arbitrary policy."""

    world: World
    lam: Array
    log_policy: Array


# --- assumptions ------------------------------------------------------------------------------------------------

EXACT_PROXY = Assumption(
    "exact proxy",
    "fine-tuning sees the original safety data",
    lambda i: jnp.array(i.world.proxy is None),
)
SHARED_CONTEXT = Assumption(
    "shared context",
    "some context has weight in both safety and capability data",
    lambda i: jnp.any(i.world.shared),
)
COVERED = Assumption(
    "proxy covers",
    "the proxy gives weight to every context of the safety data",
    lambda i: jnp.all((i.world.safety.p == 0) | (i.world.training_safety.p > 0)),
)
FULL_PROXY = Assumption(
    "full-support proxy",
    "the proxy gives every response positive probability",
    lambda i: jnp.all(i.world.training_safety.P > 0),
)
PENALTY_INSIDE = Assumption("finite penalty", "0 < λ < ∞", lambda i: (i.lam > 0) & jnp.isfinite(i.lam))


# --- random numbers ---------------------------------------------------------------------------------------------


class Draws:
    """Random numbers of many kinds out of one block of uniforms: one call to the generator, whatever is drawn.

    Args:
        key: a JAX random key.
        count: how many uniforms the block holds; asking for more is an error.
    """

    def __init__(self, key: Array, count: int = 256) -> None:
        self._left = jax.random.uniform(key, (count,), jnp.float64)

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> Array:
        """Uniform on [low, high)."""
        count = math.prod(shape)
        if count > self._left.size:
            raise ValueError(f"Draws has {self._left.size} numbers left and {count} were asked for; give it a larger count.")
        taken, self._left = self._left[:count], self._left[count:]
        return low + (high - low) * taken.reshape(shape)

    def normal(self, shape: tuple[int, ...] = ()) -> Array:
        """Standard normal."""
        return jnp.sqrt(2.0) * jax.lax.erf_inv(self.uniform(-1 + 1e-12, 1, shape))

    def flip(self, probability: float, shape: tuple[int, ...] = ()) -> Array:
        """True with the given probability."""
        return self.uniform(shape=shape) < probability

    def index(self, count: int, shape: tuple[int, ...] = ()) -> Array:
        """An integer in 0, ..., count-1."""
        return jnp.floor(self.uniform(0, count, shape)).astype(int)

    def log_penalty(self) -> Array:
        """The log of a penalty, uniform over twelve decades."""
        return self.uniform(-DECADES, DECADES) * jnp.log(10.0)


# --- families ---------------------------------------------------------------------------------------------------


def at_penalty(**options: Any) -> Family:
    """Worlds with a penalty; options as `world_parameters`."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {"world": world_parameters(draws, **options), "log_lam": draws.log_penalty()}

    def build(parameters: dict[str, Any]) -> AtPenalty:
        return AtPenalty(world(parameters["world"]), jnp.exp(parameters["log_lam"]))

    return Family(sample, build)


def with_policy(lost_mass: bool = False, **options: Any) -> Family:
    """Worlds with a penalty and any policy, near the optimum at some penalty or far from it.

    With `lost_mass` half of the policies put some of their mass on responses that are not listed.
    """

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        parameters = {"world": world_parameters(draws, **options), "log_lam": draws.log_penalty()}
        parameters["log_lam_policy"] = draws.log_penalty()
        parameters["noise"] = draws.normal((CONTEXTS, RESPONSES)) * 10 ** draws.uniform(-4, 1)
        parameters["keeps_all"] = draws.flip(0.5) | (not lost_mass)
        parameters["lost"] = draws.normal((CONTEXTS, 1)) * 3
        return parameters

    def build(parameters: dict[str, Any]) -> WithPolicy:
        made = world(parameters["world"])
        log_near = loss_constraint.optimal_policy(made, jnp.exp(parameters["log_lam_policy"]))
        # Where the optimum rules a response out, so does a policy near it: the floor keeps the gaps finite instead.
        logits = jnp.maximum(log_near, -LOGIT_BOUND) + parameters["noise"]
        kept = jnp.where(parameters["keeps_all"], 0, jax.nn.log_sigmoid(parameters["lost"]))
        log_policy = jax.nn.log_softmax(logits, axis=-1) + kept
        return WithPolicy(made, jnp.exp(parameters["log_lam"]), log_policy)

    return Family(sample, build)


def world_parameters(
    draws: Draws, *, proxy: bool = False, full_support: bool = False, contexts: str = "any", responses: str = "any"
) -> dict[str, Any]:
    """Parameters of a random world.

    Args:
        draws: random numbers.
        proxy: whether the world has a proxy of its own.
        full_support: whether every conditional law gives every response positive probability.
        contexts: "any" (at least one is shared), "same" (the task has the safety data's contexts) or "disjoint".
        responses: "any", "disjoint" for conditional laws that never agree, or "escaping" for laws that each rule out a
            response of the other in a shared context.
    """
    spread = 10 ** draws.uniform(-1, 0.9)
    shape = (CONTEXTS, RESPONSES)

    def logits(size: tuple[int, ...]) -> Array:
        return spread * draws.normal(size)

    # The task's law and the proxy's are the safety law plus a difference of any size, from 1e-5 to independent.
    P_s = logits(shape)
    near = 10 ** draws.uniform(-5, 1, (2,))
    some = draws.flip(0.5) | full_support
    alone = draws.flip(0.2)
    first = jnp.arange(CONTEXTS) == 0
    in_s = first | (draws.flip(0.7, (CONTEXTS,)) & ~alone)
    in_f = first | (draws.flip(0.7, (CONTEXTS,)) & ~alone)
    if contexts == "same":
        in_f = in_s
    if contexts == "disjoint":
        odd = jnp.arange(CONTEXTS) % 2 == 1
        in_s, in_f = in_s & ~odd, (in_f & odd) | (jnp.arange(CONTEXTS) == 1)
    allowed = _supports(draws, some), _supports(draws, some)
    if responses == "escaping":
        context, response = jnp.arange(CONTEXTS)[:, None], jnp.arange(RESPONSES)
        here = [(context == 0) & (response == y) for y in (0, 1)]
        allowed = (allowed[0] & ~here[0]) | here[1], (allowed[1] & ~here[1]) | here[0]
    if responses == "disjoint":
        half = jnp.arange(RESPONSES) == draws.index(RESPONSES, (CONTEXTS, 1))
        allowed = jnp.broadcast_to(half, shape), ~jnp.broadcast_to(half, shape)
    parameters = {
        "p_s": logits((CONTEXTS,)), "p_f": logits((CONTEXTS,)), "P_s": P_s, "P_f": P_s + near[0] * logits(shape),
        "in_s": in_s, "in_f": in_f, "allowed_s": allowed[0], "allowed_f": allowed[1],
    }  # fmt: skip
    if proxy:
        parameters |= {
            "q_s": parameters["p_s"] + near[1] * logits((CONTEXTS,)),
            "Q_s": P_s + near[1] * logits(shape),
            "in_q": in_s | draws.flip(0.3, (CONTEXTS,)),
        }
    return parameters


def world(parameters: dict[str, Any]) -> World:
    """The world of the parameters: laws are softmaxes over their supports, with bounded logits."""
    safety = DataLaw(law(parameters["p_s"], parameters["in_s"]), law(parameters["P_s"], parameters["allowed_s"]))
    capability = DataLaw(law(parameters["p_f"], parameters["in_f"]), law(parameters["P_f"], parameters["allowed_f"]))
    if "q_s" not in parameters:
        return World(safety, capability)
    return World(safety, capability, DataLaw(law(parameters["q_s"], parameters["in_q"]), law(parameters["Q_s"], None)))


def law(logits: Array, mask: Array | None) -> Array:
    """A law from unconstrained logits, zero outside the mask."""
    bounded = LOGIT_BOUND * jnp.tanh(logits / LOGIT_BOUND)
    return jax.nn.softmax(bounded, axis=-1, where=mask)


def _supports(draws: Draws, everything: Array) -> Array:
    """Random supports with at least one response each."""
    one = jnp.arange(RESPONSES) == draws.index(RESPONSES, (CONTEXTS, 1))
    return one | draws.flip(0.6, (CONTEXTS, RESPONSES)) | everything
