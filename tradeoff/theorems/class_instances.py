"""What the claims on model classes (T9) are checked on: the losses of a class, its policies, and a member chosen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tradeoff.theorems import instances as draw
from tradeoff.theorems._expressions import silent
from tradeoff.theorems.claim import Assumption, Family
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.instances import CONTEXTS, RESPONSES
from tradeoff.tolerances import IDENTITY
from tradeoff.worlds.world import DataLaw, World

MEMBERS = 5
"""Members of a class: enough for a frontier with a corner that no penalty reaches."""
PENALTIES = 5
"""Penalties of a sweep."""


class Losses(NamedTuple):
    r"""A class as its losses see it, a penalty, and a member chosen.

    Args:
        capability: $L_f$ of every member.
        safety: $\hat L_s$ of every member.
        lam: a penalty.
        eta: how far from the least the penalised loss of the chosen member may be, in its unit.
        chosen: which member it is.
    """

    capability: Float[Array, " N"]
    safety: Float[Array, " N"]
    lam: Float[Array, ""]
    eta: Float[Array, ""]
    chosen: Bool[Array, " N"]

    @property
    def losses(self) -> "Losses":
        """Itself: what `PolicyClass` has as a part."""
        return self

    @property
    def shares(self) -> tuple[Array, Array]:
        """1/(1+λ) and λ/(1+λ): in them no loss is multiplied by 1e6, so that no small one is rounded away."""
        return 1 / (1 + self.lam), self.lam / (1 + self.lam)

    @property
    def excess(self) -> Float[Array, " N"]:
        """Penalised loss of every member above the least, over 1+λ."""
        return above_least(self.capability, self.safety, self.lam)

    @property
    def gaps(self) -> tuple[Array, Array]:
        """Capability gap and proxy gap of every member, above the best of the class."""
        return self.capability - jnp.min(self.capability), self.safety - jnp.min(self.safety)

    def at_chosen(self, values: Array) -> Array:
        """The value at the chosen member."""
        return mean_of(values, self.chosen)


class Sweep(NamedTuple):
    """A class as its losses see it, increasing penalties, and how far from the least a minimiser may be."""

    capability: Float[Array, " N"]
    safety: Float[Array, " N"]
    lams: Float[Array, " L"]
    eta: Float[Array, ""]


class PolicyClass(NamedTuple):
    """A world, the members of a class of policies, and one of them chosen at a penalty.

    Args:
        world: the world.
        log_policies: log-probabilities of every member, shape (N, X, Y).
        losses: their losses on the task and on the proxy, the penalty and the choice.
    """

    world: World
    log_policies: Float[Array, "N X Y"]
    losses: Losses


# --- assumptions ------------------------------------------------------------------------------------------------

NEARLY_BEST = Assumption(
    "η-minimiser",
    "the penalised loss of the chosen member is within η of the least",
    lambda i: _within(i.losses),
)
BOTH_GOOD = Assumption(
    "both-good member",
    "some member has the least capability loss and the least proxy loss",
    lambda i: jnp.any((i.capability == jnp.min(i.capability)) & (i.safety == jnp.min(i.safety))),
)
EXACT_MINIMISERS = Assumption("exact minimisers", "η = 0", lambda i: i.eta == 0)
PROBABILITY_LAWS = Assumption(
    "probability laws",
    "safety data and proxy have the same mass",
    lambda i: (
        jnp.abs(jnp.sum(joint_law(i.world.safety)) - jnp.sum(joint_law(i.world.training_safety))) <= IDENTITY.relative
    ),
)


def _within(losses: Losses) -> Array:
    return losses.at_chosen(losses.excess) <= losses.shares[0] * losses.eta + IDENTITY.absolute


# --- families ---------------------------------------------------------------------------------------------------


def policy_classes() -> Family:
    """Policies near the optimum at some penalty or far from any, and one of them chosen: the best, or any with its η."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key, 160)
        return _class_parameters(draws)

    return Family(sample, _policy_class)


def classes(both_good: bool = False) -> Family:
    """Losses of a class of policies, or any numbers at all, and a member chosen: the best, or any with its η.

    With `both_good` one member has the least of either loss.
    """

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key, 180)
        return _class_parameters(draws) | _number_parameters(draws) | {"abstract": draws.flip(0.6)}

    def build(p: dict[str, Any]) -> Losses:
        capability, safety = _numbers(p)
        of_policies = _policy_class(p).losses
        capability = jnp.where(p["abstract"], capability, of_policies.capability)
        safety = jnp.where(p["abstract"], safety, of_policies.safety)
        if both_good:
            first = jnp.arange(MEMBERS) == 0
            capability = jnp.where(first, jnp.min(capability), capability)
            safety = jnp.where(first, jnp.min(safety), safety)
        return _chosen(capability, safety, p)

    return Family(sample, build)


