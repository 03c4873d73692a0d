"""Averages of weights: the filter of an averaged run, averages inside the loop, and averages with the start."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.problems.quadratic import spectrum
from tradeoff.theorems._linear import end_of, length, power, solved, turned
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.landscapes import SIZE, hessian
from tradeoff.theorems.methods_instances import AVERAGE, FLAT_TASK, STABLE, STEPS, Tuned, decades
from tradeoff.tolerances import EXACT, IDENTITY, LIMIT

SOON = 1e-5
"""The time of an asymptotic law, in units of the time at which its next term weighs as much."""
MANY = 1e7
"""Steps of a run that is as good as a flow."""
RUN = 12
"""Steps of a run that two rules take side by side."""


class Averaged(NamedTuple):
    """One direction of training, and an average of its weights.

    Args:
        step: the learning rate h.
        alpha: the curvature.
        eta: the average's coefficient.
        steps: how many steps are taken, at most `STEPS`.
        rate: the rate k at which an average in continuous time follows.
        time: a time of the flow.
    """

    step: Array
    alpha: Array
    eta: Array
    steps: Array
    rate: Array
    time: Array


class Path(NamedTuple):
    """Weights on the way, and a loss: a quadratic and a softplus.

    Args:
        H: Hessian of the quadratic.
        slope: the direction of the softplus.
        points: the weights, first to last.
        eta: the average's coefficient.
    """

    H: Array
    slope: Array
    points: Array
    eta: Array


class Loop(NamedTuple):
    """A run with momentum, and one with Adam.

    Args:
        H: Hessian of the loss.
        start: where it begins, from the minimiser.
        step: the learning rate h.
        eta: how much of the old weights is kept in each step.
        momentum: the momentum's coefficient.
        decay: weight decay, multiplied by the learning rate.
        two_point: the weight of the last displacement in the step.
    """

    H: Array
    start: Array
    step: Array
    eta: Array
    momentum: Array
    decay: Array
    two_point: Array


# --- assumptions ------------------------------------------------------------------------------------------------

CONVEX = Assumption(
    "convex loss", "the loss is convex", lambda i: spectrum(i.H)[0][0] >= -EXACT.relative * jnp.max(jnp.abs(i.H))
)
NO_MEMORY = Assumption(
    "no memory of displacements",
    "what the optimizer remembers depends neither on the learning rate nor on past displacements",
    lambda i: i.two_point == 0,
)


# --- families ---------------------------------------------------------------------------------------------------


@cache
def averaged() -> Family:
    """One direction of training with an average; the two rates often nearly agree."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "step": 2 * draws.normal(),
            "alpha": draws.normal(),
            "eta": 3 * draws.normal(),
            "near": draws.flip(0.3),
            "apart": draws.normal() * 10 ** draws.uniform(-14, -1),
            "steps": draws.index(STEPS + 1),
            "rate": draws.normal(),
            "time": draws.normal(),
        }

    def build(p: dict[str, Any]) -> Averaged:
        alpha = decades(p["alpha"], 2.0)
        decay = 2 * jax.nn.sigmoid(p["step"])
        near = p["near"] & (decay < 0.99)
        eta = jnp.where(near, (1 - decay) * (1 + 0.01 * jnp.tanh(p["apart"])), jax.nn.sigmoid(p["eta"]))
        rate = alpha * jnp.where(p["near"], 1 + 0.5 * jnp.tanh(p["apart"]), decades(p["rate"]))
        return Averaged(decay / alpha, alpha, eta, p["steps"], rate, decades(p["time"], 1.5) / alpha)

    return Family(sample, build)


