"""Published training rules, step by step: weight averages, noise of batches, and a step size that keeps a constraint."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.divergences import x_minus_log1p
from tradeoff.problems.quadratic import spectrum
from tradeoff.theorems._expressions import over
from tradeoff.theorems._linear import covariance_of, end_of, length, power, solved, turned
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.instances import Draws
from tradeoff.theorems.landscapes import SIZE, hessian
from tradeoff.theorems.methods_quadratic import STABLE, STEPS, Tuned, decades, tuned
from tradeoff.tolerances import EXACT, IDENTITY, LIMIT

AVERAGE = "averaging the weights keeps the aligned model's safety without safety data"
OPTIMISATION = "safety lost in benign fine-tuning is mostly a matter of learning rate, batch size and steps"
SOON = 1e-5
"""The time of an asymptotic law, in units of the time at which its next term weighs as much."""
MANY = 1e7
"""Steps of a run that is as good as a flow."""
RUN = 12
"""Steps of a run that two rules take side by side."""
MICRO, EXAMPLES = 2, 3
"""Micro-batches of a batch, and the most examples of one."""


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


class Noisy(NamedTuple):
    """Stochastic gradient descent at its noise floor.

    Args:
        axes: the task's axes, in columns.
        alpha: task curvatures.
        noise: covariance of the gradient noise of one example.
        safety: Hessian of the safety loss.
        step: the learning rate h.
        batch: examples in a micro-batch.
        micro: micro-batches in a step.
        eta: the average's coefficient.
        shared: how much of its noise a draw takes over from the draw before.
    """

    axes: Array
    alpha: Array
    noise: Array
    safety: Array
    step: Array
    batch: Array
    micro: Array
    eta: Array
    shared: Array


class Accumulated(NamedTuple):
    """A batch in micro-batches.

    Args:
        points: the examples.
        sizes: how many examples each micro-batch has.
        step: the learning rate h.
    """

    points: Array
    sizes: Array
    step: Array


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

CONVEX = Assumption(
    "convex loss", "the loss is convex", lambda i: spectrum(i.H)[0][0] >= -EXACT.relative * jnp.max(jnp.abs(i.H))
)
NO_MEMORY = Assumption(
    "no memory of displacements",
    "what the optimizer remembers depends neither on the learning rate nor on past displacements",
    lambda i: i.two_point == 0,
)
STABLE_NOISE = Assumption(
    "stable step", "0 < hα < 2 along every axis", lambda i: jnp.all((i.step * i.alpha > 0) & (i.step * i.alpha < 2))
)
ALIGNED_NOISE = Assumption(
    "noise or safety along the task's axes",
    "the noise or the safety loss has the task's axes",
    lambda i: jnp.minimum(_across(i.axes, i.noise), _across(i.axes, i.safety)) <= IDENTITY.relative,
)
FRESH = Assumption("fresh noise", "every example is drawn anew, with replacement", lambda i: i.shared == 0)
EQUAL_SIZES = Assumption(
    "equal micro-batches", "all micro-batches have one size", lambda i: jnp.all(i.sizes == i.sizes[0])
)
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


def _across(axes: Array, S: Array) -> Array:
    inside = axes.T @ S @ axes
    return length(inside - jnp.diag(jnp.diagonal(inside))) / length(inside)


def _steepest(H: Array) -> Array:
    return jnp.max(jnp.abs(spectrum(H)[0]))


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


@cache
def noisy() -> Family:
    """Noise floors in which the noise, the safety loss or both have the task's axes."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "mirrors": draws.normal((2, SIZE)),
            "others": draws.normal((2, SIZE)),
            "values": draws.normal((3, SIZE)),
            "turns": draws.index(3),
            "step": 2 * draws.normal(),
            "batch": 1 + draws.index(EXAMPLES),
            "micro": 1 + draws.index(MICRO),
            "eta": 2 * draws.normal(),
        }

    def build(p: dict[str, Any]) -> Noisy:
        axes, others = turned(p["mirrors"]), turned(p["others"])
        alpha, noise, safety = decades(p["values"])
        covariance, H_s = (
            hessian(jnp.where(p["turns"] == which, others, axes), values) for which, values in ((1, noise), (2, safety))
        )
        step = (2e-3 + 1.996 * jax.nn.sigmoid(p["step"])) / jnp.max(alpha)
        eta = 0.999 * jax.nn.sigmoid(p["eta"])
        return Noisy(axes, alpha, covariance, H_s, step, p["batch"], p["micro"], eta, jnp.zeros(()))

    return Family(sample, build)


