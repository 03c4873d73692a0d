"""T14: two quadratics exactly: the path of a ball, the path of a penalty, and when the two are one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.divergences import root
from tradeoff.gaps import Gaps
from tradeoff.parameter_constraint import path, penalised_path, soft_path, solve
from tradeoff.problems import quadratic
from tradeoff.problems.quadratic import Quadratic, half_square, length, spectrum
from tradeoff.theorems import landscapes as land
from tradeoff.theorems._expressions import over
from tradeoff.theorems._quadratics import (
    DEFINITE,
    FAR,
    LANDSCAPE,
    MILD,
    PAIRS,
    RESTRICTIVE,
    generalised,
    greatest,
    large_penalty,
    normalised,
    small_ball,
    solved_along_axes,
)
from tradeoff.theorems.claim import Sides, theorem
from tradeoff.theorems.landscapes import Landscape
from tradeoff.tolerances import DERIVATIVE, IDENTITY, LIMIT

COMMUTING = land.quadratics(commuting=True, safety="any")
PENCIL = land.quadratics(decades=2.5)
ISOTROPIC = land.quadratics(decades=4.0, isotropic=True)
PEAK = land.around_pair(quadratic.not_monotone(), 0.919409, 0.01)


# --- T14: the ball ----------------------------------------------------------------------------------------------


@theorem(
    "T14a",
    title="the trust region, exactly",
    statement=r"\theta_\varepsilon-\theta_s=(H_f+\mu I)^{-1}H_fd,\quad \sum_i\tfrac{\lambda_i^2c_i^2}{(\lambda_i+\mu)^2}="
    r"\varepsilon^2\ (\text{beyond }\|\Pi d\|:\ \mu=0),\quad G_f(\varepsilon)\text{ convex with slope }-\mu\varepsilon",
    family=PAIRS,
    parts=("on the sphere", "stationary", "G_f", "G_s", "least", "convex", "falls"),
    relation=("==", "==", "==", "==", "<=", ">=", ">="),
    makes_precise=LANDSCAPE,
    tolerance=IDENTITY,
)
def the_best_point_of_a_ball_is_a_filtered_step(instance: Landscape) -> Sides:
    """The best capability within a radius takes the stiff directions first; a longer radius helps ever less."""
    quad, radius = instance.quad, instance.radius
    other = radius * over(instance.lam, 1 + instance.lam)
    at, shorter = solve(quad, radius), solve(quad, other)
    delta, mu, d = at.displacement, at.multiplier, quad.displacement
    # Every direct evaluation in the unit of its own rounding.
    stiff, soft = greatest(quad.H_f), greatest(quad.H_s)
    moved, apart = length(delta), length(d)
    unit_f, unit_s = stiff * apart**2, soft * jnp.maximum(moved, 2.0**-500) ** 2
    force = length(quad.H_f @ (delta - d) + mu * delta) / (stiff * apart + mu * moved)
    zero = jnp.zeros_like(force)
    point = instance.theta - quad.theta_s
    inside = point * jnp.minimum(1, radius / length(point))
    tangent = at.gaps.capability - mu * radius * (other - radius)
    return (
        jnp.stack([
            moved / apart, force, at.gaps.capability / unit_f, at.gaps.safety / unit_s, at.gaps.capability,
            shorter.gaps.capability, shorter.gaps.capability,
        ]),
        jnp.stack([
            jnp.minimum(radius, land.reach(quad)) / apart, zero, half_square(quad.H_f, delta - d) / unit_f,
            half_square(quad.H_s, delta) / unit_s, half_square(quad.H_f, inside - d), tangent, at.gaps.capability,
        ]),
    )  # fmt: skip


@theorem(
    "T14a-slope",
    title="the multiplier is the slope",
    statement=r"\frac{dG_f(\theta_\varepsilon)}{d\varepsilon}=-\mu\varepsilon",
    family=MILD,
    relation="==",
    assumptions=(land.CONSTRAINT_BINDS,),
    without={"active constraint": "beyond the reach both sides are 0; at it the left derivative is taken"},
    makes_precise=LANDSCAPE,
    tolerance=DERIVATIVE,
)
def the_multiplier_prices_the_radius(instance: Landscape) -> Sides:
    """The multiplier times the radius is what the next bit of radius buys."""
    quad, radius = instance.quad, instance.radius
    slope = jax.grad(lambda e: solve(quad, e).gaps.capability)(radius)
    return slope, -solve(quad, radius).multiplier * radius


@theorem(
    "T14b",
    title="the soft form takes the same path",
    statement=r"\mathrm{argmin} L_f+\tfrac\mu2\|\theta-\theta_s\|^2=\theta_{\varepsilon(\mu)},\quad\mu\leftrightarrow\varepsilon"
    r"\text{ one-to-one and falling on }0<\varepsilon<\|\Pi d\|",
    family=PAIRS,
    parts=("minimises", "same point", "there and back", "falls"),
    relation=("==", "==", "==", "<="),
    assumptions=(land.TASK_PULLS,),
    without={"task pulls": "if the task does not pull, every μ gives θ_s: one point, no map"},
    makes_precise=LANDSCAPE,
    tolerance=IDENTITY,
)
def weight_decay_is_a_ball(instance: Landscape) -> Sides:
    """Weight decay toward the aligned weights and a hard radius are one family of models under two names."""
    quad, mu = instance.quad, instance.lam
    soft, softer = soft_path(quad, mu), soft_path(quad, mu * (1 + instance.time))
    hard = solve(quad, soft.radius)
    delta, d = soft.displacement, quad.displacement
    force = length(quad.H_f @ (delta - d) + mu * delta)
    scale = greatest(quad.H_f) * length(d) + mu * length(delta)
    back = soft_path(quad, hard.multiplier).radius
    zero = jnp.zeros_like(mu)
    return (
        jnp.stack([force / scale, length(hard.displacement - delta) / soft.radius, back, softer.radius]),
        jnp.stack([zero, zero, soft.radius, soft.radius]),
    )


# --- T14: the penalty -------------------------------------------------------------------------------------------


@theorem(
    "T14c",
    title="Case I of two quadratics",
    statement=r"H_fv_i=\sigma_iH_sv_i,\ V^\top H_sV=I,\ d=Va:\quad\theta_\lambda-\theta_s=\sum\tfrac{\sigma_i}{\sigma_i+\lambda}a_iv_i,\quad "
    r"G_s=\tfrac12\sum\tfrac{\sigma_i^2a_i^2}{(\sigma_i+\lambda)^2},\quad G_f=\tfrac12\sum\tfrac{\sigma_i\lambda^2a_i^2}{(\sigma_i+\lambda)^2}",
    family=PENCIL,
    parts=("stationary", "G_s", "G_f", "no point is better"),
    relation=("==", "==", "==", "<="),
    assumptions=(land.SAFETY_CURVED,),
    without={
        "curved safety loss": "the pencil is then solved against H_f + H_s; what is flat for safety is free (T15(c))"
    },
    tolerance=IDENTITY,
)
def a_penalty_filters_by_relative_stiffness(instance: Landscape) -> Sides:
    """Case I keeps the directions in which the task is stiff relative to safety and gives up the others."""
    quad, lam = instance.quad, instance.lam
    at = penalised_path(quad, lam)
    delta, d = at.displacement, quad.displacement
    force = length(quad.H_f @ (delta - d) + lam * quad.H_s @ delta)
    scale = greatest(quad.H_f) * length(d) + lam * greatest(quad.H_s) * length(delta)
    sigma, a = generalised(quad)
    safety = jnp.sum((sigma * a / (sigma + lam)) ** 2) / 2
    capability = jnp.sum(sigma * (lam * a / (sigma + lam)) ** 2) / 2
    # In the unit of their rounding: the largest that each could be at this distance.
    unit_s = jnp.sum(a**2) / 2
    unit_f = sigma[-1] * unit_s
    zero = jnp.zeros_like(lam)
    return (
        jnp.stack([force / scale, at.gaps.safety / unit_s, at.gaps.capability / unit_f, _paid(at.gaps, lam)]),
        jnp.stack([zero, safety / unit_s, capability / unit_f, quad.objective(instance.theta, lam)]),
    )


@theorem(
    "T14c-proxy",
    title="Case I of two quadratics with a proxy",
    statement=r"\theta_\lambda=(H_f+\lambda\hat H_s)^{-1}(H_f\theta_f+\lambda\hat H_s\hat\theta_s)\longrightarrow\hat\theta_s,\quad "
    r"G_s\longrightarrow\tfrac12\|\hat\theta_s-\theta_s\|^2_{H_s}\quad(\lambda\to\infty);\ \text{a finite }\lambda\text{ may be safer}",
    family=MILD,
    parts=("stationary", "limit", "a finite penalty can be safer"),
    relation=("==", "==", "<="),
    assumptions=(land.SAFETY_CURVED,),
    without={"curved safety loss": "the limit is then the best point for the task among the proxy's minimisers"},
    makes_precise="the closer the proxy to the original safety data, the smaller the safety gap",
    tolerance=LIMIT,
)
def a_proxy_leaves_its_own_mismatch(instance: Landscape) -> Sides:
    """With proxy safety data, the largest penalty ends at the proxy's optimum, not at the aligned weights."""
    quad, theta_hat = instance.quad, instance.theta
    # The proxy's curvature: the safety Hessian with its coordinates in another order.
    seen = Quadratic(quad.H_f, quad.theta_f, quad.H_s[::-1, ::-1], theta_hat)
    at = penalised_path(seen, instance.lam)
    delta = at.displacement
    force = length(quad.H_f @ (delta - seen.displacement) + instance.lam * seen.H_s @ delta)
    scale = greatest(quad.H_f) * length(seen.displacement) + length(instance.lam * seen.H_s @ delta)
    sigma, _ = generalised(seen)
    mismatch = theta_hat - quad.theta_s
    limit = half_square(quad.H_s, mismatch)
    reached = jnp.sqrt(limit / greatest(quad.H_s)) / length(seen.displacement)
    ends = penalised_path(seen, FAR * jnp.max(sigma) * jnp.sqrt(_condition(seen.H_s)) / jnp.minimum(reached, 1))
    # A proxy on the far side of θ_s, curved as the task is: the path crosses the aligned weights at λ = 1.
    across = Quadratic(quad.H_s, quad.theta_f, quad.H_s, quad.theta_s - quad.displacement)
    crossing = half_square(quad.H_s, penalised_path(across, 1.0).displacement + across.theta_s - quad.theta_s)
    return (
        jnp.stack([1 + force / scale, half_square(quad.H_s, ends.displacement + mismatch), crossing]),
        jnp.stack([jnp.ones_like(limit), limit, half_square(quad.H_s, quad.displacement)]),
    )


