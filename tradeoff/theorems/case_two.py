"""T12 to T15: Case II. Bounds by the landscape, the square-root law, exact quadratics, the price of isotropy."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff import divergences as dv
from tradeoff import gaps, loss_constraint
from tradeoff.divergences import root
from tradeoff.gaps import Gaps
from tradeoff.parameter_constraint import path, penalised_path, price_of_isotropy, soft_path, solve
from tradeoff.problems import quadratic
from tradeoff.problems.quadratic import Quadratic, half_square, length, spectrum
from tradeoff.problems.tabular import Tabular
from tradeoff.theorems import instances as draw
from tradeoff.theorems import landscapes as land
from tradeoff.theorems._expressions import over
from tradeoff.theorems.claim import Sides, Tight, theorem
from tradeoff.theorems.instances import AtPenalty
from tradeoff.theorems.landscapes import Landscape, Table
from tradeoff.tolerances import DERIVATIVE, IDENTITY, LIMIT
from tradeoff.worlds.world import DataLaw, World

PAIRS = land.quadratics(safety="any")
COMMUTING = land.quadratics(commuting=True, safety="any")
# Where both sides are computed from eigenvalues, rounding of a Hessian moves them by its condition number, and that of a
# pair by the product of both.
MILD = land.quadratics(decades=4.0, inside=True)
PENCIL = land.quadratics(decades=2.5)
ISOTROPIC = land.quadratics(decades=4.0, isotropic=True)
DEFINITE = land.quadratics(decades=4.0, flat_task=False)
FLAT_SAFETY = land.quadratics(decades=4.0, flat_task=False, safety="flat")
PEAK = land.around_pair(quadratic.not_monotone(), 0.919409, 0.01)
TABLES = land.tables()
SAME_CONTEXTS = draw.at_penalty(full_support=True, contexts="same")
WORLDS = draw.at_penalty(full_support=True)

LANDSCAPE = "the alignment loss landscape around the aligned weights controls safety in Case II"
RESTRICTIVE = "Case II is more restrictive for capability than Case I, and its trade-off curve is steeper"
LIMITS = "fundamental limits of the safety-capability trade-off"

FAR = 1e6
"""How much larger than its scale the multiplier, or smaller the time, of an asymptotic law is taken."""
PENCIL_NOTHING = 2.0**-34
"""Generalised eigenvalues below this times the largest one are zero: of two Hessians over two and a half decades the least is 1e-5."""


# --- T12: Lipschitz and smooth landscapes -----------------------------------------------------------------------


@theorem(
    "T12a",
    title="Lipschitz landscape",
    statement=r"L_s\ \ell_s\text{-Lipschitz on the ball}\Longrightarrow G_s(\theta_\varepsilon)\le\ell_s\varepsilon;\quad "
    r"\text{tabular logits: }\ell_s=\sqrt2\|p_s\|_2",
    family=TABLES,
    assumptions=(land.FULL_SAFETY, land.IN_BALL),
    without={
        "full-support safety data": "the slope of L_s is bounded all the same; only the aligned logits are at infinity",
        "in the ball": lambda: _table([0.99, 0.01], [0.01, 0.99], length=9.0, radius=1.0),
    },
    tight=Tight(lambda: _table([1 - 1e-6, 1e-6], [0.01, 0.99], length=1e4), 0.99902209588),
    makes_precise=LANDSCAPE,
)
def safety_is_lost_no_faster_than_the_steepest_slope(instance: Table) -> Sides:
    """Within a radius ε of the aligned weights, at most the steepest slope of the safety loss times ε can be lost."""
    steepest = jnp.sqrt(2.0) * length(instance.world.safety.p)
    return _table_gaps(instance, instance.logits).safety, steepest * instance.radius


@theorem(
    "T12b",
    title="smooth landscape",
    statement=r"L_s\ \beta_s\text{-smooth on the ball}\Longrightarrow G_s(\theta_\varepsilon)\le\tfrac12\beta_s\varepsilon^2",
    family=PAIRS,
    tight=Tight(lambda: land.pair(jnp.eye(2), [1.0, 0.0], jnp.diag(jnp.array([2.0, 1.0])))),
    makes_precise=LANDSCAPE,
)
def safety_is_lost_at_most_quadratically(instance: Landscape) -> Sides:
    """Near weights that minimise the safety loss, what a ball can cost grows with the square of its radius."""
    at = solve(instance.quad, instance.radius)
    return at.gaps.safety, _greatest(instance.quad.H_s) * instance.radius**2 / 2


@theorem(
    "T12c",
    title="what an active constraint costs at least",
    statement=r"G_s\ge\tfrac12\mu_s\|\theta-\theta_s\|^2\text{ and the constraint is active}\Longrightarrow "
    r"G_s(\theta_\varepsilon)\ge\tfrac12\mu_s\varepsilon^2",
    family=MILD,
    relation=">=",
    assumptions=(land.CONSTRAINT_BINDS,),
    without={"active constraint": lambda: land.pair(jnp.eye(2), [1.0, 0.0], jnp.eye(2), radius=2.0)},
    tight=Tight(lambda: land.pair(jnp.eye(2), [1.0, 0.0], jnp.diag(jnp.array([1.0, 2.0])))),
    makes_precise=LANDSCAPE,
)
def an_active_ball_costs_at_least_its_square(instance: Landscape) -> Sides:
    """If the task uses up the radius and no direction is flat for safety, some safety is certainly lost."""
    at = solve(instance.quad, instance.radius)
    return at.gaps.safety, _least(instance.quad.H_s) * instance.radius**2 / 2


@theorem(
    "T12d",
    title="what a ball lets one gain",
    statement=r"s\|g\|-\tfrac12\beta_fs^2\le\mathrm{gain}(\theta_\varepsilon)\le\varepsilon\|g\|,\qquad "
    r"s=\min(\varepsilon,\|g\|/\beta_f)\quad(L_f\text{ convex, }\beta_f\text{-smooth})",
    family=PAIRS,
    parts=("at least", "at most"),
    tight=Tight(lambda: land.pair(jnp.eye(2), [1.0, 0.0], jnp.eye(2))),
    makes_precise=LANDSCAPE,
)
def the_gain_is_of_the_order_of_radius_times_slope(instance: Landscape) -> Sides:
    """A small ball gains the slope of the task's loss times the radius, no more, and little less."""
    quad, radius = instance.quad, instance.radius
    at = solve(quad, radius)
    gain, slope, beta = quad.gain(at.displacement), length(quad.pull), _greatest(quad.H_f)
    s = jnp.minimum(radius, slope / beta)
    return jnp.stack([s * slope - beta * s**2 / 2, gain]), jnp.stack([gain, radius * slope])


