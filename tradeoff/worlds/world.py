"""A world: what is to be kept, what is to be learned, and how the two meet.

`DataLaw` is a law over contexts with a conditional law over responses; `World` joins the safety data, the capability
data and, where the original safety data are out of reach, the proxy that stands in for them. The quantities that the
theory is written in (context overlap, conflict, data similarity) are properties of the world.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from tradeoff import divergences as dv
from tradeoff._records import Numbers, is_concrete, record, static

SUM_TO_ONE_WITHIN = 1e-9
"""Laws are accepted when they sum to one to within this, and are then normalised to rounding."""


@record
class DataLaw:
    r"""A data distribution $D = (p, P)$: a law over contexts and, in each context, a law over responses.

    Args:
        p: weights over contexts, shape (X,); non-negative, summing to one.
        P: conditional laws over responses, shape (X, Y); rows non-negative, each summing to one (also in contexts of
            weight zero, where the row is never used).

    Raises:
        ValueError: when a shape does not fit, an entry is negative, NaN or infinite, or a law does not sum to one.

    Example:
        >>> law = DataLaw(p=[0.5, 0.5], P=[[0.9, 0.1], [0.2, 0.8]])
        >>> law.P.shape
        (2, 2)
    """

    p: Float[Array, "*batch X"]
    P: Float[Array, "*batch X Y"]

    def __init__(self, p: Numbers, P: Numbers) -> None:
        if is_concrete(p, P):
            p, P = np.asarray(p, np.float64), np.asarray(P, np.float64)
            if p.ndim != 1 or P.ndim != 2 or P.shape[0] != p.shape[0] or 0 in P.shape:
                raise ValueError(
                    f"DataLaw was given p of shape {p.shape} and P of shape {P.shape}; it needs p of shape (X,) and P "
                    "of shape (X, Y), one row of P for every context, at least one context and one response."
                )
            p = _normalised("p, the law over contexts,", p)
            P = np.stack(
                [_normalised(f"P[{x}], the law over responses in context {x},", row) for x, row in enumerate(P)]
            )
        object.__setattr__(self, "p", jnp.asarray(p, jnp.float64))
        object.__setattr__(self, "P", jnp.asarray(P, jnp.float64))

    def __repr__(self) -> str:
        return f"DataLaw({' x '.join(str(n) for n in self.P.shape)})"


@record
class World:
    r"""The data of one fine-tuning problem: safety $D_s$, capability $D_f$ and the proxy $\hat D_s$ of the safety data.

    Args:
        safety: what safety training wanted said, $D_s=(p_s,P_s)$.
        capability: what the task wants said, $D_f=(p_f,P_f)$.
        proxy: the safety data at hand while fine-tuning; `None` when they are the original ones (the exact proxy).
        contexts: names of the contexts, optional.
        responses: names of the responses, optional.

    Raises:
        ValueError: when shapes differ, or names are missing, empty or not unique.

    Example:
        >>> law = DataLaw([1.0], [[0.8, 0.2]])
        >>> world = World(safety=law, capability=DataLaw([1.0], [[0.2, 0.8]]))
        >>> round(float(world.conflict_safety), 12)
        0.6
    """

    safety: DataLaw
    capability: DataLaw
    proxy: DataLaw | None
    contexts: tuple[str, ...] | None = static(default=None)
    responses: tuple[str, ...] | None = static(default=None)

    def __init__(
        self,
        safety: DataLaw,
        capability: DataLaw,
        proxy: DataLaw | None = None,
        contexts: Sequence[str] | None = None,
        responses: Sequence[str] | None = None,
    ) -> None:
        shape = safety.P.shape
        for role, law in (("capability", capability), ("proxy", proxy)):
            if law is not None and law.P.shape != shape:
                raise ValueError(
                    f"World was given {role} data over {law.P.shape} (contexts, responses) and safety data over {shape}; "
                    "all laws of a world must share one list of contexts and one of responses: pad with weight zero."
                )
        object.__setattr__(self, "safety", safety)
        object.__setattr__(self, "capability", capability)
        object.__setattr__(self, "proxy", proxy)
        object.__setattr__(self, "contexts", _names("contexts", contexts, shape[-2]))
        object.__setattr__(self, "responses", _names("responses", responses, shape[-1]))

    def __repr__(self) -> str:
        kind = "exact proxy" if self.proxy is None else "proxy"
        contexts, responses = self.safety.P.shape[-2:]
        return f"World({contexts} contexts x {responses} responses, {kind})"

    @property
    def training_safety(self) -> DataLaw:
        r"""The safety data that fine-tuning sees: the proxy $\hat D_s$ where there is one, else $D_s$ itself."""
        return self.safety if self.proxy is None else self.proxy

    def with_exact_proxy(self) -> "World":
        """This world as it would be if the original safety data were at hand."""
        return World(self.safety, self.capability, None, self.contexts, self.responses)

    def as_seen_through_proxy(self) -> "World":
        """This world as fine-tuning sees it: the proxy takes the place of the safety data."""
        return World(self.training_safety, self.capability, None, self.contexts, self.responses)

    # --- context overlap ---------------------------------------------------------------------------------------

    @property
    def shared(self) -> Bool[Array, " X"]:
        r"""The shared contexts $O=\{x: p_sp_f>0\}$, shape (X,)."""
        return (self.safety.p > 0) & (self.capability.p > 0)

    @property
    def overlap(self) -> Float[Array, ""]:
        r"""Context overlap $\Omega=\sum_x\min(p_s,p_f)$, in [0, 1]."""
        return jnp.sum(jnp.minimum(self.safety.p, self.capability.p))

    @property
    def bhattacharyya_overlap(self) -> Float[Array, ""]:
        r"""Bhattacharyya overlap of contexts $\sum_x\sqrt{p_sp_f}$, in [0, 1]."""
        return dv.bhattacharyya(self.safety.p, self.capability.p)

    # --- conflict ----------------------------------------------------------------------------------------------

    @property
    def conflict(self) -> Float[Array, " X"]:
        r"""Conflict $\delta(x)=\mathrm{TV}(P_s(\cdot|x),P_f(\cdot|x))$, shape (X,), in [0, 1]."""
        return dv.total_variation(self.safety.P, self.capability.P)

    @property
    def conflict_safety(self) -> Float[Array, ""]:
        r"""Conflict-weighted overlap $\Delta_s=\sum_{x\in O}p_s\delta$."""
        return jnp.sum(jnp.where(self.shared, self.safety.p * self.conflict, 0))

    @property
    def conflict_capability(self) -> Float[Array, ""]:
        r"""Conflict-weighted overlap $\Delta_f=\sum_{x\in O}p_f\delta$."""
        return jnp.sum(jnp.where(self.shared, self.capability.p * self.conflict, 0))

    # --- data similarity ---------------------------------------------------------------------------------------

    @property
    def proxy_mismatch(self) -> Float[Array, ""]:
        r"""Response mismatch of the proxy $\Phi=E_{p_s}\mathrm{KL}(P_s\|\hat P_s)$, nats: the limit of the safety gap."""
        safety, proxy = self.safety, self.training_safety
        return jnp.sum(jnp.where(safety.p > 0, safety.p * dv.kl(safety.P, proxy.P), 0))

    @property
    def proxy_kl(self) -> Float[Array, ""]:
        r"""$\mathrm{KL}(D_s\|\hat D_s)=\mathrm{KL}(p_s\|\hat p_s)+\Phi$ between safety data and proxy, nats."""
        return dv.kl(self.safety.p, self.training_safety.p) + self.proxy_mismatch

    @property
    def proxy_total_variation(self) -> Float[Array, ""]:
        r"""$\mathrm{TV}(D_s,\hat D_s)$ between the joint laws of safety data and proxy, in [0, 1]."""
        safety, proxy = self.safety, self.training_safety
        joint = jnp.abs(safety.p[:, None] * safety.P - proxy.p[:, None] * proxy.P)
        return jnp.minimum(0.5 * jnp.sum(joint), 1)

    def summary(self) -> dict[str, float]:
        """Every scalar quantity above by name, for a table or a caption.

        Example:
            >>> from tradeoff import worlds
            >>> round(worlds.golden().summary()["conflict_safety"], 12)
            0.48
        """
        names = ("overlap", "bhattacharyya_overlap", "conflict_safety", "conflict_capability")
        names += ("proxy_mismatch", "proxy_kl", "proxy_total_variation")
        return {name: float(getattr(self, name)) for name in names}


def _normalised(what: str, law: np.ndarray) -> np.ndarray:
    """`law` divided by its sum, after the checks that it is a law."""
    if not np.all(np.isfinite(law)) or np.any(law < 0):
        worst = int(np.argmax(~np.isfinite(law) | (law < 0)))
        raise ValueError(
            f"{what} has {law[worst]} at index {worst}; the entries of a law must be finite and non-negative. "
            "Give probabilities, not logits or log-probabilities."
        )
    total = law.sum()
    if abs(total - 1) > SUM_TO_ONE_WITHIN:
        raise ValueError(
            f"{what} sums to {total:.12g}; a law must sum to 1 (within {SUM_TO_ONE_WITHIN}). Divide it by its sum."
        )
    # Dividing what is normalised already would move its last bits each time a law is read back.
    return law if abs(total - 1) <= law.size * np.finfo(np.float64).eps else law / total


def _names(what: str, names: Sequence[str] | None, count: int) -> tuple[str, ...] | None:
    """Names as a tuple, one each, none empty, none twice."""
    if names is None:
        return None
    names = tuple(names)
    if len(names) != count:
        raise ValueError(
            f"World was given {len(names)} names of {what} for {count} {what}; give one name each, or None."
        )
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{what}[{index}] is {name!r}; every name must be a string that is not empty.")
        if name in names[:index]:
            raise ValueError(
                f"{what}[{index}] repeats {what}[{names.index(name)}], {name!r}; names must be unique: "
                "merge the two and add their probabilities."
            )
    return names
