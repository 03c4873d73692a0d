"""T16: gradient flow and early stopping as an implicit Case II."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.divergences import root
from tradeoff.dynamics.quadratic import quadratic_flow
from tradeoff.parameter_constraint import penalised_path, soft_path
from tradeoff.problems.quadratic import Quadratic, half_square, length, spectrum
from tradeoff.theorems import landscapes as land
from tradeoff.theorems.claim import Sides, Tight, theorem
from tradeoff.theorems.landscapes import Landscape
from tradeoff.tolerances import IDENTITY, LIMIT

PAIRS = land.quadratics(safety="any")
COMMUTING = land.quadratics(commuting=True, safety="any")
MILD = land.quadratics(decades=4.0, inside=True)
QUARTIC = land.quadratics(decades=2.0, flat_task=False, pull="flat")

EARLY = "stopping fine-tuning early keeps the model in a neighbourhood of the aligned one, as Case II does"

FILTER, FILTER_AT = 1.2984256075257, 1.79328213290076
"""The greatest value of (1 - e^-z)(1 + z)/z, rounded up, and where it is."""
SOON = 1e-6
"""The time of an asymptotic law, in units of the time at which its next term weighs as much."""


@theorem(
    "T16a",
    title="the flow of two quadratics",
    statement=r"\delta(t)=(I-e^{-H_ft})d,\ G_f=\tfrac12d^\top H_fe^{-2H_ft}d,\ G_s=\tfrac12\|\delta(t)\|^2_{H_s},\ \|\delta(t)\|\text{ increasing};"
    r"\quad\theta(t)-\theta_\lambda=e^{-At}(\theta_s-\theta_\lambda),\ A=H_f+\lambda H_s",
    family=MILD,
    parts=("starts aligned", "moves downhill", "ends at Case I", "G_f", "G_s", "moves away"),
    relation=("==", "==", "==", "==", "==", "<="),
    assumptions=(land.SAFETY_CURVED,),
    without={"curved safety loss": "not needed: directions flat for both losses stand still"},
    makes_precise=EARLY,
    tolerance=IDENTITY,
)
def training_time_filters_like_a_penalty(instance: Landscape) -> Sides:
    """Gradient descent learns stiff directions first, and every instant of it is known in closed form."""
    quad, lam, time = instance.quad, instance.lam, instance.time
    d = quad.displacement

    def delta(t: Array, penalty: Array) -> Array:
        states = quadratic_flow(quad, penalty, t, states=True).displacements
        assert states is not None  # asked for
        return states

    # The flow is the one curve that starts at θ_s and moves along minus the gradient.
    here, velocity = jax.jvp(lambda t: delta(t, lam), (time,), (jnp.ones_like(time),))
    downhill = -quad.H_f @ (here - d) - lam * (quad.H_s @ here)
    A = length(quad.H_f) + lam * length(quad.H_s)
    apart = length(d)
    missed = length(velocity - downhill) / (A * apart)
    # At the end, in what the penalised objective sees: flat directions of H_f + λH_s it hardly does.
    end, case_one = quadratic_flow(quad, lam, jnp.inf).gaps, penalised_path(quad, lam).gaps
    plain = quadratic_flow(quad, 0.0, jnp.stack([time, 2 * time]), states=True)
    rates, U = spectrum(quad.H_f)
    rates = jnp.where(rates > land.NOTHING * rates[-1], rates, 0)
    c = U.T @ d
    capability = jnp.sum(rates * (jnp.exp(-rates * time) * c) ** 2) / 2
    moved = U @ (-jnp.expm1(-rates * time) * c)
    assert plain.displacements is not None  # asked for
    norms = jnp.stack([length(v) for v in plain.displacements])
    unit_f, unit_s = rates[-1] * apart**2, length(quad.H_s) * jnp.sum(moved**2)
    zero, one = jnp.zeros_like(missed), jnp.ones_like(missed)
    return (
        jnp.stack([
            length(delta(jnp.zeros_like(time), lam)), 1 + missed, (end.capability + lam * end.safety) / unit_f,
            plain.gaps.capability[0] / unit_f, plain.gaps.safety[0] / unit_s, norms[0],
        ]),
        jnp.stack([
            zero, one, (case_one.capability + lam * case_one.safety) / unit_f, capability / unit_f, half_square(quad.H_s, moved) / unit_s, norms[1],
        ]),
    )  # fmt: skip


@theorem(
    "T16b",
    title="early stopping against weight decay",
    statement=r"\mu=1/t:\quad G_s^{\mathrm{ridge}}\le G_s^{\mathrm{flow}}\le1.6861\,G_s^{\mathrm{ridge}}\ (\text{common axes}),\qquad "
    r"G_f^{\mathrm{flow}}\le G_f^{\mathrm{ridge}}",
    family=COMMUTING,
    parts=("at least as far", "not much further", "more capable"),
    assumptions=(land.COMMUTE,),
    without={"Hessians commute": lambda: _ridge_loses_more()},
    tight=Tight(lambda: land.pair(jnp.eye(2), [1.0, 0.0], jnp.eye(2), time=FILTER_AT)),
    makes_precise=EARLY,
)
def stopping_at_t_is_weight_decay_of_one_over_t(instance: Landscape) -> Sides:
    """Stopping at time t loses a little more safety and gains a little more capability than weight decay of strength 1/t."""
    quad, time = instance.quad, instance.time
    flow, ridge = quadratic_flow(quad, 0.0, time).gaps, soft_path(quad, 1 / time).gaps
    # In units of what the whole way could cost: where the task moves nothing that safety sees, both gaps are rounding.
    unit = length(quad.H_s) * jnp.sum(quad.displacement**2)
    lost_by_flow, lost_by_ridge = flow.safety / unit, ridge.safety / unit
    return (
        jnp.stack([lost_by_ridge, lost_by_flow, _left_over(quad, time)]),
        jnp.stack([lost_by_flow, FILTER**2 * lost_by_ridge, ridge.capability]),
    )


@theorem(
    "T16c",
    title="distance and safety by time and gain",
    statement=r"\|\theta(t)-\theta_s\|\le\sqrt{t\,\mathrm{gain}(t)},\qquad G_s(t)\le\tfrac12\beta_s\,t\,\mathrm{gain}(t)",
    family=PAIRS,
    parts=("distance", "safety"),
    tight=Tight(lambda: land.pair(jnp.eye(2), [1.0, 0.0], jnp.eye(2), time=1e-9)),
    makes_precise=EARLY,
)
def what_is_gained_in_time_bounds_what_is_lost(instance: Landscape) -> Sides:
    """A run that gained little in little time cannot have lost much safety."""
    quad, time = instance.quad, instance.time
    moved, gain = _moved(quad, time)
    flow = quadratic_flow(quad, 0.0, time)
    beta = spectrum(quad.H_s)[0][-1]
    return (
        jnp.stack([length(moved), flow.gaps.safety]),
        jnp.stack([root(time * gain), beta * time * gain / 2]),
    )


@theorem(
    "T16d",
    title="the square-root law along a flow",
    statement=r"\|\nabla L_f\|^2\ge2\mu_fG_f\ \Longrightarrow\ \sqrt{G_s(t)}\le\sqrt{\beta_s/\mu_f}\,\big(\sqrt{G_f(\theta_s)}-\sqrt{G_f(t)}\big);"
    r"\quad\text{descent with step }\eta<2/\beta_f:\ \times\frac1{1-\eta\beta_f/2}",
    family=PAIRS,
    parts=("flow", "descent"),
    tight=Tight(lambda: land.pair(jnp.eye(2), [1.0, 0.0], jnp.eye(2))),
    makes_precise=EARLY,
)
def safety_lost_is_bounded_by_capability_gained(instance: Landscape) -> Sides:
    """Along training, the root of the safety gap grows no faster than the root of the capability gap falls."""
    quad, time = instance.quad, instance.time
    rates, U = spectrum(quad.H_f)
    curved = rates > land.NOTHING * rates[-1]
    rates, c = jnp.where(curved, rates, 0), jnp.where(curved, U.T @ quad.displacement, 0)
    least = jnp.min(jnp.where(curved, rates, jnp.inf))
    slope = jnp.sqrt(spectrum(quad.H_s)[0][-1] / least)
    start = jnp.sum(rates * c**2) / 2
    lost = root(quadratic_flow(quad, 0.0, time).gaps.safety)
    _, gain = _moved(quad, time)
    # √a - √b = (a - b)/(√a + √b).
    fallen = gain / (root(start) + root(_left_over(quad, time)))
    # k steps of descent multiply every direction by (1 - ηλ)^k.
    step = 2 * jax.nn.sigmoid(jnp.log(instance.lam)) / rates[-1]
    count = jnp.ceil(jnp.minimum(time * rates[-1], 1e6))
    keep, base = 1 - step * rates, jnp.log(jnp.maximum(jnp.abs(1 - step * rates), 2.0**-500))
    log_keep = jnp.where(step * rates < 0.5, jnp.log1p(-jnp.minimum(step * rates, 0.5)), base)
    odd = (keep < 0) & (count % 2 == 1)
    delta = jnp.where(odd, 1 + jnp.exp(count * log_keep), -jnp.expm1(count * log_keep)) * c
    descent_lost = root(half_square(quad.H_s, U @ delta))
    descent_gain = jnp.sum(rates * -jnp.expm1(2 * count * log_keep) * c**2) / 2
    descent_left = jnp.sum(rates * (jnp.exp(count * log_keep) * c) ** 2) / 2
    descent_fallen = descent_gain / (root(start) + root(descent_left))
    # 1 - ηβ/2 = 1 - sigmoid.
    slack = jax.nn.sigmoid(-jnp.log(instance.lam))
    return jnp.stack([lost, descent_lost]), slope * jnp.stack([fallen, descent_fallen / slack])


@theorem(
    "T16e",
    title="quadratic onset",
    statement=r"\nabla L_s(\theta_s)=0:\ G_s(t)=\tfrac12t^2g^\top H_sg+o(t^2);\qquad\nabla L_s(\theta_0)\ne0:\ "
    r"L_s(t)-L_s(0)=-t\langle\nabla L_s,\nabla L_f\rangle+O(t^2)",
    family=MILD,
    parts=("from the aligned parameters", "from elsewhere"),
    relation="==",
    assumptions=(land.SAFETY_CURVED, land.TASK_PULLS),
    without={
        "curved safety loss": "with H_sg = 0 the onset is quartic: T16e-quartic",
        "task pulls": "where the task does not pull nothing moves",
    },
    makes_precise=EARLY,
    tolerance=LIMIT,
)
def safety_is_lost_with_the_square_of_time(instance: Landscape) -> Sides:
    """The first steps from well-aligned weights are nearly free; from badly aligned ones they are not."""
    quad = instance.quad
    g, h_g = quad.pull, quad.H_f @ quad.pull
    first, second = half_square(quad.H_s, g), half_square(quad.H_s, h_g)
    time = SOON / (jnp.trace(quad.H_f) + jnp.sqrt(second / first))
    onset = quadratic_flow(quad, 0.0, time).gaps.safety / (first * time**2)
    # From θ: the flow of the same losses with the aligned parameters moved there; L_s changes by ∇L_s·δ + ½δᵀH_sδ.
    start, slope_f = instance.theta, quad.H_f @ (instance.theta - quad.theta_f)
    slope_s = quad.H_s @ (start - quad.theta_s)
    drift = -jnp.dot(slope_s, slope_f)
    curve = length(slope_s) * length(quad.H_f @ slope_f) + half_square(quad.H_s, slope_f)
    soon = SOON / (curve / jnp.abs(drift) + jnp.trace(quad.H_f))
    moved, _ = _moved(Quadratic(quad.H_f, quad.theta_f, quad.H_s, start), soon)
    change = jnp.dot(slope_s, moved) + half_square(quad.H_s, moved)
    one = jnp.ones_like(onset)
    return jnp.stack([onset, change / (soon * drift)]), jnp.stack([one, one])


@theorem(
    "T16e-quartic",
    title="quartic onset",
    statement=r"H_sg=0:\quad G_s(t)=\tfrac18t^4(H_fg)^\top H_s(H_fg)+O(t^5)",
    family=QUARTIC,
    relation="==",
    assumptions=(land.PULLS_FLAT,),
    without={"task pulls flat": lambda: land.pair(jnp.diag(jnp.array([3.0, 1.0])), [1.0, -1.0], jnp.eye(2))},
    makes_precise=EARLY,
    tolerance=LIMIT,
)
def in_a_flat_direction_the_onset_is_quartic(instance: Landscape) -> Sides:
    """If the task pulls where safety is flat, safety is lost only as the path bends, with the fourth power of time."""
    quad = instance.quad
    first = quad.H_f @ quad.pull
    bend, next_bend = half_square(quad.H_s, first), half_square(quad.H_s, quad.H_f @ first)
    # Short against the next terms (those of the exponential, the bend of the bend), long against what rounding leaves of
    # the pull outside the flat direction.
    time = 10 * SOON / (jnp.trace(quad.H_f) + jnp.sqrt(next_bend / bend))
    return quadratic_flow(quad, 0.0, time).gaps.safety / (time**4 * bend / 4), jnp.ones_like(time)


# --- what only these theorems need ------------------------------------------------------------------------------


def _moved(quad: Quadratic, time: Array) -> tuple[Array, Array]:
    """Displacement and gain of the plain flow, without cancellation at either end."""
    rates, U = spectrum(quad.H_f)
    rates = jnp.where(rates > land.NOTHING * rates[-1], rates, 0)
    c = U.T @ quad.displacement
    return U @ (-jnp.expm1(-rates * time) * c), jnp.sum(rates * -jnp.expm1(-2 * rates * time) * c**2) / 2


def _left_over(quad: Quadratic, time: Array) -> Array:
    """The capability gap of the plain flow, in the eigenbasis: exact however small."""
    rates, U = spectrum(quad.H_f)
    rates = jnp.where(rates > land.NOTHING * rates[-1], rates, 0)
    return jnp.sum(rates * (jnp.exp(-rates * time) * (U.T @ quad.displacement)) ** 2) / 2


def _ridge_loses_more() -> Landscape:
    """Without common axes a ridge can lose more safety than the flow: it takes another path around the worst place."""
    return land.pair([[100.0, 0.0], [0.0, 1.0]], [1.0, -1.0], [[1.0, 0.9], [0.9, 0.82]], time=5.0)
