r"""Gaussian processes on few points: laws, posteriors and divergences, all by Cholesky factors.

A prior gives the joint law of a function at any points; everything else is linear algebra on that law. Data may be padded,
so that one compiled program serves any number of observations.
"""

from abc import ABC, abstractmethod

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from tradeoff._records import is_concrete, record
from tradeoff.divergences import x_minus_log1p


@record
class Gaussian:
    """A normal law of n numbers.

    Args:
        mean: shape (n,).
        covariance: shape (n, n), symmetric and positive semidefinite.
    """

    mean: Float[Array, "*batch n"]
    covariance: Float[Array, "*batch n n"]


class Prior(ABC):
    """What is believed of a function before any of its values is seen. Subclasses are frozen records."""

    noise: ArrayLike
    """Variance of an observation around the function's value, positive."""

    @abstractmethod
    def law(self, points: Float[Array, "n k"]) -> Gaussian:
        """The joint law of the function's values at points of shape (n, k)."""


@record
class SquaredExponential(Prior):
    r"""Mean 0 and covariance $\nu\exp(-\tfrac12|x-x'|^2/\ell^2)$: smooth functions of which nothing else is known.

    Args:
        lengthscale: ℓ > 0, in the unit of the points; one number, or one for each of their k coordinates.
        variance: ν > 0, in the squared unit of the values.
        noise: variance of an observation, positive; without noise give a small one, which keeps the factors finite.

    Example:
        >>> law = SquaredExponential(1.0, 2.0).law(jnp.array([[0.0], [1.0]]))
        >>> law.covariance.round(6).tolist()
        [[2.0, 1.213061], [1.213061, 2.0]]
    """

    lengthscale: ArrayLike = 0.2
    variance: ArrayLike = 1.0
    noise: ArrayLike = 1e-4

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("lengthscale", "variance", "noise"):
            value = getattr(self, name)
            if is_concrete(value) and not np.all(np.asarray(value) > 0):
                raise ValueError(f"SquaredExponential was given {name}={value}; it must be positive.")

    def law(self, points: Float[Array, "n k"]) -> Gaussian:
        """The joint law at points."""
        return Gaussian(jnp.zeros(len(points)), squared_exponential(points, self.lengthscale, self.variance))