# --- T14: where they agree and part -----------------------------------------------------------------------------


@theorem(
    "T14d",
    title="Case II is Case I with an isotropic safety loss",
    statement=r"H_s=c\,I\text{ on }\mathrm{range}\,H_f\ \Longrightarrow\ \theta_{\varepsilon(\mu)}=\theta_{\lambda},\ \lambda=\mu/c,"
    r"\text{ for every }d",
    family=ISOTROPIC,
    parts=("same point", "same safety", "same capability"),
    relation="==",
    assumptions=(land.SAFETY_ISOTROPIC,),
    without={"isotropic safety loss": lambda: land.pair(*_golden_numbers())},
    makes_precise=RESTRICTIVE,
    tolerance=IDENTITY,
)
def a_ball_is_a_penalty_that_sees_no_landscape(instance: Landscape) -> Sides:
    """A ball does what a penalty would do if every direction mattered equally for safety."""
    quad = instance.quad
    values, U = spectrum(quad.H_f)
    stiffest = U[:, jnp.argmax(values)]
    c = jnp.dot(stiffest, quad.H_s @ stiffest)
    ball, penalty = soft_path(quad, instance.lam), penalised_path(quad, instance.lam / c)
    d = quad.displacement
    unit_f, unit_s = half_square(quad.H_f, d), c * jnp.sum(d**2) / 2
    # In what the penalised objective sees: beyond the range of H_f it holds δ = 0 by the least curvature of H_s alone.
    seen = quad.H_f + instance.lam / c * quad.H_s
    apart = root(half_square(seen, ball.displacement - penalty.displacement) / half_square(seen, d))
    one = jnp.ones_like(apart)
    return (
        jnp.stack([one + apart, ball.gaps.safety / unit_s, ball.gaps.capability / unit_f]),
        jnp.stack([one, penalty.gaps.safety / unit_s, penalty.gaps.capability / unit_f]),
    )


