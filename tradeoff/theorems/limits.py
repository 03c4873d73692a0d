"""T7 and T8: the sweep over penalties is the Pareto frontier, and no policy of any kind passes it or its simple bounds."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff import divergences as dv
from tradeoff import frontier, gaps, loss_constraint
from tradeoff.theorems import instances as draw
from tradeoff.theorems._expressions import over
from tradeoff.theorems.claim import Sides, Tight, theorem
from tradeoff.theorems.instances import AtPenalty, PerContext, WithPolicy, WithWeights
from tradeoff.tolerances import IDENTITY
from tradeoff.worlds import generate
from tradeoff.worlds.world import DataLaw, World

WORLDS = draw.at_penalty()
POLICIES = draw.with_policy(lost_mass=True)
PER_CONTEXT = draw.per_context()
WEIGHTED = draw.with_weights()
OPPOSED = draw.with_policy(lost_mass=True, contexts="same", responses="disjoint")

LIMITS = "fundamental limits of the safety-capability trade-off"
LAMBDA = "the penalty λ moves the model along the safety-capability curve"


# --- T7: the sweep is the frontier ------------------------------------------------------------------------------


@theorem(
    "T7",
    title="the sweep over penalties is the Pareto frontier",
    statement=r"\text{for every policy }P,\ \lambda=\lambda(G_s(P)):\quad G_s(\lambda)\le G_s(P),\quad G_f(\lambda)\le G_f(P);\qquad "
    r"G_f(P)+\mu\,G_s(P)\ge G_f(\mu)+\mu\,G_s(\mu)\text{ for every }\mu",
    family=POLICIES,
    parts=("as safe", "as capable", "supported"),
    assumptions=(draw.EXACT_PROXY,),
    without={
        "exact proxy": "with a proxy the frontier is that of the original safety data; the sweep is above it by T6f"
    },
    tight=Tight(lambda: _sweep_policy(1.0)),
    makes_precise=LIMITS,
)
def some_penalty_is_at_least_as_good_as_any_policy(instance: WithPolicy) -> Sides:
    """Whatever the policy, some penalty gives at least its safety and at least its capability; no sweep point is dominated."""
    world, lam, policy = instance.world, instance.lam, instance.log_policy
    safety, capability = gaps.safety_gap(world, policy), gaps.capability_gap(world, policy)
    at = loss_constraint.gaps(world, loss_constraint.penalty_for(world, safety_gap=safety))
    paid = gaps.weighted_sum(world, policy, lam)
    return (
        jnp.stack([at.safety, at.capability, loss_constraint.value(world, lam)]),
        jnp.stack([safety, capability, paid]),
    )


@theorem(
    "T7-ends",
    title="the ends of the frontier",
    statement=r"(G_s,G_f)(0)=\big(E_{p_s}[1_O\mathrm{KL}(P_s\|P_f)],0\big),\ (G_s,G_f)(\infty)=\big(0,E_{p_f}[1_O\mathrm{KL}(P_f\|P_s)]\big);"
    r"\ G_f(P)=0\Rightarrow G_s(P)\ge G_s(0),\ G_s(P)=0\Rightarrow G_f(P)\ge G_f(\infty)",
    family=POLICIES,
    parts=("G_s at 0", "G_f at 0", "G_s at ∞", "G_f at ∞", "all capability", "all safety"),
    relation=("==", "==", "==", "==", "<=", "<="),
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": lambda: _proxied_policy()},
    tight=Tight(lambda: _sweep_policy(float("inf"))),
    makes_precise=LAMBDA,
    tolerance=IDENTITY,
)
def the_ends_are_perfect_on_one_side(instance: WithPolicy) -> Sides:
    """At the ends one gap is zero and the other is the price of perfection, which no perfect policy can undercut."""
    world, s, f = instance.world, instance.world.safety, instance.world.capability
    at = loss_constraint.gaps(world, jnp.array([0.0, jnp.inf]))
    price_s = gaps.weighted(jnp.where(world.shared, s.p, 0), dv.kl(s.P, f.P))
    price_f = gaps.weighted(jnp.where(world.shared, f.p, 0), dv.kl(f.P, s.P))
    capable, safe = (_perfect(own, instance.log_policy) for own in (f, s))
    zero = jnp.zeros_like(price_s)
    return (
        jnp.stack([at.safety[0], at.capability[0], at.safety[1], at.capability[1], price_s, price_f]),
        jnp.stack([price_s, zero, zero, price_f, gaps.safety_gap(world, capable), gaps.capability_gap(world, safe)]),
    )


@theorem(
    "T7-slope",
    title="slope and curvature of the frontier",
    statement=r"\frac{dG_f}{dG_s}=-\lambda,\qquad F''(G_s(\lambda))=\frac1{|V''(\lambda)|},\qquad "
    r"F(a')\ge F(a)-\lambda(a'-a)",
    family=PER_CONTEXT,
    parts=("slope", "curvature", "convex"),
    relation=("==", "==", ">="),
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": lambda: PerContext(generate.over_penalised(), jnp.float64(0.5), jnp.array([100.0]))},
    makes_precise=LAMBDA,
    tolerance=IDENTITY,
)
def the_penalty_is_the_slope(instance: PerContext) -> Sides:
    """The penalty is the exchange rate: how many nats of capability one nat of safety costs there, ever more of them."""
    world, lam = instance.world, instance.lam

    def at(log_lam: Array) -> Array:
        point = loss_constraint.gaps(world, jnp.exp(log_lam))
        return jnp.stack([point.safety, point.capability])

    first = jax.jacfwd(at)
    safety, capability = first(jnp.log(lam))
    safety_2, capability_2 = jax.jacfwd(first)(jnp.log(lam))
    # In the curve's own parameter, log λ: F'' = (G_f'' G_s' - G_f' G_s'') / G_s'^3.
    turning = over(safety_2, -safety) * over(capability, -safety) + over(capability_2, -safety)
    conflict = safety < 0
    p_s, D = world.safety.p, world.safety.P - world.capability.P
    task, rest = loss_constraint.mixture_weights(world, lam)
    mixture = task[:, None] * world.capability.P + rest[:, None] * world.safety.P
    chi = jnp.sum(over(D**2, mixture), axis=-1)
    curvature = over(jnp.sum(p_s * task**2 * rest * chi), lam)
    second = over(turning, -safety)
    here, there = loss_constraint.gaps(world, lam), loss_constraint.gaps(world, instance.lams[0])
    tangent = here.capability - lam * (there.safety - here.safety)
    one = jnp.where(conflict, 1.0, 0.0)
    return (
        jnp.stack([over(capability, -safety), second * curvature, there.capability]),
        jnp.stack([lam * one, one, tangent]),
    )


@theorem(
    "T7-constraint",
    title="the literal loss constraint",
    statement=r"\min\{G_f:G_s\le\tau\}=F(\tau),\ \lambda(\tau)=-F'(\tau);\quad F=0,\ \lambda=0\ \text{for}\ \tau\ge G_s(0+);\quad "
    r"F(0)=E_{p_f}[1_O\mathrm{KL}(P_f\|P_s)],\ \lambda=\infty",
    family=WORLDS,
    parts=("on the sweep", "multiplier against more", "multiplier against less", "F at the ends", "λ at the ends"),
    relation=("==", ">=", ">=", "==", "=="),
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": lambda: AtPenalty(generate.over_penalised(), jnp.float64(100.0))},
    makes_precise="Case I, the alignment loss constraint",
)
def a_constraint_is_a_penalty(instance: AtPenalty) -> Sides:
    """To demand a safety gap of at most τ is to choose the penalty -F'(τ): the two forms of Case I are one."""
    world, lam = instance.world, instance.lam
    at = loss_constraint.gaps(world, jnp.stack([jnp.zeros_like(lam), lam / 4, lam, 4 * lam]))
    free, tau = at.safety[0], at.safety[2]
    # One end for each instance, because a root costs as much as everything else: all safety, or no constraint.
    all_safety = (lam > 1) | jnp.isinf(free)
    multiplier, at_end = loss_constraint.penalty_for(
        world, safety_gap=jnp.stack([tau, jnp.where(all_safety, 0, 2 * jnp.where(all_safety, 0, free))])
    )
    reached = loss_constraint.gaps(world, jnp.stack([multiplier, at_end])).capability
    finite = jnp.where(jnp.isfinite(multiplier), multiplier, 0)
    tangents = at.capability[2] - finite * (at.safety - tau)
    s, f = world.safety, world.capability
    price = gaps.weighted(jnp.where(world.shared, f.p, 0), dv.kl(f.P, s.P))
    end = jnp.where(all_safety & (free > 0), jnp.inf, 0)
    return (
        jnp.stack([reached[0], at.capability[1], at.capability[3], reached[1], at_end]),
        jnp.stack([at.capability[2], tangents[1], tangents[3], jnp.where(all_safety, price, 0), end]),
    )


