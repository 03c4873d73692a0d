"""Families of random instances: worlds, penalties and policies over the regimes in which the theory can fail.

Every family has one static shape (a handful of contexts and responses); smaller instances have entries of weight zero.
Regimes are drawn as well: one context or many, full or escaping supports, conditional laws that nearly agree or are
nearly disjoint, penalties over twelve decades, policies near the optimum and far from it.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff import loss_constraint
from tradeoff.theorems._expressions import log0, over
from tradeoff.theorems.claim import Assumption, Family
from tradeoff.theorems.draws import Draws
from tradeoff.tolerances import EXACT
from tradeoff.worlds.world import DataLaw, World

CONTEXTS = 4
"""Of every random world."""
RESPONSES = 3
"""Of every random world."""
LOGIT_BOUND = 14.0
"""Beyond it a law has entries below 1e-12 and float64 reports false violations (framework, section 3.2)."""


class AtPenalty(NamedTuple):
    """A world and a penalty."""

    world: World
    lam: Array


class WithPolicy(NamedTuple):
    """A world, a penalty and an arbitrary policy."""

    world: World
    lam: Array
    log_policy: Array


class WithWeights(NamedTuple):
    """A world, an arbitrary policy, and a law `q` over the shared contexts."""

    world: World
    log_policy: Array
    q: Array


class PerContext(NamedTuple):
    """A world, a penalty, and a penalty of its own for every context."""

    world: World
    lam: Array
    lams: Array


class Overlapping(NamedTuple):
    r"""Worlds that differ in overlap only: $p_f=(1-\rho)u+\rho v$ with ρ = `low` or `high`, a penalty, all else fixed.

    Args:
        safety: the safety data.
        own: u, the task's own contexts.
        common: v, the contexts that come in as ρ grows.
        answers: the task's conditional laws.
        lam: a penalty.
        low: a smaller ρ.
        high: a larger ρ.
    """

    safety: DataLaw
    own: Array
    common: Array
    answers: Array
    lam: Array
    low: Array
    high: Array

    def world(self, rho: Array) -> World:
        """The world at overlap ρ."""
        return World(self.safety, DataLaw((1 - rho) * self.own + rho * self.common, self.answers))


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
NO_CONFLICT = Assumption(
    "no conflict",
    "no context is shared, or the two answers agree wherever one is",
    lambda i: jnp.all(~i.world.shared | (i.world.conflict == 0)),
)
SAME_CONTEXTS = Assumption(
    "same contexts",
    "the task asks what the safety data ask, equally often",
    lambda i: jnp.all(i.world.safety.p == i.world.capability.p),
)
NO_AGREEMENT = Assumption(
    "no agreement",
    "the two answers have no response in common in any context of the safety data",
    lambda i: jnp.all((i.world.safety.p == 0) | ~jnp.any((i.world.safety.P > 0) & (i.world.capability.P > 0), axis=-1)),
)
WEIGHTS_SHARED = Assumption(
    "weights on shared contexts",
    "q puts no weight outside the shared contexts",
    lambda i: jnp.all(i.world.shared | (i.q == 0)),
)
OWN_APART = Assumption(
    "own contexts apart",
    "the task's own contexts u are not among the safety data's",
    lambda i: jnp.all(i.own * i.safety.p == 0),
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
SAME_PROXY_CONTEXTS = Assumption(
    "proxy asks the same",
    "the proxy has the safety data's law over contexts",
    lambda i: jnp.all(i.world.safety.p == i.world.training_safety.p),
)
CONSTANT_RATIO = Assumption(
    "constant ratio",
    "the task's weight over the proxy's is the same in every context of the safety data",
    lambda i: _constant(over(i.world.capability.p, i.world.training_safety.p), i.world.safety.p > 0),
)
RISING_LIMIT = Assumption(
    "Γ > 0",
    "the safety gap comes to its limit from below",
    lambda i: loss_constraint.first_order_approach(i.world) > 0,
)
PENALTY_INSIDE = Assumption("finite penalty", "0 < λ < ∞", lambda i: (i.lam > 0) & jnp.isfinite(i.lam))


def _constant(values: Array, where: Array) -> Array:
    high, low = jnp.max(values, where=where, initial=0), jnp.min(values, where=where, initial=jnp.inf)
    return high - low <= EXACT.relative * high


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
    """Worlds with a penalty and any policy: near the optimum at that penalty, at another one, or far from any.

    With `lost_mass` half of the policies put some of their mass on responses that are not listed.
    """

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        parameters = {"world": world_parameters(draws, **options), "log_lam": draws.log_penalty()}
        return parameters | policy_parameters(draws, parameters["log_lam"], lost_mass)

    def build(parameters: dict[str, Any]) -> WithPolicy:
        made = world(parameters["world"])
        return WithPolicy(made, jnp.exp(parameters["log_lam"]), policy(made, parameters))

    return Family(sample, build)


def with_weights(**options: Any) -> Family:
    """Worlds with any policy, of whole or lost mass, and a law over some of the shared contexts."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        parameters: dict[str, Any] = {"world": world_parameters(draws, **options)}
        parameters |= policy_parameters(draws, draws.log_penalty(), lost_mass=True)
        chosen = (jnp.arange(CONTEXTS) == 0) | draws.flip(0.7, (CONTEXTS,))
        parameters["in_weights"] = chosen & parameters["world"]["in_s"] & parameters["world"]["in_f"]
        parameters["weights"] = draws.normal((CONTEXTS,)) * 10 ** draws.uniform(-1, 0.9)
        return parameters

    def build(parameters: dict[str, Any]) -> WithWeights:
        made = world(parameters["world"])
        return WithWeights(made, policy(made, parameters), law(parameters["weights"], parameters["in_weights"]))

    return Family(sample, build)


