r"""Noisy descent on a pair of quadratics after any number of steps: the mean and the covariance of the weights, exactly.

Everything is linear, so the mean follows descent without noise and the covariance follows $C\leftarrow MCM^\top+\tfrac{h^2}{nk}S$,
for the weights and their average together. `noise_floor` is where it ends.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from tradeoff._records import Numbers
from tradeoff.dynamics.noise import NoiseFloor, checked_noise
from tradeoff.gaps import Gaps
from tradeoff.problems.quadratic import Quadratic

READINGS = ("tracked", "through", "to the start")


def expected_descent(
    quad: Quadratic,
    noise: Numbers,
    learning_rate: ArrayLike,
    steps: ArrayLike,
    *,
    batch: ArrayLike = 1,
    accumulation: ArrayLike = 1,
    average: ArrayLike = 0.0,
    reading: str = "tracked",
    lam: ArrayLike = 0.0,
) -> NoiseFloor:
    r"""The law of the weights after mini-batch descent on $L_f+\lambda L_s$ from the aligned parameters, exact at every step.

    Args:
        quad: the pair of losses.
        noise: S, covariance of the gradient noise of one example, shape (d, d), positive semidefinite.
        learning_rate: h > 0.
        steps: how many.
        batch: examples in a micro-batch, n; drawn anew with replacement.
        accumulation: micro-batches in a step, k.
        average: η in [0, 1) of an average of the weights; 0 is the weights themselves.
        reading: which average: "tracked", "through" or "to the start", as `strategies.EMA` has them.
        lam: a finite penalty λ ≥ 0.

    Returns:
        A `NoiseFloor` at this step: `gaps` are expected ones, `excess` is what the noise makes of them.

    Raises:
        ValueError: when S is not a covariance or the reading is unknown.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> at = expected_descent(quadratic.golden(), jnp.eye(2), 0.1, 1000, batch=4)
        >>> round(float(at.excess.safety), 6), round(float(at.excess.capability), 6)  # the noise floor
        (0.011481, 0.013932)

    Source: the noise law (methods.md, Q3) at finite times.
    """
    if reading not in READINGS:
        raise ValueError(f"expected_descent was given reading={reading!r}; give one of {', '.join(READINGS)}.")
    S = jnp.asarray(checked_noise(noise, quad.theta_s.shape[-1]))
    examples = jnp.asarray(batch, jnp.float64) * accumulation
    h, eta = jnp.asarray(learning_rate, jnp.float64), jnp.asarray(average, jnp.float64)
    return _expected(quad, S / examples, h, jnp.asarray(steps), eta, jnp.asarray(lam, jnp.float64), reading)


@jax.jit(static_argnames="reading")
def _expected(quad: Quadratic, S: Array, h: Array, steps: Array, eta: Array, lam: Array, reading: str) -> NoiseFloor:
    size = quad.theta_s.shape[-1]
    one, none = jnp.eye(size), jnp.zeros((size, size))
    A = quad.H_f + lam * quad.H_s
    pull = quad.H_f @ (quad.theta_f - quad.theta_s)
    # Displacements from the aligned parameters: δ ← M δ + b + noise, and the average m ← ηm + (1-η)δ of the new ones.
    shrinks = 1.0 if reading == "tracked" else 1 - eta
    held = 0.0 if reading in ("tracked", "to the start") else eta
    M = shrinks * (one - h * A) + held * one
    b, N = shrinks * h * pull, (shrinks * h) ** 2 * S
    keep = eta if reading == "tracked" else 0.0
    both = jnp.block([[M, none], [(1 - keep) * M, keep * one]])
    drive = jnp.concatenate([b, (1 - keep) * b])
    stir = jnp.block([[N, (1 - keep) * N], [(1 - keep) * N, (1 - keep) ** 2 * N]])

    mean, C = _after(steps, both, drive, stir)
    theta, C = quad.theta_s + mean[size:], C[size:, size:]
    excess = Gaps(jnp.sum(quad.H_s * C) / 2, jnp.sum(quad.H_f * C) / 2)
    at = quad.gaps(theta)
    return NoiseFloor(theta, C, Gaps(at.safety + excess.safety, at.capability + excess.capability), excess)


def _after(steps: Array, M: Array, b: Array, N: Array) -> tuple[Array, Array]:
    r"""Mean and covariance after n steps of $x\leftarrow Mx+b+\text{noise}$ from zero, by the powers of two in n.

    Two steps are one of the same form, with $M^2$, $Mb+b$ and $MNM^\top+N$: what n steps do takes log n products.
    """

    def one_bit(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        left, M, b, N, mean, C = carry
        odd = left % 2 == 1
        mean, C = jnp.where(odd, M @ mean + b, mean), jnp.where(odd, M @ C @ M.T + N, C)
        return left // 2, M @ M, M @ b + b, M @ N @ M.T + N, mean, C

    start = (steps, M, b, N, jnp.zeros_like(b), jnp.zeros_like(N))
    *_, mean, C = jax.lax.while_loop(lambda carry: carry[0] > 0, one_bit, start)
    return mean, C
