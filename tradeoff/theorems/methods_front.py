"""Published rules on a pair of quadratics: the Pareto front, the filters of the rules, and when a rule is on the front."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.gaps import Gaps
from tradeoff.problems.quadratic import Quadratic, half_square, spectrum
from tradeoff.theorems import landscapes as land
from tradeoff.theorems._linear import end_of, length, power, solved, turned
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.landscapes import SIZE, Landscape
from tradeoff.theorems.methods_instances import (
    MERGING,
    SHARE_INSIDE,
    SOON,
    STABLE,
    STEPS,
    TUNED,
    Tuned,
    along_axes,
    decades,
    front_displacement,
    tuned,
)
from tradeoff.tolerances import BOUND, EXACT, IDENTITY, LIMIT

FRONT = "every rule is scored against the Pareto front of its two losses"


class Spectral(NamedTuple):
    """Two quadratics with common axes, and the way from the task's optimum to the aligned parameters along them.

    Args:
        axes: the axes, in columns.
        alpha: task curvatures.
        beta: safety curvatures.
        along: coordinates of the way.
        strength: the weight of a pull, or of safety against the task.
    """

    axes: Array
    alpha: Array
    beta: Array
    along: Array
    strength: Array


# --- assumptions ------------------------------------------------------------------------------------------------

SHORT_STEP = Assumption(
    "short step",
    "the learning rate is at most one over the largest curvature",
    lambda i: i.step * spectrum(i.quad.H_f)[0][-1] <= 1 + EXACT.relative,
)
SAME_TASK_CURVATURE = Assumption(
    "isotropic task",
    "the task Hessian is a multiple of the identity",
    lambda i: length(i.quad.H_f - jnp.eye(SIZE) * i.quad.H_f[0, 0]) <= IDENTITY.relative * length(i.quad.H_f),
)
EVEN_SAFETY = Assumption(
    "even safety curvature",
    "the safety curvature is the same along every axis that the task moves",
    lambda i: _even(i.beta, i.alpha * i.along != 0),
)
PARALLEL = Assumption(
    "parallel pulls",
    "the two losses pull in opposite directions everywhere between the two optima",
    lambda i: _turned_away(i.quad.H_s @ i.quad.displacement, i.quad.pull) <= IDENTITY.relative,
)


def _even(values: Array, where: Array) -> Array:
    high, low = jnp.max(values, where=where, initial=0), jnp.min(values, where=where, initial=jnp.inf)
    return high - low <= EXACT.relative * high


def _turned_away(v: Array, w: Array) -> Array:
    """The sine of the angle between two vectors."""
    return length(v - w * (jnp.dot(v, w) / jnp.sum(w**2))) / length(v)


# --- families ---------------------------------------------------------------------------------------------------


@cache
def spectral(*, even: bool = False) -> Family:
    """Pairs with common axes; `even` for one safety curvature along all of them."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "mirrors": draws.normal((2, SIZE)),
            "log_alpha": draws.normal((SIZE,)),
            "flat": draws.flip(0.15, (SIZE,)) & (jnp.arange(SIZE) > 0),
            "log_beta": draws.normal((SIZE,)),
            "along": draws.normal((SIZE,)),
            "log_strength": draws.normal(),
        }

    def build(p: dict[str, Any]) -> Spectral:
        alpha, beta, strength = (decades(p[name] / 2, 2.0) for name in ("log_alpha", "log_beta", "log_strength"))
        alpha = jnp.where(p["flat"], 0, alpha)
        if even:
            beta = jnp.full((SIZE,), beta[0])
        along = p["along"] / length(p["along"])
        return Spectral(turned(p["mirrors"]), alpha, beta, along, strength)

    return Family(sample, build)


PENCIL = land.quadratics(decades=2.5)
ENDS = land.quadratics(decades=2.0)
ISOTROPIC_TASK = tuned(decades=2.0, flat_task=False, isotropic_task=True)
PARALLEL_PULLS = tuned(decades=2.0, flat_task=False, parallel=True)
SPECTRAL = spectral()
EVEN = spectral(even=True)


# --- the front --------------------------------------------------------------------------------------------------