def per_context(**options: Any) -> Family:
    """Worlds with one penalty for all contexts, and one of its own for each, close to it or far."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        parameters = {"world": world_parameters(draws, **options), "log_lam": draws.log_penalty()}
        apart = 10 ** draws.uniform(-5, 1)
        return parameters | {"log_lams": parameters["log_lam"] + apart * draws.normal((CONTEXTS,))}

    def build(parameters: dict[str, Any]) -> PerContext:
        return PerContext(world(parameters["world"]), jnp.exp(parameters["log_lam"]), jnp.exp(parameters["log_lams"]))

    return Family(sample, build)


def overlapping() -> Family:
    """Worlds at two overlaps ρ of any size, close to 0 and close to 1 included."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        parameters = {"world": world_parameters(draws), "log_lam": draws.log_penalty()}
        last = jnp.arange(CONTEXTS) == CONTEXTS - 1
        in_s = parameters["world"]["in_s"] & ~last
        parameters["world"]["in_s"] = in_s
        parameters["own"] = draws.normal((CONTEXTS,)) * 10 ** draws.uniform(-1, 0.9)
        parameters["in_own"] = ~in_s & (last | draws.flip(0.7, (CONTEXTS,)))
        return parameters | {"low": 4 * draws.normal(), "step": 4 * draws.normal()}

    def build(parameters: dict[str, Any]) -> Overlapping:
        made = world(parameters["world"])
        own = law(parameters["own"], parameters["in_own"])
        low = jax.nn.sigmoid(parameters["low"])
        high = low + (1 - low) * jax.nn.sigmoid(parameters["step"])
        lam = jnp.exp(parameters["log_lam"])
        return Overlapping(made.safety, own, made.capability.p, made.capability.P, lam, low, high)

    return Family(sample, build)


def over_penalising() -> Family:
    r"""Worlds whose safety gap comes to its limit from below (Γ > 0), with a penalty.

    In the first context the safety data lie between proxy and task, $P_s\propto\hat P_s(P_f/\hat P_s)^\kappa$; in others
    they may lie beyond the proxy, with the task's weight there cut until they no longer decide the sign of Γ.
    """

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        parameters = {"world": world_parameters(draws, proxy="full"), "log_lam": draws.log_penalty()}
        parameters["between"] = (jnp.arange(CONTEXTS) == 0) | draws.flip(0.6, (CONTEXTS,))
        return parameters | {"how_far": 2 * draws.normal((CONTEXTS,))}

    def build(parameters: dict[str, Any]) -> AtPenalty:
        made = world(parameters["world"])
        p_s, p_f, seen = made.safety.p, made.capability.p, made.training_safety
        towards = bounded(parameters["world"]["P_f"]) - log0(seen.P)
        sign = jnp.where(parameters["between"], 1, -1)
        kappa = sign * jax.nn.sigmoid(parameters["how_far"])
        P_s = jax.nn.softmax(log0(seen.P) + kappa[:, None] * towards, axis=-1)
        P_f = jax.nn.softmax(bounded(parameters["world"]["P_f"]), axis=-1)
        effect = over(p_s * p_f, seen.p) * jnp.sum((P_s - seen.P) * (P_f - seen.P) / seen.P, axis=-1)
        gain, loss = jnp.sum(jnp.maximum(effect, 0)), jnp.sum(jnp.maximum(-effect, 0))
        cut = jnp.minimum(1, over(0.9 * gain, loss))
        kept = p_f * jnp.where((effect < 0) & (loss > 0), cut, 1)
        changed = World(DataLaw(p_s, P_s), DataLaw(kept / jnp.sum(kept), P_f), seen)
        return AtPenalty(changed, jnp.exp(parameters["log_lam"]))

    return Family(sample, build)