@theorem(
    "T12e",
    title="how fast capability comes",
    statement=r"L_f\text{ convex: }G_f(\theta_\varepsilon)\le(1-\varepsilon/R)_+G_f(\theta_s);\quad "
    r"L_f\text{ quadratic: }\le(1-\varepsilon/R)_+^2G_f(\theta_s),\qquad R=\|\theta_f-\theta_s\|>0",
    family=PAIRS,
    parts=("convex", "quadratic"),
    tight=Tight(lambda: land.pair(jnp.eye(2), [1.0, 0.0], jnp.eye(2))),
    makes_precise=LANDSCAPE,
)
def capability_comes_at_least_in_proportion(instance: Landscape) -> Sides:
    """A ball that reaches a fraction of the way to the capable weights closes at least that fraction of the gap."""
    quad = instance.quad
    at = solve(quad, instance.radius)
    # 1 - ε/R from the difference, so that the last of the way is not rounding.
    R = length(quad.displacement)
    left = jnp.maximum((R - instance.radius) / R, 0)
    whole = half_square(quad.H_f, quad.displacement)
    gap = at.gaps.capability
    # The unit is the whole gap: what remains of it past the end of the path is below rounding.
    return jnp.stack([gap, gap]) / whole, jnp.stack([left, left**2])


