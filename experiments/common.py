"""What the toy experiments share: gradient flows laid over the closed form, and the check that the two agree."""

import jax
import numpy as np
from numpy.typing import NDArray

import tradeoff as to
from tradeoff.tolerances import FLOW

Floats = NDArray[np.float64]


def key(seed: int) -> jax.Array:
    """The random key of an experiment, from the seed in its settings."""
    return jax.random.key(seed)


def penalties(low: float, high: float, count: int) -> Floats:
    """Penalties spaced evenly in log λ, ends included."""
    return np.logspace(np.log10(low), np.log10(high), count)


def flow_ends(world: to.World, lams: Floats) -> to.Gaps:
    """The gaps where gradient flow from the aligned policy comes to rest, one for each penalty.

    Raises:
        RuntimeError: when a flow ends further from the closed form than the flow tolerance; one of the two is wrong.
    """
    rest = 30 * max(float(to.dynamics.relaxation_time(world, lam)) for lam in lams)
    swept = to.dynamics.tabular_flow(world, lams, rest).gaps
    ends, exact = to.Gaps(swept.safety[:, 0], swept.capability[:, 0]), to.loss_constraint.gaps(world, lams)
    errors = np.maximum(np.abs(ends.safety - exact.safety), np.abs(ends.capability - exact.capability))
    if errors.max() > FLOW.absolute:
        raise RuntimeError(
            f"the flow at λ = {lams[errors.argmax()]:g} rests {errors.max():.2e} nats from the closed form, more than "
            f"{FLOW.absolute:g}: either the solver stopped early or one of the two is wrong."
        )
    return ends