def around(world: Callable[[], World], lam: float, within: float) -> Family:
    """A named world at a penalty, with every probability and the penalty moved by a factor of about 1 ± `within`."""

    def sample(key: Array) -> list[Array]:
        leaves = jax.tree.leaves(AtPenalty(world(), jnp.float64(lam)))
        draws = Draws(key)
        return [draws.normal(leaf.shape) for leaf in leaves]

    def build(moves: list[Array]) -> AtPenalty:
        made = AtPenalty(world(), jnp.float64(lam))
        leaves, structure = jax.tree.flatten(made)
        moved = [leaf * jnp.exp(within * jnp.tanh(z)) for leaf, z in zip(leaves, moves, strict=True)]
        laws = [leaf / jnp.sum(leaf, axis=-1, keepdims=True) if leaf.ndim else leaf for leaf in moved]
        return jax.tree.unflatten(structure, laws)

    return Family(sample, build)


# --- worlds and policies of parameters --------------------------------------------------------------------------


def world_parameters(
    draws: Draws,
    *,
    proxy: Literal["exact", "covering", "full", "same contexts"] = "exact",
    full_support: bool = False,
    contexts: Literal["any", "same", "constant ratio"] = "any",
    responses: Literal["any", "disjoint", "escaping"] = "any",
    conflict: bool = True,
) -> dict[str, Any]:
    """Parameters of a random world.

    Args:
        draws: random numbers.
        proxy: "exact" for none, "covering" for one that rules out little, "full" for one with full-support rows, "same
            contexts" for a covering one with the safety data's law over contexts.
        full_support: whether every conditional law gives every response positive probability.
        contexts: "any" (at least one is shared), "same" for one law over contexts, "constant ratio" for task and proxy
            weights that are proportional in the safety data's contexts.
        responses: "any", "disjoint" for conditional laws that never agree, or "escaping" for laws that each rule out a
            response of the other in a shared context.
        conflict: without it no context is shared, or the conditional laws agree in every shared one.
    """
    spread = 10 ** draws.uniform(-1, 0.9)
    shape = (CONTEXTS, RESPONSES)

    def logits(size: tuple[int, ...]) -> Array:
        return spread * draws.normal(size)

    # The task's law and the proxy's are the safety law plus a difference of any size, from 1e-5 to independent.
    P_s = logits(shape)
    near = 10 ** draws.uniform(-5, 1, (2,))
    some = draws.flip(1.0 if full_support else 0.5)
    alone = draws.flip(0.2)
    context = jnp.arange(CONTEXTS)
    in_s = (context == 0) | (draws.flip(0.7, (CONTEXTS,)) & ~alone)
    in_f = (context == 0) | (draws.flip(0.7, (CONTEXTS,)) & ~alone)
    agree = jnp.zeros(CONTEXTS, bool)
    if not conflict:
        apart = draws.flip(0.5)
        in_f = jnp.where(apart, ~in_s | (context == CONTEXTS - 1), in_f)
        in_s = in_s & ~(apart & (context == CONTEXTS - 1))
        agree = in_s & in_f
    allowed = _supports(draws, some), _supports(draws, some)
    if responses == "escaping":
        here = [(context == 0)[:, None] & (jnp.arange(RESPONSES) == y)[None, :] for y in (0, 1)]
        allowed = (allowed[0] & ~here[0]) | here[1], (allowed[1] & ~here[1]) | here[0]
    if responses == "disjoint":
        half = jnp.arange(RESPONSES)[None, :] == draws.index(RESPONSES, (CONTEXTS, 1))
        allowed = half, ~half
    parameters = {
        "p_s": logits((CONTEXTS,)), "P_s": P_s, "P_f": P_s + near[0] * logits(shape),
        "in_s": in_s, "in_f": in_f, "allowed_s": allowed[0], "allowed_f": allowed[1], "agree": agree,
    }  # fmt: skip
    if contexts != "same":
        parameters["p_f"] = logits((CONTEXTS,))
    if contexts == "constant ratio":
        parameters["shift"] = logits(())
        del parameters["p_f"]
    if proxy != "exact":
        parameters["Q_s"] = P_s + near[1] * logits(shape)
        everything = some | draws.flip(1.0 if proxy == "full" else 0.0)
        parameters["allowed_q"] = allowed[0] | _supports(draws, everything)
    if proxy not in ("exact", "same contexts"):
        parameters["q_s"] = parameters["p_s"] + near[1] * logits((CONTEXTS,))
        parameters["in_q"] = in_s | draws.flip(0.3, (CONTEXTS,))
    return parameters