@theorem(
    "T7-one-penalty",
    title="one penalty for all contexts",
    statement=r"P=M_{\lambda_x}\text{ in context }x\ \Longrightarrow\ G_f(P)+\lambda G_s(P)\ge V(\lambda)+"
    r"2\sum_xm_\lambda(w_\lambda-w_{\lambda_x})^2\delta^2",
    family=PER_CONTEXT,
    relation=">=",
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": "instances have none: the claim is about what the original safety data allow"},
    tight=Tight(lambda: PerContext(generate.golden(), jnp.float64(1.0), jnp.ones(4))),
    makes_precise=LAMBDA,
)
def unequal_penalties_are_dominated(instance: PerContext) -> Sides:
    """Different penalties in different conflicting prompts buy less than one penalty does, by at least this much."""
    world, lam = instance.world, instance.lam
    s, f = world.safety, world.capability
    task, safety = loss_constraint.mixture_weights(world, lam)
    # The weights of all contexts at every penalty, shape (penalty, side, context), and of those each context's own.
    every = jax.vmap(lambda one: jnp.stack(loss_constraint.mixture_weights(world, one)))(instance.lams)
    task_x, safety_x = jnp.sum(every * jnp.eye(every.shape[-1])[:, None, :], axis=0)
    mixture = task_x[:, None] * f.P + safety_x[:, None] * s.P
    paid = gaps.weighted(f.p, jnp.sum(dv.kl_terms(f.P, mixture, safety_x[:, None] * (s.P - f.P)), axis=-1))
    paid += lam * gaps.weighted(s.p, jnp.sum(dv.kl_terms(s.P, mixture, task_x[:, None] * (f.P - s.P)), axis=-1))
    moved = jnp.where(task < 0.5, task_x - task, safety - safety_x)
    extra = 2 * jnp.sum((f.p + lam * s.p) * (moved * world.conflict) ** 2)
    return paid, loss_constraint.value(world, lam) + extra


