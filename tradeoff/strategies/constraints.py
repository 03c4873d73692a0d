"""The two safety-aware strategies of the framework: a constraint on the alignment loss, a constraint on the parameters."""

from typing import Any

from jaxtyping import Array

from tradeoff._records import record
from tradeoff.strategies._named import Weights, dot, each, less, moved, namespace, norm, zeros
from tradeoff.strategies._settings import above_zero, at_least_zero
from tradeoff.strategies.losses import SAFETY, Cells, normalised
from tradeoff.strategies.strategy import Engine, Gradient, State, Strategy


@record
class Penalty(Strategy):
    r"""Case I, as a penalty: $L_f+\lambda\hat L_s$.

    Args:
        lam: λ ≥ 0, finite.

    Source: T1, T2 (framework); [chen2025tradeoffs]. EWC with the exact safety Hessian is the same rule on quadratics.
    """

    lam: float | Array = 1.0

    kind = "loss"
    source = "chen2025tradeoffs"
    needs = ("safety data",)

    def __post_init__(self) -> None:
        """Check the penalty."""
        at_least_zero(self, "lam", "the penalty λ")

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """Both gradients."""
        return moved(inner(weights), self.lam, engine.gradient(SAFETY, weights))


@record
class SafetyConstraint(Strategy):
    r"""Case I, as a constraint $\hat G_s\le\tau$: the penalty is its multiplier, raised while the constraint is broken.

    Dual ascent beside the descent: $\lambda\leftarrow\max(0,\lambda+\rho(\hat G_s-\tau))$ after each step.

    Args:
        limit: τ > 0, nats: the safety gap that is allowed.
        rate: ρ > 0 of the multiplier.

    Source: T1, T2 (framework): the multiplier of the optimum is $\lambda(\tau)=-F'(\tau)$.
    """

    limit: float | Array
    rate: float | Array = 1.0

    kind = "loss"
    source = "chen2025tradeoffs"
    needs = ("safety data",)

    def __post_init__(self) -> None:
        """Check limit and rate."""
        above_zero(self, "limit", "the safety gap that is allowed, in nats,")
        above_zero(self, "rate", "the rate of the multiplier")

    def init(self, weights: Weights, engine: Engine) -> State:
        """No penalty yet."""
        return {"multiplier": 0 * dot(weights, weights)}

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """Both gradients, the safety loss weighted by the multiplier."""
        return moved(inner(weights), state["multiplier"], engine.gradient(SAFETY, weights))

    def land(self, state: State, weights: Weights, moved: Weights, step: Any, engine: Engine) -> tuple[Weights, State]:
        """The multiplier rises while the constraint is broken, and falls to 0 while it is not."""
        raised = state["multiplier"] + self.rate * (engine.value(SAFETY, moved) - self.limit)
        return moved, {"multiplier": namespace(moved).where(raised > 0, raised, 0 * raised)}


@record
class Ball(Strategy):
    r"""Case II, hard: weights that leave $\|\theta-\theta_0\|\le\varepsilon$ are put back onto it.

    Args:
        radius: ε > 0; infinity is no constraint.

    Source: T12, T14 (framework); [chen2025tradeoffs].
    """

    radius: float | Array

    kind = "weights"
    source = "chen2025tradeoffs"

    def __post_init__(self) -> None:
        """Check the radius."""
        above_zero(self, "radius", "the radius ε")

    def land(self, state: State, weights: Weights, moved: Weights, step: Any, engine: Engine) -> tuple[Weights, State]:
        """The nearest point of the ball."""
        away = less(moved, engine.start)
        xp, far = namespace(moved), norm(away)
        outside = far > self.radius
        factor = self.radius / xp.where(outside, far, xp.ones_like(far))
        return each(lambda w, s, d: xp.where(outside, s + factor * d, w), moved, engine.start, away), state


@record
class L2SP(Strategy):
    r"""Case II, soft: $L_f+\tfrac\mu2\|\theta-\theta_0\|^2$.

    Its optimum on quadratics is $(H_f+\mu I)^{-1}(H_f\theta_f+\mu\theta_0)$.

    Args:
        strength: μ ≥ 0.

    Source: [li2018l2sp]; T14 (framework).
    """

    strength: float | Array = 1.0

    kind = "loss"
    source = "li2018l2sp"

    def __post_init__(self) -> None:
        """Check the strength."""
        at_least_zero(self, "strength", "μ")

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The task's gradient and the pull to the start."""
        return moved(inner(weights), self.strength, less(weights, engine.start))


@record
class EWC(Strategy):
    r"""Case II in the metric of the safety data: $L_f+\tfrac\nu2\sum_iF_i(\theta-\theta_0)_i^2$, F the diagonal Fisher information.

    With the exact safety Hessian in place of F (and the aligned weights its minimiser) it is Case I on quadratics.

    Args:
        strength: ν ≥ 0.
        importance: F by name; `None` for that of the policy itself on the prompts of the safety data, computed at the start.

    Source: [kirkpatrick2017ewc]; methods.md P11.
    """

    strength: float | Array = 1.0
    importance: Any = None

    kind = "loss"
    source = "kirkpatrick2017ewc"
    needs = ("safety prompts",)

    def __post_init__(self) -> None:
        """Check the strength."""
        at_least_zero(self, "strength", "ν")

    def init(self, weights: Weights, engine: Engine) -> State:
        """The Fisher information."""
        return {"importance": self.importance if self.importance is not None else fisher(engine, weights)}

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The task's gradient and the weighted pull to the start."""
        away = less(weights, engine.start)
        pull = each(lambda f, d: self.strength * f * d, state["importance"], away)
        return moved(inner(weights), 1.0, pull)


def fisher(engine: Engine, weights: Weights) -> Weights:
    r"""The diagonal Fisher information $E_{\hat p_s}E_{\pi}(\partial\log\pi)^2$, exact: one gradient for every cell of the table.

    Of the law given that the answer is one of those listed, as `Alignment` is.

    Args:
        engine: whose policy and safety prompts.
        weights: where.

    Returns:
        By name, in the shapes of the weights.
    """
    data, policy = engine.data, normalised(engine.log_policy(weights))
    xp = namespace({"": policy})
    law = xp.exp(policy)
    chances = xp.sum(data.safety, axis=-1, keepdims=True) * law
    total = zeros(weights)
    for x in range(policy.shape[0]):
        here = xp.astype(xp.arange(policy.shape[0])[:, None] == x, policy.dtype)
        for y in range(policy.shape[1]):
            said = xp.astype(xp.arange(policy.shape[1])[None, :] == y, policy.dtype)
            # The log of the normalised law: its cells sum to 0 in a row.
            slope = engine.gradient(Cells(here * (said - law)), weights)
            total = each(lambda t, g, p=chances[x, y]: t + p * g**2, total, slope)
    return total