@theorem(
    "T12-table",
    title="constants of a table of logits",
    statement=r"\beta_s=\tfrac12\max p_s,\quad G_s(\theta_\varepsilon)\le\tfrac14\varepsilon^2\max\{p_s(x):p_f(x)>0\},\quad "
    r"s\|g\|-\tfrac14\max p_f\,s^2\le\mathrm{gain}(\theta_\varepsilon)\le\min\{\varepsilon\|g\|,\sqrt2\|p_f\|_2\varepsilon\}",
    family=TABLES,
    parts=("smooth", "in the task's contexts", "gain at least", "gain at most", "gain by slope"),
    assumptions=(land.FULL_SAFETY, land.IN_BALL),
    without={
        "full-support safety data": "the curvature of L_s is bounded all the same; only the aligned logits are at infinity",
        "in the ball": lambda: _table([0.5, 0.5], [0.01, 0.99], length=0.1, radius=0.01),
    },
    tight=Tight(lambda: _table([0.5, 0.5], [0.01, 0.99], length=1e-3)),
    makes_precise=LANDSCAPE,
)
def a_table_has_explicit_constants(instance: Table) -> Sides:
    """For free logits, steepness and curvature are known from the weights of the contexts alone."""
    world, radius = instance.world, instance.radius
    p_s, p_f = world.safety.p, world.capability.p
    aligned = instance.problem.aligned()
    # Gradient methods and active-constraint solutions move no logit outside the task's contexts.
    in_task = jnp.where(p_f[:, None] > 0, instance.step, 0)
    here, there = _table_gaps(instance, instance.logits), _table_gaps(instance, aligned + in_task)
    g = land.table_pull(world)
    slope, beta = length(g), jnp.max(p_f) / 2
    s = jnp.minimum(radius, slope / beta)
    start = _table_gaps(instance, aligned).capability
    gain = start - here.capability
    downhill = start - _table_gaps(instance, aligned + s * over(g, jnp.full_like(g, slope))).capability
    most_shared = jnp.max(jnp.where(p_f > 0, p_s, 0))
    return (
        jnp.stack([here.safety, there.safety, s * slope - beta * s**2 / 2, gain, gain]),
        jnp.stack([
            jnp.max(p_s) * radius**2 / 4,
            most_shared * radius**2 / 4,
            downhill,
            radius * slope,
            jnp.sqrt(2.0) * length(p_f) * radius,
        ]),
    )  # fmt: skip


# --- T13: the square-root law -----------------------------------------------------------------------------------


@theorem(
    "T13",
    title="square-root trade-off law",
    statement=r"\sqrt{G_f(\theta)}+\sqrt{\beta_f/\mu_s}\sqrt{G_s(\theta)}\ge\sqrt{G_f(\theta_s)},\quad "
    r"\sqrt{G_f(\theta)}\ge\sqrt{G_f(\theta_s)}-\sqrt{\beta_f/2}\,\|\theta-\theta_s\|,\quad "
    r"\sqrt{G_s(\theta)}+\sqrt{\beta_s/\mu_f}\sqrt{G_f(\theta)}\ge\sqrt{G_s(\theta_f)}",
    family=DEFINITE,
    parts=("any parameters", "by distance", "symmetric", "Case I", "Case II"),
    relation=">=",
    assumptions=(land.SAFETY_CURVED, land.TASK_CURVED),
    without={
        "curved safety loss": "with μ_s = 0 the bound is infinite times zero: what is flat for safety is free (T15(c))",
        "curved task loss": "only the symmetric form needs it, which is empty at μ_f = 0",
    },
    tight=Tight(lambda: land.pair(2 * jnp.eye(2), [1.0, -1.0], 3 * jnp.eye(2), theta=[0.3, -0.3])),
    makes_precise=LIMITS,
)
def both_gaps_cannot_be_small(instance: Landscape) -> Sides:
    """However one trains, the roots of the two gaps add up to at least a fixed amount: the way between the two optima."""
    quad = instance.quad
    case_one = penalised_path(quad, instance.lam).gaps
    case_two = solve(quad, instance.radius).gaps
    at = quad.gaps(instance.theta)
    exchange = jnp.sqrt(_greatest(quad.H_f) / _least(quad.H_s))
    mirror = jnp.sqrt(_greatest(quad.H_s) / _least(quad.H_f))
    start, end = (root(half_square(H, quad.displacement)) for H in (quad.H_f, quad.H_s))
    moved = jnp.sqrt(_greatest(quad.H_f) / 2) * length(instance.theta - quad.theta_s)
    roots = [root(g.capability) + exchange * root(g.safety) for g in (at, case_one, case_two)]
    return (
        jnp.stack([
            roots[0],
            root(at.capability) + moved,
            root(at.safety) + mirror * root(at.capability),
            roots[1],
            roots[2],
        ]),
        jnp.stack([start, start, end, start, start]),
    )  # fmt: skip


