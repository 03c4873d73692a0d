"""T6: data similarity. What a proxy that is not the original safety data costs, at every penalty and in the limit."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff import divergences as dv
from tradeoff import gaps, loss_constraint
from tradeoff.theorems import instances as draw
from tradeoff.theorems._expressions import over
from tradeoff.theorems.claim import Sides, Tight, theorem
from tradeoff.theorems.instances import AtPenalty
from tradeoff.tolerances import IDENTITY, LIMIT
from tradeoff.worlds import generate
from tradeoff.worlds.world import DataLaw, World

COVERING = draw.at_penalty(proxy="covering")
FULL = draw.at_penalty(proxy="full")
SAME_CONTEXTS = draw.at_penalty(proxy="same contexts")
CONSTANT_RATIO = draw.at_penalty(proxy="full", contexts="constant ratio")
OVER_PENALISING = draw.over_penalising()
LATE_MINIMUM = draw.around(generate.late_minimum, lam=0.19388, within=0.003)
TWO_MINIMA = draw.around(generate.two_minima, lam=0.19889, within=0.02)

SIMILARITY = "the closer the proxy to the original safety data, the smaller the safety gap"
NOT_MONOTONE = "raising λ lowers the safety gap: with a bad proxy it does not"


@theorem(
    "T6a",
    title="additive bound by similarity",
    statement=r"G_s(\lambda)\le\Phi+E_{p_s}\log\!\big(1+\tfrac{p_f}{\lambda\hat p_s}\big)\le\Phi+\log\!\Big(1+\tfrac1\lambda\sum_x"
    r"\tfrac{p_sp_f}{\hat p_s}\Big)\le\Phi+\log\!\big(1+\tfrac B\lambda\big),\quad \Phi=E_{p_s}\mathrm{KL}(P_s\|\hat P_s),\ "
    r"B=\max\tfrac{p_s}{\hat p_s};\qquad \mathrm{KL}(D_s\|\hat D_s)=\mathrm{KL}(p_s\|\hat p_s)+\Phi",
    family=COVERING,
    parts=("by context", "pooled", "by density ratio", "chain rule"),
    relation=("<=", "<=", "<=", "=="),
    assumptions=(draw.COVERED,),
    without={"proxy covers": "where the proxy has no weight and the task has some the bounds are infinite"},
    tight=Tight(lambda: AtPenalty(_task_apart_from_both(), jnp.float64(1.0))),
    makes_precise=SIMILARITY,
)
def safety_gap_is_mismatch_plus_dilution(instance: AtPenalty) -> Sides:
    """The safety gap is at most how wrongly the proxy answers, plus a term that a large penalty removes.

    A proxy that asks different questions costs only through how rarely it asks the right ones (B), not through its answers.
    """
    world, lam = instance.world, instance.lam
    safety, seen = world.safety, world.training_safety
    ratio = over(world.capability.p, seen.p)
    mismatch = world.proxy_mismatch
    by_context = mismatch + jnp.sum(safety.p * jnp.log1p(ratio / lam))
    pooled = mismatch + jnp.log1p(jnp.sum(safety.p * ratio) / lam)
    by_ratio = mismatch + jnp.log1p(jnp.max(over(safety.p, seen.p)) / lam)
    joint = dv.kl(*((law.p[:, None] * law.P).ravel() for law in (safety, seen)))
    return (
        jnp.stack([loss_constraint.gaps(world, lam).safety, by_context, pooled, joint]),
        jnp.stack([by_context, pooled, by_ratio, world.proxy_kl]),
    )


@theorem(
    "T6b",
    title="convex bound by similarity",
    statement=r"G_s(\lambda)\le E_{p_s}[\hat w\,\mathrm{KL}(P_s\|P_f)+(1-\hat w)\,\mathrm{KL}(P_s\|\hat P_s)]",
    family=COVERING,
    assumptions=(draw.COVERED,),
    without={"proxy covers": "where the proxy has no weight ŵ is 1 and M̂ is P_f: both sides are the same"},
    tight=Tight(lambda: AtPenalty(_nothing_shared(0.1), jnp.float64(1.0))),
    makes_precise=SIMILARITY,
)
def safety_gap_is_below_its_chord(instance: AtPenalty) -> Sides:
    """The safety gap is at most the average of what the task's answers and the proxy's answers would cost alone."""
    world, lam = instance.world, instance.lam
    task, proxy = loss_constraint.mixture_weights(world, lam)
    safety = world.safety
    right = gaps.weighted(safety.p * task, dv.kl(safety.P, world.capability.P))
    right += gaps.weighted(safety.p * proxy, dv.kl(safety.P, world.training_safety.P))
    return loss_constraint.gaps(world, lam).safety, right


@theorem(
    "T6c",
    title="limit and first-order approach",
    statement=r"G_s(\lambda)=\Phi-\Gamma/\lambda+O(\lambda^{-2}),\qquad \Gamma=\sum_x\tfrac{p_sp_f}{\hat p_s}"
    r"\Big(E_{P_s}\Big[\tfrac{P_f}{\hat P_s}\Big]-1\Big)",
    family=FULL,
    parts=("tends to the mismatch", "at the rate Γ/λ"),
    relation="==",
    assumptions=(draw.COVERED, draw.FULL_PROXY),
    without={
        "proxy covers": lambda: AtPenalty(_uncovered(), jnp.float64(1.0)),
        "full-support proxy": "where the proxy rules out what the safety data contain, Φ is infinite; ruling out other"
        " responses changes nothing",
    },
    makes_precise=SIMILARITY,
    tolerance=LIMIT,
)
def a_large_penalty_leaves_the_mismatch(instance: AtPenalty) -> Sides:
    """However large the penalty, what remains is the mismatch of the proxy, approached as 1/λ from either side."""
    world, far = instance.world, _far(instance.world)
    return (
        jnp.stack([loss_constraint.gaps(world, far).safety, far * _below_the_limit(world, far)]),
        jnp.stack([world.proxy_mismatch, loss_constraint.first_order_approach(world)]),
    )


@theorem(
    "T6d",
    title="lower bound at every penalty",
    statement=r"G_s(\lambda)\ge2E_{p_s}\big[(\mathrm{TV}(P_s,\hat P_s)-\hat w\,\mathrm{TV}(P_f,\hat P_s))_+^2\big]",
    family=COVERING,
    relation=">=",
    assumptions=(draw.COVERED,),
    without={
        "proxy covers": "where the proxy has no weight ŵ is 1 and M̂ is P_f: the triangle inequality still gives it"
    },
    tight=Tight(lambda: AtPenalty(_nothing_shared(1e-6), jnp.float64(1.0))),
    makes_precise=SIMILARITY,
)
def mismatch_beyond_the_mixture_is_lost(instance: AtPenalty) -> Sides:
    """Where the proxy's answers are further from the right ones than the task can pull them, safety is lost."""
    world, lam = instance.world, instance.lam
    task, _ = loss_constraint.mixture_weights(world, lam)
    seen = world.training_safety.P
    apart = dv.total_variation(world.safety.P, seen) - task * dv.total_variation(world.capability.P, seen)
    floor = 2 * jnp.sum(world.safety.p * jnp.maximum(apart, 0) ** 2)
    return loss_constraint.gaps(world, lam).safety, floor


