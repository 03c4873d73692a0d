"""Published rules that use safety data and whose step or end has a closed form: Lisa, Booster, SAP, a curvature-aware step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.problems.quadratic import Quadratic, spectrum
from tradeoff.theorems import landscapes as land
from tradeoff.theorems._linear import end_of, length, solved, turned
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.landscapes import SIZE
from tradeoff.theorems.methods_instances import FLAT_TASK, SOON, Tuned, decades, front_displacement
from tradeoff.tolerances import EXACT, IDENTITY, LIMIT


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


# --- assumptions ------------------------------------------------------------------------------------------------

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


# --- families ---------------------------------------------------------------------------------------------------


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


def definite(p: dict[str, Any]) -> Array:
    """A definite matrix with eigenvalues within two decades of one."""
    return land.hessian(turned(p["mirrors"]), decades(p["log_values"]))


def _definite_parameters(draws: Draws) -> dict[str, Any]:
    return {"mirrors": draws.normal((2, SIZE)), "log_values": draws.normal((SIZE,))}


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


# --- what only these claims need --------------------------------------------------------------------------------


def _lisa(quad: Quadratic, rho: Array) -> tuple[Array, Array]:
    """Both states where neither moves, from the aligned parameters, by elimination of the safety state."""
    A, B, eye = quad.H_f, quad.H_s, jnp.eye(SIZE)
    # ρ - ρ²(B + ρ)⁻¹ = ρB(B + ρ)⁻¹, which keeps its digits for large ρ.
    back = jax.vmap(lambda v: solved(B + rho * eye, v), 1, 1)(B)
    user = solved(A + rho * (back + back.T) / 2, quad.pull)
    return rho * solved(B + rho * eye, user), user


def _bent_harm() -> Harmful:
    one = jnp.ones(())
    return Harmful(jnp.eye(SIZE), one, jnp.ones(SIZE), jnp.array([1.0, 2.0, 3.0]), one, one)


def _untrained() -> Restored:
    unit = jnp.array([1.0, 0.0, 0.0])
    return Restored(jnp.eye(SIZE), 0.1 * unit, unit, jnp.float64(0.5), jnp.ones(SIZE))
