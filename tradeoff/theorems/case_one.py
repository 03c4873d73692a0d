"""T1 to T4: Case I in the rich class. The minimiser, the exact gaps, and bounds on them."""

import jax.numpy as jnp
from jaxtyping import Array

from tradeoff import divergences as dv
from tradeoff import gaps, loss_constraint
from tradeoff.theorems import instances as draw
from tradeoff.theorems._expressions import log0, log_share, log_slope, over, pooled_entropy, silent
from tradeoff.theorems.claim import Sides, Tight, theorem
from tradeoff.theorems.instances import AtPenalty, WithPolicy
from tradeoff.tolerances import IDENTITY, LIMIT
from tradeoff.worlds.world import DataLaw, World

WORLDS = draw.at_penalty()
PROXIED = draw.at_penalty(proxy="covering")
POLICIES = draw.with_policy(lost_mass=True)
PROXIED_POLICIES = draw.with_policy(proxy="covering")
ESCAPING = draw.at_penalty(responses="escaping")
FULL = draw.at_penalty(full_support=True)

LAMBDA_UP = "raising λ lowers the safety gap and raises the capability gap"
OVERLAP = "more context overlap means less safety after fine-tuning, worst when target outputs differ"


# --- T1, T2: the minimiser and its gaps -------------------------------------------------------------------------


@theorem(
    "T1",
    title="the minimiser is a mixture",
    statement=r"J_\lambda(P)=L_{D_f}(P)+\lambda L_{\hat D_s}(P)\ \ge\ J_\lambda(\hat M_\lambda)=\sum_x\hat m_\lambda H(\hat M_\lambda)",
    family=PROXIED_POLICIES,
    parts=("least value", "no policy is better"),
    relation=("==", "<="),
    assumptions=(draw.PENALTY_INSIDE,),
    without={
        "finite penalty": "at λ = 0 and ∞ the objective is L_f or the proxy loss alone; the limits are minimisers too"
    },
    tolerance=IDENTITY,
)
def minimiser_is_a_mixture(instance: WithPolicy) -> Sides:
    """The best policy for task plus penalty answers each prompt as the pooled data do, in proportion to their weights."""
    world, lam = instance.world, instance.lam
    best = loss_constraint.optimal_policy(world, lam)
    mass = world.capability.p + lam * world.training_safety.p
    entropy = jnp.sum(silent(jnp.exp(best), best), axis=-1)
    least = _objective(world, lam, best)
    return (
        jnp.stack([least, least]),
        jnp.stack([-jnp.sum(mass * entropy), _objective(world, lam, instance.log_policy)]),
    )


@theorem(
    "T2a",
    title="exact gaps",
    statement=r"G_s(\lambda)=\sum_xp_s\,\mathrm{KL}(P_s\|\hat M_\lambda),\qquad G_f(\lambda)=\sum_xp_f\,\mathrm{KL}(P_f\|\hat M_\lambda)",
    family=PROXIED,
    parts=("safety", "capability"),
    relation="==",
    tolerance=IDENTITY,
)
def gaps_are_divergences_to_the_mixture(instance: AtPenalty) -> Sides:
    """Both gaps at the optimum are divergences from what the data say to what the mixture says."""
    world, at = instance.world, loss_constraint.gaps(instance.world, instance.lam)
    best = loss_constraint.optimal_policy(world, instance.lam)
    plain = [
        jnp.sum(silent(law.p[:, None] * law.P, -best)) + jnp.sum(law.p * jnp.sum(silent(law.P, log0(law.P)), axis=-1))
        for law in (world.safety, world.capability)
    ]
    return jnp.stack([at.safety, at.capability]), jnp.stack(plain)


