r"""Early stopping as an implicit Case II: how far the plain flow has gone at time t, and what that has cost.

$\delta(t)=(I-e^{-H_ft})d$ grows in length, as the optimum of Case II does with its radius, so stopping at t is a constraint
of radius $\|\delta(t)\|$ that nobody wrote down. One eigendecomposition of $H_f$ serves all times.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tradeoff._compiling import BRIEF, compiled
from tradeoff._records import Numbers, record
from tradeoff.gaps import Gaps
from tradeoff.loss_constraint import check_scale
from tradeoff.parameter_constraint import eigen
from tradeoff.problems.quadratic import Quadratic, half_square, length


@record
class EarlyStopping:
    """The plain flow at the times asked for.

    Args:
        times: shape (...T), in the time of the flow.
        radius: distance from the aligned parameters, shape (...T).
        gaps: safety and capability gap, in the unit of the losses, shape (...T).
    """

    times: Float[Array, "*times"]
    radius: Float[Array, "*times"]
    gaps: Gaps


@record
class Onset:
    r"""How safety is lost first: $G_s(t)=\text{quadratic}\cdot t^2+o(t^2)$, or $\text{quartic}\cdot t^4+O(t^5)$ where the first is 0.

    Args:
        quadratic: $\tfrac12g^\top H_sg$, a scalar.
        quartic: $\tfrac18(H_fg)^\top H_s(H_fg)$, a scalar.
    """

    quadratic: Float[Array, ""]
    quartic: Float[Array, ""]


def early_stopping_path(quad: Quadratic, times: Numbers) -> EarlyStopping:
    r"""Radius and gaps of plain fine-tuning, stopped at any time.

    Args:
        quad: the pair of losses.
        times: times in [0, inf], any shape.

    Returns:
        An `EarlyStopping`; the radius increases with time.

    Raises:
        ValueError: when a time is negative or NaN (its index is named).

    Example:
        >>> from tradeoff.problems import quadratic
        >>> path = early_stopping_path(quadratic.golden(), [0.1, 0.5, 1.0])
        >>> [round(radius, 6) for radius in path.radius.tolist()]
        [0.2761, 0.87083, 1.141263]
        >>> [round(gap, 6) for gap in path.gaps.capability.tolist()]
        [1.232583, 0.25862, 0.071386]

    Source: T16(a) (framework).
    """
    times = check_scale("time", times)
    radius, gaps = _stopped(quad, times)
    return EarlyStopping(times, radius, gaps)


def onset(quad: Quadratic) -> Onset:
    r"""The first terms of the safety gap along the plain flow.

    Args:
        quad: the pair of losses.

    Returns:
        An `Onset`.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> float(onset(quadratic.golden()).quadratic)
        8.0

    Source: T16(e) (framework).
    """
    return Onset(half_square(quad.H_s, quad.pull), half_square(quad.H_s, quad.H_f @ quad.pull) / 4)


@compiled(BRIEF)
def _stopped(quad: Quadratic, times: Array) -> tuple[Array, Gaps]:
    rates, U = eigen(quad.H_f)
    curved = rates > 0
    c = U.T @ quad.displacement

    def at(time: Array) -> tuple[Array, Gaps]:
        exponent = -jnp.where(curved, rates, 1) * time
        moved = jnp.where(curved, -jnp.expm1(exponent), 0) * c
        left = jnp.where(curved, jnp.exp(exponent), 1) * c
        return length(moved), Gaps(half_square(quad.H_s, U @ moved), jnp.sum(rates * left**2) / 2)

    flat = jax.vmap(at)(times.ravel())
    return jax.tree.map(lambda leaf: leaf.reshape(times.shape), flat)