# --- T8: fundamental limits -------------------------------------------------------------------------------------


@theorem(
    "T8a",
    title="angles bound every policy",
    statement=r"\Psi(c_sG_s(P))+\Psi(c_fG_f(P))\ge E_q[\alpha],\quad \Psi(\tfrac{G_s}\Omega)+\Psi(\tfrac{G_f}\Omega)\ge E_{q}[\alpha]"
    r"\text{ with }q\propto\min(p_s,p_f);\quad \Psi(g)=\arccos e^{-g/2},\ \alpha=\arccos\mathrm{BC}(P_s,P_f)",
    family=WEIGHTED,
    parts=("any q", "q = min"),
    relation=">=",
    assumptions=(draw.SHARED_CONTEXT, draw.WEIGHTS_SHARED),
    without={
        "shared context": "without one no q exists",
        "weights on shared contexts": lambda: _weights_elsewhere(),
    },
    tight=Tight(lambda: _opposed_weighted()),
    makes_precise=LIMITS,
)
def no_policy_is_close_to_both(instance: WithWeights) -> Sides:
    """A policy cannot be close to two answers that are far from each other, whatever computes it."""
    world, q = instance.world, instance.q
    G_s, G_f = gaps.safety_gap(world, instance.log_policy), gaps.capability_gap(world, instance.log_policy)
    angle = dv.bhattacharyya_angle(world.safety.P, world.capability.P)
    arc = frontier.hellinger_arc
    c_s, c_f = (jnp.max(over(q, law.p)) for law in (world.safety, world.capability))
    shared, overlap = jnp.minimum(world.safety.p, world.capability.p), world.overlap
    return (
        jnp.stack([arc(c_s * G_s) + arc(c_f * G_f), arc(G_s / overlap) + arc(G_f / overlap)]),
        jnp.stack([jnp.sum(q * angle), jnp.sum(shared * angle) / overlap]),
    )


