"""Families of random pairs of quadratics: with radii and penalties, in subspaces, under low-rank updates.

Regimes are drawn as well: Hessians that commute or do not, of equal or widely different or vanishing eigenvalues (condition
numbers up to 1e6), radii from a millionth of the way to the whole way and beyond, penalties and times over twelve decades.
"""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.problems.quadratic import Quadratic, length, spectrum
from tradeoff.theorems.claim import Assumption, Family
from tradeoff.theorems.draws import Draws
from tradeoff.tolerances import IDENTITY

SIZE = 3
"""Parameters of a quadratic: the least in which every regime exists at once."""
MORE_THAN_ROUNDING = 1e-4
"""The least share of a displacement along a curved axis of a task that is flat elsewhere."""


class Landscape(NamedTuple):
    """A pair of quadratics, with a radius, a penalty, a time and a point of its space.

    Args:
        quad: the pair.
        radius: a radius ε.
        lam: a penalty λ, or a multiplier μ.
        time: a time of the gradient flow.
        theta: any parameters.
    """

    quad: Quadratic
    radius: Array
    lam: Array
    time: Array
    theta: Array


class Factors(NamedTuple):
    """Factors of a low-rank update BA, another factorisation of it, and a safety loss around zero.

    Args:
        A: shape (r, n).
        B: shape (m, r).
        mixing: an invertible matrix, shape (r, r): (B mixing)(mixing⁻¹ A) is the same update.
        H_s: Hessian of the safety loss over the entries of the update, shape (m n, m n).
    """

    A: Array
    B: Array
    mixing: Array
    H_s: Array


class Subspace(NamedTuple):
    """A landscape, an orthonormal basis B of a subspace, and coordinates in it."""

    landscape: Landscape
    basis: Array
    z: Array


# --- assumptions ------------------------------------------------------------------------------------------------


def reach(quad: Quadratic) -> Array:
    """How far the minimiser of least norm of the capability loss is."""
    values, U = spectrum(quad.H_f)
    c = U.T @ quad.displacement
    return length(jnp.where(values > NOTHING * values[-1], c, 0))


NOTHING = 2.0**-42
"""Eigenvalues below this times the largest one are zero: families draw none between it and 1e-6."""

CONSTRAINT_BINDS = Assumption(
    "active constraint",
    "the ball does not hold the minimiser of least norm of the capability loss",
    lambda i: i.radius < reach(i.quad),
)
SAFETY_CURVED = Assumption(
    "curved safety loss",
    "the safety Hessian is positive definite",
    lambda i: _least_over_greatest(i.quad.H_s) > NOTHING,
)
SAFETY_FLAT = Assumption(
    "flat safety direction",
    "the safety Hessian is singular and the task pulls out of its range",
    lambda i: (_least_over_greatest(i.quad.H_s) < NOTHING) & (_outside_range(i.quad.H_s, i.quad.pull) > 0),
)
TASK_CURVED = Assumption(
    "curved task loss",
    "the task Hessian is positive definite",
    lambda i: _least_over_greatest(i.quad.H_f) > NOTHING,
)
TASK_PULLS = Assumption(
    "task pulls",
    "the gradient of the capability loss at the aligned parameters is not zero",
    lambda i: length(i.quad.pull) > 0,
)
PULLS_FLAT = Assumption(
    "task pulls flat",
    "the task pulls where the safety Hessian vanishes, and nowhere else",
    lambda i: length(i.quad.H_s @ i.quad.pull) <= IDENTITY.relative * length(i.quad.H_s) * length(i.quad.pull),
)
COMMUTE = Assumption(
    "Hessians commute",
    "both Hessians have the same eigenvectors",
    lambda i: _commutator(i.quad) <= IDENTITY.relative,
)
SAFETY_ISOTROPIC = Assumption(
    "isotropic safety loss",
    "the safety Hessian acts as a multiple of the identity on the range of the task Hessian",
    lambda i: _anisotropy(i.quad) <= IDENTITY.relative,
)


def _least_over_greatest(H: Array) -> Array:
    values = spectrum(H)[0]
    return values[0] / values[-1]


def _outside_range(H: Array, g: Array) -> Array:
    values, U = spectrum(H)
    return length(jnp.where(values > NOTHING * values[-1], 0, U.T @ g))


def _commutator(quad: Quadratic) -> Array:
    apart = quad.H_f @ quad.H_s - quad.H_s @ quad.H_f
    return length(apart) / (length(quad.H_f) * length(quad.H_s))


def _anisotropy(quad: Quadratic) -> Array:
    values, U = spectrum(quad.H_f)
    curved = values > NOTHING * values[-1]
    inside = U * jnp.where(curved, 1.0, 0.0)[None, :]
    scale = jnp.trace(inside.T @ quad.H_s @ inside) / jnp.sum(jnp.where(curved, 1.0, 0.0))
    return length(quad.H_s @ inside - scale * inside) / length(quad.H_s)