@theorem(
    "T14d-converse",
    title="otherwise the two cases part",
    statement=r"H_s\ne cI\ \Longrightarrow\ \exists d:\ \lim_{a\to0}S_{II}(a)/S_*(a)=\tfrac{(\kappa+1)^2}{4\kappa}>1,\quad "
    r"\kappa=\mathrm{cond}(H_s)\quad(H_f\succ0)",
    family=DEFINITE,
    parts=("worst ratio", "above one"),
    relation=("==", ">="),
    assumptions=(land.SAFETY_CURVED, land.TASK_CURVED),
    without={
        "curved safety loss": "with a flat direction the ratio is infinite: T15(c)",
        "curved task loss": "only directions in the range of H_f can be pulled: κ is then that of H_s on the range",
    },
    makes_precise=RESTRICTIVE,
    tolerance=LIMIT,
)
def in_some_direction_a_ball_pays_the_most(instance: Landscape) -> Sides:
    """Unless safety is equally sensitive in all directions, some task makes a ball strictly worse than a penalty."""
    h, U = spectrum(instance.quad.H_s)
    # Equal parts of the stiffest and the softest direction of safety.
    g = U[:, 0] + U[:, -1]
    theta_f = solved_along_axes(instance.quad.H_f, g)
    quad = Quadratic(instance.quad.H_f, theta_f, instance.quad.H_s, jnp.zeros_like(theta_f))
    kappa = h[-1] / h[0]
    most = 1 + (kappa - 1) ** 2 / (4 * kappa)
    ball, best = normalised(quad, small_ball(quad)), normalised(quad, large_penalty(quad))
    return jnp.stack([ball / best, most]), jnp.stack([most, jnp.ones_like(most)])