@theorem(
    "T8b",
    title="square roots of the gaps",
    statement=r"\sqrt{G_s(P)}+\sqrt{G_f(P)}\ge\sqrt{2/\Omega}\sum_x\min(p_s,p_f)\,D(x),\qquad D=\max(\delta,\sqrt{1-\mathrm{BC}})",
    family=POLICIES,
    relation=">=",
    assumptions=(draw.SHARED_CONTEXT,),
    without={"shared context": "without one Ω = 0 and the bound reads 0"},
    tight=Tight(lambda: _half_way(1e-6)),
    makes_precise=LIMITS,
)
def square_roots_add_up_to_the_distance(instance: WithPolicy) -> Sides:
    """The square roots of the two gaps add up to at least the distance of the answers on shared prompts."""
    world = instance.world
    s, f = world.safety, world.capability
    hellinger = dv.root(jnp.sum((dv.root(s.P) - dv.root(f.P)) ** 2, axis=-1) / 2)
    distance = jnp.maximum(world.conflict, hellinger)
    bound = jnp.sqrt(2 / world.overlap) * jnp.sum(jnp.minimum(s.p, f.p) * distance)
    G_s, G_f = gaps.safety_gap(world, instance.log_policy), gaps.capability_gap(world, instance.log_policy)
    return dv.root(G_s) + dv.root(G_f), bound


@theorem(
    "T8c",
    title="explicit limit on capability",
    statement=r"G_s(P)\le\tau\ \Longrightarrow\ G_f(P)\ge-2\Omega\log\cos\big([E_q\alpha-\Psi(\tau/\Omega)]_+\big),\quad q\propto\min(p_s,p_f)",
    family=POLICIES,
    parts=("any policy", "any looser τ", "the frontier itself"),
    relation=">=",
    assumptions=(draw.SHARED_CONTEXT,),
    without={"shared context": "without one the bound reads 0"},
    tight=Tight(lambda: _opposed_policy()),
    makes_precise=LIMITS,
)
def safety_limits_capability(instance: WithPolicy) -> Sides:
    """How much capability a given safety must cost, from the overlap of prompts and the angles of answers alone."""
    world, policy = instance.world, instance.log_policy
    G_s, G_f = gaps.safety_gap(world, policy), gaps.capability_gap(world, policy)
    at = loss_constraint.gaps(world, instance.lam)
    limits = frontier.lower_limit(world, jnp.stack([G_s, G_s * (1 + instance.lam), at.safety]))
    return jnp.stack([G_f, G_f, at.capability]), limits


@theorem(
    "T8d",
    title="the limit is attained",
    statement=r"p_s=p_f,\ \delta\equiv1:\qquad e^{-G_s(P)}+e^{-G_f(P)}\le1\text{ for every }P,\ \text{with equality at }M_\lambda;\quad "
    r"F(a)=-\log(1-e^{-a})",
    family=OPPOSED,
    parts=("any policy", "attained", "the frontier"),
    relation=("<=", "==", "=="),
    assumptions=(draw.SAME_CONTEXTS, draw.NO_AGREEMENT),
    without={
        "same contexts": lambda: _apart(),
        "no agreement": lambda: _agreeing(),
    },
    tight=Tight(lambda: _opposed_policy()),
    makes_precise=LIMITS,
    tolerance=IDENTITY,
)
def opposite_answers_attain_the_limit(instance: WithPolicy) -> Sides:
    """Same prompts, opposite answers: the limit of T8a is the exact frontier, in closed form."""
    world, policy = instance.world, instance.log_policy
    G_s, G_f = gaps.safety_gap(world, policy), gaps.capability_gap(world, policy)
    at = loss_constraint.gaps(world, instance.lam)
    return (
        jnp.stack([jnp.exp(-G_f), jnp.exp(-at.capability), at.capability]),
        jnp.stack([-jnp.expm1(-G_s), -jnp.expm1(-at.safety), -jnp.log(-jnp.expm1(-at.safety))]),
    )


