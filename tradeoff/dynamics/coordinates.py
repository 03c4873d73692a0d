r"""A pair of quadratics in the coordinates that its flows are computed in: as given, or such that both Hessians are diagonal.

With $\delta=Wy$, $W^\top H_fW=D_f$ and $W^\top H_sW=D_s$, which there is wherever no direction is flat for both losses, both gaps
are weighted sums of squares, and one matrix serves the flows at all penalties: $\dot y=N\,(W^\top g-(D_f+\lambda D_s)\,y)$ with
the metric $N=(W^\top W)^{-1}$.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tradeoff.gaps import Gaps
from tradeoff.problems.quadratic import Quadratic

SKEW, FLAT = 32.0, 1e7
r"""The most that $\|N\|_F/\sqrt d$ may be, and that the mean eigenvalue times the mean inverse one of
$H_f/\mathrm{tr}H_f+H_s/\mathrm{tr}H_s$ may be.

Both are 1 at best. Rounding grows with them: within these limits it is a few times what it is in the coordinates given.
"""


class Given(NamedTuple):
    """As given.

    Args:
        quad: the pair of losses.
    """

    quad: Quadratic

    @property
    def pull(self) -> Float[Array, " d"]:
        """What the flow starts with."""
        return self.quad.pull

    def motion(self, lams: Float[Array, " L"]) -> Callable[[Float[Array, "L d"]], Float[Array, "L d"]]:
        """The curvature at every penalty, as it acts on one vector for each."""
        both, d = jnp.concatenate([self.quad.H_f, self.quad.H_s], axis=1), len(self.quad.theta_s)

        def act(Y: Array) -> Array:
            curved = Y @ both
            return curved[:, :d] + lams[:, None] * curved[:, d:]

        return act

    def gaps(self, delta: Float[Array, "T L d"]) -> Gaps:
        """Both gaps at displacements."""
        left, half = delta - self.quad.displacement[None, None, :], jnp.full(delta.shape[-1], 0.5)
        safety, capability = (delta * (delta @ self.quad.H_s)) @ half, (left * (left @ self.quad.H_f)) @ half
        return Gaps(jnp.maximum(safety, 0), jnp.maximum(capability, 0))

    def displacements(self, delta: Float[Array, "T L d"]) -> Float[Array, "T L d"]:
        """Displacements in the coordinates of the pair."""
        return delta


class Diagonal(NamedTuple):
    """Along directions of length one, the columns of W, each of which both losses curve by themselves.

    Args:
        H_f: diagonal of the capability loss's Hessian, shape (d,).
        H_s: diagonal of the safety loss's, shape (d,).
        metric: N, shape (d, d).
        basis: W, shape (d, d).
        displacement: from the aligned parameters to the capable ones, shape (d,).
        pull: what the flow starts with, shape (d,).
    """

    H_f: Float[Array, " d"]
    H_s: Float[Array, " d"]
    metric: Float[Array, "d d"]
    basis: Float[Array, "d d"]
    displacement: Float[Array, " d"]
    pull: Float[Array, " d"]

    def motion(self, lams: Float[Array, " L"]) -> Callable[[Float[Array, "L d"]], Float[Array, "L d"]]:
        """As `Given.motion`."""
        curvatures = self.H_f[None, :] + lams[:, None] * self.H_s[None, :]
        return lambda Y: (Y * curvatures) @ self.metric

    def gaps(self, delta: Float[Array, "T L d"]) -> Gaps:
        """As `Given.gaps`."""
        left = delta - self.displacement[None, None, :]
        return Gaps((delta * delta) @ (self.H_s / 2), (left * left) @ (self.H_f / 2))

    def displacements(self, delta: Float[Array, "T L d"]) -> Float[Array, "T L d"]:
        """As `Given.displacements`."""
        return delta @ self.basis.T


def both_diagonal(quad: Quadratic) -> Diagonal | None:
    """The pair where both Hessians are diagonal; None if a direction is nearly flat for both losses or W far from orthogonal.

    Args:
        quad: the pair of losses, its values known.
    """
    H_f, H_s, theta_f, theta_s = (np.asarray(part) for part in (quad.H_f, quad.H_s, quad.theta_f, quad.theta_s))
    size_f, size_s = np.trace(H_f), np.trace(H_s)
    if not (size_f > 0 and size_s > 0):
        return None
    share = H_s / size_s
    # By NumPy alone: threads of SciPy's LAPACK, JAX's too, would spin beside NumPy's and those of the flows that come next.
    try:
        half = np.linalg.cholesky(H_f / size_f + share)
    except np.linalg.LinAlgError:  # not definite
        return None
    inverse = np.linalg.inv(half)
    shares, V = np.linalg.eigh(inverse @ share @ inverse.T)
    W = inverse.T @ V
    lengths = np.linalg.norm(W, axis=0)
    back = (half @ (V * lengths)).T
    metric = back @ back.T
    d = len(W)
    if not (np.linalg.norm(metric) <= SKEW * math.sqrt(d) and 2 * np.sum(inverse**2) <= FLAT * d**2):
        return None
    shares, displacement = np.clip(shares, 0, 1), theta_f - theta_s
    return Diagonal(
        size_f * (1 - shares) / lengths**2,
        size_s * shares / lengths**2,
        metric,
        W / lengths,
        back @ displacement,
        back @ (H_f @ displacement),
    )