@theorem(
    "T2b",
    title="compensation identity",
    statement=r"G_f(P)+\lambda G_s(P)=V(\lambda)+\sum_xm_\lambda\,\mathrm{KL}(M_\lambda\|P)\quad\text{for every policy }P",
    family=POLICIES,
    relation="==",
    tolerance=IDENTITY,
)
def every_policy_pays_the_value_and_its_surplus(instance: WithPolicy) -> Sides:
    """What any policy pays is the least possible plus its divergence from the best policy."""
    world, lam, policy = instance.world, instance.lam, instance.log_policy
    return (
        gaps.weighted_sum(world, policy, lam),
        loss_constraint.value(world, lam) + gaps.surplus(world, policy, lam),
    )


@theorem(
    "T2c",
    title="envelope and monotonicity",
    statement=r"V'(\lambda)=G_s(\lambda),\quad \tfrac{dG_f}{d\lambda}=-\lambda\tfrac{dG_s}{d\lambda},\quad G_s\text{ non-increasing},\ G_f\text{ non-decreasing}",
    family=PROXIED,
    parts=("V' = G_s", "dG_f = -λ dG_s", "G_s falls", "G_f rises"),
    relation=("==", "==", "<=", ">="),
    makes_precise=LAMBDA_UP,
    tolerance=IDENTITY,
)
def raising_the_penalty_trades_capability_for_proxy_safety(instance: AtPenalty) -> Sides:
    """A higher penalty lowers the safety gap that the penalty sees and raises the capability gap, at the rate λ."""
    world, lam = instance.world, instance.lam
    slope_value = log_slope(loss_constraint.value, world, lam)
    slope_safety = log_slope(loss_constraint.proxy_gap, world, lam)
    slope_capability = log_slope(lambda w, s: loss_constraint.gaps(w, s).capability, world, lam)
    zero = jnp.zeros_like(lam)
    return (
        jnp.stack([slope_value, slope_capability, slope_safety, slope_capability]),
        jnp.stack([lam * loss_constraint.proxy_gap(world, lam), -lam * slope_safety, zero, zero]),
    )


@theorem(
    "T2d",
    title="curvature of the frontier",
    statement=r"\frac{dG_s}{d\lambda}=V''(\lambda)=-\sum_x\frac{p_f^2p_s^2}{m_\lambda^3}\sum_y\frac{(P_s-P_f)^2}{M_\lambda}",
    family=WORLDS,
    relation="==",
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": lambda: AtPenalty(_over_penalised(), jnp.float64(2.0))},
    tolerance=IDENTITY,
)
def safety_gap_falls_at_the_rate_of_conflict(instance: AtPenalty) -> Sides:
    """How fast a penalty buys safety is a chi-squared conflict, weighted where both sides have weight."""
    world, lam = instance.world, instance.lam
    p_s, D = world.safety.p, world.safety.P - world.capability.P
    mixture = jnp.exp(loss_constraint.optimal_policy(world, lam))
    chi = jnp.sum(jnp.where(mixture > 0, D**2 / jnp.where(mixture > 0, mixture, 1), 0), axis=-1)
    task, safety = loss_constraint.mixture_weights(world, lam)
    # λ p_f²p_s²/m³ = p_s w²(1-w): every factor keeps its relative precision.
    return log_slope(lambda w, s: loss_constraint.gaps(w, s).safety, world, lam), -jnp.sum(p_s * task**2 * safety * chi)


# --- T3: bounds on the weighted sum -----------------------------------------------------------------------------


