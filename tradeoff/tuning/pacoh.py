r"""F-PACOH: a prior for a new task's function, learned from earlier tasks and kept honest where they say nothing."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from tradeoff._records import is_concrete, record, static
from tradeoff.tuning.gaussian_process import (
    Gaussian,
    Prior,
    SquaredExponential,
    Standardised,
    Units,
    gaussian_kl,
    log_likelihood,
    squared_exponential,
    with_jitter,
)

Layers = tuple[tuple[Array, Array], ...]
"""Weights and biases of a network, layer by layer."""
FEATURES = 2
"""The kernel compares points by so many learned features."""
NOISE, LEAST_NOISE = 1e-2, 1e-4
"""The learned variance of an observation, in standardised units: where it begins, and its floor."""


@record
class Learned(Prior):
    r"""Mean $m_\theta(x)$ and covariance $\nu\exp(-\tfrac12\sum_i(\phi_i(x)-\phi_i(x'))^2/\ell_i^2)$, both by small networks.

    Args:
        mean: the network of the mean, tanh between layers.
        features: the network of the feature map φ.
        raw_lengthscale: of which softplus gives ℓ, shape (features,).
        raw_variance: of which softplus gives ν.
        raw_noise: of which softplus, plus a floor, gives the variance of an observation.
    """

    mean: Layers
    features: Layers
    raw_lengthscale: Array
    raw_variance: Array
    raw_noise: Array

    @property
    def noise(self) -> Array:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The learned variance of an observation."""
        return LEAST_NOISE + jax.nn.softplus(self.raw_noise)

    def law(self, points: Float[Array, "n k"]) -> Gaussian:
        """The joint law at points."""
        lengthscale, variance = jax.nn.softplus(self.raw_lengthscale), jax.nn.softplus(self.raw_variance)
        return Gaussian(
            _network(self.mean, points)[:, 0],
            squared_exponential(_network(self.features, points), lengthscale, variance),
        )


@record
class FPACOH:
    r"""Meta-learning of a prior in function space.

    $$ \sum_{i\in\text{batch}}\frac1{T_b}\Bigl[-\ell_i+\kappa\Bigl(\frac1{\sqrt n}+\frac1{nm}\Bigr)
       \mathrm{KL}\bigl(p_\theta(f(\tilde X_i))\,\|\,\mathrm{GP}_0(f(\tilde X_i))\bigr)\Bigr] $$

    for n tasks of m observations; $\ell_i$ is the log-likelihood of task i per observation, $\tilde X_i$ are half observed points
    (drawn with replacement) and half uniform ones, and $\mathrm{GP}_0$ is a squared-exponential process. The data term makes
    the prior sharp where the tasks agree, the divergence keeps it wide where they are silent.

    Args:
        prior_factor: κ ≥ 0; 0.1 in the authors' library, 1.0 in a copy of their code for safe Bayesian optimisation.
        reading: "safe-bo", as the formula says; or "library", which divides the data term by m once more. The library at κ is
            1/m times the other at κm, so its 0.1 with ten points is the other's 1.0.
        tasks_per_step: T_b, drawn with replacement.
        measured: number of points in $\tilde X$, even.
        lengthscale: of GP_0, in standardised units.
        variance: of GP_0, in standardised units.
        jitter: added to both covariances in the divergence.
        learning_rate: of Adam.
        iterations: steps of Adam.
        hidden: widths of the hidden layers of either network.

    Unknown: the library adds the jitter to GP_0 alone and leaves the learned law to a factorisation's own (float32); with it on
    both sides equal priors have divergence 0. The noise begins as in the copy (0.01, not below 1e-4); in the library it begins
    at 0.69.

    Source: [fpacoh2021], [fpacoh2022]; methods.md 11.
    """

    prior_factor: float = 1.0
    reading: str = static(default="safe-bo")
    tasks_per_step: int = static(default=5)
    measured: int = static(default=20)
    lengthscale: float = 0.2
    variance: float = 2.0
    jitter: float = 1e-3
    learning_rate: float = 1e-3
    iterations: int = static(default=10_000)
    hidden: tuple[int, ...] = static(default=(32, 32))

    kind = "tuner"
    source = "fpacoh2022"
    needs = ("earlier related tasks",)

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.reading not in ("safe-bo", "library"):
            raise ValueError(f"FPACOH was given reading={self.reading!r}; give 'safe-bo' or 'library'.")
        if is_concrete(self.prior_factor) and not 0 <= float(self.prior_factor) < float("inf"):
            raise ValueError(f"FPACOH was given prior_factor={self.prior_factor}; κ must be finite and at least 0.")
        for name in ("lengthscale", "variance", "jitter", "learning_rate"):
            value = getattr(self, name)
            if is_concrete(value) and not float(value) > 0:
                raise ValueError(f"FPACOH was given {name}={value}; it must be positive.")
        if min(self.tasks_per_step, self.iterations, *self.hidden) < 1 or self.measured < 2 or self.measured % 2:
            raise ValueError(
                f"FPACOH was given tasks_per_step={self.tasks_per_step}, iterations={self.iterations}, hidden={self.hidden} "
                f"and measured={self.measured}; give positive numbers, and an even number of measured points."
            )

    def objective(
        self,
        prior: Prior,
        x: Float[Array, "b m k"],
        y: Float[Array, "b m"],
        measurement: Float[Array, "b s k"],
        tasks: int,
    ) -> Float[Array, ""]:
        """What is minimised, for one batch of tasks and one measurement set each, in standardised units, nats.

        Args:
            prior: the prior that is learned.
            x: points of b tasks, shape (b, m, k).
            y: observations there, shape (b, m).
            measurement: where the prior is compared with GP_0, shape (b, s, k).
            tasks: n, how many tasks there are in all.
        """
        m = x.shape[1]
        per = float(m**2 if self.reading == "library" else m)
        weight = self.prior_factor * (tasks**-0.5 + 1 / (tasks * m))

        def of_task(task: tuple[Array, Array, Array]) -> Array:
            x, y, at = task
            fit = log_likelihood(prior.law(x), prior.noise, y) / per
            return weight * self.divergence(prior, at) - fit

        return jnp.mean(jax.lax.map(of_task, (x, y, measurement)))

    def divergence(self, prior: Prior, points: Float[Array, "s k"]) -> Float[Array, ""]:
        """KL of the prior from GP_0 at standardised points, nats."""
        wide = SquaredExponential(self.lengthscale, self.variance).law(points)
        return gaussian_kl(with_jitter(prior.law(points), self.jitter), with_jitter(wide, self.jitter))

    def fit(
        self,
        x: Float[Array, "n m k"],
        y: Float[Array, "n m"],
        low: Float[Array, " k"],
        high: Float[Array, " k"],
        key: Array,
    ) -> Standardised:
        """The prior that earlier tasks teach.

        Args:
            x: points of n tasks, m each, shape (n, m, k).
            y: what was observed there, shape (n, m).
            low: lower ends of the domain, shape (k,).
            high: upper ends, shape (k,).
            key: of initial weights, batches and measurement sets.

        Returns:
            A prior in the units of the data.

        Raises:
            ValueError: when data or domain are not finite, or the domain is empty.
        """
        if is_concrete(x, y, low, high):
            if not bool(jnp.all(jnp.isfinite(x)) & jnp.all(jnp.isfinite(y))):
                raise ValueError("an earlier task has a value that is not finite; leave out the runs that diverged.")
            if not bool(jnp.all(low < high) & jnp.all(jnp.isfinite(low)) & jnp.all(jnp.isfinite(high))):
                raise ValueError(f"the domain goes from {low} to {high}; its ends must be finite and in order.")
        return _fit(self, x, y, low, high, key)


@jax.jit
def _fit(settings: FPACOH, x: Array, y: Array, low: Array, high: Array, key: Array) -> Standardised:
    units = Units.of(x, y)
    x, y, low, high = units.points(x), units.values(y), units.points(low), units.points(high)
    n, m, k = x.shape
    optimiser = optax.adam(settings.learning_rate)
    first, *rest = jax.random.split(key, 4)
    draws = (settings.iterations, settings.tasks_per_step)
    observed = min(m, settings.measured // 2)
    batches = jax.random.randint(rest[0], draws, 0, n)
    seen = jax.random.randint(rest[1], (*draws, observed), 0, m)
    free = jax.random.uniform(rest[2], (*draws, settings.measured - observed, k))

    def step(at: tuple[Learned, Any], drawn: tuple[Array, Array, Array]) -> tuple[tuple[Learned, Any], None]:
        (prior, memory), (batch, which, share) = at, drawn
        anywhere = low[None, None, :] + (high - low)[None, None, :] * share
        measurement = jnp.concatenate([x[batch[:, None], which], anywhere], 1)
        slope = jax.grad(settings.objective)(prior, x[batch], y[batch], measurement, n)
        with jax.numpy_dtype_promotion("standard"):  # Adam raises its decay to a whole number
            updates, memory = optimiser.update(slope, memory)
        return (optax.apply_updates(prior, updates), memory), None  # pyright: ignore[reportReturnType, reportArgumentType]

    start = initial(k, settings.hidden, first)
    (prior, _), _ = jax.lax.scan(step, (start, optimiser.init(start)), (batches, seen, free))  # pyright: ignore[reportArgumentType]
    return Standardised(prior, units)


def initial(k: int, hidden: tuple[int, ...], key: Array) -> Learned:
    """The prior that meta-learning starts from, for points of k coordinates: random networks, ℓ = ν = log 2."""
    raw_noise = jnp.log(jnp.expm1(NOISE - LEAST_NOISE))
    mean, features = (k, *hidden, 1), (k, *hidden, FEATURES)
    free = jax.random.uniform(key, (_count(mean) + _count(features),), minval=-1.0, maxval=1.0)
    networks = _layers(free[: _count(mean)], mean), _layers(free[_count(mean) :], features)
    return Learned(*networks, jnp.zeros(FEATURES), jnp.zeros(()), raw_noise)


def _count(sizes: tuple[int, ...]) -> int:
    return sum((into + 1) * out for into, out in pairwise(sizes))


def _layers(free: Array, sizes: tuple[int, ...]) -> Layers:
    """Weights and biases in ±1/√(fan-in), from numbers in ±1."""
    layers = []
    for into, out in pairwise(sizes):
        here, free = free[: (into + 1) * out].reshape(into + 1, out) * into**-0.5, free[(into + 1) * out :]
        layers.append((here[:-1], here[-1]))
    return tuple(layers)


def _network(layers: Layers, x: Float[Array, "n k"]) -> Float[Array, "n j"]:
    *inner, (weights, biases) = layers
    for W, b in inner:
        x = jnp.tanh(x @ W + b[None, :])
    return x @ weights + biases[None, :]