def paths() -> Family:
    """Weights on any path, with a convex loss."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "mirrors": draws.normal((2, SIZE)),
            "values": draws.normal((SIZE,)),
            "flat": draws.flip(0.3, (SIZE,)),
            "slope": draws.normal((SIZE,)) * 10 ** draws.uniform(-1, 1),
            "points": draws.normal((6, SIZE)) * 10 ** draws.uniform(-3, 1),
            "centre": draws.normal((SIZE,)),
            "eta": 3 * draws.normal(),
        }

    def build(p: dict[str, Any]) -> Path:
        H = hessian(turned(p["mirrors"]), jnp.where(p["flat"], 0, decades(p["values"])))
        return Path(H, p["slope"], p["centre"][None, :] + p["points"], jax.nn.sigmoid(p["eta"]))

    return Family(sample, build)


def loops() -> Family:
    """Runs with momentum and with Adam."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "mirrors": draws.normal((2, SIZE)),
            "values": draws.normal((SIZE,)),
            "start": draws.normal((SIZE,)),
            "step": draws.normal(),
            "eta": 2 * draws.normal(),
            "momentum": 2 * draws.normal(),
            "decay": draws.normal(),
        }

    def build(p: dict[str, Any]) -> Loop:
        alpha = decades(p["values"], 0.5)
        step = jax.nn.sigmoid(p["step"]) / jnp.sum(alpha)
        numbers = jax.nn.sigmoid(p["eta"]), jax.nn.sigmoid(p["momentum"]), 0.1 * jax.nn.sigmoid(p["decay"])
        return Loop(hessian(turned(p["mirrors"]), alpha), p["start"], step, *numbers, jnp.zeros(()))

    return Family(sample, build)


AVERAGED = averaged()


# --- averages of weights ----------------------------------------------------------------------------------------


@theorem(
    "ema-filter",
    title="the filter of an averaged run",
    statement=r"m_t=\eta m_{t-1}+(1-\eta)\theta_t,\ r=1-h\alpha:\quad f_t=\eta^t+(1-\eta)r\,\frac{r^t-\eta^t}{r-\eta},"
    r"\qquad f_t=\eta^t(1+(1-\eta)t)\text{ at }r=\eta",
    family=AVERAGED,
    parts=("average of descent", "equal rates", "no average"),
    relation="==",
    makes_precise=AVERAGE,
    source="kim2025rethinking",
    tolerance=IDENTITY,
)
def an_average_of_a_run_is_a_filter(instance: Averaged) -> Sides:
    """Averaging the weights along a run of descent keeps a known share of the way back to the start."""
    eta, t = instance.eta, instance.steps
    r = 1 - instance.step * instance.alpha
    count = t.astype(jnp.float64)
    run, size = _average(r, eta, t)
    same, _ = _average(eta, eta, t)
    plain, magnitude = _average(r, jnp.zeros_like(eta), t)
    stated = power(eta, t) + (1 - eta) * r * _quotient(r, eta, t)
    return (
        jnp.stack([run / size, same, plain / magnitude]),
        jnp.stack([stated / size, power(eta, t) * (1 + (1 - eta) * count), power(r, t) / magnitude]),
    )


@theorem(
    "ema-flow",
    title="the filter of an averaged flow",
    statement=r"\dot m=k(\theta-m):\quad f(t)=\frac{ke^{-\alpha t}-\alpha e^{-kt}}{k-\alpha},"
    r"\ f=(1+\alpha t)e^{-\alpha t}\text{ at }k=\alpha,\quad 1-f=\tfrac12\alpha k\,t^2+O(t^3)",
    family=AVERAGED,
    parts=("starts aligned", "follows", "equal rates", "onset", "many short steps"),
    relation="==",
    makes_precise=AVERAGE,
    source="kim2025rethinking",
    tolerance=LIMIT,
)
def an_average_leaves_the_start_slowly(instance: Averaged) -> Sides:
    """An average leaves the aligned weights with the square of time, and so loses safety with its fourth power."""
    alpha, k, time = instance.alpha, instance.rate, instance.time
    here, velocity = jax.jvp(lambda t: _follows(alpha, k, t), (time,), (jnp.ones_like(time),))
    # The one curve that starts at one and is pulled towards the flow at rate k.
    pull = k * (jnp.exp(-alpha * time) - here)
    # Its next term is a third of this.
    soon = 10 * SOON / (alpha + k)
    count = jnp.full_like(time, MANY)
    short = time / MANY
    r, eta = 1 - short * alpha, jnp.exp(-k * short)
    discrete = power(eta, count) + (1 - eta) * r * _quotient(r, eta, count)
    one = jnp.ones_like(time)
    return (
        jnp.stack([
            _follows(alpha, k, 0 * time), 1 + (velocity - pull) / (alpha + k), _follows(alpha, alpha, time),
            (1 - _follows(alpha, k, soon)) / (alpha * k * soon**2 / 2), 1 + discrete,
        ]),
        jnp.stack([
            one, one, (1 + alpha * time) * jnp.exp(-alpha * time), one, 1 + here,
        ]),
    )  # fmt: skip


