"""The noise of batches: the noise floor of descent and of its average, and what accumulation does to it."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.dynamics.noise import quieter, variance
from tradeoff.theorems._linear import covariance_of, length, turned
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.landscapes import SIZE, hessian
from tradeoff.theorems.methods_instances import AVERAGE, decades
from tradeoff.tolerances import IDENTITY

OPTIMISATION = "safety lost in benign fine-tuning is mostly a matter of learning rate, batch size and steps"
MICRO, EXAMPLES = 2, 3
"""Micro-batches of a batch, and the most examples of one."""


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


# --- assumptions ------------------------------------------------------------------------------------------------

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


def _across(axes: Array, S: Array) -> Array:
    inside = axes.T @ S @ axes
    return length(inside - jnp.diag(jnp.diagonal(inside))) / length(inside)


# --- families ---------------------------------------------------------------------------------------------------


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


NOISY = noisy()


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
    stated = variance(s2, alpha, alpha, h, n)
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
    floor = variance(s2, alpha, alpha, h, 1.0)
    return jnp.stack([C[1, 1], C[2, 2], C[2, 2]]), jnp.stack([floor, floor * quieter(r, r, eta), floor])


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


# --- what only these claims need --------------------------------------------------------------------------------


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


def _noisy(step: float = 0.5, turn: float = 0.0, shared: float = 0.0, eta: float = 0.5) -> Noisy:
    """Three curvatures along the coordinates; `turn` mixes the first two in both noise and safety."""
    mixed = jnp.eye(SIZE) + turn * jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    numbers = jnp.float64(step), jnp.array(3), jnp.array(2), jnp.float64(eta), jnp.float64(shared)
    return Noisy(jnp.eye(SIZE), jnp.array([1.0, 0.5, 0.25]), mixed, mixed, *numbers)


def _accumulated() -> Accumulated:
    """A micro-batch of one example and one of three others."""
    points = jnp.stack([jnp.eye(SIZE), -2 * jnp.eye(SIZE)[::-1] + 1])
    return Accumulated(points, jnp.array([1, 3]), jnp.ones(()))
