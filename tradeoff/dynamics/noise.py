r"""The noise of mini-batches: where descent on a pair of quadratics settles, and how much safety its noise alone costs.

Descent $\theta\leftarrow\theta-h(A(\theta-\theta_\lambda)+\xi)$ has fresh noise ξ of covariance $S/(nk)$ from k micro-batches of n
examples. It settles at the covariance of a discrete Lyapunov equation, $C=(I-hA)C(I-hA)+\tfrac{h^2}{nk}S$: in the eigenbasis
of A, $C_{ij}=\tfrac{h}{nk}S_{ij}/(\alpha_i+\alpha_j-h\alpha_i\alpha_j)$. An average of the weights is quieter.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tradeoff._compiling import BRIEF, compiled
from tradeoff._records import Numbers, record
from tradeoff.gaps import Gaps
from tradeoff.parameter_constraint import eigen
from tradeoff.problems.quadratic import Quadratic, checked_hessian, half_square

FLAT_WITHIN = 1e-12
"""Noise in flat directions up to this share of all of it is rounding."""


@record
class NoiseFloor:
    r"""Where noisy descent settles.

    Args:
        mean: the penalised optimum, shape (d,).
        covariance: of the weights, or of their average, around it, shape (d, d).
        gaps: expected safety and capability gap, in the unit of the losses.
        excess: how much of them the noise makes, $\tfrac12\mathrm{tr}(HC)$.
    """

    mean: Float[Array, " d"]
    covariance: Float[Array, "d d"]
    gaps: Gaps
    excess: Gaps


def noise_floor(
    quad: Quadratic,
    noise: Numbers,
    learning_rate: float,
    *,
    batch: int = 1,
    accumulation: int = 1,
    average: float = 0.0,
    lam: float = 0.0,
) -> NoiseFloor:
    r"""The stationary law of mini-batch descent on $L_f+\lambda L_s$, exact at every stable learning rate.

    Args:
        quad: the pair of losses.
        noise: S, covariance of the gradient noise of one example, shape (d, d), positive semidefinite.
        learning_rate: h in (0, 2/α_max).
        batch: examples in a micro-batch, n; drawn anew with replacement.
        accumulation: micro-batches in a step, k.
        average: η in [0, 1) of a tracked average of the weights, whose law is returned; 0 is the weights themselves.
        lam: a finite penalty λ ≥ 0.

    Returns:
        A `NoiseFloor`.

    Raises:
        ValueError: when S is not a covariance, the learning rate is not stable (the largest stable one is named), η is not
            in [0, 1), or the noise has a part in a direction that no loss holds: there the weights diffuse for ever.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> at = noise_floor(quadratic.golden(), jnp.eye(2), 0.1, batch=4)
        >>> round(float(at.excess.safety), 6), round(float(at.excess.capability), 6)
        (0.011481, 0.013932)

    Source: the noise law (methods.md, Q3).
    """
    if not (batch >= 1 and accumulation >= 1):
        raise ValueError(f"batch is {batch} and accumulation is {accumulation}; both count something: at least 1.")
    if not 0 <= average < 1:
        raise ValueError(f"average is {average}; its coefficient η must be in [0, 1): 0 for no average.")
    if not 0 <= lam < np.inf:
        raise ValueError(f"lam is {lam}; descent needs one finite penalty λ ≥ 0.")
    S = checked_noise(noise, quad.theta_s.shape[-1])
    count = float(batch * accumulation)
    law, rates, drift = _floor(quad, jnp.asarray(S), float(learning_rate), count, float(average), float(lam))
    steepest = np.asarray(rates)[-1]
    largest = 2 / steepest if steepest > 0 else np.inf
    if not 0 < learning_rate < largest:
        raise ValueError(
            f"learning_rate is {learning_rate}; descent settles only for rates in (0, {largest:.6g}), below two over the "
            "largest curvature of the objective: give a smaller one."
        )
    if float(drift) > FLAT_WITHIN * np.trace(S):
        raise ValueError(
            "the noise has a part in a direction that is flat for the objective; there the weights diffuse for ever and have "
            "no stationary law: give noise without it, or a penalty that holds the direction."
        )
    return law


@compiled(BRIEF)
def _floor(
    quad: Quadratic, S: Array, learning_rate: Array, count: Array, average: Array, lam: Array
) -> tuple[NoiseFloor, Array, Array]:
    """The law, the curvatures of the objective, and the variance of the noise in its flat directions."""
    rates, U = eigen(quad.H_f + lam * quad.H_s)
    held = rates > 0
    safe = jnp.where(held, rates, 1)
    inside = U.T @ S @ U
    C = jnp.where(
        held[:, None] & held[None, :], variance(inside, safe[:, None], safe[None, :], learning_rate, count), 0
    )
    decay = 1 - learning_rate * rates
    C = U @ (quieter(decay[:, None], decay[None, :], average) * C) @ U.T
    delta = U @ jnp.where(held, U.T @ quad.pull / safe, 0)
    left = U @ jnp.where(held, lam * (U.T @ (quad.H_s @ quad.displacement)) / safe, U.T @ quad.displacement)
    excess = Gaps(jnp.sum(quad.H_s * C) / 2, jnp.sum(quad.H_f * C) / 2)
    gaps = Gaps(half_square(quad.H_s, delta) + excess.safety, half_square(quad.H_f, left) + excess.capability)
    drift = jnp.max(jnp.where(held, 0, jnp.diagonal(inside)))
    return NoiseFloor(quad.theta_s + delta, C, gaps, excess), rates, drift


def variance(noise: Array, alpha: Array, beta: Array, learning_rate: Array | float, count: Array | float) -> Array:
    r"""$\tfrac hnS/(\alpha+\beta-h\alpha\beta)$: the stationary covariance along two eigen-directions of the objective.

    Args:
        noise: S between the two, of one example.
        alpha: the curvature along one.
        beta: the curvature along the other; one of the two is positive.
        learning_rate: h.
        count: examples in a step.
    """
    return learning_rate * noise / (count * (alpha + beta - learning_rate * alpha * beta))


def quieter(r: Array, s: Array, average: Array) -> Array:
    r"""By what an average multiplies the covariance along two directions that each step shrinks by r and s.

    $\frac{1-\eta}{1+\eta}\big(1+\frac{\eta r}{1-\eta r}+\frac{\eta s}{1-\eta s}\big)$, which is
    $\frac{(1-\eta)(1+\eta r)}{(1+\eta)(1-\eta r)}$ for r = s.
    """
    own = sum(average * shrinks / (1 - average * shrinks) for shrinks in (r, s))
    return (1 - average) / (1 + average) * (1 + own)


def minibatch_noise(noise: Numbers, batch: int = 1, accumulation: int = 1) -> Callable[[Array, Array], Array]:
    r"""Gaussian gradient noise of covariance $S/(nk)$, for the `noise` of `descend` on a vector of parameters.

    Args:
        noise: S, covariance of the gradient noise of one example, shape (d, d), positive semidefinite.
        batch: examples in a micro-batch, n.
        accumulation: micro-batches in a step, k.

    Returns:
        A function of a key and the parameters.

    Raises:
        ValueError: when S is not a covariance.
    """
    S = checked_noise(noise, None)
    values, vectors = np.linalg.eigh(S / (batch * accumulation))
    root = jnp.asarray(vectors * np.sqrt(np.maximum(values, 0)))
    return lambda key, parameters: root @ jax.random.normal(key, parameters.shape, parameters.dtype)


def checked_noise(noise: Numbers, size: int | None) -> np.ndarray:
    """A covariance of gradient noise, after the checks that it is one and of the right size."""
    S = checked_hessian("noise", noise)
    if size is not None and len(S) != size:
        raise ValueError(
            f"noise has shape {S.shape} and there are {size} parameters; give a covariance of shape (d, d)."
        )
    return S