# --- pairs of quadratics ----------------------------------------------------------------------------------------


@cache
def quadratics(
    *,
    decades: float = 6.0,
    commuting: bool = False,
    isotropic: bool = False,
    flat_task: bool = True,
    safety: str = "curved",
    pull: str = "any",
    inside: bool = False,
) -> Family:
    """Pairs of quadratics with a radius, a penalty, a time and a point.

    Args:
        decades: eigenvalues are within a factor of 10^decades of each other.
        commuting: whether the two Hessians always share their eigenvectors; else they do now and then.
        isotropic: whether the safety Hessian is a multiple of the identity on the range of the task Hessian.
        flat_task: whether some task Hessians are singular.
        safety: "curved" for a definite safety Hessian, "any" for one that may be singular, "flat" for one that is, in a
            direction into which the task pulls.
        pull: "any", or "flat" for a task that pulls where the safety Hessian vanishes, to the last bit.
        inside: whether the radius is always short of the minimiser, so that the constraint binds.
    """

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        wide = draws.uniform(0, 1, (2,))
        some_flat = draws.flip(0.3)
        first = jnp.arange(SIZE) == draws.index(SIZE)
        flat_f = draws.flip(0.5, (SIZE,)) & some_flat & ~first & flat_task
        flat_s = jnp.zeros(SIZE, bool)
        if safety == "any":
            flat_s = draws.flip(0.4, (SIZE,)) & draws.flip(0.4) & ~(jnp.arange(SIZE) == draws.index(SIZE))
        if safety == "flat":
            last = draws.index(SIZE)
            flat_s = (draws.flip(0.3, (SIZE,)) & (jnp.arange(SIZE) != (last + 1) % SIZE)) | (jnp.arange(SIZE) == last)
        edge = draws.flip(0.25)
        log_fraction = jnp.where(
            edge, -(10 ** draws.uniform(-8, -1)), draws.uniform(-6, -1e-3 if inside else 0.3) * jnp.log(10.0)
        )
        near = 10 ** draws.uniform(-4, 1)
        return {
            "log_f": wide[0] * draws.normal((SIZE,)),
            "log_s": wide[1] * draws.normal((SIZE,)) * jnp.where(draws.flip(0.1), 0, 1),
            "flat_f": flat_f,
            "flat_s": flat_s,
            "mirrors_f": draws.normal((2, SIZE)),
            "mirrors_s": draws.normal((2, SIZE)),
            "axes_f": draws.flip(0.25),
            "same_axes": draws.flip(1.0 if commuting else 0.2),
            "direction": draws.normal((SIZE,)),
            "log_size": draws.uniform(-1, 1) * jnp.log(10.0),
            "start": draws.normal((SIZE,)) * jnp.where(draws.flip(0.5), 0, 1),
            "log_fraction": log_fraction,
            "log_lam": draws.log_penalty(),
            "log_time": draws.log_penalty(),
            "toward": draws.uniform(-0.3, 1.3),
            "noise": near * draws.normal((SIZE,)),
        }

    def build(p: dict[str, Any]) -> Landscape:
        span = decades / 2 * jnp.log(10.0)
        f, s = (jnp.exp(span * jnp.tanh(p[name])) for name in ("log_f", "log_s"))
        axes_f = jnp.where(p["axes_f"] & (pull != "flat"), jnp.eye(SIZE), _rotation(p["mirrors_f"]))
        axes_s = jnp.where(p["same_axes"], axes_f, _rotation(p["mirrors_s"]))
        f, s = jnp.where(p["flat_f"], 0, f), jnp.where(p["flat_s"], 0, s)
        if isotropic:
            # s[0] on the range of H_f and anything beyond it, in the axes of H_f.
            axes_s, s = axes_f, jnp.where(p["flat_f"], s, jnp.max(s))
        if pull == "flat":
            # No axis of H_f is close to the first coordinate and no two of its curvatures agree, so that the path bends
            # by more than rounding.
            f = jnp.sort(f) + 0.1 * jnp.arange(float(SIZE)) * jnp.max(f)
            axes_f = _mirror_onto(axes_f[0] + jnp.where(axes_f[0] < 0, -0.1, 0.1))
            # Coordinates in which H_s vanishes exactly on the first axis, along which the task pulls.
            s = jnp.where(jnp.arange(SIZE) == 0, 0, s)
            axes_s = jnp.eye(SIZE).at[1:, 1:].set(_rotation(p["mirrors_s"][:, 1:]))
        H_f, H_s = hessian(axes_f, f), hessian(axes_s, s)
        size = jnp.exp(p["log_size"])
        # Where the task is flat, the rest of the way to its minimiser is more than rounding.
        along = axes_f.T @ p["direction"] / length(p["direction"])
        away = jnp.where(along < 0, along - MORE_THAN_ROUNDING, along + MORE_THAN_ROUNDING)
        along = jnp.where(jnp.any(p["flat_f"]), away, along)
        d = size * axes_f @ (along / length(along))
        if pull == "flat":
            d = axes_f @ (axes_f[0] / f)
            d = size * d / length(d)
        theta_s = size * 0.1 * p["start"]
        if pull == "flat":
            theta_s = jnp.zeros(SIZE)
        quad = Quadratic(H_f, theta_s + d, H_s, theta_s)
        way = length(jnp.where(p["flat_f"], 0, axes_f.T @ quad.displacement))
        theta = theta_s + p["toward"] * d + size * p["noise"]
        radius = way * jnp.exp(p["log_fraction"])
        return Landscape(quad, radius, jnp.exp(p["log_lam"]), jnp.exp(p["log_time"]), theta)

    return Family(sample, build)