def accumulated() -> Family:
    """Batches in two micro-batches of one size."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "points": draws.normal((MICRO, EXAMPLES, SIZE)) * 10 ** draws.uniform(-1, 1),
            "size": 1 + draws.index(EXAMPLES),
            "step": draws.normal(),
        }

    def build(p: dict[str, Any]) -> Accumulated:
        return Accumulated(p["points"], jnp.stack([p["size"]] * MICRO), decades(p["step"]))

    return Family(sample, build)


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


AVERAGED = averaged()
TUNED = tuned(decades=2.0)
NOISY = noisy()


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
    family=TUNED,
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


# --- noise ------------------------------------------------------------------------------------------------------


@theorem(
    "noise-law",
    title="the noise floor of batches",
    statement=r"C=(I-hA)C(I-hA)+\tfrac{h^2}nS:\quad C_{ii}=\frac{h\,s_i^2}{n\alpha_i(2-h\alpha_i)},\quad\mathbb EL_s=\tfrac12\sum_i"
    r"\beta_iC_{ii};\qquad k\text{ micro-batches}:\ n\to kn",
    family=NOISY,
    parts=("variance", "safety loss", "accumulation"),
    relation="==",
    assumptions=(STABLE_NOISE, ALIGNED_NOISE, FRESH),
    without={
        "stable step": lambda: _noisy(step=2.5),
        "noise or safety along the task's axes": lambda: _noisy(turn=0.5),
        "fresh noise": lambda: _noisy(shared=1.0),
    },
    makes_precise=OPTIMISATION,
    source="kim2025rethinking",
    tolerance=IDENTITY,
)
def small_batches_and_large_steps_cost_safety(instance: Noisy) -> Sides:
    """Noise alone costs safety, in proportion to the learning rate and against the batch; accumulation is a larger batch."""
    V, alpha, h = instance.axes, instance.alpha, instance.step
    n = instance.batch.astype(jnp.float64)
    M = jnp.eye(SIZE) - h * hessian(V, alpha)
    C = covariance_of(M, h**2 * instance.noise / n)
    s2, beta = (jnp.diagonal(V.T @ S @ V) for S in (instance.noise, instance.safety))
    stated = h * s2 / (n * alpha * (2 - h * alpha))
    off = jnp.max(jnp.abs(jnp.diagonal(V.T @ C @ V) / stated - 1))
    # One step of descent from the noise floor of the accumulated batch, over all outcomes: there it stays.
    floor = stated[0] / instance.micro.astype(jnp.float64)
    return (
        jnp.stack([1 + off, jnp.sum(instance.safety * C) / 2, _one_step(instance, floor, s2[0])]),
        jnp.stack([jnp.ones_like(h), jnp.sum(beta * stated) / 2, floor]),
    )


@theorem(
    "ema-noise",
    title="the noise floor of an average",
    statement=r"r=1-h\alpha:\quad\mathrm{Var}(m)=\mathrm{Var}(\theta)\,\frac{(1-\eta)(1+\eta r)}{(1+\eta)(1-\eta r)}",
    family=NOISY,
    parts=("weights", "average", "quieter"),
    relation=("==", "==", "<="),
    assumptions=(STABLE_NOISE, FRESH),
    without={"stable step": lambda: _noisy(step=2.5), "fresh noise": lambda: _noisy(shared=-0.5)},
    tight=Tight(lambda: _noisy(eta=0.0)),
    makes_precise=AVERAGE,
    source="kim2025rethinking",
    tolerance=IDENTITY,
)
def an_average_is_quieter(instance: Noisy) -> Sides:
    """An average lowers the noise floor by a factor that the learning rate and the coefficient set."""
    alpha, h, eta, c = instance.alpha[0], instance.step, instance.eta, instance.shared
    r, s2 = 1 - h * alpha, instance.axes[:, 0] @ instance.noise @ instance.axes[:, 0]
    zero, one = jnp.zeros_like(h), jnp.ones_like(h)
    # Noise, weights and average in one linear system; the noise is fresh where c = 0.
    M = jnp.stack([
        jnp.stack([c, zero, zero]), jnp.stack([-h * c, r, zero]), jnp.stack([-(1 - eta) * h * c, (1 - eta) * r, eta]),
    ])  # fmt: skip
    enters = jnp.stack([one, -h, -(1 - eta) * h])
    C = covariance_of(M, (1 - c**2) * s2 * jnp.outer(enters, enters))
    floor = h * s2 / (alpha * (2 - h * alpha))
    factor = (1 - eta) * (1 + eta * r) / ((1 + eta) * (1 - eta * r))
    return jnp.stack([C[1, 1], C[2, 2], C[2, 2]]), jnp.stack([floor, floor * factor, floor])


@theorem(
    "accumulation",
    title="accumulation is a larger batch",
    statement=r"\tfrac1k\sum_{j=1}^k\tfrac1n\sum_{i\in B_j}\nabla\ell_i=\tfrac1{kn}\sum_i\nabla\ell_i;\quad "
    r"\text{sizes }n_j:\ \text{weights }n_j/\textstyle\sum n_j",
    family=accumulated(),
    parts=("equal sizes", "by token count"),
    relation="==",
    assumptions=(EQUAL_SIZES,),
    without={"equal micro-batches": lambda: _accumulated()},
    makes_precise=OPTIMISATION,
    source="kim2025rethinking",
    tolerance=IDENTITY,
)
def accumulated_gradients_are_those_of_the_whole_batch(instance: Accumulated) -> Sides:
    """Accumulating over micro-batches of one size is training on the whole batch; other sizes need their counts as weights."""
    used = jnp.arange(EXAMPLES)[None, :] < instance.sizes[:, None]
    sizes = instance.sizes.astype(jnp.float64)

    def losses(theta: Array) -> Array:
        return jnp.where(used, jax.nn.softplus(-(instance.points @ theta)), 0)

    def run(weights: Array | None) -> Array:
        def step(theta: Array, _: None) -> tuple[Array, None]:
            if weights is None:
                slope = jax.grad(lambda x: jnp.sum(losses(x)) / jnp.sum(sizes))(theta)
            else:
                slope = weights @ jax.jacobian(lambda x: jnp.sum(losses(x), axis=-1) / sizes)(theta)
            return theta - instance.step * slope, None

        return jax.lax.scan(step, jnp.zeros(SIZE), None, 4)[0]

    whole = run(None)
    unit = length(whole) + instance.step * jnp.mean(jnp.abs(instance.points))
    tried = (jnp.full((MICRO,), 1 / MICRO), sizes / jnp.sum(sizes))
    return 1 + jnp.stack([length(run(weights) - whole) / unit for weights in tried]), jnp.ones((2,))


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


def _one_step(instance: Noisy, variance: Array, s2: Array) -> Array:
    """The variance after one accumulated step from the given one, over all signs of all examples' noise."""
    h, alpha = instance.step, instance.alpha[0]
    count = MICRO * EXAMPLES
    up = (jnp.arange(2**count)[:, None] >> jnp.arange(count)[None, :]) % 2 == 1
    signs = jnp.where(up, 1.0, -1.0)
    drawn = signs.reshape(-1, MICRO, EXAMPLES)
    # A shared draw repeats the micro-batch before.
    drawn = drawn.at[:, 1:].set((1 - instance.shared) * drawn[:, 1:] + instance.shared * drawn[:, :-1])
    used = jnp.arange(EXAMPLES) < instance.batch
    means = jnp.sum(jnp.where(used, drawn, 0), axis=-1) / instance.batch.astype(jnp.float64)
    taken = jnp.arange(MICRO) < instance.micro
    noise = jnp.sqrt(s2) * jnp.sum(jnp.where(taken, means, 0), axis=-1) / instance.micro.astype(jnp.float64)
    starts = jnp.sqrt(variance) * jnp.array([-1.0, 1.0])
    moved = starts[:, None] - h * (alpha * starts[:, None] + noise[None, :])
    return jnp.mean(moved**2)