@theorem(
    "ema-jensen",
    title="an average is no worse than the average loss",
    statement=r"m_t=\sum_sw_s\theta_s,\ w_0=\eta^t,\ w_s=(1-\eta)\eta^{t-s},\ \sum w=1;\quad "
    r"L\text{ convex}:\ L(m_t)\le\sum_sw_sL(\theta_s)",
    family=paths(),
    parts=("weights", "average", "Jensen"),
    relation=("==", "==", "<="),
    assumptions=(CONVEX,),
    without={"convex loss": lambda: _path(curvature=-1.0)},
    tight=Tight(lambda: _path(curvature=0.0)),
    makes_precise=AVERAGE,
    source="kim2025rethinking",
    tolerance=IDENTITY,
)
def an_average_of_weights_is_no_worse(instance: Path) -> Sides:
    """The averaged weights are a weighted mean of those on the way, and lose no more than these do on average."""
    points, eta = instance.points, instance.eta
    last = len(points) - 1

    def loss(x: Array) -> Array:
        return jnp.dot(x, instance.H @ x) / 2 + jax.nn.softplus(jnp.dot(instance.slope, x))

    def step(m: Array, theta: Array) -> tuple[Array, None]:
        return eta * m + (1 - eta) * theta, None

    shadow = jax.lax.scan(step, points[0], points[1:])[0]
    weights = jnp.stack([eta**last, *((1 - eta) * eta ** (last - s) for s in range(1, last + 1))])
    missed = length(weights @ points - shadow) / length(points)
    one = jnp.ones_like(eta)
    return (
        jnp.stack([jnp.sum(weights), 1 + missed, loss(shadow)]),
        jnp.stack([one, one, jnp.sum(weights * jax.vmap(loss)(points))]),
    )


@theorem(
    "ema-in-loop",
    title="averaging inside the loop is a smaller learning rate",
    statement=r"\theta_{t+1}=\eta\theta_t+(1-\eta)(\theta_t-h\,d_t)\ \text{is the run with learning rate }(1-\eta)h,"
    r"\ d_t\text{ free of }h\text{ and of past displacements}",
    family=loops(),
    parts=("momentum", "Adam"),
    relation="==",
    assumptions=(NO_MEMORY,),
    without={"no memory of displacements": lambda: _heavy_ball()},
    makes_precise=AVERAGE,
    source="kim2025rethinking",
    tolerance=IDENTITY,
)
def an_average_inside_the_loop_is_a_learning_rate(instance: Loop) -> Sides:
    """An average that the next step starts from changes nothing but the learning rate, for momentum and for Adam."""
    averaged = _train(instance, instance.step, instance.eta)
    scaled = _train(instance, (1 - instance.eta) * instance.step, jnp.zeros(()))
    missed = [length(v - w) / length(instance.start) for v, w in zip(averaged, scaled, strict=True)]
    return 1 + jnp.stack(missed), jnp.ones((2,))


@theorem(
    "ema-to-start",
    title="averaging with the start is a pull to the start",
    statement=r"\theta_{t+1}=(1-\eta)(\theta_t-h\nabla L_u)+\eta\,\theta_0\ \longrightarrow\ "
    r"\mathrm{argmin} L_u+\tfrac\mu2\|\theta-\theta_0\|^2,\quad\mu=\frac\eta{(1-\eta)h}",
    family=FLAT_TASK,
    relation="==",
    assumptions=(STABLE,),
    without={"stable step": "the fixed point is the same; beyond, descent need not reach it"},
    makes_precise=AVERAGE,
    source="kim2025rethinking",
    tolerance=IDENTITY,
)
def averaging_with_the_start_is_weight_decay(instance: Tuned) -> Sides:
    """Mixing the start back in after each step ends where weight decay towards the start ends."""
    quad, h, eta = instance.quad, instance.step, instance.share
    d, eye = quad.displacement, jnp.eye(SIZE)
    ended = end_of((1 - eta) * (eye - h * quad.H_f), (1 - eta) * h * (quad.H_f @ d))
    mu = eta / ((1 - eta) * h)
    # The minimiser: the gradient of the penalised loss is zero there.
    best = solved(quad.H_f + mu * eye, quad.pull)
    return 1 + length(ended - best) / length(d), jnp.ones(())