@theorem(
    "T6e",
    title="the mismatch is of the order of TV squared",
    statement=r"2E_{p_s}\mathrm{TV}(P_s,\hat P_s)^2\le\Phi\le E_{p_s}\log\!\big(1+2\mathrm{TV}^2/\pi_{\min}(x)\big)\le"
    r"2E_{p_s}[\mathrm{TV}^2/\pi_{\min}],\qquad\pi_{\min}(x)=\min_y\hat P_s(y|x)",
    family=FULL,
    parts=("from below", "from above", "simpler"),
    assumptions=(draw.FULL_PROXY,),
    without={"full-support proxy": "with π_min = 0 the upper bounds are infinite; the lower one needs nothing"},
    tight=Tight(lambda: AtPenalty(_nothing_shared(1e-6), jnp.float64(1.0))),
    makes_precise=SIMILARITY,
)
def mismatch_is_quadratic_in_distance(instance: AtPenalty) -> Sides:
    """A proxy half as far from the safety data leaves about a quarter of the gap."""
    world = instance.world
    p_s, seen = world.safety.p, world.training_safety.P
    squared = dv.total_variation(world.safety.P, seen) ** 2
    bound = 2 * squared / jnp.min(seen, axis=-1)
    above = gaps.weighted(p_s, jnp.log1p(bound))
    mismatch = world.proxy_mismatch
    return (
        jnp.stack([2 * jnp.sum(p_s * squared), mismatch, above]),
        jnp.stack([mismatch, above, gaps.weighted(p_s, bound)]),
    )