@theorem(
    "front",
    title="the Pareto front of two quadratics",
    statement=r"\theta(\nu)=(A+\nu B)^{-1}(Aa+\nu Bb),\ 0<\nu<\infty:\quad L_u+\nu L_s\text{ at }\theta\text{ is its value at }\theta(\nu)"
    r"\text{ plus }\tfrac12\|\theta-\theta(\nu)\|^2_{A+\nu B}",
    family=PENCIL,
    parts=("stationary", "surplus", "no point is better", "slope"),
    relation=("==", "==", ">=", "=="),
    assumptions=(land.SAFETY_CURVED,),
    without={"curved safety loss": "needed only for a unique point: any minimiser of the sum has the same two losses"},
    tight=Tight(lambda: land.pair(jnp.eye(2), [1.0, 0.0], jnp.eye(2), lam=1.0, theta=[0.5, 0.0])),
    makes_precise=FRONT,
    tolerance=IDENTITY,
)
def every_rule_is_scored_against_one_curve(instance: Landscape) -> Sides:
    """One linear solve gives the best point at each exchange rate, and the distance of any other model from it."""
    # Seen from the aligned parameters, where a large ν ends.
    quad, nu = _from_aligned(instance.quad), instance.lam
    at, other = front_displacement(quad, nu), instance.theta - instance.quad.theta_s
    slope = jax.grad(lambda theta: _both(quad, theta, nu))(at)
    scale = length(quad.H_f) * length(quad.theta_f) + nu * length(quad.H_s) * length(at)
    surplus = half_square(quad.H_f, other - at) + nu * half_square(quad.H_s, other - at)
    least, there = quad.objective(at, nu), quad.objective(other, nu)

    # Along the front a unit of safety is bought with ν of capability.
    def gaps_at(log_nu: Array) -> Gaps:
        return quad.gaps(front_displacement(quad, jnp.exp(log_nu)))

    along = jax.jvp(gaps_at, (jnp.log(nu),), (jnp.ones_like(nu),))[1]
    unit = length(quad.H_f) * jnp.sum(quad.displacement**2)
    one = jnp.ones_like(nu)
    return (
        jnp.stack([1 + length(slope) / scale, there, there, 1 + along.capability / unit]),
        jnp.stack([one, least + surplus, least, 1 - nu * along.safety / unit]),
    )


@theorem(
    "front-ends",
    title="the ends of the front are limits",
    statement=r"\nu\to0^+:\ \theta(\nu)\to\mathrm{argmin}\{L_s:\ A\theta=Aa\};\qquad\nu\to\infty:\ \theta(\nu)\to\mathrm{argmin}\{L_u:\ B\theta=Bb\}",
    family=ENDS,
    parts=("the task's end", "the safety end"),
    relation="==",
    assumptions=(land.SAFETY_CURVED,),
    without={"curved safety loss": "the part that is flat for both losses is then free"},
    makes_precise=FRONT,
    tolerance=LIMIT,
)
def a_vanishing_penalty_still_chooses(instance: Landscape) -> Sides:
    """At either end the other loss still chooses among the best: it is not the pseudo-inverse that one finds there."""
    quad = instance.quad
    d, size = quad.displacement, length(quad.displacement)
    values, U = spectrum(quad.H_f)
    kernel = U * jnp.where(values > land.NOTHING * values[-1], 0.0, 1.0)[None, :]
    flat = kernel @ kernel.T
    # Among θ_f + ker A the safest: N(NᵀBN)⁻¹NᵀB(θ_s - θ_f) from θ_f.
    inner = flat @ quad.H_s @ flat + (jnp.eye(SIZE) - flat) * jnp.trace(quad.H_s)
    chosen = d - flat @ solved(inner, flat @ (quad.H_s @ d))
    scale = jnp.trace(quad.H_f) / jnp.trace(quad.H_s)
    first = front_displacement(quad, SOON**1.5 * scale)
    # With the roles exchanged the same point is the other end, seen from θ_f.
    exchanged = Quadratic(quad.H_s, quad.theta_s, quad.H_f, quad.theta_f)
    last = d + front_displacement(exchanged, 1 / (SOON**1.5 * scale))
    return 1 + jnp.stack([length(w - chosen) / size for w in (first, last)]), jnp.ones((2,))


# --- the filters ------------------------------------------------------------------------------------------------