def _path(curvature: float) -> Path:
    """Two places, visited in turn."""
    points = jnp.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]] * 3)
    return Path(curvature * jnp.eye(SIZE), jnp.zeros(SIZE), points, jnp.float64(0.5))


def _heavy_ball() -> Loop:
    """Momentum that remembers displacements: averaging shortens these too."""
    numbers = [jnp.float64(x) for x in (0.1, 0.5, 0.0, 0.0, 0.9)]
    return Loop(jnp.eye(SIZE), jnp.ones(SIZE), *numbers)


def _noisy(step: float = 0.5, turn: float = 0.0, shared: float = 0.0, eta: float = 0.5) -> Noisy:
    """Three curvatures along the coordinates; `turn` mixes the first two in both noise and safety."""
    mixed = jnp.eye(SIZE) + turn * jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    numbers = jnp.float64(step), jnp.array(3), jnp.array(2), jnp.float64(eta), jnp.float64(shared)
    return Noisy(jnp.eye(SIZE), jnp.array([1.0, 0.5, 0.25]), mixed, mixed, *numbers)


def _accumulated() -> Accumulated:
    """A micro-batch of one example and one of three others."""
    points = jnp.stack([jnp.eye(SIZE), -2 * jnp.eye(SIZE)[::-1] + 1])
    return Accumulated(points, jnp.array([1, 3]), jnp.ones(()))


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