@theorem(
    "T6f",
    title="regret to the true frontier",
    statement=r"0\le G_f(\hat M_\lambda)+\lambda G_s(\hat M_\lambda)-V(\lambda)=\sum_xm_\lambda\mathrm{KL}(M_\lambda\|\hat M_\lambda)"
    r"\le\lambda\,\mathrm{KL}(D_s\|\hat D_s)",
    family=COVERING,
    parts=("never below the frontier", "the surplus", "by similarity"),
    relation=("<=", "==", "<="),
    assumptions=(draw.COVERED,),
    without={"proxy covers": "without it the bound is infinite"},
    tight=Tight(lambda: AtPenalty(_nothing_shared(0.1), jnp.float64(1.0))),
    makes_precise=SIMILARITY,
    tolerance=IDENTITY,
)
def a_proxy_costs_at_most_its_divergence(instance: AtPenalty) -> Sides:
    """Fine-tuning against a proxy ends at most λ KL(D_s‖D̂_s) above the best that the original data would have allowed."""
    world, lam = instance.world, instance.lam
    at = loss_constraint.gaps(world, lam)
    paid, least = at.capability + lam * at.safety, loss_constraint.value(world.with_exact_proxy(), lam)
    surplus = _surplus(world, lam)
    return jnp.stack([least, paid, surplus]), jnp.stack([paid, least + surplus, lam * world.proxy_kl])


@theorem(
    "T6f-same",
    title="regret when the proxy asks the same",
    statement=r"\hat p_s=p_s\ \Longrightarrow\ 2\sum_xm_\lambda(1-w_\lambda)^2\mathrm{TV}(P_s,\hat P_s)^2\le"
    r"\sum_xm_\lambda\mathrm{KL}(M_\lambda\|\hat M_\lambda)\le\lambda\Phi",
    family=SAME_CONTEXTS,
    parts=("at least", "at most"),
    assumptions=(draw.SAME_PROXY_CONTEXTS,),
    without={"proxy asks the same": lambda: AtPenalty(_right_answers_wrong_questions(), jnp.float64(1.0))},
    tight=Tight(lambda: AtPenalty(_nothing_shared(0.1), jnp.float64(1.0))),
    makes_precise=SIMILARITY,
)
def the_regret_is_of_the_order_of_the_mismatch(instance: AtPenalty) -> Sides:
    """If the proxy holds the same prompts, what it costs lies between two multiples of how wrongly it answers them."""
    world, lam = instance.world, instance.lam
    _, safety = loss_constraint.mixture_weights(world.with_exact_proxy(), lam)
    apart = dv.total_variation(world.safety.P, world.training_safety.P)
    # m (1-w)² = λ p_s (1-w).
    floor = 2 * lam * jnp.sum(world.safety.p * safety * apart**2)
    surplus = _surplus(world, lam)
    return jnp.stack([floor, surplus]), jnp.stack([surplus, lam * world.proxy_mismatch])


