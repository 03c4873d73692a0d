"""Published fine-tuning methods on a pair of quadratics: where each one ends, exactly, and where that is on the front."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.dynamics.quadratic import quadratic_flow
from tradeoff.gaps import Gaps
from tradeoff.problems.quadratic import Quadratic, half_square, spectrum
from tradeoff.theorems import landscapes as land
from tradeoff.theorems._linear import end_of, length, power, solved, turned
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.instances import Draws
from tradeoff.theorems.landscapes import SIZE, Landscape
from tradeoff.tolerances import BOUND, EXACT, IDENTITY, LIMIT

FRONT = "every rule is scored against the Pareto front of its two losses"
MERGING = "merging the weights before and after fine-tuning keeps safety and most of the capability"
SOON = 1e-6
"""A small number of an asymptotic law: its next term weighs about this much."""
STEPS = 24
"""Steps of descent that a run may take: closed forms are checked at any number up to it."""


class Tuned(NamedTuple):
    """A pair of quadratics with the settings of a fine-tuning rule.

    Args:
        quad: the pair.
        step: the learning rate h.
        steps: how many steps are taken, at most `STEPS`.
        strength: the weight of a pull, or of safety against the task.
        share: how much of the tuned model goes into a merge.
        drop: the probability with which an entry of the task vector is dropped.
        time: a time of the gradient flow.
        theta: any parameters.
    """

    quad: Quadratic
    step: Array
    steps: Array
    strength: Array
    share: Array
    drop: Array
    time: Array
    theta: Array


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


class Harmful(NamedTuple):
    """An alignment loss and a harmful one, at some weights.

    Args:
        H: Hessian of the harmful loss.
        bend: the third derivative of the harmful loss along every coordinate.
        pull: gradient of the alignment loss.
        weights: the weights, from the minimiser of the harmful loss.
        reach: how far the perturbation goes.
        strength: the weight of the penalty.
    """

    H: Array
    bend: Array
    pull: Array
    weights: Array
    reach: Array
    strength: Array


class Probed(NamedTuple):
    """A task loss that a probe enters linearly, at some weights.

    Args:
        A: Hessian of the task loss.
        C: the map from the probe to the weights.
        way: the weights minus the task's optimum.
        slope: gradient of the safety loss.
        reach: the size of the perturbation, times the probe's step.
    """

    A: Array
    C: Array
    way: Array
    slope: Array
    reach: Array


class Restored(NamedTuple):
    """A task loss around trained weights, and the gradient of a harmful one.

    Args:
        H: Hessian of the task loss.
        slope: gradient of the task loss.
        harm: gradient of the harmful loss.
        budget: what the task may lose.
        other: any direction.
    """

    H: Array
    slope: Array
    harm: Array
    budget: Array
    other: Array


class Bent(NamedTuple):
    """Two parameters, of which only the first matters for safety; the task pulls along the second.

    Args:
        A: Hessian of the task loss.
        pull: where the task pulls the aligned parameters.
        s: the safety curvature.
        turn: how fast the safe direction turns.
        time: a time of the gradient flow.
    """

    A: Array
    pull: Array
    s: Array
    turn: Array
    time: Array


class Merged(NamedTuple):
    """Two models of nearly one direction, and how much of the second goes into their merge.

    Args:
        first: the weights before.
        second: the weights after.
        share: how much of the second is taken.
    """

    first: Array
    second: Array
    share: Array


# --- assumptions ------------------------------------------------------------------------------------------------

STABLE = Assumption(
    "stable step",
    "the learning rate is below two over the largest curvature",
    lambda i: i.step * spectrum(i.quad.H_f)[0][-1] < 2,
)
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
SHARE_INSIDE = Assumption("between the two", "0 ≤ λ ≤ 1", lambda i: (i.share >= 0) & (i.share <= 1))
SOME_KEPT = Assumption("some entries kept", "the drop probability is below one", lambda i: i.drop < 1)
BOTH_CURVED = Assumption(
    "both losses curved on the way",
    "both losses change between the two optima",
    lambda i: (half_square(i.quad.H_f, i.quad.displacement) > 0) & (half_square(i.quad.H_s, i.quad.displacement) > 0),
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
QUADRATIC_HARM = Assumption("quadratic harmful loss", "the harmful loss has no third derivative", lambda i: i.bend == 0)
HARM_PULLS = Assumption(
    "harmful gradient", "the gradient of the harmful loss is not zero", lambda i: length(i.H @ i.weights) > 0
)
SAFETY_PULLS = Assumption(
    "safety gradient", "the gradient of the safety loss is not zero", lambda i: length(i.slope) > 0
)
TASK_TRAINED = Assumption(
    "trained task", "the gradient of the task loss is zero", lambda i: length(i.slope) <= EXACT.relative
)
CURVED = Assumption(
    "curved task loss", "the task Hessian is positive definite", lambda i: spectrum(i.H)[0][0] > land.NOTHING
)
PULLS_ACROSS = Assumption(
    "task pulls across", "the task does not pull where safety is curved", lambda i: i.pull[0] == 0
)
EQUAL_NORMS = Assumption(
    "equal norms",
    "both models have the same norm",
    lambda i: jnp.abs(length(i.first) - length(i.second)) <= IDENTITY.relative * length(i.first),
)
CONVEX_TASK = Assumption(
    "convex task loss",
    "the task Hessian is positive semidefinite",
    lambda i: i.A[0, 0] * i.A[1, 1] >= i.A[0, 1] ** 2 * (1 - EXACT.relative),
)


def _even(values: Array, where: Array) -> Array:
    high, low = jnp.max(values, where=where, initial=0), jnp.min(values, where=where, initial=jnp.inf)
    return high - low <= EXACT.relative * high


def _turned_away(v: Array, w: Array) -> Array:
    """The sine of the angle between two vectors."""
    return length(v - w * (jnp.dot(v, w) / jnp.sum(w**2))) / length(v)


# --- families ---------------------------------------------------------------------------------------------------


@cache
def tuned(*, isotropic_task: bool = False, parallel: bool = False, **options: Any) -> Family:
    """Pairs of quadratics with the settings of a rule; options as `landscapes.quadratics`.

    Args:
        isotropic_task: whether the task Hessian is a multiple of the identity.
        parallel: whether both losses pull along one line between the two optima.
        **options: the other options of the pair.
    """
    pairs = land.quadratics(**options)

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(jax.random.fold_in(key, 1))
        return {
            "pair": pairs.sample(key),
            "step": 2 * draws.normal(),
            "steps": draws.index(STEPS + 1),
            "strength": draws.uniform(-2, 2),
            "share": 2 * draws.normal(),
            "drop": 2 * draws.normal(),
            "across": draws.normal((SIZE,)),
        }

    def build(p: dict[str, Any]) -> Tuned:
        at = pairs.build(p["pair"])
        quad, d = at.quad, at.quad.displacement
        stiff = jnp.trace(quad.H_f)
        if isotropic_task:
            quad = Quadratic(jnp.eye(SIZE) * (stiff / SIZE), quad.theta_f, quad.H_s, quad.theta_s)
        if parallel:
            # H_s d ∥ H_f d: a multiple of H_f, and more curvature across the way only.
            across = jnp.cross(d, p["across"])
            H_s = quad.H_f * quad.H_s[0, 0] / quad.H_f[0, 0] + jnp.outer(across, across)
            quad = Quadratic(quad.H_f, quad.theta_f, H_s, quad.theta_s)
        return Tuned(
            quad=quad,
            step=2 * _inside(p["step"]) / stiff,
            steps=p["steps"],
            strength=stiff * decades(p["strength"], 3.0),
            share=_inside(p["share"]),
            drop=_inside(p["drop"]),
            time=at.time / stiff,
            theta=at.theta,
        )

    return Family(sample, build)


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


def decades(z: Array, count: float = 1.0) -> Array:
    """Positive, within `count` decades of one."""
    return jnp.exp(count * jnp.log(10.0) * jnp.tanh(z))


def definite(p: dict[str, Any]) -> Array:
    """A definite matrix with eigenvalues within two decades of one."""
    return land.hessian(turned(p["mirrors"]), decades(p["log_values"]))


def _inside(z: Array) -> Array:
    """In (0, 1), and away from both ends: what decays so slowly that rounding wins is no test."""
    return jax.nn.sigmoid(6 * jnp.tanh(z / 6))


def _definite_parameters(draws: Draws) -> dict[str, Any]:
    return {"mirrors": draws.normal((2, SIZE)), "log_values": draws.normal((SIZE,))}


def harmful() -> Family:
    """An alignment gradient and a quadratic harmful loss at random weights."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "H": _definite_parameters(draws),
            "flat": draws.flip(0.3),
            "pull": draws.normal((SIZE,)),
            "weights": draws.normal((SIZE,)),
            "reach": draws.uniform(-3, 1),
            "strength": draws.uniform(-2, 2),
        }

    def build(p: dict[str, Any]) -> Harmful:
        H = definite(p["H"])
        # A harmful loss may be flat somewhere: H N with N the projector across an axis.
        across = jnp.eye(SIZE) - jnp.where(p["flat"], 1.0, 0.0) * jnp.diag(jnp.eye(SIZE)[0])
        strength, reach = (decades(p[name] / 3, 3.0) for name in ("strength", "reach"))
        return Harmful(across @ H @ across, jnp.zeros(()), p["pull"], p["weights"], reach, strength)

    return Family(sample, build)


