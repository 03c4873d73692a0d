r"""Gradient flows of a pair of quadratics, exactly: $\theta(t)=\theta_\lambda+e^{-At}(\theta_0-\theta_\lambda)$, $A=H_f+\lambda H_s$.

Everything is written in the eigenbasis of A with `expm1`, so that the first instants and the last keep their relative
precision; directions that are flat for both losses stay where they start.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tradeoff._records import Numbers, is_concrete, record
from tradeoff.gaps import Gaps
from tradeoff.loss_constraint import check_scale
from tradeoff.parameter_constraint import eigen
from tradeoff.problems.quadratic import Quadratic, half_square


@record
class QuadraticFlow:
    """Penalised gradient flows at many penalties and times.

    Args:
        lams: penalties, shape (...L).
        times: times, shape (...T), in the time of the flow.
        gaps: safety and capability gap, in the unit of the losses, shape (...L, ...T).
        displacements: parameters minus the aligned ones, shape (...L, ...T, d); `None` unless asked for.
    """

    lams: Float[Array, "*lams"]
    times: Float[Array, "*times"]
    gaps: Gaps
    displacements: Float[Array, "..."] | None


def quadratic_flow(quad: Quadratic, lams: Numbers, times: Numbers, states: bool = False) -> QuadraticFlow:
    r"""The gradient flow of $L_f+\lambda L_s$ from the aligned parameters, at every penalty and every time.

    Args:
        quad: the pair of losses.
        lams: penalties λ in [0, inf), any shape; 0 is plain fine-tuning.
        times: times in [0, inf], any shape; inf is the end of the flow.
        states: whether to return the displacements too.

    Returns:
        A `QuadraticFlow`.

    Raises:
        ValueError: when a penalty is negative, NaN or infinite, or a time is negative or NaN (its index is named).

    Example:
        >>> from tradeoff.problems import quadratic
        >>> flow = quadratic_flow(quadratic.golden(), 0.0, [0.1, 0.5, 1.0])
        >>> flow.gaps.safety.round(12).tolist()
        [0.059370949575, 0.528098577256, 0.802368251213]

    Source: T16(a) (framework).
    """
    lams, times = check_scale("penalty λ", lams), check_scale("time", times)
    if is_concrete(lams) and not np.all(np.isfinite(lams)):
        raise ValueError(f"lams are {lams}; a flow needs finite penalties (a large one for the limit λ → ∞).")
    gaps, displacements = _flows(quad, lams, times, states)
    return QuadraticFlow(lams, times, gaps, displacements)


@partial(jax.jit, static_argnums=3)
def _flows(quad: Quadratic, lams: Array, times: Array, states: bool) -> tuple[Gaps, Array | None]:
    d, pull = quad.displacement, quad.pull
    resistance = quad.H_s @ d

    def one(lam: Array) -> tuple[Gaps, Array | None]:
        rates, U = eigen(quad.H_f + lam * quad.H_s)
        curved = rates > 0
        safe = jnp.where(curved, rates, 1)
        # A(θ_λ - θ_s) = H_f d and A(θ_f - θ_λ) = λ H_s d, in the eigenbasis of A.
        forward, back = (jnp.where(curved, U.T @ v / safe, 0) for v in (pull, lam * resistance))

        def at(time: Array) -> tuple[Gaps, Array | None]:
            endless = jnp.isinf(time)
            exponent = jnp.where(curved, -safe * jnp.where(endless, 0, time), 0)
            done = jnp.where(endless & curved, 1, -jnp.expm1(exponent))
            rest = jnp.where(endless & curved, 0, jnp.exp(exponent))
            delta, left = U @ (done * forward), U @ (back + rest * forward)
            gaps = Gaps(half_square(quad.H_s, delta), half_square(quad.H_f, left))
            return gaps, delta if states else None

        return jax.vmap(at)(times.ravel())

    flat = jax.lax.map(one, lams.ravel())
    shape = lams.shape + times.shape
    return jax.tree.map(lambda leaf: leaf.reshape(shape + leaf.shape[2:]), flat)