@theorem(
    "T13-table",
    title="square-root law for a table of logits",
    statement=r"\sqrt{G_f(\theta)}\ge\sqrt{G_f(\theta_s)}-\sqrt{\beta_f/2}\,\|\theta-\theta_s\|,\qquad\beta_f=\tfrac12\max p_f",
    family=TABLES,
    relation=">=",
    assumptions=(land.FULL_SAFETY,),
    without={"full-support safety data": "a policy that rules out a response has no finite logits to start from"},
    makes_precise=LIMITS,
)
def capability_needs_distance(instance: Table) -> Sides:
    """The root of the capability gap falls no faster than the weights move."""
    start = _table_gaps(instance, instance.problem.aligned()).capability
    moved = jnp.sqrt(jnp.max(instance.world.capability.p) / 4) * length(instance.step)
    return root(_table_gaps(instance, instance.logits).capability) + moved, root(start)


# --- T14: exact quadratics --------------------------------------------------------------------------------------


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
    stiff, soft = _greatest(quad.H_f), _greatest(quad.H_s)
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
    scale = _greatest(quad.H_f) * length(d) + mu * length(delta)
    back = soft_path(quad, hard.multiplier).radius
    zero = jnp.zeros_like(mu)
    return (
        jnp.stack([force / scale, length(hard.displacement - delta) / soft.radius, back, softer.radius]),
        jnp.stack([zero, zero, soft.radius, soft.radius]),
    )


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
    scale = _greatest(quad.H_f) * length(d) + lam * _greatest(quad.H_s) * length(delta)
    sigma, a = _generalised(quad)
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
    scale = _greatest(quad.H_f) * length(seen.displacement) + length(instance.lam * seen.H_s @ delta)
    sigma, _ = _generalised(seen)
    mismatch = theta_hat - quad.theta_s
    limit = half_square(quad.H_s, mismatch)
    reached = jnp.sqrt(limit / _greatest(quad.H_s)) / length(seen.displacement)
    ends = penalised_path(seen, FAR * jnp.max(sigma) * jnp.sqrt(_condition(seen.H_s)) / jnp.minimum(reached, 1))
    # A proxy on the far side of θ_s, curved as the task is: the path crosses the aligned weights at λ = 1.
    across = Quadratic(quad.H_s, quad.theta_f, quad.H_s, quad.theta_s - quad.displacement)
    crossing = half_square(quad.H_s, penalised_path(across, 1.0).displacement + across.theta_s - quad.theta_s)
    return (
        jnp.stack([1 + force / scale, half_square(quad.H_s, ends.displacement + mismatch), crossing]),
        jnp.stack([jnp.ones_like(limit), limit, half_square(quad.H_s, quad.displacement)]),
    )


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
    apart = length(ball.displacement - penalty.displacement) / length(d)
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
    theta_f = _solve(instance.quad.H_f, g)
    quad = Quadratic(instance.quad.H_f, theta_f, instance.quad.H_s, jnp.zeros_like(theta_f))
    kappa = h[-1] / h[0]
    most = 1 + (kappa - 1) ** 2 / (4 * kappa)
    ball, best = _normalised(quad, _small_ball(quad)), _normalised(quad, _large_penalty(quad))
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


# --- T15: the price of isotropy ---------------------------------------------------------------------------------


@theorem(
    "T15",
    title="the price of isotropy",
    statement=r"S_{II}(a)\sim\tfrac12a^2\frac{g^\top H_sg}{\|g\|^4},\quad S_*(a)\sim\tfrac12\frac{a^2}{g^\top H_s^{-1}g},\quad "
    r"\lim_{a\to0}\frac{S_{II}}{S_*}=\frac{(g^\top H_sg)(g^\top H_s^{-1}g)}{\|g\|^4}",
    family=MILD,
    parts=("Case II", "best", "price"),
    relation="==",
    assumptions=(land.SAFETY_CURVED, land.TASK_PULLS),
    without={
        "curved safety loss": "with g outside the range of a singular H_s the best costs nothing: T15(c)",
        "task pulls": "where the task does not pull there is nothing to gain",
    },
    makes_precise=RESTRICTIVE,
    tolerance=LIMIT,
)
def a_ball_pays_for_not_knowing_the_landscape(instance: Landscape) -> Sides:
    """At equal small gain, a ball loses more safety than the best by a factor that the two Hessians' angles decide."""
    quad = instance.quad
    g = quad.pull
    ball, best = _normalised(quad, _small_ball(quad)), _normalised(quad, _large_penalty(quad))
    steep, shallow = 2 * half_square(quad.H_s, g), jnp.dot(g, _solve(quad.H_s, g))
    return (
        jnp.stack([ball, best, ball / best]),
        jnp.stack([steep / jnp.sum(g**2) ** 2, 1 / shallow, price_of_isotropy(quad.H_s, g).price]),
    )


