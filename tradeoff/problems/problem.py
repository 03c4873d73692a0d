"""What a problem is: parameters that have a safety gap and a capability gap."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, ArrayLike, Float

from tradeoff.gaps import Gaps


@runtime_checkable
class Problem(Protocol):
    """Two differentiable losses over one set of parameters (any pytree of float64 arrays)."""

    def gaps(self, parameters: Any) -> Gaps:
        """True safety gap and capability gap at the parameters, in nats."""
        ...

    def objective(self, parameters: Any, lam: ArrayLike) -> Float[Array, ""]:
        """What Case I descends: the capability gap plus λ times the gap on the safety data at hand, in nats."""
        ...
