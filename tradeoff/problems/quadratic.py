r"""Two quadratic losses: the landscape around an aligned model as its Hessians see it.

$$ L_f=\tfrac12\|\theta-\theta_f\|^2_{H_f},\qquad L_s=\tfrac12\|\theta-\theta_s\|^2_{H_s}. $$

Every question about them has a closed form, so they are where solvers, flows and strategies are held to an answer. A
capability loss that curves downwards somewhere has no minimiser; what is known of it near the aligned parameters is a
`LocalModel`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float

from tradeoff._records import Numbers, is_concrete, record
from tradeoff.divergences import root
from tradeoff.gaps import Gaps
from tradeoff.problems.problem import Problem

SYMMETRIC_WITHIN = 1e-10
"""A Hessian is accepted when it differs from its transpose by at most this, relative to its largest entry."""
POSITIVE_WITHIN = 1e-12
"""... and when no eigenvalue is below minus this, relative to the largest."""
STATIONARY_WITHIN = 1e-8
"""Aligned parameters are a minimiser of the safety loss when its gradient is at most this, relative to the task's."""


@record
class Quadratic:
    r"""Quadratic capability loss around $\theta_f$ and quadratic safety loss around the aligned parameters $\theta_s$.

    Args:
        H_f: Hessian of the capability loss, shape (d, d), symmetric and positive semidefinite.
        theta_f: a minimiser of the capability loss, shape (d,).
        H_s: Hessian of the safety loss, shape (d, d), symmetric and positive semidefinite.
        theta_s: the aligned parameters, a minimiser of the safety loss, shape (d,).

    Raises:
        ValueError: when shapes differ, an entry is NaN or infinite, or a Hessian is not symmetric or is indefinite.

    Example:
        >>> quad = golden()
        >>> at = quad.gaps(quad.theta_s)
        >>> float(at.safety), float(at.capability)
        (0.0, 2.0)

    Source: T14 (framework).
    """

    H_f: Float[Array, "*batch d d"]
    theta_f: Float[Array, "*batch d"]
    H_s: Float[Array, "*batch d d"]
    theta_s: Float[Array, "*batch d"]

    def __init__(self, H_f: Numbers, theta_f: Numbers, H_s: Numbers, theta_s: Numbers) -> None:
        if is_concrete(H_f, theta_f, H_s, theta_s):
            theta_f, theta_s = _checked_point("theta_f", theta_f), _checked_point("theta_s", theta_s)
            H_f, H_s = checked_hessian("H_f", H_f), checked_hessian("H_s", H_s)
            _check_sizes("Quadratic", H_f=H_f, theta_f=theta_f, H_s=H_s, theta_s=theta_s)
        object.__setattr__(self, "H_f", jnp.asarray(H_f, jnp.float64))
        object.__setattr__(self, "theta_f", jnp.asarray(theta_f, jnp.float64))
        object.__setattr__(self, "H_s", jnp.asarray(H_s, jnp.float64))
        object.__setattr__(self, "theta_s", jnp.asarray(theta_s, jnp.float64))

    def __repr__(self) -> str:
        return f"Quadratic({self.theta_s.shape[-1]} parameters)"

    @property
    def displacement(self) -> Float[Array, " d"]:
        r"""$d=\theta_f-\theta_s$, from the aligned parameters to the capable ones, shape (d,)."""
        return self.theta_f - self.theta_s

    @property
    def pull(self) -> Float[Array, " d"]:
        r"""$g=-\nabla L_f(\theta_s)=H_fd$, where the task pulls the aligned parameters, shape (d,)."""
        return self.H_f @ self.displacement

    def aligned(self) -> Float[Array, " d"]:
        r"""The aligned parameters $\theta_s$, shape (d,)."""
        return self.theta_s

    def gaps(self, parameters: Float[Array, " d"]) -> Gaps:
        """Safety gap and capability gap at the parameters, in the unit of the losses."""
        return Gaps(half_square(self.H_s, parameters - self.theta_s), half_square(self.H_f, parameters - self.theta_f))

    def objective(self, parameters: Float[Array, " d"], lam: ArrayLike) -> Float[Array, ""]:
        r"""$G_f+\lambda G_s$ at the parameters."""
        at = self.gaps(parameters)
        return at.capability + lam * at.safety

    def gain(self, delta: Float[Array, " d"]) -> Float[Array, ""]:
        r"""$L_f(\theta_s)-L_f(\theta_s+\delta)=g^\top\delta-\tfrac12\delta^\top H_f\delta$, exact for the smallest steps.

        Args:
            delta: displacement from the aligned parameters, shape (d,).

        Example:
            >>> bool(abs(golden().gain(jnp.array([1e-12, 0.0])) / 3e-12 - 1) < 1e-11)
            True
        """
        return jnp.dot(self.pull, delta) - half_square(self.H_f, delta)


