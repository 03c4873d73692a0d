"""Gradient surgery: the task's gradient is bent where it would raise the safety loss."""

from typing import Any

from tradeoff._records import record
from tradeoff.strategies._named import Weights, dot, moved, namespace, ratio
from tradeoff.strategies._settings import at_least_zero
from tradeoff.strategies.losses import ALIGNMENT, SAFETY, Loss
from tradeoff.strategies.strategy import Engine, Gradient, State, Strategy

ROUNDING = 64
"""A gradient of this many units of rounding of another is not told from none."""


@record
class SafeGrad(Strategy):
    r"""The task's gradient without its part against the alignment gradient, plus ρ times that gradient.

    $$ g=g_u-\min\Big(0,\frac{\langle g_u,g_a\rangle}{\|g_a\|^2}\Big)g_a+\rho g_a,\qquad L_a=E_{\hat p_s}\mathrm{KL}(\pi_0\|\pi). $$

    One global vector: all weights together, not tensor by tensor. At the start $g_a=0$, so the first step is free; what then
    leaks is $O(h^2)$ of plain descent with learning rate h and full batches, and no bound holds under Adam, which rescales
    the gradient after the surgery.

    Args:
        rho: weight of the alignment gradient, ρ ≥ 0.

    Unknown: the paper's result tables and LoRA settings. The rule and ρ = 1 are those of two re-implementations that cite its
    Algorithm 1.

    Source: [safegrad]; methods.md 2.
    """

    rho: float = 1.0

    kind = "gradient"
    source = "safegrad"
    needs = ("safety prompts", "the aligned model's answers to them")

    def __post_init__(self) -> None:
        """Check the weight."""
        at_least_zero(self, "rho", "the weight of the alignment gradient")

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The task's gradient after surgery."""
        return moved(*_operated(inner, ALIGNMENT, weights, engine, self.rho))


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
        return moved(*_operated(inner, SAFETY, weights, engine, 0.0))


def _operated(
    inner: Gradient, loss: Loss, weights: Weights, engine: Engine, rho: float
) -> tuple[Weights, Any, Weights]:
    """The task's gradient, how much of the guarding gradient comes to it, and the guarding gradient.

    A guarding gradient that is rounding beside the task's, as at the aligned weights, has no direction and is none.
    """
    task, guard = inner(weights), engine.gradient(loss, weights)
    xp = namespace(task)
    overlap, size, allowed = dot(task, guard), dot(guard, guard), dot(task, task)
    rounding = size <= (ROUNDING * xp.finfo(size.dtype).eps) ** 2 * allowed
    conflict = (overlap < 0) & ~rounding
    return task, xp.where(rounding, 0.0, rho) - xp.where(conflict, ratio(overlap, size), 0.0 * overlap), guard
