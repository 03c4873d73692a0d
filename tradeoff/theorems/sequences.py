"""T11: answers of several tokens. What safety loses it loses once, in the first tokens, however long the answer."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tradeoff import divergences as dv
from tradeoff import loss_constraint
from tradeoff.problems.sequence import Sequence, answers
from tradeoff.theorems import instances as draw
from tradeoff.theorems._expressions import log_share, over
from tradeoff.theorems.claim import Family, Sides, Tight, theorem
from tradeoff.theorems.draws import Draws
from tradeoff.tolerances import IDENTITY
from tradeoff.worlds import generate
from tradeoff.worlds.world import DataLaw, World

PROMPTS, TOKENS, LENGTH = 2, 3, 3
"""Prompts, tokens and positions: the least in which a prefix has siblings, depth and another prompt."""
PREFIXES = (TOKENS**LENGTH - 1) // (TOKENS - 1)

OVERLAP = "more context overlap means less safety after fine-tuning: of an answer, its first tokens"


class Answers(NamedTuple):
    """A world of answers of several tokens, and a penalty."""

    problem: Sequence
    lam: Array

    @property
    def world(self) -> World:
        """The world, whose responses are whole answers."""
        return self.problem.world


class WithLogits(NamedTuple):
    """A world of answers of several tokens, a penalty, and the logits of any policy."""

    problem: Sequence
    lam: Array
    logits: Float[Array, "XN K"]


def answers_at_penalty() -> Family:
    """Laws over answers, drawn prefix by prefix, with a penalty.

    Laws agree after some prefixes, or at whole positions, and differ from 1e-5 to entirely after others; after some they
    rule a token out.
    """

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key, 270)
        return _tree_parameters(draws, ("s", "f")) | {"log_lam": draws.log_penalty()}

    def build(p: dict[str, Any]) -> Answers:
        return Answers(Sequence(_world(p, ("s", "f")), TOKENS), jnp.exp(p["log_lam"]))

    return Family(sample, build)


def answers_with_policy() -> Family:
    """Laws over answers and a proxy of them, with a penalty and a policy near the best or far from it."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key, 420)
        noise = 10 ** draws.uniform(-4, 1) * draws.normal((PROMPTS * PREFIXES, TOKENS))
        return _tree_parameters(draws, ("s", "f", "q")) | {"log_lam": draws.log_penalty(), "noise": noise}

    def build(p: dict[str, Any]) -> WithLogits:
        problem, lam = Sequence(_world(p, ("s", "f", "q")), TOKENS), jnp.exp(p["log_lam"])
        mixture, _, _ = _posterior_mixture(problem.next_token, lam)
        # Where the best policy rules a token out, so does a policy near it: the floor keeps the gaps finite instead.
        logits = jnp.log(jnp.maximum(mixture, math.exp(-draw.LOGIT_BOUND))) + p["noise"]
        return WithLogits(problem, lam, logits)

    return Family(sample, build)


def _tree_parameters(draws: Draws, roles: tuple[str, ...]) -> dict[str, Any]:
    tree = (PROMPTS, PREFIXES, TOKENS)
    spread = 10 ** draws.uniform(-1, 0.9)
    parameters: dict[str, Any] = {"P_s": spread * draws.normal(tree)}
    for role in roles[1:]:
        near = 10 ** draws.uniform(-5, 1)
        parameters[f"P_{role}"] = parameters["P_s"] + near * spread * draws.normal(tree)
    some, first = draws.flip(0.5), jnp.arange(PROMPTS) == 0
    for role in roles:
        one = jnp.arange(TOKENS)[None, None, :] == draws.index(TOKENS, tree[:2])[:, :, None]
        parameters[f"allowed_{role}"] = one | some | draws.flip(0.6, tree)
        parameters[f"p_{role}"] = spread * draws.normal((PROMPTS,))
        parameters[f"in_{role}"] = first | draws.flip(0.7, (PROMPTS,))
    position = np.repeat(np.arange(LENGTH), TOKENS ** np.arange(LENGTH))
    at_positions = draws.flip(0.3, (LENGTH,))[position][None, :]
    parameters["same"] = (at_positions | (draws.flip(0.5) & draws.flip(0.3, tree[:2])))[:, :, None]
    return parameters