def probed() -> Family:
    """A task loss with a linear probe of two parameters."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "A": _definite_parameters(draws),
            "C": draws.normal((SIZE, 2)),
            "way": draws.normal((SIZE,)),
            "slope": draws.normal((SIZE,)) * 10 ** draws.uniform(-4, 2),
            "reach": draws.uniform(-3, 1),
        }

    def build(p: dict[str, Any]) -> Probed:
        return Probed(definite(p["A"]), p["C"], p["way"], p["slope"], decades(p["reach"]))

    return Family(sample, build)


def restored() -> Family:
    """A trained task loss, a harmful gradient and a budget."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "H": _definite_parameters(draws),
            "harm": draws.normal((SIZE,)),
            "budget": draws.uniform(-6, 2),
            "near": draws.uniform(-3, 1),
            "other": draws.normal((SIZE,)),
        }

    def build(p: dict[str, Any]) -> Restored:
        H = definite(p["H"])
        best = solved(H, p["harm"])
        other = best / length(best) + jnp.exp(jnp.log(10.0) * p["near"]) * p["other"]
        return Restored(H, jnp.zeros(SIZE), p["harm"], jnp.exp(jnp.log(10.0) * p["budget"]), other)

    return Family(sample, build)


def nearly_parallel() -> Family:
    """Two models of one norm, at a small angle."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "mirrors": draws.normal((2, SIZE)),
            "angle": draws.normal(),
            "share": draws.normal(),
            "size": draws.normal(),
        }

    def build(p: dict[str, Any]) -> Merged:
        axes = turned(p["mirrors"])
        angle = SOON**0.5 * jnp.exp(jnp.tanh(p["angle"]))
        size = jnp.exp(jnp.tanh(p["size"]))
        first = size * axes[:, 0]
        return Merged(
            first, jnp.cos(angle) * first + jnp.sin(angle) * size * axes[:, 1], 0.1 + 0.8 * jax.nn.sigmoid(p["share"])
        )

    return Family(sample, build)


@cache
def bent() -> Family:
    """Two parameters; the task pulls along the one that does not matter for safety."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "p": draws.normal(),
            "q": draws.normal(),
            "mixed": 2 * draws.normal(),
            "pull": draws.normal(),
            "s": draws.normal(),
            "turn": draws.normal(),
            "time": 2 * draws.normal(),
        }

    def build(p: dict[str, Any]) -> Bent:
        first, second = decades(p["p"]), decades(p["q"])
        # The mixed curvature decides how the path bends: of either sign, up to the edge of convexity, not zero.
        size = 0.01 + 0.98 * jnp.tanh(jnp.abs(p["mixed"]))
        mixed = jnp.where(p["mixed"] < 0, -size, size) * jnp.sqrt(first * second)
        A = jnp.stack([jnp.stack([first, mixed]), jnp.stack([mixed, second])])
        pull = jnp.stack([jnp.zeros(()), jnp.where(p["pull"] < 0, -1, 1) * decades(p["pull"])])
        return Bent(A, pull, decades(p["s"]), decades(p["turn"]), decades(p["time"]))

    return Family(sample, build)