@theorem(
    "T15-bracket",
    title="the price has a ceiling",
    statement=r"1\le\frac{(g^\top H_sg)(g^\top H_s^{-1}g)}{\|g\|^4}\le\frac{(\kappa+1)^2}{4\kappa},\qquad\kappa=\mathrm{cond}(H_s)",
    family=MILD,
    parts=("at least one", "Kantorovich"),
    assumptions=(land.SAFETY_CURVED, land.TASK_PULLS),
    without={
        "curved safety loss": "with κ infinite there is no ceiling",
        "task pulls": "where the task does not pull there is no price",
    },
    tight=Tight(lambda: land.pair(jnp.diag(jnp.array([1.0, 1.0])), [1.0, 1.0], jnp.diag(jnp.array([1.0, 9.0])))),
    makes_precise=RESTRICTIVE,
)
def the_price_is_bounded_by_the_condition_number(instance: Landscape) -> Sides:
    """The price is one at best, and at worst about a quarter of the condition number of the safety landscape."""
    paid = price_of_isotropy(instance.quad.H_s, instance.quad.pull)
    return jnp.stack([jnp.ones_like(paid.price), paid.price]), jnp.stack([paid.price, paid.most])


@theorem(
    "T15a",
    title="no price along an eigenvector",
    statement=r"\text{price}-1=\sum_{i<j}w_iw_j\frac{(h_i-h_j)^2}{h_ih_j},\ w_i=\tfrac{(u_i^\top g)^2}{\|g\|^2}:\quad "
    r"\text{price}-1\ge\frac{\|H_sg-mg\|^2}{\|g\|^2\,m\max h},\ m=\tfrac{g^\top H_sg}{\|g\|^2}:\quad "
    r"\text{price}=1\iff H_sg\parallel g",
    family=MILD,
    parts=("one along an eigenvector", "the excess elsewhere", "more than one elsewhere"),
    relation=("==", "==", ">="),
    assumptions=(land.SAFETY_CURVED,),
    without={"curved safety loss": "an eigenvector of value 0 is pulled for nothing by both"},
    makes_precise=RESTRICTIVE,
    tolerance=IDENTITY,
)
def a_ball_is_best_only_along_an_axis(instance: Landscape) -> Sides:
    """A ball costs nothing extra exactly when the task pulls along an axis of the safety landscape."""
    quad = instance.quad
    h, U = spectrum(quad.H_s)
    g = instance.theta - quad.theta_s
    w = (U.T @ g) ** 2 / jnp.sum(g**2)
    excess = [w[i] * w[j] * (h[i] - h[j]) ** 2 / (h[i] * h[j]) for j in range(len(h)) for i in range(j)]
    # price - 1 = Σ w (h - m)²/(h m) with m = Σ w h, at least the variance of h over m max h: 0 only where H_s g ∥ g.
    mean = jnp.dot(g, quad.H_s @ g) / jnp.sum(g**2)
    turned = quad.H_s @ g - mean * g
    least = jnp.sum(turned**2) / jnp.sum(g**2) / (mean * h[-1])
    product = 2 * half_square(quad.H_s, g) * jnp.dot(g, _solve(quad.H_s, g)) / jnp.sum(g**2) ** 2
    along, across = (price_of_isotropy(quad.H_s, v) for v in (U[:, 0], g))
    return (
        jnp.stack([along.price, product, across.price]),
        jnp.stack([jnp.ones_like(product), 1 + sum(excess), 1 + least]),
    )