def _world(p: dict[str, Any], roles: tuple[str, ...]) -> World:
    laws = {role: draw.law(p[f"P_{role}"], p[f"allowed_{role}"]) for role in roles}
    laws["f"] = jnp.where(p["same"], laws["s"], laws["f"])
    safety, task, *proxy = (DataLaw(draw.law(p[f"p_{role}"], p[f"in_{role}"]), answers(laws[role])) for role in roles)
    return World(safety, task, proxy[0] if proxy else None)


ANSWERS = answers_at_penalty()
POLICIES = answers_with_policy()


@theorem(
    "T11",
    title="the best next token is a posterior mixture",
    statement=r"P^*(\cdot|x,y_{<t})=w_tP_f(\cdot|x,y_{<t})+(1-w_t)\hat P_s(\cdot|x,y_{<t}),\quad "
    r"w_t=\frac{p_fP_f(y_{<t}|x)}{p_fP_f(y_{<t}|x)+\lambda\hat p_s\hat P_s(y_{<t}|x)}",
    family=POLICIES,
    parts=("token laws", "value", "no policy is better"),
    relation=("==", "==", "<="),
    assumptions=(draw.PENALTY_INSIDE,),
    without={
        "finite penalty": "at λ = 0 and ∞ the objective is one loss alone; the limits of w_t give its minimiser too"
    },
    tight=Tight(lambda: _best_refusal()),
    makes_precise=OVERLAP,
    tolerance=IDENTITY,
)
def the_best_next_token_is_a_posterior_mixture(instance: WithLogits) -> Sides:
    """Token by token, the best policy answers as the pooled data do, given what it has said so far.

    The first pair is one plus the greatest relative deviation of any token's probability, and one.
    """
    problem, world, lam = instance.problem, instance.problem.world, instance.lam
    data = problem.next_token
    mixture, _, _ = _posterior_mixture(data, lam)
    best = problem.token_laws(jnp.exp(loss_constraint.optimal_policy(world, lam)))
    reached = (data.capability.p + data.training_safety.p > 0)[:, None]
    deviation = jnp.max(jnp.where(reached, over(jnp.abs(best - mixture), best + mixture), 0))
    least = loss_constraint.value(world, lam)
    return (
        jnp.stack([1 + deviation, problem.length * loss_constraint.value(data, lam), least]),
        jnp.stack([jnp.ones(()), least, problem.objective(instance.logits, lam)]),
    )


@theorem(
    "T11a",
    title="a loss that does not grow with length",
    statement=r"G_s(\lambda)=\sum_tg_t\le\sum_xp_s\mathrm{TV}_x\log\Big(1+\frac{p_f}{\lambda p_s}\Big)\le"
    r"\sum_xp_s\log\Big(1+\frac{p_f}{\lambda p_s}\Big),\quad \tau\,\#\{t:g_t\ge\tau\}\le"
    r"\sum_xp_s\log\Big(1+\frac{p_f}{\lambda p_s}\Big)\ \forall\tau",
    family=ANSWERS,
    parts=("chain rule", "by whole answers", "whatever the length", "few positions"),
    relation=("==", "<=", "<=", "<="),
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": lambda: _one_token(generate.over_penalised(), lam=100.0)},
    tight=Tight(lambda: _refusal()),
    makes_precise=OVERLAP,
    tolerance=IDENTITY,
)
def longer_answers_lose_no_more(instance: Answers) -> Sides:
    """What safety loses at all positions together has a bound that knows no length, so few positions lose much.

    The last left side is the greatest over all τ.
    """
    problem, world, lam = instance.problem, instance.world, instance.lam
    data = problem.next_token
    mixture, task, _ = _posterior_mixture(data, lam)
    P_s, P_f = data.safety.P, data.capability.P
    lost = problem.by_position(data.safety, jnp.sum(dv.kl_terms(P_s, mixture, task * (P_f - P_s)), axis=-1))
    share = log_share(world.safety.p, world.capability.p / lam)
    whole, cap = jnp.sum(world.conflict * share), jnp.sum(share)
    as_bad = jnp.sum(jnp.where(lost[None, :] >= lost[:, None], 1.0, 0.0), axis=-1)
    total = loss_constraint.gaps(world, lam).safety
    return jnp.stack([jnp.sum(lost), total, whole, jnp.max(lost * as_bad)]), jnp.stack([total, whole, cap, cap])


