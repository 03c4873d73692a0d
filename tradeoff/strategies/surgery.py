"""Gradient surgery: a gradient is bent where it would raise a loss that is guarded."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from tradeoff._records import is_concrete, record, static
from tradeoff.strategies._named import Weights, dot, each, moved, namespace, ratio, zeros
from tradeoff.strategies._settings import above_zero, at_least_zero
from tradeoff.strategies.losses import ALIGNMENT, SAFETY, TASK, Loss
from tradeoff.strategies.strategy import Engine, Gradient, State, Strategy

ROUNDING = 64
"""A gradient of this many units of rounding of another is not told from none."""


@record
class SafeGrad(Strategy):
    r"""The task's gradient without its part against the alignment gradient, plus ρ times that gradient.

    $$ g=g_u-\min\Big(0,\frac{\langle g_u,g_a\rangle}{\|g_a\|^2}\Big)g_a+\rho g_a,\qquad L_a=E_{\hat p_s}\mathrm{KL}(\pi_0\|\pi). $$

    One global vector: all weights together, not tensor by tensor. At the start $g_a=0$, so the first step is free; what then
    leaks is $O(h^2)$ of plain descent with learning rate h and full batches, and no bound holds under Adam, which rescales
    the gradient after the surgery. With a metric D the surgery is done in it, $\langle g_u,Dg_a\rangle$ for
    $\langle g_u,g_a\rangle$ and $\langle g_a,Dg_a\rangle$ for $\|g_a\|^2$, and $Dg$ is descended: then a fixed rescaling does
    not raise the alignment loss either, to first order.

    Args:
        rho: weight of the alignment gradient, ρ ≥ 0.
        metric: the diagonal of D by name, positive and fixed for the run, for plain descent; `None` is the identity.

    Unknown: the paper's result tables and LoRA settings. The rule and ρ = 1 are those of two re-implementations that cite its
    Algorithm 1. The metric is no part of the paper.

    Source: [safegrad]; methods.md 2.
    """

    rho: float | Array = 1.0
    metric: Any = None

    kind = "gradient"
    source = "safegrad"
    needs = ("safety prompts", "the aligned model's answers to them")

    def __post_init__(self) -> None:
        """Check weight and metric."""
        at_least_zero(self, "rho", "the weight of the alignment gradient")
        if self.metric is not None and is_concrete(self.metric):
            for name, array in self.metric.items():
                if not bool(namespace({"": array}).all(array > 0)):
                    raise ValueError(
                        f"SafeGrad was given a metric that is not positive in {name}; give positive entries."
                    )

    def init(self, weights: Weights, engine: Engine) -> State:
        """Nothing; a metric is refused where an optimiser would rescale the gradient once more."""
        rate = engine.learning_rate
        if self.metric is not None and is_concrete(rate) and float(rate) != float(rate):
            raise ValueError(
                "SafeGrad was given a metric, and an optimiser that rescales the gradient after the surgery; give plain "
                "descent (a learning rate), or no metric."
            )
        return {}

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The task's gradient after surgery."""
        return _operated(inner, ALIGNMENT, weights, engine, self.rho, self.metric)


@record
class AGEM(Strategy):
    """The task's gradient without its part against the gradient of replayed safety data: SafeGrad's ancestor.

    Averaged gradient episodic memory projects on conflict only and adds nothing: `SafeGrad(rho=0)` with cross-entropy on
    the safety data in place of the divergence from the start.

    Source: [agem]; methods.md P19.
    """

    kind = "gradient"
    source = "agem"
    needs = ("safety data",)

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The task's gradient after surgery."""
        return _operated(inner, SAFETY, weights, engine, 0.0, None)