def sweeps() -> Family:
    """Any losses, some members equal in one of them, at penalties from close together to decades apart."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        apart = 10 ** draws.uniform(-2, 1)
        parameters = _number_parameters(draws) | {"log_lam": draws.log_penalty()}
        return parameters | {"log_steps": jnp.log(apart) + draws.normal((PENALTIES - 1,))}

    def build(p: dict[str, Any]) -> Sweep:
        steps = jnp.exp(p["log_steps"])
        later = jnp.arange(PENALTIES)[:, None] > jnp.arange(PENALTIES - 1)[None, :]
        # Half of the way is below the penalty drawn, half above.
        log_lams = p["log_lam"] + jnp.sum(jnp.where(later, steps[None, :], 0), axis=-1) - jnp.sum(steps) / 2
        return Sweep(*_numbers(p), jnp.exp(log_lams), jnp.zeros(()))

    return Family(sample, build)


def _class_parameters(draws: Draws) -> dict[str, Any]:
    log_lam = draws.log_penalty()
    return {
        "world": draw.world_parameters(draws, proxy="covering"),
        "log_lam": log_lam,
        "log_lam_policy": jnp.where(draws.flip(0.4, (MEMBERS,)), log_lam, draws.uniform(-14, 14, (MEMBERS,))),
        "noise": draws.normal((MEMBERS, CONTEXTS, RESPONSES)) * 10 ** draws.uniform(-4, 1),
        "keeps_all": draws.flip(0.5, (MEMBERS,)),
        "lost": 3 * draws.normal((MEMBERS, CONTEXTS, 1)),
        "member": draws.index(MEMBERS),
        "best": draws.flip(0.6),
        "exactly": draws.flip(0.5),
        "log_extra": 4 * draws.normal(),
    }


def _policy_class(p: dict[str, Any]) -> PolicyClass:
    made = draw.world(p["world"])
    members = {name: p[name] for name in ("log_lam_policy", "noise", "keeps_all", "lost")}
    log_policies = jax.vmap(lambda one: draw.policy(made, one))(members)
    capability, safety = (cross_entropies(law, log_policies) for law in (made.capability, made.training_safety))
    return PolicyClass(made, log_policies, _chosen(capability, safety, p))


def _number_parameters(draws: Draws) -> dict[str, Any]:
    """Losses of any size and sign; some members share one of them."""
    spread = 10 ** draws.uniform(-4, 1, (2,))
    twin = draws.flip(0.3, (2,))[:, None] & draws.flip(0.5, (2, MEMBERS))
    return {
        "level": 3 * draws.normal((2,)),
        "numbers": spread[:, None] * draws.normal((2, MEMBERS)),
        "twin": twin,
    }


def _numbers(p: dict[str, Any]) -> tuple[Array, Array]:
    numbers = p["level"][:, None] + jnp.where(p["twin"], p["numbers"][:, :1], p["numbers"])
    return numbers[0], numbers[1]


def _chosen(capability: Array, safety: Array, p: dict[str, Any]) -> Losses:
    """The losses with a member chosen, and an η that it just keeps, or keeps with room."""
    lam = jnp.exp(p["log_lam"])
    excess = above_least(capability, safety, lam)
    chosen = jnp.where(p["best"], excess == jnp.min(excess), jnp.arange(MEMBERS) == p["member"])
    extra = jnp.where(p["exactly"], 0, jnp.exp(p["log_extra"]))
    return Losses(capability, safety, lam, (1 + lam) * (mean_of(excess, chosen) + extra), chosen)


CLASSES = classes()
GOOD_CLASSES = classes(both_good=True)
SWEEPS = sweeps()
POLICY_CLASSES = policy_classes()


# --- what records, families and claims share --------------------------------------------------------------------


def above_least(capability: Array, safety: Array, lam: Array) -> Array:
    """Penalised loss of every member above the least, over 1+λ, from differences between members."""
    # The difference of two members changes its sign exactly when they change places, so rounding makes no member better
    # than one that is as good.
    of_f, of_s = 1 / (1 + lam), lam / (1 + lam)
    apart = of_f * (capability[:, None] - capability[None, :]) + of_s * (safety[:, None] - safety[None, :])
    return jnp.max(apart, axis=-1)


def mean_of(values: Array, mask: Array) -> Array:
    """The mean of the values in the mask, along the last axis: of several equally good members none comes first."""
    mask = jnp.broadcast_to(mask, values.shape)
    return jnp.sum(jnp.where(mask, values, 0), axis=-1) / jnp.sum(jnp.where(mask, 1.0, 0.0), axis=-1)


def joint_law(law: DataLaw) -> Array:
    """The joint law of contexts and responses."""
    return law.p[:, None] * law.P


def cross_entropies(law: DataLaw, log_policies: Array) -> Array:
    """Losses of every member on a law."""
    return jnp.sum(silent(joint_law(law)[None], -log_policies), axis=(1, 2))