@theorem(
    "T6g",
    title="over-penalising",
    statement=r"\Gamma>0\ \Longrightarrow\ G_s(\lambda)\text{ rises to }\Phi\text{ from below as }\lambda\to\infty,\text{ so }"
    r"\min_\lambda G_s<\Phi;\text{ where it rises it is Pareto-dominated, as }G_f\text{ does not fall}",
    family=OVER_PENALISING,
    parts=("below the limit", "rising", "dominated"),
    relation=(">=", ">=", "<="),
    assumptions=(draw.COVERED, draw.FULL_PROXY, draw.RISING_LIMIT),
    without={
        "proxy covers": "the limit is another then: T6c",
        "full-support proxy": "where the proxy rules out what the safety data contain, Φ is infinite: T6c",
        "Γ > 0": lambda: AtPenalty(generate.late_minimum(), jnp.float64(1.0)),
    },
    makes_precise=NOT_MONOTONE,
)
def a_large_penalty_can_raise_the_safety_gap(instance: AtPenalty) -> Sides:
    """If the task pulls the proxy's answers towards the right ones, too large a penalty loses safety and capability both.

    The first two sides are λ(Φ - G_s) and λ² dG_s/dλ in units of |Γ|, of which each tends to one.
    """
    world = instance.world
    beyond = 2 * jnp.maximum(_far(world), instance.lam)
    unit = jnp.abs(loss_constraint.first_order_approach(world)) / beyond
    below = _below_the_limit(world, beyond)
    rise = -jax.grad(lambda s: _below_the_limit(world, jnp.exp(s)))(jnp.log(beyond))
    capability = loss_constraint.gaps(world, jnp.stack([instance.lam, beyond])).capability
    half = jnp.full_like(unit, 0.5)
    return jnp.stack([over(below, unit), over(rise, unit), capability[0]]), jnp.stack([half, half, capability[1]])


@theorem(
    "T6g-converse",
    title="when over-penalising is impossible",
    statement=r"p_f/\hat p_s=r\text{ on supp }p_s\ \Longrightarrow\ G_s(\lambda)\ge\Phi-\frac{\Gamma}{r+\lambda}\quad "
    r"\text{(so }\Gamma\le0\Rightarrow G_s\ge\Phi\text{ at every }\lambda)",
    family=CONSTANT_RATIO,
    relation=">=",
    assumptions=(draw.COVERED, draw.FULL_PROXY, draw.CONSTANT_RATIO),
    without={
        "proxy covers": "r would be infinite",
        "full-support proxy": "where the proxy rules out what the safety data contain, Φ is infinite: T6c",
        "constant ratio": lambda: AtPenalty(generate.late_minimum(), jnp.float64(0.19388)),
    },
    tight=Tight(lambda: AtPenalty(generate.over_penalised(), jnp.float64(1e6))),
)
def with_one_ratio_the_sign_of_gamma_decides(instance: AtPenalty) -> Sides:
    """If task and proxy share their prompts alike, the safety gap can go below its limit only when it ends rising."""
    world, lam = instance.world, instance.lam
    ratio = jnp.max(over(world.capability.p, world.training_safety.p), where=world.safety.p > 0, initial=0)
    floor = world.proxy_mismatch - loss_constraint.first_order_approach(world) / (ratio + lam)
    return loss_constraint.gaps(world, lam).safety, floor


@theorem(
    "T6g-late",
    title="a better penalty although the gap falls to its limit",
    statement=r"\Gamma<0\text{ and yet }G_s(\lambda^*)<\Phi\text{ at a small }\lambda^*:\ \Gamma>0\text{ is sufficient, not necessary}",
    family=LATE_MINIMUM,
    parts=("Γ < 0", "below the limit", "below its value at 0", "above the limit later"),
    makes_precise=NOT_MONOTONE,
)
def the_best_penalty_can_be_far_from_the_limit(instance: AtPenalty) -> Sides:
    """The safety gap can fall to its limit at last and still have been lower long before: search every penalty."""
    world, lam = instance.world, instance.lam
    at = loss_constraint.gaps(world, jnp.stack([jnp.zeros_like(lam), lam, 50 * lam])).safety
    limit = world.proxy_mismatch
    return (
        jnp.stack([loss_constraint.first_order_approach(world), at[1], at[1], limit]),
        jnp.stack([jnp.zeros_like(lam), limit, at[0], at[2]]),
    )


@theorem(
    "T6g-two",
    title="two minima",
    statement=r"G_s(\lambda)\text{ can have two minima with a ridge between: }G_s(.13\lambda)<G_s(\lambda)>G_s(7.7\lambda),"
    r"\ \lambda\approx.199",
    family=TWO_MINIMA,
    parts=("falls before", "falls after"),
    makes_precise=NOT_MONOTONE,
)
def the_safety_gap_can_have_two_minima(instance: AtPenalty) -> Sides:
    """Following the safety gap downhill from one penalty can end at the wrong one."""
    world, lam = instance.world, instance.lam
    at = loss_constraint.gaps(world, jnp.stack([0.13 * lam, lam, 7.7 * lam])).safety
    return jnp.stack([at[0], at[2]]), jnp.stack([at[1], at[1]])