@theorem(
    "filters",
    title="data-free rules are spectral filters",
    statement=r"\theta-a=\sum_if(\alpha_i)\langle v_i,b-a\rangle v_i:\quad f=(1-h\alpha)^t\text{ descent},\ e^{-\alpha t}\text{ flow},"
    r"\ \tfrac\mu{\alpha+\mu}\text{ L2-SP},\ 1-\lambda\text{ interpolation}",
    family=TUNED,
    parts=("descent", "flow starts aligned", "flow goes downhill", "L2-SP", "interpolation"),
    relation="==",
    assumptions=(land.TASK_CURVED, STABLE),
    without={
        "curved task loss": lambda: _flat_merge(),
        "stable step": lambda: along_axes([3.0, 2.0, 1.0], [0.3, 0.2, 0.1], step=0.7),
    },
    makes_precise="early stopping, decay towards the start and interpolation are one kind of rule",
    tolerance=IDENTITY,
)
def a_rule_without_data_filters_the_way(instance: Tuned) -> Sides:
    """Every rule that sees no safety data keeps a share of the way back to the start that only the task's curvature sets."""
    quad, h, mu, lam, time = instance.quad, instance.step, instance.strength, instance.share, instance.time
    e, size = -quad.displacement, length(quad.displacement)
    values, U = spectrum(quad.H_f)
    c = U.T @ e

    def kept(f: Array) -> Array:
        return U @ (f * c)

    run = descend(instance)[0] - quad.theta_f
    flow = jax.jvp(lambda t: kept(jnp.exp(-values * t)), (time,), (jnp.ones_like(time),))
    eye = jnp.eye(SIZE)
    # Trained until nothing moves: the pull by steps of its own, the plain task by those of the rule.
    rate = 1 / (jnp.trace(quad.H_f) + mu)
    pulled = end_of(eye - rate * (quad.H_f + mu * eye), rate * mu * e)
    trained = e + end_of(eye - h * quad.H_f, -h * (quad.H_f @ e))
    merged = (1 - lam) * e + lam * trained
    missed = jnp.stack([
        length(run - kept(power(1 - h * values, instance.steps))) / size,
        length(kept(jnp.ones(SIZE)) - e) / size,
        length(flow[1] + quad.H_f @ flow[0]) / (length(quad.H_f) * size),
        length(pulled - kept(mu / (values + mu))) / size,
        length(merged - (1 - lam) * e) / size,
    ])  # fmt: skip
    return 1 + missed, jnp.ones((5,))


@theorem(
    "filters-null",
    title="an isotropic task cannot tell the rules apart",
    statement=r"A=cI:\quad\theta-a\in[0,1]\,(b-a)\text{ for descent with }hc\le1,\text{ its average, L2-SP and interpolation alike}",
    family=ISOTROPIC_TASK,
    parts=("descent", "average", "L2-SP", "not past the optimum"),
    relation=("==", "==", "==", ">="),
    assumptions=(SAME_TASK_CURVATURE, SHORT_STEP),
    without={
        "isotropic task": lambda: along_axes([3.0, 2.0, 1.0], [0.3, 0.2, 0.1], step=0.2),
        "short step": lambda: along_axes([1.0, 1.0, 1.0], [0.3, 0.2, 0.1], step=1.9),
    },
    tight=Tight(lambda: along_axes([1.0, 1.0, 1.0], [0.3, 0.2, 0.1], step=1.0)),
    makes_precise="a difference measured between data-free rules on an isotropic task is a mistake",
    tolerance=IDENTITY,
)
def rules_differ_only_by_curvature(instance: Tuned) -> Sides:
    """Where the task is equally curved in all directions, all rules without safety data trace one and the same line."""
    quad, mu = instance.quad, instance.strength
    e, size = -quad.displacement, length(quad.displacement)
    last, shadow = descend(instance, jax.nn.sigmoid(instance.share))
    rate, eye = 1 / (jnp.trace(quad.H_f) + mu), jnp.eye(SIZE)
    pulled = end_of(eye - rate * (quad.H_f + mu * eye), rate * mu * e)
    ways = (last - quad.theta_f, shadow - quad.theta_f, pulled)
    off = [length(w - e * (jnp.dot(w, e) / size**2)) / size for w in ways]
    one = jnp.ones_like(mu)
    reached = jnp.dot(ways[0], e) / size**2
    return jnp.stack([*(1 + x for x in off), 1 + reached]), jnp.stack([one, one, one, one])


@theorem(
    "filter-pareto",
    title="the filter of the front",
    statement=r"AB=BA:\quad\theta(\nu)-a=\sum_i\frac{\nu\beta_i}{\alpha_i+\nu\beta_i}\langle v_i,b-a\rangle v_i",
    family=SPECTRAL,
    relation="==",
    makes_precise=FRONT,
    tolerance=IDENTITY,
)
def the_best_filter_looks_at_both_curvatures(instance: Spectral) -> Sides:
    """The best rule keeps what matters for safety and gives up what matters for the task: it looks at both curvatures."""
    A, B, e = _matrices(instance)
    nu = instance.strength
    # Descent on the weighted sum of the losses, to its end.
    rate = 1 / (jnp.trace(A) + nu * jnp.trace(B))
    reached = end_of(jnp.eye(SIZE) - rate * (A + nu * B), rate * nu * (B @ e))
    f = nu * instance.beta / (instance.alpha + nu * instance.beta)
    return 1 + length(reached - instance.axes @ (f * instance.along)) / length(e), jnp.ones(())


# --- rules on the front -----------------------------------------------------------------------------------------