PENCIL = land.quadratics(decades=2.5)
ENDS = land.quadratics(decades=2.0)
TUNED = tuned(decades=2.0, flat_task=False)
ISOTROPIC_TASK = tuned(decades=2.0, flat_task=False, isotropic_task=True)
PARALLEL_PULLS = tuned(decades=2.0, flat_task=False, parallel=True)
FLAT_TASK = tuned(decades=2.0)
SPECTRAL = spectral()
EVEN = spectral(even=True)
BENT = bent()


# --- the front and the filters ----------------------------------------------------------------------------------


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
        "stable step": lambda: _run([3.0, 2.0, 1.0], [0.3, 0.2, 0.1], step=0.7),
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
        "isotropic task": lambda: _run([3.0, 2.0, 1.0], [0.3, 0.2, 0.1], step=0.2),
        "short step": lambda: _run([1.0, 1.0, 1.0], [0.3, 0.2, 0.1], step=1.9),
    },
    tight=Tight(lambda: _run([1.0, 1.0, 1.0], [0.3, 0.2, 0.1], step=1.0)),
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
        "parallel pulls": lambda: _run([3.0, 2.0, 1.0], [0.3, 0.2, 0.1], safety=[1.0, 2.0, 3.0]),
        "between the two": lambda: _run([1.0, 1.0, 1.0], [0.3, 0.2, 0.1], share=1.5),
    },
    tight=Tight(lambda: _run([1.0, 1.0, 1.0], [0.3, 0.2, 0.1], share=0.25, theta=0.25)),
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


