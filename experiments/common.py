"""What the toy experiments share: gradient flows laid over the closed form, and the check that the two agree."""

import jax
import jax.numpy as jnp
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
    problem = to.problems.Tabular(world)
    ends = []
    for lam in lams:
        rest = 30 * to.dynamics.relaxation_time(world, lam)
        end = to.dynamics.gradient_flow(problem, problem.aligned(), [float(rest)], lam).gaps
        exact = to.loss_constraint.gaps(world, lam)
        error = max(abs(float(end.safety[0] - exact.safety)), abs(float(end.capability[0] - exact.capability)))
        if error > FLOW.absolute:
            raise RuntimeError(
                f"the flow at λ = {lam:g} rests {error:.2e} nats from the closed form, more than {FLOW.absolute:g}: "
                "either the solver stopped early or one of the two is wrong."
            )
        ends.append((end.safety[0], end.capability[0]))
    safety, capability = jnp.array(ends).T
    return to.Gaps(safety, capability)
