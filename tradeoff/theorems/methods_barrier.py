"""A step size that keeps a constraint: the log-barrier step of LB-SGD, and where a barrier stops."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.divergences import x_minus_log1p
from tradeoff.problems.quadratic import spectrum
from tradeoff.theorems._expressions import over
from tradeoff.theorems._linear import length, turned
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.landscapes import SIZE, hessian
from tradeoff.theorems.methods_instances import decades
from tradeoff.tolerances import IDENTITY


class Barrier(NamedTuple):
    """A task and two constraints around a strictly feasible point, as quadratics there.

    Args:
        slope: gradient of the task loss.
        H: its Hessian.
        M: its smoothness, as known.
        slopes: gradients of the constraints.
        Hs: their Hessians.
        Ms: their smoothness, as known.
        slack: how far the constraints are from zero.
        eta: the barrier's weight.
    """

    slope: Array
    H: Array
    M: Array
    slopes: Array
    Hs: Array
    Ms: Array
    slack: Array
    eta: Array


class Wall(NamedTuple):
    """One parameter, a task optimum beyond a wall, and a barrier.

    Args:
        wall: where the wall is.
        beyond: how far the optimum is beyond it.
        eta: the barrier's weight.
    """

    wall: Array
    beyond: Array
    eta: Array


# --- assumptions ------------------------------------------------------------------------------------------------

TRUE_SMOOTHNESS = Assumption(
    "true smoothness",
    "no second derivative of task or constraints exceeds the smoothness that the rule is told",
    lambda i: (
        (_steepest(i.H) <= i.M * (1 + IDENTITY.relative))
        & jnp.all(jax.vmap(_steepest)(i.Hs) <= i.Ms * (1 + IDENTITY.relative))
    ),
)
FEASIBLE = Assumption("strictly feasible", "every constraint has some slack", lambda i: jnp.all(i.slack > 0))
BEYOND = Assumption("optimum beyond the wall", "the task's optimum is not feasible", lambda i: i.beyond > 0)


def _steepest(H: Array) -> Array:
    return jnp.max(jnp.abs(spectrum(H)[0]))


# --- families ---------------------------------------------------------------------------------------------------


@cache
def barriers() -> Family:
    """Tasks and constraints, convex or not, affine ones among them, at points close to the boundary and far from it."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "mirrors": draws.normal((3, 2, SIZE)),
            "values": draws.normal((3, SIZE)) * 10 ** draws.uniform(-1, 1),
            "affine": draws.flip(0.2, (3,)),
            "spare": draws.uniform(0, 1, (3,)) * jnp.where(draws.flip(0.5), 1, 0),
            "slopes": draws.normal((3, SIZE)),
            "sizes": draws.normal((3,)),
            "stiffness": draws.normal((3,)),
            "slack": draws.normal((2,)),
            "eta": draws.normal(),
        }

    def build(p: dict[str, Any]) -> Barrier:
        stiff = jnp.where(p["affine"], 0, decades(p["stiffness"], 2.0))
        H = jax.vmap(lambda m, z, M: hessian(turned(m), M * jnp.tanh(z)))(p["mirrors"], p["values"], stiff)
        known = stiff * (1 + p["spare"] ** 2)
        slopes = p["slopes"] * decades(p["sizes"], 2.0)[:, None]
        slack, eta = decades(p["slack"], 2.0), decades(p["eta"], 3.0)
        return Barrier(slopes[0], H[0], known[0], slopes[1:], H[1:], known[1:], slack, eta)

    return Family(sample, build)