# --- merging ----------------------------------------------------------------------------------------------------


@theorem(
    "square-root",
    title="square-root law of merging",
    statement=r"\theta=b+\lambda d,\ 0\le\lambda\le1:\quad\sqrt{L_u/L_u(0)}+\sqrt{L_s/L_s(1)}=1;\quad\text{on the front}\le1",
    family=TUNED,
    parts=("along the merge", "on the front"),
    relation=("==", "<="),
    assumptions=(BOTH_CURVED, SHARE_INSIDE),
    without={
        "both losses curved on the way": "where a loss does not change on the way there is nothing to divide by",
        "between the two": lambda: _run([3.0, 2.0, 1.0], [0.3, 0.2, 0.1], share=1.5),
    },
    tight=Tight(lambda: _run([2.0, 2.0, 2.0], [0.3, 0.2, 0.1])),
    makes_precise=MERGING,
    source="merging2024",
    tolerance=IDENTITY,
)
def a_merge_trades_root_for_root(instance: Tuned) -> Sides:
    """Along a merge the roots of the two losses, each relative to its end, add up to one; the best curve lies below."""
    quad, d = instance.quad, instance.quad.displacement
    start, end = half_square(quad.H_f, d), half_square(quad.H_s, d)
    theta_merged = (1 - instance.share) * quad.theta_s + instance.share * quad.theta_f
    merged = quad.gaps(theta_merged)
    delta = front_displacement(quad, instance.strength)
    sums = [
        jnp.sqrt(f / start) + jnp.sqrt(s / end)
        for f, s in (
            (merged.capability, merged.safety),
            (half_square(quad.H_f, delta - d), half_square(quad.H_s, delta)),
        )
    ]
    return jnp.stack(sums), jnp.ones((2,))


@theorem(
    "dare-variance",
    title="what dropping at random costs",
    statement=r"\mathbb E[L(b+\lambda\hat d)]=L(b+\lambda d)+\tfrac12\lambda^2\tfrac p{1-p}\sum_iH_{ii}d_i^2,\quad\mathbb E\hat d=d",
    family=FLAT_TASK,
    parts=("loss", "unbiased", "never better"),
    relation=("==", "==", ">="),
    assumptions=(SOME_KEPT,),
    without={"some entries kept": "at p = 1 nothing is kept and the factor 1/(1-p) is infinite"},
    tight=Tight(lambda: _run([3.0, 2.0, 1.0], [0.3, 0.2, 0.1], drop=0.0)),
    makes_precise="dropping entries of the task vector and rescaling the rest keeps the tuned model's skill",
    source="merging2024",
    tolerance=IDENTITY,
)
def dropping_at_random_only_adds_noise(instance: Tuned) -> Sides:
    """Random dropping leaves the merge right on average, and in a convex bowl it can only cost."""
    quad, lam, p = instance.quad, instance.share, instance.drop
    d = quad.displacement
    kept = (jnp.arange(2**SIZE)[:, None] >> jnp.arange(SIZE)[None, :]) % 2 == 1
    chance = jnp.prod(jnp.where(kept, 1 - p, p), axis=-1)
    drawn = jnp.where(kept, d / (1 - p), 0)
    expected = jnp.sum(chance * jax.vmap(lambda v: half_square(quad.H_f, lam * v - d))(drawn))
    plain = half_square(quad.H_f, (lam - 1) * d)
    noise = lam**2 * p / (1 - p) * jnp.sum(jnp.diagonal(quad.H_f) * d**2) / 2
    mean = length(chance @ drawn - d) / length(d)
    one = jnp.ones_like(p)
    return jnp.stack([expected, 1 + mean, expected]), jnp.stack([plain + noise, one, plain])