def _mirror_onto(direction: Array) -> Array:
    """The reflection that takes the first coordinate axis onto a direction."""
    v = direction / length(direction) - jnp.eye(SIZE)[0]
    return jnp.eye(SIZE) - 2 * jnp.outer(v, v) / jnp.sum(v**2)


def around_pair(quad: Quadratic, radius: float, within: float) -> Family:
    """A named pair at a radius, with every entry of task curvature, minimiser and radius moved by about 1 ± `within`."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "H": draws.normal((quad.theta_f.size,)),
            "theta": draws.normal(quad.theta_f.shape),
            "radius": draws.normal(),
        }

    def build(p: dict[str, Any]) -> Landscape:
        def moved(value: Array, z: Array) -> Array:
            return value * jnp.exp(within * jnp.tanh(z))

        scale = moved(jnp.ones_like(quad.theta_f), p["H"])
        H_f = quad.H_f * scale[:, None] * scale[None, :]
        made = Quadratic(H_f, moved(quad.theta_f, p["theta"]), quad.H_s, quad.theta_s)
        one = jnp.ones(())
        return Landscape(made, moved(jnp.float64(radius), p["radius"]), one, one, quad.theta_f)

    return Family(sample, build)


def subspaces() -> Family:
    """Landscapes with a line or a plane through the aligned parameters, and coordinates in it."""
    pairs = quadratics(decades=4.0)

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(jax.random.fold_in(key, 1))
        return {"pair": pairs.sample(key), "mirrors": draws.normal((2, SIZE)), "z": draws.normal((2,))}

    def build(p: dict[str, Any]) -> Subspace:
        landscape = pairs.build(p["pair"])
        size = length(landscape.quad.displacement)
        return Subspace(landscape, _rotation(p["mirrors"])[:, :2], size * p["z"])

    return Family(sample, build)


def factors() -> Family:
    """Low-rank factors, balanced or not, with another factorisation and a safety Hessian."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        spread = 10 ** draws.uniform(-2, 2, (2,))
        return {
            "A": spread[0] * draws.normal((2, 3)),
            "B": spread[1] * draws.normal((2, 2)),
            "mixing": draws.normal((2, 2)),
            "root": draws.normal((6, 3)),
        }

    def build(p: dict[str, Any]) -> Factors:
        # Two triangular factors with positive diagonals are always invertible.
        M = p["mixing"]
        low, high = jnp.tril(M, -1), jnp.triu(M, 1)
        mixing = (low + jnp.eye(2)) @ (high + jnp.diag(jnp.exp(jnp.tanh(jnp.diag(M)))))
        return Factors(p["A"], p["B"], mixing, p["root"] @ p["root"].T)

    return Family(sample, build)


def hessian(axes: Array, values: Array) -> Array:
    """The symmetric matrix of the eigenvalues along the columns of `axes`."""
    H = (axes * values[None, :]) @ axes.T
    return (H + H.T) / 2


def pair(
    H_f: Any, theta_f: Any, H_s: Any, radius: float = 0.5, lam: float = 1.0, time: float = 1.0, theta: Any = None
) -> Landscape:
    """A landscape by its numbers, aligned at zero."""
    quad = Quadratic(H_f, theta_f, H_s, jnp.zeros(len(theta_f)))
    point = quad.theta_f if theta is None else jnp.asarray(theta, jnp.float64)
    return Landscape(quad, jnp.float64(radius), jnp.float64(lam), jnp.float64(time), point)


def _rotation(mirrors: Array) -> Array:
    """An orthogonal matrix: a product of reflections."""
    turned = jnp.eye(mirrors.shape[-1])
    for v in mirrors:
        turned = turned - 2 * jnp.outer(turned @ v, v) / jnp.dot(v, v)
    return turned