@theorem(
    "T3",
    title="two-sided bounds on the value",
    statement=r"2\lambda\sum_O\tfrac{p_fp_s}{m_\lambda}\delta^2\le V(\lambda)\le\sum_Om_\lambda\delta h(w_\lambda)\le(\Delta_f+\lambda\Delta_s)\,h\!\left(\tfrac{\Delta_f}{\Delta_f+\lambda\Delta_s}\right),\quad V(\lambda)\le2\ln2\sqrt\lambda\sum_x\sqrt{p_fp_s}\,\delta",
    family=WORLDS,
    parts=("Pinsker below", "conflict above", "pooled conflict", "Bhattacharyya overlap", "JSD below"),
    assumptions=(draw.EXACT_PROXY,),
    without={
        "exact proxy": "with a proxy the statement holds for the value that the penalty sees, with hats on p_s, P_s and δ"
    },
    tight=Tight(lambda: _disjoint_at(1.0)),
    makes_precise=OVERLAP,
)
def value_lies_between_conflict_weighted_overlaps(instance: AtPenalty) -> Sides:
    """The least total price is pinned from both sides by how much contexts overlap and how much answers differ there."""
    world, lam = instance.world, instance.lam
    p_f, p_s, delta = world.capability.p, world.safety.p, world.conflict
    task, _ = loss_constraint.mixture_weights(world, lam)
    value = loss_constraint.value(world, lam)
    above = jnp.sum(delta * pooled_entropy(p_f, lam * p_s))
    pooled = pooled_entropy(world.conflict_capability, lam * world.conflict_safety)
    overlap = 2 * jnp.log(2.0) * jnp.sqrt(lam) * jnp.sum(dv.root(p_f * p_s) * delta)
    halves = jnp.sum(p_s * dv.binary_kl((1 + delta) / 2, jnp.full_like(delta, 0.5)))
    return (
        jnp.stack([2 * lam * jnp.sum(task * p_s * delta**2), value, above, value, halves]),
        jnp.stack(
            [value, above, pooled, overlap, jnp.sum(p_s * dv.jensen_shannon(world.safety.P, world.capability.P))]
        ),
    )


# --- T4: bounds on each gap -------------------------------------------------------------------------------------


@theorem(
    "T4a",
    title="bounds on each gap by conflict",
    statement=r"G_s\le\sum_Op_s\delta\log(1+\tfrac{p_f}{\lambda p_s})\le\Delta_s\log(1+\tfrac{\Delta_f}{\lambda\Delta_s})\le\tfrac{\Delta_f}\lambda,\qquad G_f\le\sum_Op_f\delta\log(1+\tfrac{\lambda p_s}{p_f})\le\Delta_f\log(1+\tfrac{\lambda\Delta_s}{\Delta_f})\le\lambda\Delta_s",
    family=WORLDS,
    parts=("G_s by context", "G_s pooled", "G_s rate", "G_f by context", "G_f pooled", "G_f rate"),
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": lambda: AtPenalty(_over_penalised(), jnp.float64(100.0))},
    tight=Tight(lambda: _disjoint_at(1.0)),
    makes_precise=OVERLAP,
)
def each_gap_is_bounded_by_conflict(instance: AtPenalty) -> Sides:
    """Neither gap can be larger than the conflict on shared contexts allows; safety falls at least as fast as 1/λ."""
    world, lam = instance.world, instance.lam
    at = loss_constraint.gaps(world, lam)
    p_f, p_s, delta = world.capability.p, world.safety.p, world.conflict
    Delta_f, Delta_s = world.conflict_capability, world.conflict_safety
    safety = [at.safety, jnp.sum(delta * log_share(p_s, p_f / lam)), log_share(Delta_s, Delta_f / lam), Delta_f / lam]
    capability = [
        at.capability,
        jnp.sum(delta * log_share(p_f, lam * p_s)),
        log_share(Delta_f, lam * Delta_s),
        lam * Delta_s,
    ]
    return jnp.stack(safety[:-1] + capability[:-1]), jnp.stack(safety[1:] + capability[1:])