@theorem(
    "slerp-lerp",
    title="spherical merging is linear merging",
    statement=r"\|\theta_0\|=\|\theta_1\|,\ W=\angle(\theta_0,\theta_1)\to0:\quad "
    r"\left\|\frac{\sin((1-\lambda)W)\,\theta_0+\sin(\lambda W)\,\theta_1}{\sin W}-(1-\lambda)\theta_0-\lambda\theta_1\right\|"
    r"\sim\tfrac12W^2\lambda(1-\lambda)\|\theta\|",
    family=nearly_parallel(),
    relation="==",
    assumptions=(EQUAL_NORMS,),
    without={"equal norms": lambda: Merged(jnp.array([1.0, 0.0]), jnp.array([1.2, 1e-3]), jnp.float64(0.5))},
    makes_precise=MERGING,
    source="merging2024",
    tolerance=LIMIT,
)
def merging_on_a_sphere_is_merging_on_a_line(instance: Merged) -> Sides:
    """For models that differ little, merging along the sphere and along the line differ by the square of their angle only."""
    first, second, lam = instance
    angle = 2 * jnp.arctan2(length(second - first), length(second + first))
    spherical = (jnp.sin((1 - lam) * angle) * first + jnp.sin(lam * angle) * second) / jnp.sin(angle)
    linear = (1 - lam) * first + lam * second
    return length(spherical - linear) / angle**2, lam * (1 - lam) * length(first) / 2


# --- rules with a closed fixed point ----------------------------------------------------------------------------


@theorem(
    "lisa",
    title="the fixed point of two alternating states",
    statement=r"B(w_s-b)+\rho(w_s-w_u)=0,\ A(w_u-a)+\rho(w_u-w_s)=0;\quad\rho\to0:\ w_s\to b,\ w_u\to a+P_{\ker A}(b-a);\quad "
    r"\rho\to\infty:\ w_s,w_u\to(A+B)^{-1}(Aa+Bb)",
    family=FLAT_TASK,
    parts=("safety state", "user state", "weak, safety", "weak, user", "strong, safety", "strong, user"),
    relation="==",
    assumptions=(land.SAFETY_CURVED,),
    without={"curved safety loss": "where both losses are flat the two states agree anywhere"},
    makes_precise="two states that are trained in turn and pulled together keep alignment",
    source="lisa2024",
    tolerance=LIMIT,
)
def two_states_in_turn_end_between_the_optima(instance: Tuned) -> Sides:
    """Trained in turn and pulled together, the two states end apart: each at its own optimum, or both at equal weights."""
    quad = instance.quad
    A, B, d = quad.H_f, quad.H_s, quad.displacement
    size, eye, stiff = length(d), jnp.eye(SIZE), jnp.trace(A)
    rho = stiff * jnp.sqrt(instance.strength / stiff)
    # From b: the inner solves in turn, until nothing changes.
    solve_s, solve_u = (jax.vmap(lambda v, M=M: solved(M + rho * eye, v), 1, 1)(eye) for M in (B, A))
    user = end_of(rho**2 * solve_u @ solve_s, solve_u @ (A @ d))
    safe = rho * (solve_s @ user)
    joint = _lisa(quad, rho)
    values, U = spectrum(A)
    flat = U * jnp.where(values > land.NOTHING * values[-1], 0.0, 1.0)[None, :]
    in_place = d - flat @ (flat.T @ d)
    weak, strong = (_lisa(quad, factor * (stiff + jnp.trace(B))) for factor in (SOON**1.5, SOON**-1.5))
    # The equal-weight Pareto point, where both strong states meet.
    best = front_displacement(quad, jnp.ones(()))
    missed = [safe - joint[0], user - joint[1], weak[0], weak[1] - in_place, strong[0] - best, strong[1] - best]
    return jnp.stack([1 + length(v) / size for v in missed]), jnp.ones((6,))