@theorem(
    "T8e",
    title="duality",
    statement=r"G_f(P)\ge\sup_\lambda[V(\lambda)-\lambda G_s(P)],\ \text{exact on the sweep};\qquad "
    r"G_f(P)\ge2\lambda\sum_O\tfrac{p_fp_s}{m_\lambda}\delta^2-\lambda G_s(P)\text{ for every }\lambda",
    family=POLICIES,
    parts=("any λ", "in closed form", "exact"),
    relation=(">=", ">=", "=="),
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": lambda: _proxied_policy()},
    tight=Tight(lambda: _sweep_policy(1.0)),
    makes_precise=LIMITS,
    tolerance=IDENTITY,
)
def every_penalty_certifies_a_limit(instance: WithPolicy) -> Sides:
    """Every penalty gives a line that no policy can be below, and together these lines are the frontier."""
    world, lam, policy = instance.world, instance.lam, instance.log_policy
    s, f = world.safety, world.capability
    G_s, G_f = gaps.safety_gap(world, policy), gaps.capability_gap(world, policy)
    at = loss_constraint.gaps(world, lam)
    task, safety = loss_constraint.mixture_weights(world, lam)
    # V as Jensen-Shannon divergences, m JSD = p_f KL(P_f‖M) + λ p_s KL(P_s‖M), and its floor by Pinsker.
    mixture = task[:, None] * f.P + safety[:, None] * s.P
    to_f = jnp.sum(dv.kl_terms(f.P, mixture, safety[:, None] * (s.P - f.P)), axis=-1)
    to_s = jnp.sum(dv.kl_terms(s.P, mixture, task[:, None] * (f.P - s.P)), axis=-1)
    value = gaps.weighted(f.p, to_f) + lam * gaps.weighted(s.p, to_s)
    floor = 2 * lam * jnp.sum(task * s.p * world.conflict**2)
    return (
        jnp.stack([G_f, G_f, value - lam * at.safety]),
        jnp.stack([loss_constraint.value(world, lam) - lam * G_s, floor - lam * G_s, at.capability]),
    )


# --- what only these theorems need ------------------------------------------------------------------------------


def _perfect(own: DataLaw, log_policy: Array) -> Array:
    """The policy that answers as the data where they have weight, and as it did elsewhere."""
    rows = jnp.where(own.P > 0, jnp.log(jnp.where(own.P > 0, own.P, 1)), -jnp.inf)
    return jnp.where((own.p > 0)[:, None], rows, log_policy)


def _sweep_policy(lam: float) -> WithPolicy:
    """The golden world and its own optimum, judged at that penalty."""
    world, at = generate.golden(), jnp.float64(lam)
    return WithPolicy(world, at, loss_constraint.optimal_policy(world, at))


def _proxied_policy() -> WithPolicy:
    """The best true policy of a world with a bad proxy."""
    world, lam = generate.over_penalised(), jnp.float64(1.0)
    return WithPolicy(world, lam, loss_constraint.optimal_policy(world.with_exact_proxy(), lam))


def _opposed() -> World:
    """One context, two responses, no agreement."""
    return World(DataLaw([1.0], [[1.0, 0.0]]), DataLaw([1.0], [[0.0, 1.0]]))


def _opposed_policy() -> WithPolicy:
    return WithPolicy(_opposed(), jnp.float64(1.0), jnp.log(jnp.array([[0.3, 0.7]])))


def _opposed_weighted() -> WithWeights:
    return WithWeights(_opposed(), jnp.log(jnp.array([[0.3, 0.7]])), jnp.array([1.0]))


def _half_way(apart: float) -> WithPolicy:
    """Answers that differ a little about one half, and the policy in the middle."""
    world = World(DataLaw([1.0], [[0.5 + apart, 0.5 - apart]]), DataLaw([1.0], [[0.5 - apart, 0.5 + apart]]))
    return WithPolicy(world, jnp.float64(1.0), jnp.log(jnp.array([[0.5, 0.5]])))


def _weights_elsewhere() -> WithWeights:
    """Two contexts with opposite answers, each of one side only, and q on one of them."""
    rows = [[1.0, 0.0], [1.0, 0.0]]
    world = World(DataLaw([0.5, 0.5], rows), DataLaw([1.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]))
    return WithWeights(world, jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1]])), jnp.array([0.0, 1.0]))


def _apart() -> WithPolicy:
    """Opposite answers to different prompts: a policy can give both."""
    world = World(DataLaw([1.0, 0.0], [[1.0, 0.0]] * 2), DataLaw([0.0, 1.0], [[0.0, 1.0]] * 2))
    return WithPolicy(world, jnp.float64(1.0), jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]])))


def _agreeing() -> WithPolicy:
    law = DataLaw([1.0], [[0.8, 0.2]])
    return WithPolicy(World(law, law), jnp.float64(1.0), jnp.log(jnp.array([[0.8, 0.2]])))