@theorem(
    "T4b",
    title="bounds on each gap by divergences",
    statement=r"G_s\le\min\{E_{p_s}[1_Ow\,\mathrm{KL}(P_s\|P_f)],\ \tfrac1{4\lambda}E_{p_f}[1_O\mathrm{KL}(P_f\|P_s)]\},\quad G_f\le\min\{E_{p_f}[1_O(1-w)\mathrm{KL}(P_f\|P_s)],\ \tfrac\lambda4E_{p_s}[1_O\mathrm{KL}(P_s\|P_f)]\}",
    family=WORLDS,
    parts=("G_s by weight", "G_s by rate", "G_f by weight", "G_f by rate"),
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": lambda: AtPenalty(_over_penalised(), jnp.float64(100.0))},
)
def each_gap_is_bounded_by_divergences(instance: AtPenalty) -> Sides:
    """Each gap is at most the divergence between the two answers, shared out by weight or divided by four penalties."""
    # The quarter: in one context put v = 1 - w, r = P_f/P_s and f(r) = (w/4) r log r + v log(v + w r). The claim is
    # E f(r) >= 0 under P_s, where E r = 1 and f(1) = 0, and f is convex: f'' = w/(4r) - v w²/(v + w r)² >= 0 because
    # (v + w r)² >= 4 v w r. Jensen. No larger factor will do: the two sides of the last step meet at v = w r.
    world, lam = instance.world, instance.lam
    at = loss_constraint.gaps(world, lam)
    task, safety = loss_constraint.mixture_weights(world, lam)
    s, f = world.safety, world.capability
    s_to_f, f_to_s = dv.kl(s.P, f.P), dv.kl(f.P, s.P)
    bounds = [
        gaps.weighted(jnp.where(world.shared, weight, 0), divergence)
        for weight, divergence in (
            (s.p * task, s_to_f),
            (f.p / (4 * lam), f_to_s),
            (f.p * safety, f_to_s),
            (lam * s.p / 4, s_to_f),
        )
    ]
    return jnp.stack([at.safety, at.safety, at.capability, at.capability]), jnp.stack(bounds)


@theorem(
    "T4c",
    title="lower bounds on each gap",
    statement=r"G_s\ge\sum p_s\max\{2w^2\delta^2,-\log(1-w^2\delta^2)\},\quad G_s\ge\sum_xp_s\,\mathrm{kl}(a\|a-w\delta),\ a=P_s(\{P_s>P_f\}|x)",
    family=WORLDS,
    parts=("G_s by TV", "G_f by TV", "G_s by one test", "G_f by one test"),
    relation=">=",
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": lambda: AtPenalty(_over_penalised(), jnp.float64(1.0))},
    tight=Tight(lambda: _disjoint_at(1.0)),
    makes_precise=OVERLAP,
)
def each_gap_has_a_floor(instance: AtPenalty) -> Sides:
    """Where answers differ on a shared context, some of both gaps is certain."""
    world, lam = instance.world, instance.lam
    at = loss_constraint.gaps(world, lam)
    task, safety = loss_constraint.mixture_weights(world, lam)
    floors, tests = [], []
    sides = ((world.safety, world.capability, task, safety), (world.capability, world.safety, safety, task))
    for own, other, w, rest in sides:
        squared = jnp.where(own.p > 0, w * dv.total_variation(own.P, other.P), 0) ** 2
        floors.append(gaps.weighted(own.p, jnp.maximum(2 * squared, -jnp.log1p(-jnp.minimum(squared, 1)))))
        likelier = own.P > other.P
        terms = jnp.zeros_like(w)
        for event in (likelier, ~likelier):
            a, b = (jnp.sum(jnp.where(event, law.P, 0), axis=-1) for law in (own, other))
            terms += dv.kl_terms(a, rest * a + w * b, w * (b - a))
        tests.append(gaps.weighted(own.p, terms))
    left = jnp.stack([at.safety, at.capability])
    return jnp.concatenate([left, left]), jnp.stack(floors + tests)