@theorem(
    "booster",
    title="an attenuated perturbation is a gradient-norm penalty",
    statement=r"h\text{ quadratic}:\ \nabla h(w)-\nabla h(w-\alpha\tfrac{\nabla h}{\|\nabla h\|})=\alpha\nabla\|\nabla h(w)\|_2:\quad "
    r"\text{the rule descends }L_{\mathrm{align}}+\lambda\alpha\|\nabla h\|_2",
    family=harmful(),
    parts=("bracket", "whole rule"),
    relation="==",
    assumptions=(QUADRATIC_HARM, HARM_PULLS),
    without={
        "quadratic harmful loss": lambda: _bent_harm(),
        "harmful gradient": "where the harmful gradient vanishes it has no direction, and the rule leaves the bracket out",
    },
    makes_precise="attenuating the harmful perturbation makes harmful fine-tuning slower",
    source="booster2024",
    tolerance=IDENTITY,
)
def a_perturbed_difference_penalises_the_slope(instance: Harmful) -> Sides:
    """Subtracting a perturbed gradient is, for a quadratic loss, a penalty on how steep the harmful loss is."""
    reach, w = instance.reach, instance.weights

    def harm(x: Array) -> Array:
        return jnp.dot(x, instance.H @ x) / 2 + instance.bend * jnp.sum(x**3) / 6

    def steep(x: Array) -> Array:
        return length(jax.grad(harm)(x))

    def align(x: Array) -> Array:
        return jnp.dot(instance.pull, x) + jnp.sum((x - w) ** 2) / 2

    slope = jax.grad(harm)(w)
    bracket = slope - jax.grad(harm)(w - reach * slope / length(slope))
    penalty = reach * jax.grad(steep)(w)
    whole = jax.grad(align)(w) + instance.strength * bracket
    stated = jax.grad(lambda x: align(x) + instance.strength * reach * steep(x))(w)
    unit = length(instance.H) * (length(w) + reach)
    missed = jnp.stack([
        length(bracket - penalty) / unit,
        length(whole - stated) / (length(instance.pull) + instance.strength * unit),
    ])  # fmt: skip
    return 1 + missed, jnp.ones((2,))


@theorem(
    "sap",
    title="a safety-aware probe preconditions the safety gradient",
    statement=r"L_u=\tfrac12\|w+Cv-a\|_A^2,\ \hat g=\nabla L_s/\|\nabla L_s\|:\quad v=\beta\epsilon C^\top A\hat g,\quad "
    r"\nabla_wL_u(w,v)=A(w-a)+\beta\epsilon ACC^\top A\hat g",
    family=probed(),
    parts=("probe", "step", "never against safety", "blind outside its range"),
    relation=("==", "==", ">=", "=="),
    assumptions=(SAFETY_PULLS,),
    without={"safety gradient": "at aligned parameters the safety gradient has no direction, and the probe is zero"},
    makes_precise="a probe that makes the harmful direction costly for the task keeps fine-tuning safe",
    source="sap2025",
    tolerance=IDENTITY,
)
def a_probe_never_works_against_safety(instance: Probed) -> Sides:
    """In a linear model the probe adds a share of the safety gradient to each step: never against it, blind to the rest."""
    A, C, way, reach = instance.A, instance.C, instance.way, instance.reach

    def task(w: Array, v: Array) -> Array:
        at = w + C @ v
        return jnp.dot(at, A @ at) / 2

    def probe(slope: Array) -> Array:
        harmful = slope / length(slope)
        return reach * jax.grad(lambda v: task(way + harmful, v) - task(way, v))(jnp.zeros(2))

    def extra(slope: Array) -> Array:
        return jax.grad(task)(way, probe(slope)) - jax.grad(task)(way, jnp.zeros(2))

    g = instance.slope
    unit = g / length(g)
    stated = reach * (C.T @ (A @ unit))
    size = reach * length(A) * length(C)
    step = jax.grad(task)(way, probe(g))
    direct = A @ way + reach * (A @ (C @ (C.T @ (A @ unit))))
    far = length(A) * length(way) + size * length(A) * length(C)
    # The one direction of the safety gradient that A C does not reach.
    seen = A @ C
    blind = jnp.cross(seen[:, 0], seen[:, 1])
    one = jnp.ones_like(reach)
    return (
        jnp.stack([
            1 + length(probe(g) - stated) / size, 1 + length(step - direct) / far,
            jnp.dot(extra(g), unit) / far, 1 + length(extra(blind)) / far,
        ]),
        jnp.stack([one, one, 0 * one, one]),
    )  # fmt: skip