@theorem(
    "T14e",
    title="with common axes a larger ball is never safer",
    statement=r"H_sH_f=H_fH_s\ \Longrightarrow\ G_s(\theta_\varepsilon)\text{ non-decreasing in }\varepsilon",
    family=COMMUTING,
    assumptions=(land.COMMUTE,),
    without={"Hessians commute": lambda: land.pair(*_not_monotone_numbers(), radius=2**0.5, lam=1.857)},
    makes_precise=LANDSCAPE,
)
def with_common_axes_safety_only_falls(instance: Landscape) -> Sides:
    """If both losses have the same axes, every bit of radius costs safety."""
    at = path(instance.quad, jnp.stack([over(instance.lam, 1 + instance.lam), jnp.float64(1)]) * instance.radius)
    return at.gaps.safety[0], at.gaps.safety[1]


@theorem(
    "T14e-peak",
    title="without common axes a larger ball can be safer",
    statement=r"H_f=\mathrm{diag}(100,1),\ H_s=\left(\begin{smallmatrix}1&.9\\.9&.82\end{smallmatrix}\right),\ d=(1,-1):\quad "
    r"G_s(.919)>.3,\ G_s(\sqrt2)=.01",
    family=PEAK,
    parts=("rises", "falls again"),
    makes_precise=LANDSCAPE,
)
def a_larger_ball_can_be_safer(instance: Landscape) -> Sides:
    """Without common axes the path to the task may lead through the worst place for safety and out of it again."""
    quad, radius = instance.quad, instance.radius
    at = path(quad, jnp.stack([radius / 2, radius, land.reach(quad)])).gaps.safety
    return jnp.stack([2 * at[0], 10 * at[2]]), jnp.stack([at[1], at[1]])


# --- what only these theorems need ------------------------------------------------------------------------------


def _condition(H: Array) -> Array:
    values = spectrum(H)[0]
    return values[-1] / values[0]


def _paid(at: Gaps, lam: Array) -> Array:
    return at.capability + lam * at.safety


def _golden_numbers() -> tuple[Array, Array, Array]:
    quad = quadratic.golden()
    return quad.H_f, quad.theta_f, quad.H_s


def _not_monotone_numbers() -> tuple[Array, Array, Array]:
    quad = quadratic.not_monotone()
    return quad.H_f, quad.theta_f, quad.H_s