@record
class LocalModel:
    r"""What two losses look like around the aligned parameters, to second order; the capability loss may curve downwards.

    $$ L_f(\theta_s+\delta)=L_f(\theta_s)-g^\top\delta+\tfrac12\delta^\top H_f\delta,\qquad
       L_s(\theta_s+\delta)=L_s(\theta_s)+\tfrac12\delta^\top H_s\delta. $$

    Without a minimiser there is no capability gap: capability is the gain $L_f(\theta_s)-L_f(\theta_s+\delta)$.

    Args:
        H_f: Hessian of the capability loss at the aligned parameters, shape (d, d), symmetric, of any signs.
        g: minus the gradient of the capability loss there, where the task pulls, shape (d,).
        H_s: Hessian of the safety loss there, shape (d, d), symmetric and positive semidefinite.
        theta_s: the aligned parameters, a minimiser of the safety loss, shape (d,).

    Raises:
        ValueError: when shapes differ, an entry is NaN or infinite, or a Hessian is not symmetric or H_s is indefinite.

    Example:
        >>> saddle = LocalModel([[1.0, 0.0], [0.0, -2.0]], [1.0, 0.0], [[1.0, 0.0], [0.0, 3.0]], [0.0, 0.0])
        >>> float(saddle.gain(jnp.array([1.0, 1.0]))), float(saddle.safety_gap(jnp.array([1.0, 1.0])))
        (1.5, 2.0)

    Source: T12, T15 (framework).
    """

    H_f: Float[Array, "*batch d d"]
    g: Float[Array, "*batch d"]
    H_s: Float[Array, "*batch d d"]
    theta_s: Float[Array, "*batch d"]

    def __init__(self, H_f: Numbers, g: Numbers, H_s: Numbers, theta_s: Numbers) -> None:
        if is_concrete(H_f, g, H_s, theta_s):
            g, theta_s = _checked_point("g", g), _checked_point("theta_s", theta_s)
            H_f, H_s = checked_symmetric("H_f", H_f), checked_hessian("H_s", H_s)
            _check_sizes("LocalModel", H_f=H_f, g=g, H_s=H_s, theta_s=theta_s)
        object.__setattr__(self, "H_f", jnp.asarray(H_f, jnp.float64))
        object.__setattr__(self, "g", jnp.asarray(g, jnp.float64))
        object.__setattr__(self, "H_s", jnp.asarray(H_s, jnp.float64))
        object.__setattr__(self, "theta_s", jnp.asarray(theta_s, jnp.float64))

    def __repr__(self) -> str:
        return f"LocalModel({self.theta_s.shape[-1]} parameters)"

    @classmethod
    def of(cls, problem: Problem, parameters: Any) -> "LocalModel":
        """The second-order model of any problem around parameters that minimise its safety loss.

        Args:
            problem: any problem, up to about 1,000 parameters: the Hessians are dense.
            parameters: the aligned parameters, any pytree; the model's coordinates are its leaves one after the other.

        Returns:
            A `LocalModel` of d parameters.

        Raises:
            ValueError: when the safety loss is not stationary there, or its Hessian is indefinite.

        Example:
            >>> model = LocalModel.of(golden(), golden().theta_s)
            >>> model.g.tolist(), model.H_s.tolist()
            ([3.0, -1.0], [[2.0, 0.5], [0.5, 1.0]])
        """
        flat, unravel = ravel_pytree(parameters)
        sides = [lambda z: problem.gaps(unravel(z)).safety, lambda z: problem.gaps(unravel(z)).capability]
        slopes = jax.jit(lambda z: [(jax.grad(side)(z), jax.hessian(side)(z)) for side in sides])
        (slope, H_s), (rise, H_f) = slopes(flat)
        if is_concrete(slope) and not length(slope) <= STATIONARY_WITHIN * length(rise):
            raise ValueError(
                f"the safety loss has a gradient of length {float(length(slope)):.3g} at the parameters, and the task one of "
                f"{float(length(rise)):.3g}; a model around them needs a minimiser of the safety loss. Descend the safety "
                "loss first, or give the Hessians and the pull to LocalModel yourself."
            )
        return cls(H_f, -rise, H_s, flat)

    def safety_gap(self, delta: Float[Array, " d"]) -> Float[Array, ""]:
        r"""$\tfrac12\delta^\top H_s\delta$ at a displacement from the aligned parameters, shape (d,)."""
        return half_square(self.H_s, delta)

    def gain(self, delta: Float[Array, " d"]) -> Float[Array, ""]:
        r"""$g^\top\delta-\tfrac12\delta^\top H_f\delta$ at a displacement from the aligned parameters, shape (d,)."""
        return jnp.dot(self.g, delta) - jnp.dot(delta, self.H_f @ delta) / 2