@theorem(
    "curvature-step",
    title="the most harm undone at bounded task cost",
    statement=r"\mathrm{argmax}\{g_h^\top d:\ \tfrac12d^\top H_ud\le e\}=\sqrt{2e/(g_h^\top H_u^{-1}g_h)}\;H_u^{-1}g_h",
    family=restored(),
    parts=("spends the budget", "no direction does more", "what it does"),
    relation=("==", ">=", "=="),
    assumptions=(CURVED, TASK_TRAINED),
    without={
        "curved task loss": "in a direction that is flat for the task one may go as far as one likes",
        "trained task": lambda: _untrained(),
    },
    tight=Tight(
        lambda: Restored(
            jnp.eye(3), jnp.zeros(3), jnp.array([1.0, 2.0, 2.0]), jnp.float64(0.5), jnp.array([1.0, 2.0, 2.0])
        )
    ),
    makes_precise="a second-order step raises the harmful loss at bounded cost for the task",
    source="curvature2025",
)
def the_best_step_is_curvature_aware(instance: Restored) -> Sides:
    """Under a budget for the task, the step that undoes most harm is the harmful gradient seen through the task's curvature."""
    H, g, e = instance.H, instance.harm, instance.budget

    def cost(d: Array) -> Array:
        return jnp.dot(instance.slope, d) + jnp.dot(d, H @ d) / 2

    natural = solved(H, g)
    shallow = jnp.dot(g, natural)
    step = jnp.sqrt(2 * e / shallow) * natural
    # Any direction, scaled to spend the whole budget.
    rival = instance.other * jnp.sqrt(2 * e / jnp.dot(instance.other, H @ instance.other))
    undone, at_most = jnp.sum(g * step), jnp.sum(g * rival)
    return jnp.stack([cost(step), undone, undone]), jnp.stack([e, at_most, jnp.sqrt(2 * e * shallow)])


# --- quartic onset ----------------------------------------------------------------------------------------------


@theorem(
    "quartic-onset",
    title="quartic onset in two parameters",
    statement=r"L_s=\tfrac s2x^2,\ A=\begin{pmatrix}p&c\\c&q\end{pmatrix},\ (Aa)_x=0,\ g_y=(Aa)_y:\quad "
    r"L_s(t)=\tfrac18sc^2g_y^2\,t^4+O(t^5)",
    family=BENT,
    relation="==",
    assumptions=(PULLS_ACROSS, CONVEX_TASK),
    without={
        "task pulls across": lambda: _bent(pull=(1e-3, 1.0)),
        "convex task loss": "not needed for the onset, only for a task loss with a minimum",
    },
    makes_precise="alignment collapses with the fourth power of time though the task's gradient is orthogonal to it",
    source="collapse2026",
    tolerance=LIMIT,
)
def curvature_bends_the_path_into_the_safe_direction(instance: Bent) -> Sides:
    """A task that does not pull where safety is curved gets there all the same, with the fourth power of time."""
    g = instance.pull
    # The next term of the onset is (p + q)t/3 of it.
    time = 10 * SOON / jnp.trace(instance.A)
    quad = Quadratic(instance.A, solved(instance.A, g), jnp.diag(jnp.stack([instance.s, 0 * instance.s])), jnp.zeros(2))
    lost = quadratic_flow(quad, 0.0, time).gaps.safety
    return lost / time**4, instance.s * (instance.A[0, 1] * g[1]) ** 2 / 8