@record
class Units:
    """The mean and the standard deviation that points and values are measured from and in.

    Args:
        x_mean: shape (k,).
        x_std: shape (k,), positive.
        y_mean: a scalar.
        y_std: a scalar, positive.
    """

    x_mean: Float[Array, " k"]
    x_std: Float[Array, " k"]
    y_mean: Float[Array, ""]
    y_std: Float[Array, ""]

    @classmethod
    def of(cls, x: Float[Array, "*tasks k"], y: Float[Array, "*tasks"]) -> "Units":
        """Those of the data of all tasks together."""
        x = x.reshape(-1, x.shape[-1])
        return cls(jnp.mean(x, 0), jnp.std(x, 0) + 1e-8, jnp.mean(y), jnp.std(y) + 1e-8)

    def points(self, x: Float[Array, "*batch k"]) -> Float[Array, "*batch k"]:
        """Points in these units."""
        return (x - jnp.broadcast_to(self.x_mean, x.shape)) / jnp.broadcast_to(self.x_std, x.shape)

    def values(self, y: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Values in these units."""
        return (y - self.y_mean) / self.y_std


@record
class Standardised(Prior):
    """A prior that was stated in other units.

    Args:
        prior: of the standardised function of standardised points.
        units: the units.
    """

    prior: Prior
    units: Units

    @property
    def noise(self) -> Array:  # pyright: ignore[reportIncompatibleVariableOverride]
        """In the squared unit of the raw values."""
        return self.units.y_std**2 * self.prior.noise

    def law(self, points: Float[Array, "n k"]) -> Gaussian:
        """The joint law at raw points, of raw values."""
        law = self.prior.law(self.units.points(points))
        return Gaussian(self.units.y_mean + self.units.y_std * law.mean, self.units.y_std**2 * law.covariance)


def squared_exponential(x: Float[Array, "n k"], lengthscale: ArrayLike, variance: ArrayLike) -> Float[Array, "n n"]:
    r"""$\nu\exp(-\tfrac12|x_i-x_j|^2/\ell^2)$ for every pair of rows."""
    scaled = x / jnp.broadcast_to(jnp.asarray(lengthscale, x.dtype), x.shape)
    apart = scaled[:, None, :] - scaled[None, :, :]
    return jnp.exp(-jnp.sum(apart**2, -1) / 2) * variance


def with_jitter(law: Gaussian, jitter: ArrayLike) -> Gaussian:
    """The law of the same numbers, each with independent noise of variance `jitter`."""
    return Gaussian(law.mean, law.covariance + jitter * jnp.eye(law.mean.shape[-1]))


def conditioned(
    law: Gaussian,
    noise: ArrayLike,
    at: Int[Array, " t"],
    values: Float[Array, " t"],
    known: Bool[Array, " t"] | None = None,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    r"""Mean and standard deviation of each of n numbers, some of which were observed with noise.

    $$ \mu+K_{\cdot t}(K_{tt}+\sigma^2I)^{-1}(y-\mu_t),\qquad K_{ii}-K_{it}(K_{tt}+\sigma^2I)^{-1}K_{ti}. $$

    Args:
        law: the joint law before, of n numbers.
        noise: σ² > 0.
        at: which of the numbers were observed, shape (t,); a number may be observed twice.
        values: what was seen, shape (t,).
        known: which observations count, shape (t,); the others are padding. All, unless given.

    Returns:
        Means, shape (n,), and standard deviations of the numbers themselves, without noise, shape (n,).
    """
    known = jnp.ones(at.shape, bool) if known is None else known
    both = known[:, None] & known[None, :]
    K = jnp.where(both, law.covariance[at[:, None], at[None, :]], 0.0) + jnp.diag(jnp.where(known, noise, 1.0))
    L = jnp.linalg.cholesky(K)
    V = solve_triangular(L, jnp.where(known[:, None], law.covariance[at], 0.0), lower=True)
    surprise = solve_triangular(L, jnp.where(known, values - law.mean[at], 0.0), lower=True)
    variance = jnp.diagonal(law.covariance) - jnp.sum(V**2, 0)
    return law.mean + V.T @ surprise, jnp.sqrt(jnp.maximum(variance, 0.0))


def posterior(
    prior: Prior, x: Float[Array, "t k"], y: Float[Array, " t"], points: Float[Array, "n k"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Mean and standard deviation of a function at points, from observations `y` at `x`.

    Args:
        prior: of the function.
        x: shape (t, k).
        y: shape (t,).
        points: shape (n, k).

    Returns:
        Means and standard deviations (without noise), each of shape (n,).

    Example:
        >>> mean, std = posterior(SquaredExponential(1.0), jnp.array([[0.0]]), jnp.array([2.0]), jnp.array([[1.0]]))
        >>> round(float(mean[0]), 4), round(float(std[0]), 4)
        (1.2129, 0.7951)
    """
    law = prior.law(jnp.concatenate([x, points]))
    mean, std = conditioned(law, prior.noise, jnp.arange(len(x)), y)
    return mean[len(x) :], std[len(x) :]


def log_likelihood(law: Gaussian, noise: ArrayLike, values: Float[Array, " n"]) -> Float[Array, ""]:
    """The log-density of noisy observations of all n numbers, nats."""
    L = jnp.linalg.cholesky(with_jitter(law, noise).covariance)
    surprise = solve_triangular(L, values - law.mean, lower=True)
    return -jnp.sum(surprise**2) / 2 - jnp.sum(jnp.log(jnp.diagonal(L))) - len(values) * jnp.log(2 * jnp.pi) / 2


@jax.jit
def gaussian_kl(p: Gaussian, q: Gaussian) -> Float[Array, ""]:
    r"""$\mathrm{KL}(p\|q)$ of two normal laws of the same numbers, nats.

    With $A=L_q^{-1}L_p$ (lower triangular) it is half of
    $\sum_{i>j}A_{ij}^2+\sum_i(A_{ii}^2-1-\log A_{ii}^2)+|L_q^{-1}(\mu_p-\mu_q)|^2$, a sum of terms of which none is negative,
    so that nearly equal laws lose no digits.

    Args:
        p: a law of n numbers with a positive definite covariance.
        q: another.

    Returns:
        A scalar, at least 0; 0 for equal laws.

    Example:
        >>> one = Gaussian(jnp.array([0.0]), jnp.array([[1.0]]))
        >>> round(float(gaussian_kl(one, Gaussian(jnp.array([1.0]), jnp.array([[2.0]])))), 6)
        0.346574
    """
    L = jnp.linalg.cholesky(q.covariance)
    A = solve_triangular(L, jnp.linalg.cholesky(p.covariance), lower=True)
    diagonal = jnp.diagonal(A)
    apart = solve_triangular(L, p.mean - q.mean, lower=True)
    square_less_one = (diagonal - 1) * (diagonal + 1)
    return (jnp.sum(jnp.tril(A, -1) ** 2) + jnp.sum(x_minus_log1p(square_less_one)) + jnp.sum(apart**2)) / 2