def half_square(H: Float[Array, "d d"], v: Float[Array, " d"]) -> Float[Array, ""]:
    r"""$\tfrac12v^\top Hv$ for a semidefinite H: never negative, whatever rounding says."""
    value = jnp.dot(v, H @ v) / 2
    # Not `maximum`, whose second derivative at 0 would be half of H.
    return jnp.where(value < 0, 0, value)


@jax.custom_jvp
def spectrum(H: Float[Array, "d d"]) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Eigenvalues in rising order and eigenvectors in columns, of a symmetric matrix.

    As `jnp.linalg.eigh`, of the lower triangle alone, with derivatives that stay finite where eigenvalues coincide: vectors
    that may be turned into each other at will count as standing still.
    """
    values, vectors = jnp.linalg.eigh(H, symmetrize_input=False)
    return values, vectors


@spectrum.defjvp
def _spectrum_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    values, vectors = spectrum(*primals)
    turned = vectors.T @ ((tangents[0] + tangents[0].T) / 2) @ vectors
    apart = values[None, :] - values[:, None]
    distinct = jnp.abs(apart) > 2.0**-44 * jnp.max(jnp.abs(values))
    rate = jnp.where(distinct, turned / jnp.where(distinct, apart, 1), 0)
    return (values, vectors), (jnp.diagonal(turned), vectors @ rate)


def length(v: Array) -> Float[Array, ""]:
    """The Euclidean length of an array, with derivative 0 at 0."""
    return root(jnp.sum(v**2))


def golden() -> Quadratic:
    """The instance of the framework's golden numbers (T14 to T16): two parameters, Hessians that do not commute.

    Example:
        >>> golden().pull.tolist()
        [3.0, -1.0]
    """
    return Quadratic([[3.0, 0.0], [0.0, 1.0]], [1.0, -1.0], [[2.0, 0.5], [0.5, 1.0]], [0.0, 0.0])


def not_monotone() -> Quadratic:
    """The pair on which a larger ball can be safer: its safety gap peaks at radius 0.919409 (T14(e))."""
    return Quadratic([[100.0, 0.0], [0.0, 1.0]], [1.0, -1.0], [[1.0, 0.9], [0.9, 0.82]], [0.0, 0.0])


def checked_symmetric(name: str, H: Numbers) -> np.ndarray:
    """`H` as a float64 matrix, symmetric to the last bit, after the checks that it is the Hessian of some loss."""
    matrix = np.asarray(H, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"{name} has shape {matrix.shape}; a Hessian must have shape (d, d) with d at least 1.")
    if not np.all(np.isfinite(matrix)):
        i, j = np.argwhere(~np.isfinite(matrix))[0]
        raise ValueError(f"{name}[{i}, {j}] is {matrix[i, j]}; the entries of a Hessian must be finite.")
    if np.array_equal(matrix, matrix.T):
        return matrix
    uneven = np.abs(matrix - matrix.T)
    if uneven.max() > SYMMETRIC_WITHIN * np.abs(matrix).max():
        i, j = np.unravel_index(int(uneven.argmax()), uneven.shape)
        raise ValueError(
            f"{name} is not symmetric: {name}[{i}, {j}] is {matrix[i, j]:.12g} and {name}[{j}, {i}] is {matrix[j, i]:.12g}. "
            f"If the difference is noise, give ({name} + {name}.T) / 2."
        )
    return (matrix + matrix.T) / 2


def checked_hessian(name: str, H: Numbers) -> np.ndarray:
    """`H` as a float64 matrix, symmetric to the last bit, after the checks that it is a Hessian of a convex loss."""
    matrix = checked_symmetric(name, H)
    floor = -POSITIVE_WITHIN * np.abs(matrix).max() * len(matrix)
    if not all_above(matrix, floor) and (least := np.linalg.eigvalsh(matrix)[0]) < floor:
        raise ValueError(
            f"{name} has eigenvalue {least:.6g}; a quadratic loss has a minimum only if its Hessian is positive "
            f"semidefinite. Clip the negative eigenvalues, use the Gauss-Newton or Fisher matrix, or describe the "
            "capability loss by a LocalModel."
        )
    return matrix


def all_above(matrix: Float[np.ndarray, "d d"], floor: float) -> bool:
    """Whether a Cholesky factorisation shows every eigenvalue to be above a floor; far cheaper than the eigenvalues."""
    try:
        np.linalg.cholesky(matrix - floor * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        return False
    return True


def _check_sizes(what: str, **parts: np.ndarray) -> None:
    sizes = {name: len(part) for name, part in parts.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"{what} was given parts over different numbers of parameters, {sizes}; both losses must be over the "
            "same parameters: Hessians of shape (d, d), vectors of shape (d,)."
        )


def _checked_point(name: str, theta: Numbers) -> np.ndarray:
    point = np.asarray(theta, np.float64)
    if point.ndim != 1 or not np.all(np.isfinite(point)):
        raise ValueError(f"{name} is {point}; parameters must be finite and have shape (d,).")
    return point