@theorem(
    "T15a-flow",
    title="early stopping pays the same price",
    statement=r"\dot\theta=-\nabla L_f,\ t\to0:\quad S(a)\sim\tfrac12a^2\,\frac{g^\top H_sg}{\|g\|^4}",
    family=MILD,
    relation="==",
    assumptions=(land.SAFETY_CURVED, land.TASK_PULLS),
    without={
        "curved safety loss": "not needed unless H_s g = 0 (T16(e))",
        "task pulls": "where the task does not pull nothing moves",
    },
    makes_precise=RESTRICTIVE,
    tolerance=LIMIT,
)
def early_stopping_is_as_blind_as_a_ball(instance: Landscape) -> Sides:
    """Stopping gradient descent early is a ball in disguise: it pays the price of isotropy too."""
    quad = instance.quad
    g = quad.pull
    time = 1 / (FAR * _stiffness(quad, jnp.eye(len(g))))
    rates, U = spectrum(quad.H_f)
    exponent = -jnp.maximum(rates, 0) * time
    filtered = jnp.where(exponent < 0, jnp.expm1(exponent) / jnp.where(exponent < 0, exponent, 1), 1)
    delta = time * (U @ (filtered * (U.T @ g)))
    return _normalised(quad, delta), 2 * half_square(quad.H_s, g) / jnp.sum(g**2) ** 2


@theorem(
    "T15b",
    title="the right metric removes the price",
    statement=r"\|\theta-\theta_s\|_A\le\varepsilon:\ \text{price}=\frac{(u^\top H_su)(g^\top H_s^{-1}g)}{(g^\top u)^2},\ u=A^{-1}g;"
    r"\qquad=1\text{ for }A=H_s",
    family=MILD,
    parts=("any ellipsoid", "its price", "the safety Hessian"),
    relation="==",
    assumptions=(land.SAFETY_CURVED, land.TASK_PULLS),
    without={
        "curved safety loss": "H_s is then no metric",
        "task pulls": "where the task does not pull there is no price",
    },
    makes_precise=RESTRICTIVE,
    tolerance=LIMIT,
)
def measuring_distance_by_safety_costs_nothing_extra(instance: Landscape) -> Sides:
    """If distance is measured by the safety Hessian (the Fisher matrix), a constraint on weights is as good as any."""
    quad = instance.quad
    g = quad.pull
    A = quad.H_s[::-1, ::-1]
    u = _solve(A, g)
    shallow = jnp.dot(g, _solve(quad.H_s, g))
    price = 2 * half_square(quad.H_s, u) * shallow / jnp.dot(g, u) ** 2
    ellipsoid, own = (_normalised(quad, _small_ball(quad, metric)) for metric in (A, quad.H_s))
    return (
        jnp.stack([ellipsoid * shallow, price_of_isotropy(quad.H_s, g, A).price, own * shallow]),
        jnp.stack([price, price, jnp.ones_like(price)]),
    )


@theorem(
    "T15c",
    title="free capability in flat directions",
    statement=r"g\notin\mathrm{range}\,H_s:\quad S_*(a)=0\text{ up to }a=\tfrac12g^\top N(N^\top H_fN)^{-1}N^\top g,\ N=\ker H_s;"
    r"\qquad S_{II}(a)\sim\tfrac12a^2\frac{g^\top H_sg}{\|g\|^4}",
    family=FLAT_SAFETY,
    parts=("costs nothing", "gains", "gains something", "a ball pays"),
    relation=("==", "==", ">=", "=="),
    assumptions=(land.SAFETY_FLAT,),
    without={"flat safety direction": "with g inside the range of H_s nothing is free, and the claim is empty: T15"},
    makes_precise=RESTRICTIVE,
    tolerance=LIMIT,
)
def flat_directions_are_free_except_for_a_ball(instance: Landscape) -> Sides:
    """Where the safety loss is flat, capability costs nothing, but a ball pays for it all the same."""
    quad = instance.quad
    g = quad.pull
    free = penalised_path(quad, jnp.inf)
    h, U = spectrum(quad.H_s)
    kernel = U * jnp.where(h > land.NOTHING * h[-1], 0.0, 1.0)[None, :]
    projector = kernel @ kernel.T
    inner = projector @ quad.H_f @ projector + (jnp.eye(len(h)) - projector) * jnp.trace(quad.H_f)
    most = jnp.dot(g, projector @ _solve(inner, projector @ g)) / 2
    outside = jnp.sum((projector @ g) ** 2)
    zero = jnp.zeros_like(most)
    steep = 2 * half_square(quad.H_s, g) / jnp.sum(g**2) ** 2
    return (
        jnp.stack([free.gaps.safety, quad.gain(free.displacement), most, _normalised(quad, _small_ball(quad))]),
        jnp.stack([zero, most, outside / (2 * _greatest(quad.H_f)), steep]),
    )