@theorem(
    "T4d",
    title="rates under full support",
    statement=r"\lambda\to\infty:\ G_s\sim\tfrac1{2\lambda^2}\sum_O\tfrac{p_f^2}{p_s}\chi^2(P_f\|P_s),\ G_f\to\sum_Op_f\mathrm{KL}(P_f\|P_s);\qquad\lambda\to0\text{ by symmetry}",
    family=FULL,
    parts=("G_s falls as λ^-2", "G_f tends to its limit", "G_f falls as λ^2", "G_s tends to its limit"),
    relation="==",
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": "with a proxy the limit is Φ and not 0: T6(c)"},
    makes_precise=LAMBDA_UP,
    tolerance=LIMIT,
)
def gaps_close_quadratically_under_full_support(instance: AtPenalty) -> Sides:
    """If the safety data rule out nothing that the task needs, a large penalty closes the safety gap as λ^-2."""
    world = instance.world
    s, f = world.safety, world.capability
    far = _extreme(world)
    high, low = loss_constraint.gaps(world, far), loss_constraint.gaps(world, 1 / far)
    return (
        jnp.stack([2 * far**2 * high.safety, high.capability, 2 * far**2 * low.capability, low.safety]),
        jnp.stack([
            jnp.sum(over(f.p**2, s.p) * dv.chi_squared(f.P, s.P)),
            jnp.sum(jnp.where(world.shared, f.p * dv.kl(f.P, s.P), 0)),
            jnp.sum(over(s.p**2, f.p) * dv.chi_squared(s.P, f.P)),
            jnp.sum(jnp.where(world.shared, s.p * dv.kl(s.P, f.P), 0)),
        ]),
    )  # fmt: skip


@theorem(
    "T4d-escape",
    title="rates when supports escape",
    statement=r"\lambda G_s(\lambda)\to E_{p_f}[1_OP_f(\mathrm{supp}(P_s)^c|x)]\ (\lambda\to\infty),\qquad G_f(\lambda)/\lambda\to E_{p_s}[1_OP_s(\mathrm{supp}(P_f)^c|x)]\ (\lambda\to0)",
    family=ESCAPING,
    parts=("G_s falls as 1/λ", "G_f falls as λ"),
    relation="==",
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": "with a proxy the limit is Φ and not 0: T6(c)"},
    tolerance=LIMIT,
)
def gaps_close_linearly_when_supports_escape(instance: AtPenalty) -> Sides:
    """If the task needs what the safety data rule out, a large penalty closes the safety gap only as 1/λ."""
    world = instance.world
    s, f = world.safety, world.capability
    escaping = [
        jnp.sum(jnp.where(world.shared, own.p * jnp.sum(jnp.where(other.P > 0, 0, own.P), axis=-1), 0))
        for own, other in ((f, s), (s, f))
    ]
    far = _extreme(world) ** 2 / jnp.minimum(*escaping)
    high, low = loss_constraint.gaps(world, far), loss_constraint.gaps(world, 1 / far)
    return jnp.stack([far * high.safety, far * low.capability]), jnp.stack(escaping)


# --- what only these theorems need ------------------------------------------------------------------------------


def _objective(world: World, lam: Array, log_policy: Array) -> Array:
    pooled = (world.capability.p[:, None] * world.capability.P) + lam * (
        world.training_safety.p[:, None] * world.training_safety.P
    )
    return jnp.sum(silent(pooled, -log_policy))


def _extreme(world: World) -> Array:
    """A penalty so large that every next term of an expansion is below 1e-5 of the first."""
    s, f = world.safety, world.capability
    contexts = jnp.maximum(jnp.max(over(f.p, s.p)), jnp.max(over(s.p, f.p)))
    responses = jnp.maximum(jnp.max(over(f.P, s.P)), jnp.max(over(s.P, f.P)))
    return 1e6 * jnp.maximum(contexts, 1) * jnp.maximum(responses, 1) ** 2


def _disjoint_at(lam: float) -> AtPenalty:
    """One context, two responses, no agreement: gaps log(1 + 1/λ) and log(1 + λ)."""
    return AtPenalty(World(DataLaw([1.0], [[1.0, 0.0]]), DataLaw([1.0], [[0.0, 1.0]])), jnp.float64(lam))


def _over_penalised() -> World:
    return World(DataLaw([1.0], [[0.5, 0.5]]), DataLaw([1.0], [[0.1, 0.9]]), DataLaw([1.0], [[0.9, 0.1]]))
