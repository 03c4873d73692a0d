r"""A softmax policy that is linear in features: the smallest model in which contexts talk to each other.

The logits of context x are $\theta^\top\varphi(x)$. With one-hot features it is the rich class; with features in common,
what the task teaches in its own contexts moves the answers in others, shared or not (T17).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from tradeoff import gaps
from tradeoff._records import Numbers, is_concrete, record
from tradeoff.gaps import Gaps
from tradeoff.problems.quadratic import spectrum
from tradeoff.worlds.world import World


@record
class SoftmaxLinear:
    r"""A softmax policy with logits $\theta^\top\varphi(x)$ over the responses of a world.

    Args:
        world: the world.
        features: $\varphi$, one row for each context, shape (X, d).

    Raises:
        ValueError: when there is not one row of finite features for each context.

    Example:
        >>> from tradeoff import worlds
        >>> problem = SoftmaxLinear(worlds.golden(), features=jnp.eye(4))
        >>> problem.zero().shape, round(float(problem.feature_overlap()), 12)  # one-hot: p_s(supp p_f)
        ((4, 3), 0.8)

    Source: T17 (framework).
    """

    world: World
    features: Float[Array, "*batch X d"]

    def __init__(self, world: World, features: Numbers) -> None:
        if is_concrete(world, features):
            contexts, rows = world.safety.P.shape[-2], np.asarray(features, np.float64)
            if rows.ndim != 2 or rows.shape[0] != contexts or rows.shape[1] == 0 or not np.all(np.isfinite(rows)):
                raise ValueError(
                    f"features have shape {rows.shape} and the world has {contexts} contexts; give one row of finite "
                    "features for each context, shape (X, d)."
                )
        object.__setattr__(self, "world", world)
        object.__setattr__(self, "features", jnp.asarray(features, jnp.float64))

    def __repr__(self) -> str:
        return f"SoftmaxLinear({self.world!r}, {self.features.shape[-1]} features)"

    def zero(self) -> Float[Array, "d Y"]:
        """Parameters of the uniform policy, shape (d, Y)."""
        return jnp.zeros((self.features.shape[-1], self.world.safety.P.shape[-1]))

    def log_policy(self, theta: Float[Array, "d Y"]) -> Float[Array, "X Y"]:
        """Log-probabilities of the policy."""
        return jax.nn.log_softmax(self.features @ theta, axis=-1)

    def gaps(self, parameters: Float[Array, "d Y"]) -> Gaps:
        """True safety gap and capability gap at the parameters, above the data entropies, in nats."""
        return gaps.both(self.world, self.log_policy(parameters))

    def objective(self, parameters: Float[Array, "d Y"], lam: ArrayLike) -> Float[Array, ""]:
        r"""$G_f+\lambda\hat G_s$ at the parameters, in nats."""
        return gaps.weighted_sum(self.world, self.log_policy(parameters), lam)

    def task_span(self) -> Float[Array, "d d"]:
        r"""The projector $\Pi_f$ on the span of the features of the task's contexts, shape (d, d)."""
        rows = jnp.where(self.world.capability.p[:, None] > 0, self.features, 0)
        values, vectors = spectrum(rows.T @ rows)
        kept = values > rows.shape[-1] * 2.0**-44 * jnp.maximum(values[-1], 2.0**-1000)
        return jnp.where(kept[None, :], vectors, 0) @ vectors.T

    def feature_overlap(self) -> Float[Array, ""]:
        r"""$\Omega_\varphi=E_{p_s}\|\Pi_f\varphi(x)\|^2$: how much of the safety contexts' features the task can move."""
        return jnp.sum(self.world.safety.p * jnp.sum((self.features @ self.task_span()) ** 2, axis=-1))
