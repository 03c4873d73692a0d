"""T18 and T19: Case I against Case II, both together, adapters and weight decay."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff import gaps, loss_constraint
from tradeoff.parameter_constraint import eigen, penalised_path, solve
from tradeoff.problems.quadratic import Quadratic, half_square, length, spectrum
from tradeoff.problems.tabular import Tabular
from tradeoff.theorems import instances as draw
from tradeoff.theorems import landscapes as land
from tradeoff.theorems import table_instances as tables
from tradeoff.theorems.claim import Sides, Tight, theorem
from tradeoff.theorems.landscapes import Factors, Landscape, Subspace
from tradeoff.theorems.table_instances import Table
from tradeoff.tolerances import IDENTITY, LIMIT
from tradeoff.worlds import generate
from tradeoff.worlds.world import World

TABLES = tables.tables()
SMALL_BALLS = tables.tables(proxy="full", mismatch=True)
PROXIED = tables.tables(proxy="covering")
PAIRS = land.quadratics(safety="any")
MILD = land.quadratics(decades=4.0, inside=True)
FACTORS = land.factors()
SUBSPACES = land.subspaces()

RESTRICTIVE = "Case II is more restrictive for capability than Case I, and its trade-off curve is steeper"
ADAPTERS = "weight decay on LoRA factors acts as a soft Case II"
DESCENT_STEPS = 20


# --- T18: Case I against Case II --------------------------------------------------------------------------------


@theorem(
    "T18a",
    title="Case I dominates Case II",
    statement=r"G_f(\theta_\varepsilon)+\lambda G_s(\theta_\varepsilon)=V(\lambda)+\sum_xm_\lambda\mathrm{KL}(M_\lambda\|P_{\theta_\varepsilon})"
    r"\ge V(\lambda)\quad\text{for all }\lambda,\varepsilon",
    family=TABLES,
    parts=("any logits in the ball", "the trained ones", "surplus"),
    relation=(">=", ">=", "=="),
    assumptions=(tables.FULL_SAFETY, draw.EXACT_PROXY),
    without={
        "full-support safety data": "not needed for the inequality, only for finite aligned logits to start from",
        "exact proxy": lambda: _proxied(1.0),
    },
    tight=Tight(lambda: _on_the_frontier()),
    makes_precise=RESTRICTIVE,
    tolerance=IDENTITY,
)
def no_ball_is_below_the_frontier_of_penalties(instance: Table) -> Sides:
    """Whatever a parameter constraint reaches, some penalty reaches at least as much, and the surplus is a divergence."""
    world, lam = instance.world, instance.lam
    policy = instance.problem.log_policy(instance.logits)
    trained = instance.problem.log_policy(_descend(world, jnp.zeros_like(lam), instance.radius))
    value = loss_constraint.gaps(world, lam)
    least = value.capability + lam * value.safety
    paid, paid_trained = (gaps.capability_gap(world, p) + lam * gaps.safety_gap(world, p) for p in (policy, trained))
    surplus = gaps.surplus(world.with_exact_proxy(), policy, lam)
    return jnp.stack([paid, paid_trained, paid]), jnp.stack([least, least, least + surplus])


@theorem(
    "T18a-quadratic",
    title="Case I dominates Case II on quadratics",
    statement=r"G_f(\theta_\varepsilon)+\lambda G_s(\theta_\varepsilon)\ge\min_\theta[G_f(\theta)+\lambda G_s(\theta)]\quad\text{for all }\lambda,\varepsilon",
    family=PAIRS,
    relation=">=",
    tight=Tight(lambda: land.pair(jnp.eye(2), [1.0, 0.0], jnp.eye(2), radius=0.5, lam=1.0)),
    makes_precise=RESTRICTIVE,
)
def no_ball_is_below_the_pareto_set(instance: Landscape) -> Sides:
    """On quadratics too, a ball never does better than the right penalty."""
    ball, best = solve(instance.quad, instance.radius).gaps, penalised_path(instance.quad, instance.lam).gaps
    return ball.capability + instance.lam * ball.safety, best.capability + instance.lam * best.safety


@theorem(
    "T18b",
    title="with a bad proxy the ball is safer",
    statement=r"\tfrac12\beta_s\varepsilon^2<\Phi\ \Longrightarrow\ G_s(\theta_\varepsilon)\le\tfrac12\beta_s\varepsilon^2<\Phi="
    r"\lim_{\lambda\to\infty}G_s(\hat M_\lambda)",
    family=SMALL_BALLS,
    parts=("any logits in the ball", "the trained ones", "safer than the limit", "the limit"),
    relation=("<=", "<=", "<=", "=="),
    assumptions=(tables.FULL_SAFETY, tables.SMALL_BALL, draw.COVERED),
    without={
        "full-support safety data": "the loss of the aligned policy is then added on the left",
        "small ball": lambda: _proxied(4.0),
        "proxy covers": "where the proxy has no weight Case I leaves P_f, not P̂_s: its limit is another",
    },
    makes_precise=RESTRICTIVE,
)
def a_ball_needs_no_proxy(instance: Table) -> Sides:
    """A parameter constraint never sees the proxy: if the proxy is bad enough, a small ball is safer than any large penalty."""
    world = instance.world
    bound = jnp.max(world.safety.p) * instance.radius**2 / 4
    lost = gaps.safety_gap(world, instance.problem.log_policy(instance.logits))
    trained = gaps.safety_gap(world, instance.problem.log_policy(_descend(world, jnp.float64(0), instance.radius)))
    limit = loss_constraint.gaps(world, jnp.inf).safety
    return jnp.stack([lost, trained, bound, limit]), jnp.stack([bound, bound, limit, world.proxy_mismatch])


@theorem(
    "T18c",
    title="both constraints together",
    statement=r"G_s\le\min\{\tfrac12\beta_s\varepsilon^2,\ \ell_f\varepsilon/\lambda+\mathrm{osc}\cdot\mathrm{TV}(D_s,\hat D_s)\}",
    family=PROXIED,
    parts=("by the ball", "by the penalty", "no worse than the start"),
    assumptions=(tables.FULL_SAFETY,),
    without={"full-support safety data": "the loss of the aligned policy is then added on the right"},
    makes_precise=RESTRICTIVE,
)
def a_hybrid_is_as_safe_as_its_safer_half(instance: Table) -> Sides:
    """Under a ball and a penalty at once, each bound holds: the ball covers a bad proxy, the penalty a large ball."""
    world, lam, radius = instance.world, instance.lam, instance.radius
    aligned = instance.problem.aligned()
    logits = _descend(world, lam, radius)
    start, end = instance.problem.log_policy(aligned), instance.problem.log_policy(logits)
    lost = gaps.safety_gap(world, end)
    s, seen = world.safety, world.training_safety
    kept = (s.p[:, None] * s.P > 0) | (seen.p[:, None] * seen.P > 0)
    ratio = start - end
    spread = jnp.max(ratio, where=kept, initial=-jnp.inf) - jnp.min(ratio, where=kept, initial=jnp.inf)
    slope = jnp.sqrt(2.0) * length(world.capability.p)
    penalised = [gaps.weighted_sum(world, p, lam) for p in (end, start)]
    return (
        jnp.stack([lost, lost, penalised[0]]),
        jnp.stack([
            jnp.max(s.p) * radius**2 / 4, slope * radius / lam + spread * world.proxy_total_variation, penalised[1],
        ]),
    )  # fmt: skip


# --- T19: adapters and weight decay -----------------------------------------------------------------------------


@theorem(
    "T19a",
    title="weight decay on adapters is a nuclear-norm ball",
    statement=r"\min\{\tfrac12(\|A\|_F^2+\|B\|_F^2):BA=\Delta W\}=\|\Delta W\|_*,\quad\|\Delta W\|_F\le\|\Delta W\|_*\le\sqrt r\|\Delta W\|_F,\quad "
    r"G_s\le\tfrac12\beta_s\|\Delta W\|_*^2",
    family=FACTORS,
    parts=("no factors cost less", "nor others of the same update", "balanced ones cost that", "and make it",
           "Frobenius", "rank", "safety"),
    relation=("<=", "<=", "==", "==", "<=", "<=", "<="),
    makes_precise=ADAPTERS,
)  # fmt: skip
def decay_of_factors_measures_the_update(instance: Factors) -> Sides:
    """Shrinking the two factors of an adapter shrinks the nuclear norm of its update, which bounds the safety lost."""
    A, B, G = instance.A, instance.B, instance.mixing
    W = B @ A
    U, values, V = jnp.linalg.svd(W, full_matrices=False)
    nuclear, frobenius = jnp.sum(values), length(W)
    root = jnp.sqrt(values)
    balanced = U * root[None, :], root[:, None] * V
    others = B @ G, _inverse(G) @ A
    costs = [(jnp.sum(left**2) + jnp.sum(right**2)) / 2 for left, right in ((B, A), others, balanced)]
    missed = length(balanced[0] @ balanced[1] - W) / frobenius
    beta = spectrum(instance.H_s)[0][-1]
    one, rank = jnp.ones_like(nuclear), len(values)
    return (
        jnp.stack([nuclear, nuclear, costs[2], 1 + missed, frobenius, nuclear, half_square(instance.H_s, W.ravel())]),
        jnp.stack([costs[0], costs[1], nuclear, one, nuclear, rank**0.5 * frobenius, beta * nuclear**2 / 2]),
    )


@theorem(
    "T19b",
    title="Case II in a subspace",
    statement=r"\theta=\theta_s+Bz,\ B^\top B=I:\quad G_f=G_f(\theta_s)-\tfrac12g^\top B(B^\top H_fB)^+B^\top g+"
    r"\tfrac12\|z-z_f\|^2_{B^\top H_fB},\ z_f=(B^\top H_fB)^+B^\top g,\quad G_s=\tfrac12\|z\|^2_{B^\top H_sB}",
    family=SUBSPACES,
    parts=("G_f", "G_s", "best in the ball", "irreducible"),
    relation=("==", "==", "<=", ">="),
    makes_precise=ADAPTERS,
    tolerance=IDENTITY,
)
def an_adapter_sees_a_smaller_landscape(instance: Subspace) -> Sides:
    """Within a subspace everything holds as before with smaller Hessians, and some capability is out of reach for good."""
    quad, B, z = instance.landscape.quad, instance.basis, instance.z
    inner, out_of_reach = _restricted(quad, B)
    direct = quad.gaps(quad.theta_s + B @ z)
    within = inner.gaps(z)
    best = solve(inner, instance.landscape.radius)
    inside = z * jnp.minimum(1, instance.landscape.radius / length(z))
    reached = quad.gaps(quad.theta_s + B @ best.theta).capability
    # In the unit of the largest that each could be at these distances; z_f is far off where the subspace is nearly flat.
    far = jnp.sum(quad.displacement**2) + jnp.sum(z**2) + jnp.sum(inner.theta_f**2)
    unit_f, unit_s = length(quad.H_f) * far, length(quad.H_s) * far
    compared = quad.gaps(quad.theta_s + B @ inside).capability
    return (
        jnp.stack([direct.capability / unit_f, direct.safety / unit_s, reached / unit_f, reached / unit_f]),
        jnp.stack([
            (out_of_reach + within.capability) / unit_f, within.safety / unit_s, compared / unit_f, out_of_reach / unit_f,
        ]),
    )  # fmt: skip


@theorem(
    "T19b-line",
    title="one dimension is enough",
    statement=r"B\propto H_s^{-1}g\ (\text{a unit vector}):\quad\lim_{a\to0}S_{\mathrm{line}}(a)/S_*(a)=1",
    family=MILD,
    parts=("as good as the best", "no better"),
    relation=("==", ">="),
    assumptions=(land.SAFETY_CURVED, land.TASK_PULLS),
    without={
        "curved safety loss": "with a flat direction that the task pulls, that direction is free: T15(c)",
        "task pulls": "where the task does not pull there is nothing to gain",
    },
    makes_precise=ADAPTERS,
    tolerance=LIMIT,
)
def the_right_line_is_as_good_as_the_whole_space(instance: Landscape) -> Sides:
    """An adapter of one dimension, along the natural gradient, starts out on the Case I frontier."""
    quad = instance.quad
    h, U = spectrum(quad.H_s)
    natural = U @ ((U.T @ quad.pull) / h)
    line = (natural / length(natural))[:, None]
    inner, _ = _restricted(quad, line)
    shallow = jnp.dot(quad.pull, natural)
    small = 1e-6 * inner.theta_f
    paid = 2 * half_square(inner.H_s, small) / inner.gain(small) ** 2
    return jnp.stack([paid * shallow, paid * shallow]), jnp.ones((2,))


# --- what only these theorems need ------------------------------------------------------------------------------


def _descend(world: World, lam: Array, radius: Array) -> Array:
    r"""Logits after projected gradient descent on $L_f+\lambda\hat L_s$ within the ball: never worse than the start."""
    aligned = Tabular(world).aligned()
    p_f, seen = world.capability.p, world.training_safety
    mass = p_f + lam * seen.p
    target = p_f[:, None] * world.capability.P + lam * (seen.p[:, None] * seen.P)
    rate = 2 / jnp.max(mass)

    def step(_: Array, delta: Array) -> Array:
        slope = mass[:, None] * jax.nn.softmax(aligned + delta, axis=-1) - target
        moved = delta - rate * slope
        norm = length(moved)
        return moved * jnp.minimum(1, radius / jnp.where(norm > 0, norm, 1))

    return aligned + jax.lax.fori_loop(0, DESCENT_STEPS, step, jnp.zeros_like(aligned))


def _restricted(quad: Quadratic, B: Array) -> tuple[Quadratic, Array]:
    """The pair within a subspace through the aligned parameters, and the capability gap that it cannot close."""
    H_f, H_s = B.T @ quad.H_f @ B, B.T @ quad.H_s @ B
    H_f, H_s = (H_f + H_f.T) / 2, (H_s + H_s.T) / 2
    pull = B.T @ quad.pull
    rates, U = eigen(H_f)
    curved = rates > 0
    z_f = U @ jnp.where(curved, (U.T @ pull) / jnp.where(curved, rates, 1), 0)
    out_of_reach = half_square(quad.H_f, quad.displacement) - jnp.dot(pull, z_f) / 2
    return Quadratic(H_f, z_f, H_s, jnp.zeros_like(z_f)), out_of_reach


def _inverse(G: Array) -> Array:
    """The inverse of a 2 x 2 matrix."""
    adjugate = jnp.stack([jnp.stack([G[1, 1], -G[0, 1]]), jnp.stack([-G[1, 0], G[0, 0]])])
    return adjugate / (G[0, 0] * G[1, 1] - G[0, 1] * G[1, 0])


def _on_the_frontier() -> Table:
    """Logits of Case I's optimum on the golden world: the best that Case II could do."""
    world = generate.golden()
    logits = loss_constraint.optimal_policy(world, 1.0)
    radius = length(logits - Tabular(world).aligned())
    return Table(world, radius, jnp.float64(1.0), logits)


def _proxied(length: float) -> Table:
    """The one-context example of over-penalising, with logits moved by `length` towards the task."""
    world = generate.over_penalised()
    step = length / 2**0.5 * jnp.array([[-1.0, 1.0]])
    return Table(world, jnp.float64(length), jnp.float64(1.0), Tabular(world).aligned() + step)
