r"""The rich class: one free logit for every context and response.

The loss gradient in context x is $m_x(\mathrm{softmax}(z_x)-\hat M_x)$, so contexts never talk to each other: whatever
couples safety and capability here is a shared context, and nothing else.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from tradeoff import gaps
from tradeoff._records import record
from tradeoff.gaps import Gaps
from tradeoff.worlds.world import World

LOGIT_FLOOR = -60.0
"""A finite stand-in for the logit of a response with probability zero (e^-60 is below the rounding of one)."""


@record
class Tabular:
    """A softmax policy with its own logits in every context of a world.

    Args:
        world: the world.

    Example:
        >>> from tradeoff import worlds
        >>> problem = Tabular(worlds.golden())
        >>> round(float(problem.gaps(problem.aligned()).safety), 12)
        0.0
    """

    world: World

    def aligned(self) -> Float[Array, "X Y"]:
        """Logits of the aligned policy: the safety data's own law, in every context."""
        P = self.world.safety.P
        return jnp.maximum(jnp.log(jnp.where(P > 0, P, 1)) + jnp.where(P > 0, 0, LOGIT_FLOOR), LOGIT_FLOOR)

    def log_policy(self, logits: Float[Array, "X Y"]) -> Float[Array, "X Y"]:
        """Log-probabilities of the policy."""
        return jax.nn.log_softmax(logits, axis=-1)

    def gaps(self, parameters: Float[Array, "X Y"]) -> Gaps:
        """True safety gap and capability gap at the logits, in nats."""
        return gaps.both(self.world, self.log_policy(parameters))

    def objective(self, parameters: Float[Array, "X Y"], lam: ArrayLike) -> Float[Array, ""]:
        r"""$G_f+\lambda\hat G_s$ at the logits, in nats."""
        return gaps.weighted_sum(self.world, self.log_policy(parameters), lam)
