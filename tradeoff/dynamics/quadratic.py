r"""Gradient flows of a pair of quadratics, exactly: $\theta(t)=\theta_\lambda+e^{-At}(\theta_0-\theta_\lambda)$, $A=H_f+\lambda H_s$.

In the eigenbasis of A, with `expm1`, the first instants and the last keep their relative precision, and directions that
are flat for both losses stay where they start. Many penalties at once are cheaper by a shared polynomial in A
(`propagator`), which is exact to rounding of the gaps at the start; the cheaper way is taken, by their costs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tradeoff._compiling import BRIEF, compiled
from tradeoff._records import Numbers, is_concrete, record
from tradeoff.dynamics.coordinates import Given
from tradeoff.dynamics.propagator import coordinates_for, degree_for, propagate
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
    lams, times = _checked(lams, times)
    gaps, displacements = _solved(quad, lams, times, gaps=True, states=states)
    assert gaps is not None  # asked for
    return QuadraticFlow(jnp.asarray(lams), jnp.asarray(times), gaps, displacements)


def quadratic_states(quad: Quadratic, lams: Numbers, times: Numbers) -> Float[Array, "..."]:
    r"""The displacements alone, $\theta(t)-\theta_s$, of the flows of `quadratic_flow`.

    Args:
        quad: the pair of losses.
        lams: penalties λ in [0, inf), any shape.
        times: times in [0, inf], any shape.

    Returns:
        Shape (...L, ...T, d).

    Raises:
        ValueError: as `quadratic_flow`.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> [round(x, 12) for x in quadratic_states(quadratic.golden(), 0.0, 1.0).tolist()]
        [0.950212931632, -0.632120558829]

    Source: T16(a) (framework).
    """
    _, displacements = _solved(quad, *_checked(lams, times), gaps=False, states=True)
    assert displacements is not None  # asked for
    return displacements


def _checked(lams: Numbers, times: Numbers) -> tuple[Array | np.ndarray, Array | np.ndarray]:
    """Both as float64; in NumPy where values are known, since every array put on the device costs as much as a short sweep."""
    if is_concrete(lams, times):
        lams, times = np.asarray(lams, np.float64), np.asarray(times, np.float64)
        if lams.min(initial=0) >= 0 and lams.max(initial=0) < np.inf and times.min(initial=0) >= 0:
            return lams, times
    lams, times = check_scale("penalty λ", lams), check_scale("time", times)
    if is_concrete(lams) and not np.all(np.isfinite(lams)):
        raise ValueError(f"lams are {lams}; a flow needs finite penalties (a large one for the limit λ → ∞).")
    return lams, times


def _solved(quad: Quadratic, lams: Any, times: Any, gaps: bool, states: bool) -> tuple[Gaps | None, Array | None]:
    """By the polynomial where values are known and it costs less, else in the eigenbasis of each penalty."""
    size = None
    if isinstance(lams, np.ndarray) and is_concrete(quad):
        size = degree_for(quad, lams, times)
    if size is None:
        return _flows(quad, lams, times, states)
    terms, reach = size
    pair = coordinates_for(quad, lams.size, times.size, terms, states) if gaps else Given(quad)
    return propagate(pair, lams, times, reach, terms=terms, gaps=gaps, states=states)


@compiled(BRIEF, static_argnums=3)
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