def world(parameters: dict[str, Any]) -> World:
    """The world of the parameters: laws are softmaxes over their supports, with bounded logits."""
    p_s, agree = law(parameters["p_s"], parameters["in_s"]), parameters["agree"][:, None]
    P_s = law(parameters["P_s"], parameters["allowed_s"])
    P_f = jnp.where(agree, P_s, law(parameters["P_f"], parameters["allowed_f"]))
    proxy, q_s = None, p_s
    if "q_s" in parameters:
        q_s = law(parameters["q_s"], parameters["in_q"])
    if "Q_s" in parameters:
        proxy = DataLaw(q_s, law(parameters["Q_s"], parameters["allowed_q"]))
    p_f = p_s
    if "p_f" in parameters:
        p_f = law(parameters["p_f"], parameters["in_f"])
    if "shift" in parameters:
        p_f = law(parameters["q_s"], parameters["in_q"], jnp.where(parameters["in_s"], parameters["shift"], 0))
    return World(DataLaw(p_s, P_s), DataLaw(p_f, P_f), proxy)


def policy_parameters(draws: Draws, log_lam: Array, lost_mass: bool) -> dict[str, Any]:
    """Parameters of a random policy; half of them start from the optimum at the given penalty."""
    return {
        "log_lam_policy": jnp.where(draws.flip(0.5), log_lam, draws.log_penalty()),
        "noise": draws.normal((CONTEXTS, RESPONSES)) * 10 ** draws.uniform(-4, 1),
        "keeps_all": draws.flip(0.5 if lost_mass else 1.0),
        "lost": 3 * draws.normal((CONTEXTS, 1)),
    }


def policy(world: World, parameters: dict[str, Any]) -> Array:
    """The log-probabilities of the parameters: the optimum at some penalty, disturbed, perhaps with some mass lost."""
    task, safety = loss_constraint.mixture_weights(world, jnp.exp(parameters["log_lam_policy"]))
    mixture = task[:, None] * world.capability.P + safety[:, None] * world.training_safety.P
    # Where the optimum rules a response out, so does a policy near it: the floor keeps the gaps finite instead.
    logits = jnp.log(jnp.maximum(mixture, math.exp(-LOGIT_BOUND))) + parameters["noise"]
    kept = jnp.where(parameters["keeps_all"], 0, jax.nn.log_sigmoid(parameters["lost"]))
    return jax.nn.log_softmax(logits, axis=-1) + kept


def law(logits: Array, mask: Array, shift: Array | float = 0.0) -> Array:
    """A law from unconstrained logits, zero outside the mask; `shift` is added to the bounded logits. No mask, no law: NaN."""
    one = jax.nn.softmax(bounded(logits) + shift, axis=-1, where=mask)
    return jnp.where(jnp.any(mask, axis=-1, keepdims=True), one, jnp.nan)


def bounded(logits: Array) -> Array:
    """Logits pressed into the range in which float64 keeps what the theory needs."""
    return LOGIT_BOUND * jnp.tanh(logits / LOGIT_BOUND)


def _supports(draws: Draws, everything: Array) -> Array:
    """Random supports with at least one response each."""
    one = jnp.arange(RESPONSES)[None, :] == draws.index(RESPONSES, (CONTEXTS, 1))
    return one | draws.flip(0.6, (CONTEXTS, RESPONSES)) | everything