# --- what only these claims need --------------------------------------------------------------------------------


def _average(r: Array, eta: Array, steps: Array) -> tuple[Array, Array]:
    """The average of a run that shrinks by r in every step, and of the magnitudes along it."""

    def step(at: tuple[Array, Array, Array], number: Array) -> tuple[tuple[Array, Array, Array], None]:
        theta = r * at[0]
        moved = theta, eta * at[1] + (1 - eta) * theta, eta * at[2] + (1 - eta) * jnp.abs(theta)
        return jax.tree.map(lambda new, old: jnp.where(number < steps, new, old), moved, at), None

    one = jnp.ones_like(r)
    _, shadow, size = jax.lax.scan(step, (one, one, one), jnp.arange(STEPS))[0]
    return shadow, size


def _quotient(r: Array, eta: Array, steps: Array) -> Array:
    """(rᵗ - ηᵗ)/(r - η), which is t ηᵗ⁻¹ at r = η, exact however close they are."""
    count = steps.astype(jnp.float64)
    near = (eta > 0) & (jnp.abs(r - eta) < eta / 2)
    x = jnp.where(near, (r - eta) / jnp.where(near, eta, 1), 0)
    some = near & (x != 0)
    ratio = jnp.where(some, jnp.expm1(count * jnp.log1p(x)) / jnp.where(some, x, 1), count)
    apart = jnp.where(near, 1, r - eta)
    direct = (power(r, steps) - power(eta, steps)) / apart
    return jnp.where(near, power(eta, steps) / jnp.where(near, eta, 1) * ratio, direct)


def _follows(alpha: Array, k: Array, time: Array) -> Array:
    """The filter of the averaged flow: e^{-αt}[1 + α(1 - e^{-(k-α)t})/(k-α)], of which no term cancels."""
    x = (k - alpha) * time
    some = jnp.abs(x) > 2.0**-500
    filled = jnp.where(some, -jnp.expm1(-x) / jnp.where(some, x, 1), 1)
    return jnp.exp(-alpha * time) * (1 + alpha * time * filled)


def _train(instance: Loop, step: Array, eta: Array) -> tuple[Array, Array]:
    """Where a run with momentum ends, and one with Adam; a share η of the old weights is kept in every step."""
    task = jax.grad(lambda x: jnp.dot(x, instance.H @ x) / 2)

    def heavy(at: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        theta, last, velocity = at
        velocity = instance.momentum * velocity + task(theta)
        u = -step * (velocity + instance.decay * theta) + instance.two_point * (theta - last)
        return (eta * theta + (1 - eta) * (theta + u), theta, velocity), None

    def adam(at: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        theta, mean, square = at
        g = task(theta)
        mean, square = 0.9 * mean + 0.1 * g, 0.95 * square + 0.05 * g**2
        u = -step * (mean / (jnp.sqrt(square) + 1e-3) + instance.decay * theta)
        return (eta * theta + (1 - eta) * (theta + u), mean, square), None

    start, still = instance.start, jnp.zeros_like(instance.start)
    ends = [
        jax.lax.scan(rule, (start, second, still), None, RUN)[0][0] for rule, second in ((heavy, start), (adam, still))
    ]
    return ends[0], ends[1]


def _path(curvature: float) -> Path:
    """Two places, visited in turn."""
    points = jnp.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]] * 3)
    return Path(curvature * jnp.eye(SIZE), jnp.zeros(SIZE), points, jnp.float64(0.5))


def _heavy_ball() -> Loop:
    """Momentum that remembers displacements: averaging shortens these too."""
    numbers = [jnp.float64(x) for x in (0.1, 0.5, 0.0, 0.0, 0.9)]
    return Loop(jnp.eye(SIZE), jnp.ones(SIZE), *numbers)