@record
class OGPSA(Strategy):
    r"""A gradient without its part in the span of the gradients of protected losses: $g-VV^\top g$, $V^\top V=I$.

    It guards the other way round: safety is trained, and capability is what is protected. A step changes a protected loss
    by $O(h^2)$ only, where its gradient is in the span of V: at the weights where V was taken. Three readings:

    * "global" (the paper's): all weights are one vector, with one subspace;
    * "tensor" (the released code's): every tensor has a subspace of its own, which keeps the claim and gives up more;
    * "tensor on conflict" (its "threshold" mode): one protected loss, and only the tensors in which
      $\langle g,g_c\rangle<0$: to first order the protected loss does not rise.

    Args:
        protected: the losses whose gradients span V, at most as many dimensions as losses; one or two in the released code,
            each the mean over 200 samples. () protects nothing.
        reading: which of the three.
        every: steps between two computations of V, at least 1, the first at the first step; 30 (fine-tuning) and 5 (DPO) in
            the released code.

    Unknown: how the paper spans its subspace. Here the mean gradient of each protected loss is in it, which is what the
    first-order claim needs; the leading directions of samples need not contain it. The released code adds 1e-8 to its
    denominators and can rescale gradients that agree; here the projection is exact and agreement changes nothing (its
    default).

    Source: [ogpsa]; methods.md P15.
    """

    protected: tuple[Loss, ...] = (TASK,)
    reading: str = static(default="global")
    every: int = static(default=30)

    kind = "gradient"
    source = "ogpsa"
    needs = ("capability data while safety is trained",)

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.reading not in ("global", "tensor", "tensor on conflict"):
            raise ValueError(
                f"OGPSA was given reading={self.reading!r}; give 'global', 'tensor' or 'tensor on conflict'."
            )
        if self.reading == "tensor on conflict" and len(self.protected) > 1:
            raise ValueError(
                f"OGPSA was given {len(self.protected)} protected losses and reading='tensor on conflict', which knows one; "
                "give one, or reading='tensor'."
            )
        if self.every < 1:
            raise ValueError(f"OGPSA was given every={self.every}; give at least 1 step between two computations of V.")

    def init(self, weights: Weights, engine: Engine) -> State:
        """No subspace yet."""
        return {"basis": tuple(zeros(weights) for _ in self.protected)}

    def refresh(self, state: State, weights: Weights, step: Any, engine: Engine) -> State:
        """The subspace taken anew, when it is due."""

        def anew() -> State:
            gradients = tuple(engine.gradient(loss, weights) for loss in self.protected)
            return {"basis": self._apart(_orthogonal, *gradients) if gradients else ()}

        return engine.either(step % self.every == 0, anew, lambda: state)

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The gradient less its part in the subspace."""
        only_against = self.reading == "tensor on conflict"

        def off(gradient: Weights, *basis: Weights) -> tuple[Weights, ...]:
            for direction in basis:
                gradient = _without(gradient, direction, only_against)
            return (gradient,)

        return self._apart(off, inner(weights), *state["basis"])[0]

    def _apart(self, function: Callable[..., tuple[Weights, ...]], *weights: Weights) -> tuple[Weights, ...]:
        """A function of vectors, applied to all weights as one vector or to every tensor by itself."""
        if self.reading == "global":
            return function(*weights)
        parts = {name: function(*({name: one[name]} for one in weights)) for name in weights[0]}
        count = len(next(iter(parts.values())))
        return tuple({name: part[i][name] for name, part in parts.items()} for i in range(count))


@record
class SPAG(Strategy):
    r"""After each step of the task, a projection onto the half-space where the linearised safety gap is within its limit.

    $$ \theta\leftarrow\theta-\min\Big(\frac{L_s(\theta)-\tau}{\|\nabla L_s\|^2},\eta_s\Big)\nabla L_s\quad\text{if }L_s(\theta)>\tau. $$

    With an inactive cap it is the Euclidean projection: exact for an affine loss, short of the limit for a convex one. A
    point within the limit is left as it is.

    Args:
        limit: τ > 0, nats, of the safety gap; infinity is no constraint.
        cap: the largest factor $\eta_s>0$; infinity is the full projection.

    Unknown: the unit. The paper's τ = 0.2 is of a cross-entropy, ours of the gap, which is that less the entropy of the data;
    its cap is the task's learning rate, 5e-5. The released code differs from the rule: it divides by the norm of each
    tensor's gradient, not by the squared norm of all, and gives the result to AdamW. This is the rule.

    Source: [spard]; methods.md P18.
    """

    limit: float | Array
    cap: float | Array = float("inf")

    kind = "gradient"
    source = "spard"
    needs = ("safety data",)

    def __post_init__(self) -> None:
        """Check limit and cap."""
        above_zero(self, "limit", "the safety gap that is allowed, in nats,")
        above_zero(self, "cap", "the largest factor of the safety gradient")

    def land(self, state: State, weights: Weights, moved: Weights, step: Any, engine: Engine) -> tuple[Weights, State]:
        """The nearest point of the half-space."""
        excess = engine.value(SAFETY, moved) - self.limit
        return engine.either(
            excess > 0, lambda: self._projected(dict(moved), excess, engine), lambda: dict(moved)
        ), state

    def _projected(self, weights: Weights, excess: Any, engine: Engine) -> Weights:
        slope = engine.gradient(SAFETY, weights)
        factor = ratio(excess, dot(slope, slope))
        capped = namespace(weights).where(factor > self.cap, self.cap, factor)
        return moved(weights, -capped, slope)


def _operated(
    inner: Gradient, loss: Loss, weights: Weights, engine: Engine, rho: float | Array, metric: Weights | None
) -> Weights:
    """The task's gradient after surgery, in a metric."""

    def rescaled(gradient: Weights) -> Weights:
        return gradient if metric is None else each(lambda d, g: d * g, metric, gradient)

    task, guard = inner(weights), engine.gradient(loss, weights)
    xp, dual = namespace(task), rescaled(guard)
    overlap, size = dot(task, dual), dot(guard, dual)
    faint = _is_rounding(size, dot(task, rescaled(task)))
    against = (overlap < 0) & ~faint
    guarded = xp.where(faint, 0.0, rho) - xp.where(against, ratio(overlap, size), 0.0 * overlap)
    return rescaled(moved(task, guarded, guard))


def _is_rounding(size: Any, beside: Any) -> Any:
    """Whether a gradient of this squared length is rounding beside another, as at a minimum: it has no direction."""
    return size <= (ROUNDING * namespace({"": size}).finfo(size.dtype).eps) ** 2 * beside


def _without(gradient: Weights, direction: Weights, only_against: bool = False) -> Weights:
    """A gradient less its part along a direction; all of it if the direction is rounding."""
    overlap, size = dot(gradient, direction), dot(direction, direction)
    kept = _is_rounding(size, dot(gradient, gradient))
    if only_against:
        kept = kept | (overlap >= 0)
    return moved(gradient, -namespace(gradient).where(kept, 0.0 * overlap, ratio(overlap, size)), direction)


def _orthogonal(*vectors: Weights) -> tuple[Weights, ...]:
    """Orthogonal vectors of the same span, of any length; zeros for one that depends on those before it."""
    basis: list[Weights] = []
    for vector in vectors:
        rest = vector
        for direction in basis * 2:  # twice, so that rounding does not leave a part of what was removed
            rest = _without(rest, direction)
        gone = _is_rounding(dot(rest, rest), dot(vector, vector))
        basis.append(each(lambda a, gone=gone: namespace({"": a}).where(gone, 0.0 * a, a), rest))
    return tuple(basis)