@theorem(
    "quartic-turning",
    title="a safe direction that turns",
    statement=r"L_s=\tfrac s2(x-\tfrac k2y^2)^2,\ x=0:\quad L_s(t)=\tfrac18sk^2y^4,\ y=g_y\tfrac{1-e^{-qt}}q,\quad "
    r"L_s(t)\le\tfrac18sk^2g_y^4t^4",
    family=BENT,
    parts=("exact", "at most"),
    relation=("==", "<="),
    assumptions=(CONVEX_TASK,),
    without={"convex task loss": lambda: _concave()},
    tight=Tight(lambda: _bent(q=0.0)),
    makes_precise="no fixed projector removes the collapse: the safe direction turns along the way",
    source="collapse2026",
    tolerance=IDENTITY,
)
def a_fixed_projector_does_not_follow_a_turning_direction(instance: Bent) -> Sides:
    """With the first safe direction frozen safety is still lost, with the fourth power of time, once that direction turns."""
    s, k, g, q = instance.s, instance.turn, instance.pull[1], instance.A[1, 1]
    time = instance.time / (1 + jnp.abs(q))

    def step(y: Array, _: None) -> tuple[Array, None]:
        # The flow y' = g - q y, by its Taylor series over a short time.
        rate, h = g - q * y, time / 128
        series = 1 - q * h / 2 * (1 - q * h / 3 * (1 - q * h / 4 * (1 - q * h / 5 * (1 - q * h / 6 * (1 - q * h / 7)))))
        return y + h * rate * series, None

    y = jax.lax.scan(step, jnp.zeros_like(g), None, 128)[0]
    lost = s * (k * y**2 / 2) ** 2 / 2
    filled = g * jnp.where(q == 0, time, -jnp.expm1(-q * time) / jnp.where(q == 0, 1, q))
    return jnp.stack([lost, lost]), s * k**2 * jnp.stack([filled**4, (g * time) ** 4]) / 8


# --- what only these claims need --------------------------------------------------------------------------------


def front_displacement(quad: Quadratic, nu: Array) -> Array:
    """The point of the front where a unit of safety loss is worth ν of task loss, from the aligned parameters."""
    return solved(quad.H_f + nu * quad.H_s, quad.pull)


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


def _lisa(quad: Quadratic, rho: Array) -> tuple[Array, Array]:
    """Both states where neither moves, from the aligned parameters, by elimination of the safety state."""
    A, B, eye = quad.H_f, quad.H_s, jnp.eye(SIZE)
    # ρ - ρ²(B + ρ)⁻¹ = ρB(B + ρ)⁻¹, which keeps its digits for large ρ.
    back = jax.vmap(lambda v: solved(B + rho * eye, v), 1, 1)(B)
    user = solved(A + rho * (back + back.T) / 2, quad.pull)
    return rho * solved(B + rho * eye, user), user


def _matrices(instance: Spectral) -> tuple[Array, Array, Array]:
    """Both Hessians, and the way from the task's optimum to the aligned parameters."""
    axes = instance.axes
    return land.hessian(axes, instance.alpha), land.hessian(axes, instance.beta), axes @ instance.along


def _run(
    task: list[float], d: list[float], *, safety: list[float] | None = None, step: float = 0.1, share: float = 0.25,
    drop: float = 0.5, theta: float = 0.5,
) -> Tuned:  # fmt: skip
    """A pair along the coordinates, aligned at zero, three steps on; θ is `theta` of the way."""
    way = jnp.array(d)
    quad = Quadratic(jnp.diag(jnp.array(task)), way, jnp.diag(jnp.array(safety or [1.0, 1.0, 1.0])), jnp.zeros(SIZE))
    one = jnp.ones(())
    return Tuned(quad, jnp.float64(step), jnp.array(3), one, jnp.float64(share), jnp.float64(drop), one, theta * way)


def _flat_merge() -> Tuned:
    """The task is flat along the last coordinate: training never leaves the start there, and nor does a merge."""
    return _run([3.0, 2.0, 0.0], [0.3, 0.2, 0.1])


def _uneven() -> Spectral:
    ones = jnp.ones(SIZE)
    return Spectral(jnp.eye(SIZE), ones, jnp.array([1.0, 2.0, 3.0]), ones / 3**0.5, jnp.ones(()))


def _bent_harm() -> Harmful:
    one = jnp.ones(())
    return Harmful(jnp.eye(SIZE), one, jnp.ones(SIZE), jnp.array([1.0, 2.0, 3.0]), one, one)


def _untrained() -> Restored:
    unit = jnp.array([1.0, 0.0, 0.0])
    return Restored(jnp.eye(SIZE), 0.1 * unit, unit, jnp.float64(0.5), jnp.ones(SIZE))


def _bent(q: float = 1.0, pull: tuple[float, float] = (0.0, 1.0), c: float = 0.0) -> Bent:
    A = jnp.array([[1.0, c], [c, q]])
    one = jnp.ones(())
    return Bent(A, jnp.array(pull), one, one, one)


def _concave() -> Bent:
    """With the task bent downwards the path runs away faster than a straight one."""
    return _bent(q=-1.0)