@theorem(
    "T15d",
    title="the price for a table of logits",
    statement=r"D=P_f-P_s:\quad g^\top H_sg=\sum p_sp_f^2\mathrm{Var}_{P_s}(D),\quad g^\top H_s^+g=\sum_O\tfrac{p_f^2}{p_s}\chi^2(P_f\|P_s),"
    r"\quad\|g\|^2=\sum p_f^2\|D\|_2^2",
    family=WORLDS,
    parts=("gᵀHg", "pseudo-inverse solves", "gᵀH⁺g", "‖g‖²"),
    relation="==",
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": "a proxy plays no part in Case II"},
    makes_precise=RESTRICTIVE,
    tolerance=IDENTITY,
)
def the_price_of_a_table_is_known_from_its_data(instance: AtPenalty) -> Sides:
    """For free logits every part of the price is a spread or a chi-squared of the two answers."""
    world = instance.world
    s, f = world.safety, world.capability
    aligned = Tabular(world).aligned()
    g = -jax.grad(lambda z: gaps.capability_gap(world, jax.nn.log_softmax(z, axis=-1)))(aligned)
    # The sum of D is rounding, which 1/P_s would enlarge.
    D = f.P - s.P
    D = D - s.P * jnp.sum(D, axis=-1, keepdims=True)
    mean = jnp.sum(s.P * D, axis=-1, keepdims=True)
    spread = jnp.sum(s.P * (D - mean) ** 2, axis=-1)

    def curved(v: Array) -> Array:
        slope = jax.grad(lambda z: gaps.safety_gap(world, jax.nn.log_softmax(z, axis=-1)))
        return jax.jvp(slope, (aligned,), (v,))[1]

    shared = world.shared[:, None]
    inverse = jnp.where(shared, over(f.p, s.p)[:, None] * D / s.P, 0)
    in_range = jnp.where(shared, f.p[:, None] * D, 0)
    size = length(in_range)
    missed = length(curved(inverse) - in_range) / jnp.where(size > 0, size, 1)
    return (
        jnp.stack([jnp.sum(g * curved(g)), 1 + missed, jnp.sum(g * inverse), jnp.sum(g**2)]),
        jnp.stack([
            jnp.sum(s.p * f.p**2 * spread),
            jnp.ones_like(missed),
            jnp.sum(over(f.p**2, s.p) * dv.chi_squared(f.P, s.P)),
            jnp.sum(f.p[:, None] ** 2 * D**2),
        ]),
    )  # fmt: skip


@theorem(
    "T15d-limit",
    title="the price for a table of logits, as paid",
    statement=r"\lim_{a\to0}\frac{S_{II}}{S_*}=\frac{\sum p_sp_f^2\mathrm{Var}_{P_s}(D)\ \sum_O\frac{p_f^2}{p_s}\chi^2(P_f\|P_s)}"
    r"{(\sum p_f^2\|D\|_2^2)^2}",
    family=SAME_CONTEXTS,
    parts=("Case II", "Case I"),
    relation="==",
    assumptions=(draw.EXACT_PROXY, draw.SAME_CONTEXTS),
    without={
        "exact proxy": "with a proxy Case I does not end at the aligned policy: T6(c)",
        "same contexts": "where the task has contexts of its own capability is free there, unless the answers agree: T15(c)",
    },
    makes_precise=RESTRICTIVE,
    tolerance=LIMIT,
)
def a_table_pays_the_price(instance: AtPenalty) -> Sides:
    """Measured on the policies themselves, a small ball and a large penalty cost what the formulas say."""
    world = instance.world
    s, f = world.safety, world.capability
    g, D = land.table_pull(world), f.P - s.P
    step = 1 / FAR
    centred = step * (g - jnp.sum(s.P * g, axis=-1, keepdims=True))
    lost = jnp.log1p(jnp.sum(s.P * dv.expm1_minus_x(centred), axis=-1))
    gain = step * jnp.sum(g**2) - jnp.sum(f.p * lost)
    spread = jnp.sum(s.P * (D - jnp.sum(s.P * D, axis=-1, keepdims=True)) ** 2, axis=-1)
    steep = jnp.sum(s.p * f.p**2 * spread) / jnp.sum(g**2) ** 2
    # Case I: w = p_f/(p_f + λ p_s) small, so that the gain is linear in it and the loss quadratic.
    lam = FAR * jnp.maximum(jnp.max(over(f.P, s.P)), 1.0)
    task, _ = loss_constraint.mixture_weights(world, lam)
    # L_f(P_s) - L_f(M) = Σ p_f P_f log(1 + x) with x = M/P_s - 1 = w D/P_s, of which Σ P_s x = 0 is taken out.
    x = task[:, None] * D / s.P
    gained = jnp.sum(f.p[:, None] * (D * jnp.log1p(x) - s.P * dv.x_minus_log1p(x)))
    chi = jnp.sum(over(f.p**2, s.p) * dv.chi_squared(f.P, s.P))
    return (
        jnp.stack([2 * jnp.sum(s.p * lost) / gain**2, 2 * loss_constraint.gaps(world, lam).safety / gained**2]),
        jnp.stack([steep, 1 / chi]),
    )