# --- what only these theorems need ------------------------------------------------------------------------------


def _surplus(world: World, lam: Array) -> Array:
    r"""$\sum_xm_\lambda\mathrm{KL}(M_\lambda\|\hat M_\lambda)$, from the difference of the two mixtures."""
    exact = world.with_exact_proxy()
    (task, safety), (task_hat, proxy) = (loss_constraint.mixture_weights(w, lam) for w in (exact, world))
    P_s, P_f, seen = world.safety.P, world.capability.P, world.training_safety.P
    moved = jnp.where(task < 0.5, task_hat - task, safety - proxy)[:, None]
    best = task[:, None] * P_f + safety[:, None] * P_s
    reached = task_hat[:, None] * P_f + proxy[:, None] * seen
    D = moved * (P_f - P_s) + proxy[:, None] * (seen - P_s)
    mass = world.capability.p + lam * world.safety.p
    return gaps.weighted(mass, jnp.sum(dv.kl_terms(best, reached, D), axis=-1))


def _below_the_limit(world: World, lam: Array) -> Array:
    r"""$\Phi-G_s(\lambda)$ without cancellation, for a proxy of full support."""
    task, _ = loss_constraint.mixture_weights(world, lam)
    P_s, P_f, seen = world.safety.P, world.capability.P, world.training_safety.P
    change = jnp.where(world.safety.p > 0, task, 0)[:, None] * over(P_f - seen, seen)
    # Σ P_s log(M̂/P̂_s), with Σ (M̂ - P̂_s) = 0 taken out of it.
    terms = (P_s - seen) * jnp.log1p(change) - seen * dv.x_minus_log1p(change)
    return gaps.weighted(world.safety.p, jnp.sum(terms, axis=-1))


def _far(world: World) -> Array:
    """A penalty so large that the next term of T6c is below 1e-5 of the one in Γ, and that one of Φ."""
    safety, seen = world.safety, world.training_safety
    ratio = over(world.capability.p, seen.p)
    reach = 1 + jnp.max(over(world.capability.P, seen.P), axis=-1)
    second = jnp.sum(safety.p * (ratio * reach) ** 2)
    first = jnp.abs(loss_constraint.first_order_approach(world))
    sizes = jnp.stack([over(second, first), over(first, world.proxy_mismatch), jnp.max(ratio * reach), jnp.float64(1)])
    return jax.lax.stop_gradient(1e6 * jnp.max(sizes))


def _task_apart_from_both() -> World:
    """One context; the task wants a third response that neither safety data nor proxy contain."""
    rows = [[[0.5, 0.5, 0.0]], [[0.0, 0.0, 1.0]], [[0.9, 0.1, 0.0]]]
    safety, capability, proxy = (DataLaw([1.0], row) for row in rows)
    return World(safety, capability, proxy)


def _nothing_shared(apart: float) -> World:
    """No context is shared; where the safety data are, the proxy answers wrongly by `apart`."""
    even, off = [0.5, 0.5], [0.5 + apart, 0.5 - apart]
    return World(DataLaw([1.0, 0.0], [even, even]), DataLaw([0.0, 1.0], [even, even]), DataLaw([1.0, 0.0], [off, even]))


def _uncovered() -> World:
    """The proxy misses a context that safety data and task share, and in which they differ."""
    safety = DataLaw([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]])
    task = DataLaw([0.5, 0.5], [[0.5, 0.5], [0.1, 0.9]])
    return World(safety, task, DataLaw([1.0, 0.0], [[0.6, 0.4], [0.5, 0.5]]))


def _right_answers_wrong_questions() -> World:
    """The proxy answers as the safety data do and asks otherwise: Φ = 0, and it costs something all the same."""
    rows = [[0.8, 0.2], [0.5, 0.5]]
    task = DataLaw([0.5, 0.5], [[0.2, 0.8], [0.5, 0.5]])
    return World(DataLaw([0.5, 0.5], rows), task, DataLaw([0.1, 0.9], rows))