def walls() -> Family:
    """Walls short of the optimum, with barriers over many decades."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {"wall": draws.normal(), "beyond": draws.normal(), "eta": draws.normal()}

    def build(p: dict[str, Any]) -> Wall:
        return Wall(p["wall"], decades(p["beyond"], 2.0), decades(p["eta"], 4.0))

    return Family(sample, build)


# --- a step size that keeps a constraint ------------------------------------------------------------------------


@theorem(
    "lb-sgd-halving",
    title="a barrier step keeps half of every slack",
    statement=r"\gamma=\min\left\{\tfrac1{\|g\|}\min_i\tfrac{\alpha_i}{2L_i+\sqrt{\alpha_iM_i}},\tfrac1{M_{\mathrm{loc}}}\right\}:\quad "
    r"\alpha_i(x-\gamma g)\ge\tfrac12\alpha_i(x),\quad B_\eta(x)-B_\eta(x-\gamma g)\ge\tfrac12\gamma\|g\|^2",
    family=barriers(),
    parts=("first constraint", "second constraint", "barrier falls"),
    relation=">=",
    assumptions=(TRUE_SMOOTHNESS, FEASIBLE),
    without={
        "true smoothness": lambda: barrier(curved=1.5, told=1.0),
        "strictly feasible": "on the boundary the barrier is infinite and no step is defined",
    },
    tight=Tight(lambda: barrier(curved=0.0, told=0.0, steep=1.0)),
    makes_precise="a log-barrier step size keeps every iterate feasible",
    source="lbsgd2022",
)
def a_barrier_step_never_uses_up_more_than_half_the_slack(instance: Barrier) -> Sides:
    """A step of this length leaves every constraint at least half of its slack, and lowers the barrier by a sure amount."""
    slack, eta = instance.slack, instance.eta
    step, gamma, g = barrier_step(instance)
    linear = instance.slopes @ step
    bend = jax.vmap(lambda H: jnp.dot(step, H @ step) / 2)(instance.Hs)
    left = slack - linear - bend
    # Task and barrier together, with g taken out: f0 falls by γ|g|² plus what the constraints' slopes give back.
    spent = (linear + bend) / slack
    fallen = gamma * jnp.sum(g**2) - jnp.dot(step, instance.H @ step) / 2
    fallen = fallen - eta * jnp.sum(bend / slack + x_minus_log1p(jnp.maximum(-spent, -1)))
    promised = gamma * jnp.sum(g**2) / 2
    return jnp.append(left / slack, fallen), jnp.append(jnp.full((2,), 0.5), promised)


@theorem(
    "lb-sgd-barrier",
    title="the barrier point in one dimension",
    statement=r"f_0=\tfrac12(x-a)^2,\ x\le c<a:\quad x_\eta=\tfrac12\big[(a+c)-\sqrt{(a-c)^2+4\eta}\big],\quad "
    r"\tfrac\eta\alpha=a-x_\eta,\quad f_0(x_\eta)-f_0(c)\le\eta",
    family=walls(),
    parts=("stationary", "multiplier", "gap"),
    relation=("==", "==", "<="),
    assumptions=(BEYOND,),
    without={
        "optimum beyond the wall": "not needed: a barrier point short of a feasible optimum is the same root, and costs less"
    },
    tight=Tight(lambda: Wall(jnp.zeros(()), jnp.ones(()), jnp.float64(1e-10)), 1 - 5e-11),
    makes_precise="a log-barrier reaches the constrained optimum from inside",
    source="lbsgd2022",
    tolerance=IDENTITY,
)
def a_barrier_stops_short_of_the_wall(instance: Wall) -> Sides:
    """A barrier of weight η stops short of the wall at a known distance, and pays at most η for it."""
    c, beyond, eta = instance.wall, instance.beyond, instance.eta
    a = c + beyond
    x = ((a + c) - jnp.sqrt(beyond**2 + 4 * eta)) / 2
    # The distance to the wall once more, without the difference.
    alpha = 2 * eta / (jnp.sqrt(beyond**2 + 4 * eta) + beyond)
    slope = jax.grad(lambda y: (beyond + y) ** 2 / 2 - eta * jnp.log(y))(alpha)
    unit = jnp.abs(a) + jnp.abs(c) + jnp.sqrt(eta)
    off = jnp.abs(slope) / (jnp.abs(beyond) + alpha) + jnp.abs(x - (c - alpha)) / unit
    paid = alpha * beyond + alpha**2 / 2
    return jnp.stack([1 + off, eta / alpha, paid]), jnp.stack([jnp.ones_like(eta), beyond + alpha, eta])


# --- what only these claims need --------------------------------------------------------------------------------


def barrier_step(instance: Barrier) -> tuple[Array, Array, Array]:
    """The step of the rule, its factor γ and the gradient of the barrier."""
    slack, eta = instance.slack, instance.eta
    g = instance.slope + eta * (instance.slopes / slack[:, None]).sum(axis=0)
    norm = length(g)
    along = jnp.abs(instance.slopes @ g) / norm
    smooth = instance.M + 2 * eta * jnp.sum(instance.Ms / slack) + 4 * eta * jnp.sum((along / slack) ** 2)
    # √(αM) with a derivative at M = 0.
    curved = jnp.sqrt(slack * jnp.where(instance.Ms > 0, instance.Ms, 1)) * jnp.where(instance.Ms > 0, 1, 0)
    reach = jnp.min(slack / (2 * along + curved)) / norm
    gamma = jnp.minimum(reach, over(jnp.ones_like(smooth), smooth) + jnp.where(smooth > 0, 0, jnp.inf))
    return -gamma * g, gamma, g


def barrier(curved: float, told: float, steep: float = 0.0) -> Barrier:
    """A linear task that pulls straight at one constraint, of slack 1, slope `steep` and curvature `curved`."""
    along = jnp.eye(SIZE)[0]
    far = jnp.zeros(SIZE)
    Hs = jnp.stack([curved * jnp.eye(SIZE), jnp.zeros((SIZE, SIZE))])
    zero = jnp.zeros(())
    return Barrier(
        -100 * along, jnp.zeros((SIZE, SIZE)), zero, jnp.stack([steep * along, far]), Hs, jnp.array([told, 0.0]),
        jnp.ones(2), jnp.float64(1e-6),
    )  # fmt: skip