@theorem(
    "T11b",
    title="safe prefixes switch the task off",
    statement=r"E_{P_s}[w_{t+1}|x,y_{<t}]=w_t\big(1-w_t(1-w_t)\chi_t\big)\le w_t,\qquad \chi_t=\sum_y\frac{(P_s-P_f)^2}{P^*}"
    r"\text{ after }y_{<t};\qquad E_{D_s}[w_{t+1}]\le E_{D_s}[w_t]",
    family=ANSWERS,
    parts=("one token", "one token lowers it", "every token lowers it", "a whole answer lowers it"),
    relation=("==", "<=", "<=", "<="),
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": lambda: _one_token(generate.over_penalised(), lam=2.0)},
    tight=Tight(lambda: _refusal(sure=False)),
    makes_precise=OVERLAP,
    tolerance=IDENTITY,
)
def safe_prefixes_switch_the_task_off(instance: Answers) -> Sides:
    """The further a safe answer has gone, the less the task has to say about its next token, on average and at every step.

    The first pair is one plus the greatest relative deviation after any prefix, and one; the next two are the greatest
    factor by which a token changes the weight, after any prefix and at any position on average, and one.
    """
    problem, world, lam = instance.problem, instance.world, instance.lam
    data = problem.next_token
    mixture, task, safety = _posterior_mixture(data, lam)
    P_s, P_f = data.safety.P, data.capability.P
    # The weight after one token more, from the probabilities of longer prefixes and nothing of this prefix.
    longer = [
        _children(problem, law.p[:, None] * problem.prefixes(law.P))
        for law in (world.capability, world.training_safety)
    ]
    after = jnp.sum(P_s * over(longer[0], longer[0] + lam * longer[1]), axis=-1)
    w = jnp.where((data.safety.p > 0), task[:, 0], 0)
    chi = jnp.sum(over((P_s - P_f) ** 2, mixture), axis=-1)
    predicted = w * (1 - w * safety[:, 0] * chi)
    deviation = jnp.max(jnp.where(w > 0, over(jnp.abs(after - predicted), w), 0))
    factor = jnp.max(jnp.where(w > 0, over(after, w), 0))
    now, later = problem.by_position(data.safety, w), problem.by_position(data.safety, after)
    one = jnp.ones(())
    return (
        jnp.stack([1 + deviation, factor, jnp.max(over(later, now)), later[-1]]),
        jnp.stack([one, one, one, now[0]]),
    )


# --- what only these theorems need ------------------------------------------------------------------------------


def _posterior_mixture(data: World, lam: Array) -> tuple[Array, Array, Array]:
    """The best law of the next token after every prefix, and the weights of task and safety data in it, as columns."""
    task, safety = (weight[:, None] for weight in loss_constraint.mixture_weights(data, lam))
    return task * data.capability.P + safety * data.training_safety.P, task, safety


def _children(problem: Sequence, of_prefixes: Array) -> Array:
    """Values of all prefixes, by the prefix that they lengthen: shape (contexts times prefixes, K)."""
    return of_prefixes[:, 1:].reshape(-1, problem.tokens)


def _refusal(sure: bool = True) -> Answers:
    """Safety data that refuse in the first of two tokens where the task complies; the second is the same for both.

    With `sure` they always do and the task never does, so that both gaps are as large as contexts allow; without, they
    say the same.
    """
    even = [0.5, 0.5]
    firsts = ([1.0, 0.0], [0.0, 1.0]) if sure else (even, even)
    safety, task = (DataLaw([1.0], answers([[first, even, even]])) for first in firsts)
    return Answers(Sequence(World(safety, task), 2), jnp.ones(()))


def _best_refusal() -> WithLogits:
    """The best policy for it."""
    problem, lam = _refusal()
    return WithLogits(problem, lam, jnp.log(_posterior_mixture(problem.next_token, lam)[0]))


def _one_token(world: World, lam: float) -> Answers:
    """A world of single tokens."""
    return Answers(Sequence(world, world.safety.P.shape[-1]), jnp.float64(lam))
