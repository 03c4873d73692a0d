"""A log barrier: constraints that hold after every step, by the length of the step."""

from typing import Any

from jaxtyping import Array

from tradeoff._records import is_concrete, record, static
from tradeoff.strategies._named import Weights, dot, each, moved, namespace, norm, ratio, unit
from tradeoff.strategies._settings import above_zero, at_least_zero, within
from tradeoff.strategies.losses import Loss
from tradeoff.strategies.strategy import Engine, Gradient, State, Strategy


@record
class Constraint:
    r"""A loss that is to stay below a limit.

    Args:
        loss: which; `SAFETY` is the safety gap.
        limit: τ, in nats.
        smoothness: M ≥ 0, at least the largest curvature of the loss (0 if it is affine). For cross-entropy or a divergence
            of a softmax with logits linear in features φ it is at most $\tfrac12\max\|\phi\|^2$.
    """

    loss: Loss
    limit: float | Array
    smoothness: float | Array

    def __post_init__(self) -> None:
        """Check limit and smoothness."""
        if is_concrete(self.limit) and not 0 < float(self.limit) < float("inf"):
            raise ValueError(f"Constraint was given limit={self.limit}; a limit must be positive and finite.")
        at_least_zero(self, "smoothness", "the largest curvature")


@record
class LBSGD(Strategy):
    r"""Descent of the task behind a log barrier, by steps so short that no constraint loses more than half of its slack.

    With slack $\alpha_i=\tau_i-L_i(\theta)$ and $B_\eta=L_f-\eta\sum_i\log\alpha_i$:

    $$ g=\nabla L_f+\eta\sum_i\frac{\nabla L_i}{\alpha_i},\quad \ell_i=\frac{|\langle\nabla L_i,g\rangle|}{\|g\|},\quad
       M=M_0+2\eta\sum_i\frac{M_i}{\alpha_i}+4\eta\sum_i\frac{\ell_i^2}{\alpha_i^2}, $$

    $$ \theta\leftarrow\theta-\gamma g,\qquad
       \gamma=\min\Big(\frac1{\|g\|}\min_i\frac{\alpha_i}{2\ell_i+\sqrt{\alpha_iM_i}},\frac1M\Big). $$

    Then $\alpha_i$ after a step is at least half of what it was, whatever the task, if values and gradients of the
    constraints are exact and $M_i$ are not understated; and $B_\eta$ falls. Once $\|g\|<\eta$ the weights rest until η is
    lowered. As η → 0 the limit for convex losses is the Pareto point with $L_i=\tau_i$, or the task's optimum if that is
    feasible.

    It must start strictly inside; any other start is refused, but under a transformation, where nothing can be. From a point
    with slack ≤ 0 (also one reached by understated $M_i$) there is no step, and the state's "slack" says so.

    Args:
        constraints: what is to hold, at least one.
        smoothness: $M_0>0$, at least the largest curvature of the task loss.
        eta: the first η > 0, in nats.
        decay: ω in [0, 1), by which η is multiplied.
        every: steps from one η to the next, at least 1.

    Unknown: the theorems' constants. Of the published settings (η from 0.005 to 0.1, ω from 0.7 to 0.95) the defaults are those
    of the quadratic programmes. Confidence bounds, for sampled constraints, are left out.

    Source: [lbsgd2022]; methods.md 12.
    """

    constraints: tuple[Constraint, ...]
    smoothness: float | Array
    eta: float | Array = 0.02
    decay: float | Array = 0.7
    every: int = static(default=7)

    kind = "gradient"
    source = "lbsgd2022"
    needs = ("safety data", "the largest curvature of both losses")
    owns = "step"

    def __post_init__(self) -> None:
        """Check the settings."""
        if not self.constraints:
            raise ValueError("LBSGD was given no constraints; give at least one Constraint, or use Plain.")
        above_zero(self, "smoothness", "the largest curvature of the task loss")
        above_zero(self, "eta", "the weight η of the barrier")
        within(self, "decay", 0, 1, "ω")
        if self.every < 1:
            raise ValueError(f"LBSGD was given every={self.every}; give at least 1 step for each η.")

    def check(self, engine: Engine) -> None:
        """Every constraint holds strictly at the start."""
        for constraint, left in zip(self.constraints, self._slack(engine.start, engine), strict=True):
            if not float(left) > 0:
                limit = float(constraint.limit)
                raise ValueError(
                    f"LBSGD keeps to the inside of its constraints, and at the start {constraint.loss} is "
                    f"{limit - float(left):.6g} with a limit of {limit:.6g}; give a larger limit, or descend that loss first."
                )

    def init(self, weights: Weights, engine: Engine) -> State:
        """The first η and the slacks."""
        slack = self._slack(weights, engine)
        return {"eta": self.eta * namespace(weights).ones_like(slack[0]), "slack": slack}

    def refresh(self, state: State, weights: Weights, step: Any, engine: Engine) -> State:
        """The η of this step, and the slacks."""
        due = namespace(weights).asarray((step > 0) & (step % self.every == 0))
        eta = namespace(weights).where(due, self.decay * state["eta"], state["eta"])
        return {"eta": eta, "slack": self._slack(weights, engine)}

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The step itself, γg: the optimiser's learning rate is 1."""
        eta, xp = state["eta"], namespace(weights)
        inside = state["slack"][0] > 0
        for left in state["slack"]:
            inside = inside & (left > 0)
        slack = [xp.where(left > 0, left, xp.ones_like(left)) for left in state["slack"]]
        slopes = [engine.gradient(constraint.loss, weights) for constraint in self.constraints]
        g = inner(weights)
        for left, slope in zip(slack, slopes, strict=True):
            g = moved(g, eta / left, slope)
        moves, length = inside & (norm(g) >= eta), self._length(g, slack, slopes, eta)
        return each(lambda a: xp.where(moves, length * a, xp.zeros_like(a)), unit(g))

    def _slack(self, weights: Weights, engine: Engine) -> tuple[Any, ...]:
        return tuple(constraint.limit - engine.value(constraint.loss, weights) for constraint in self.constraints)

    def _length(self, g: Weights, slack: list[Any], slopes: list[Weights], eta: Any) -> Any:
        """γ|g|, as one over the largest of what shortens it: no constraint that is flat along g shortens it at all."""
        xp, along = namespace(g), unit(g)
        smooth, shortest = self.smoothness * xp.ones_like(eta), xp.zeros_like(eta)
        for constraint, left, slope in zip(self.constraints, slack, slopes, strict=True):
            rise = xp.abs(dot(slope, along))
            smooth = smooth + 2 * eta * constraint.smoothness / left + 4 * eta * (rise / left) ** 2
            shortest = xp.maximum(shortest, (2 * rise + xp.sqrt(left * constraint.smoothness)) / left)
        return ratio(1.0, xp.maximum(shortest, ratio(smooth, norm(g))))