@theorem(
    "l2sp-on-front",
    title="when a pull to the start is on the front",
    statement=r"AB=BA,\ \beta_i=\beta\text{ wherever }\alpha_i\langle v_i,b-a\rangle\ne0\ \Longrightarrow\ "
    r"(A+\mu I)^{-1}(Aa+\mu b)=\theta(\nu),\ \nu=\mu/\beta",
    family=EVEN,
    relation="==",
    assumptions=(EVEN_SAFETY,),
    without={"even safety curvature": lambda: _uneven()},
    makes_precise=FRONT,
    tolerance=IDENTITY,
)
def a_pull_to_the_start_is_best_for_even_curvature(instance: Spectral) -> Sides:
    """Pulling back to the start is as good as safety data only where all directions matter equally for safety."""
    A, B, e = _matrices(instance)
    mu = instance.strength
    nu = mu / jnp.mean(instance.beta)
    rate, eye = 1 / (jnp.trace(A) + mu), jnp.eye(SIZE)
    pulled = end_of(eye - rate * (A + mu * eye), rate * mu * e)
    best = solved(A + nu * B, nu * (B @ e))
    return 1 + length(pulled - best) / length(e), jnp.ones(())


@theorem(
    "interpolation-on-front",
    title="when interpolation is on the front",
    statement=r"B(b-a)\parallel A(b-a)\ \Longrightarrow\ (1-\lambda)b+\lambda a=\theta(\nu)\text{ with }"
    r"\nu=\tfrac{1-\lambda}\lambda\tfrac{\|A(b-a)\|}{\|B(b-a)\|}",
    family=PARALLEL_PULLS,
    parts=("same point", "no point is better"),
    relation=("==", "<="),
    assumptions=(PARALLEL, SHARE_INSIDE),
    without={
        "parallel pulls": lambda: along_axes([3.0, 2.0, 1.0], [0.3, 0.2, 0.1], safety=[1.0, 2.0, 3.0]),
        "between the two": lambda: along_axes([1.0, 1.0, 1.0], [0.3, 0.2, 0.1], share=1.5),
    },
    tight=Tight(lambda: along_axes([1.0, 1.0, 1.0], [0.3, 0.2, 0.1], share=0.25, theta=0.25)),
    makes_precise=MERGING,
    tolerance=BOUND,
)
def interpolation_is_best_where_the_pulls_are_parallel(instance: Tuned) -> Sides:
    """Mixing the weights of two models is as good as training on both losses only if both pull along one line."""
    quad, lam = instance.quad, instance.share
    d = quad.displacement
    nu = jnp.maximum(1 - lam, 0) / lam * length(quad.pull) / length(quad.H_s @ d)
    merged = quad.theta_s + lam * d
    apart = length(merged - quad.theta_s - front_displacement(quad, nu)) / length(d)
    one = jnp.ones_like(lam)
    return (
        jnp.stack([1 + apart, quad.objective(merged, nu)]),
        jnp.stack([one, quad.objective(instance.theta, nu)]),
    )


# --- what only these claims need --------------------------------------------------------------------------------


def _from_aligned(quad: Quadratic) -> Quadratic:
    """The same pair with the aligned parameters at zero."""
    return Quadratic(quad.H_f, quad.displacement, quad.H_s, jnp.zeros_like(quad.theta_s))


def descend(instance: Tuned, keep: Array | float = 0.0) -> tuple[Array, Array]:
    """Parameters after gradient descent on the task from the aligned ones, and their running average."""
    quad = instance.quad
    task = jax.grad(lambda theta: jnp.dot(theta - quad.theta_f, quad.H_f @ (theta - quad.theta_f)) / 2)

    def step(at: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
        theta = at[0] - instance.step * task(at[0])
        moved = theta, keep * at[1] + (1 - keep) * theta
        return jax.tree.map(lambda new, old: jnp.where(number < instance.steps, new, old), moved, at), None

    return jax.lax.scan(step, (quad.theta_s, quad.theta_s), jnp.arange(STEPS))[0]


def _both(quad: Quadratic, theta: Array, nu: Array) -> Array:
    """The weighted sum of the losses; without the floor of `half_square`, so that its gradient is the loss's own."""
    u, s = theta - quad.theta_f, theta - quad.theta_s
    return (jnp.dot(u, quad.H_f @ u) + nu * jnp.dot(s, quad.H_s @ s)) / 2


def _matrices(instance: Spectral) -> tuple[Array, Array, Array]:
    """Both Hessians, and the way from the task's optimum to the aligned parameters."""
    axes = instance.axes
    return land.hessian(axes, instance.alpha), land.hessian(axes, instance.beta), axes @ instance.along


def _flat_merge() -> Tuned:
    """The task is flat along the last coordinate: training never leaves the start there, and nor does a merge."""
    return along_axes([3.0, 2.0, 0.0], [0.3, 0.2, 0.1])


def _uneven() -> Spectral:
    ones = jnp.ones(SIZE)
    return Spectral(jnp.eye(SIZE), ones, jnp.array([1.0, 2.0, 3.0]), ones / 3**0.5, jnp.ones(()))