# --- what only these theorems need ------------------------------------------------------------------------------


def _greatest(H: Array) -> Array:
    return spectrum(H)[0][-1]


def _least(H: Array) -> Array:
    """The least eigenvalue, 0 where it is rounding."""
    values = spectrum(H)[0]
    return jnp.where(values[0] > land.NOTHING * values[-1], values[0], 0)


def _solve(H: Array, v: Array) -> Array:
    """H⁻¹v for a definite Hessian, or H⁻¹ of every row of v."""
    values, U = spectrum(H)
    return ((v @ U) / values) @ U.T if v.ndim == 1 else (v @ U / values[None, :]) @ U.T


def _condition(H: Array) -> Array:
    values = spectrum(H)[0]
    return values[-1] / values[0]


def _paid(at: Gaps, lam: Array) -> Array:
    return at.capability + lam * at.safety


def _generalised(quad: Quadratic) -> tuple[Array, Array]:
    """Generalised eigenvalues of H_f against H_s, and the coordinates of the displacement, by Cholesky."""
    L = jnp.linalg.cholesky(quad.H_s)
    half = jax.scipy.linalg.solve_triangular(L, quad.H_f, lower=True)
    inner = jax.scipy.linalg.solve_triangular(L, half.T, lower=True)
    sigma, Z = spectrum((inner + inner.T) / 2)
    return jnp.where(sigma > PENCIL_NOTHING * sigma[-1], sigma, 0), Z.T @ (L.T @ quad.displacement)


def _stiffness(quad: Quadratic, metric: Array) -> Array:
    """The multiplier at which the second term of a small step weighs as much as the first."""
    u = _solve(metric, quad.pull)
    v = _solve(metric, quad.H_f @ u)
    second, first = half_square(quad.H_s, v), half_square(quad.H_s, u)
    return jnp.trace(_solve(metric, quad.H_f)) + jnp.sqrt(second / first)


def _small_ball(quad: Quadratic, metric: Array | None = None) -> Array:
    """The displacement of Case II at so large a multiplier, that is so small a radius, that only its direction matters."""
    mu = FAR * _stiffness(quad, jnp.eye(len(quad.theta_s)) if metric is None else metric)
    return soft_path(quad, mu, metric).displacement


def _large_penalty(quad: Quadratic) -> Array:
    """The displacement of Case I at so large a penalty that only its direction matters."""
    sigma, _ = _generalised(quad)
    return penalised_path(quad, FAR * jnp.max(sigma)).displacement


def _normalised(quad: Quadratic, delta: Array) -> Array:
    """Twice the safety gap over the square of the gain."""
    return 2 * half_square(quad.H_s, delta) / quad.gain(delta) ** 2


def _table_gaps(instance: Table, logits: Array) -> Gaps:
    return instance.problem.gaps(logits)


def _table(P_s: list[float], P_f: list[float], length: float, radius: float | None = None) -> Table:
    """One context; the logits move by `length` from the first response to the second."""
    world = World(DataLaw([1.0], [P_s]), DataLaw([1.0], [P_f]))
    step = length / 2**0.5 * jnp.array([[-1.0, 1.0]])
    at = Tabular(world).aligned() + step
    return Table(world, jnp.float64(length if radius is None else radius), jnp.float64(1.0), at)


def _golden_numbers() -> tuple[Array, Array, Array]:
    quad = quadratic.golden()
    return quad.H_f, quad.theta_f, quad.H_s


def _not_monotone_numbers() -> tuple[Array, Array, Array]:
    quad = quadratic.not_monotone()
    return quad.H_f, quad.theta_f, quad.H_s
