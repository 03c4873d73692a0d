"""Which data are trained on: the rows of the task are weighed, and those that safety data speak against are left out."""

from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Array

from tradeoff._records import record, static
from tradeoff.strategies._named import Weights, ratio
from tradeoff.strategies._settings import at_least_zero
from tradeoff.strategies.losses import SAFETY, Cells, Weighted
from tradeoff.strategies.strategy import Engine, Gradient, State, Strategy
from tradeoff.worlds.world import DataLaw, World


@record
class SEAL(Strategy):
    r"""Bilevel selection of data: a model is trained on safety and weighted task data together, and unlearnable rows go.

    The model descends $uL_s+(1-u)\,\mathrm{mean}_i\,p_i\ell_i$ with $p=N\,\mathrm{softmax}(\omega)$ over the N rows of the task,
    and the selector descends $\mathrm{mean}_i\,p_i\ell_i$ in ω at the losses before the step:
    $\omega_i\leftarrow\omega_i-\rho\,q_i(\ell_i-\bar\ell)$ with $q=p/N$ and $\bar\ell=\sum_jq_j\ell_j$. So rows that the model cannot fit
    beside the safety data lose weight. `select` then keeps the rows of most weight, on which a model is trained anew.

    A context of the task's law is a row, as many times as the law has it: $q_x\propto p_f(x)e^{\omega_x}$, and all rows of a
    context share one ω. With equal weights $p_f$ over N contexts these are the formulas above.

    Args:
        rate: ρ ≥ 0 of the selector.
        safety: u at the start.
        drop: what u falls by after each epoch.
        epochs: equal parts of the run.
        share: of the task's data that `select` keeps, in (0, 1].

    Unknown: nothing of the losses. The released code steps the selector by Adam with rate 5e-3 on minibatches; here it is
    plain descent, whose flow is known in closed form, so the default rate moves ω less than theirs.

    Source: [seal2024]; methods.md P6.
    """

    rate: float | Array = 5e-3
    safety: float | Array = 1.0
    drop: float | Array = 0.03
    epochs: int = static(default=3)
    share: float | Array = 0.8

    kind = "data"
    source = "seal2024"
    needs = ("safety data",)
    owns = "loss"

    def __post_init__(self) -> None:
        """Check the settings."""
        at_least_zero(self, "rate", "the rate of the selector")
        if self.epochs < 1:
            raise ValueError(f"SEAL was given epochs={self.epochs}; give at least 1.")
        last = self.safety - self.drop * (self.epochs - 1)
        if not (0 <= last <= 1 and 0 <= self.safety <= 1):
            raise ValueError(
                f"SEAL was given safety={self.safety}, drop={self.drop} and epochs={self.epochs}: the weight of the safety data "
                f"goes from {self.safety:g} to {last:g}; it must stay within 0 and 1."
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"SEAL was given share={self.share}; the share that is kept must be in (0, 1].")

    def init(self, weights: Weights, engine: Engine) -> State:
        """All rows alike."""
        task = engine.data.task
        return {"selector": array_namespace(task).zeros_like(task[:, 0])}

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The gradient of the joint loss."""
        task, u = engine.data.task, self._weight(step, engine)
        rows = Cells(importance(state["selector"], _mass(task))[:, None] * task)
        return engine.gradient(Weighted(((u, SAFETY), (1 - u, rows))), weights)

    def land(self, state: State, weights: Weights, moved: Weights, step: Any, engine: Engine) -> tuple[Weights, State]:
        """The selector's own step, at the losses before the model's."""
        task, log_policy = engine.data.task, engine.log_policy(weights)
        xp = array_namespace(task)
        heard = xp.where(task > 0, log_policy, xp.zeros_like(log_policy))
        losses = ratio(-xp.sum(task * heard, axis=-1), _mass(task))
        pull = selector_gradient(state["selector"], _mass(task), losses)
        return moved, {"selector": state["selector"] - self.rate * pull}

    def select(self, world: World, selector: Any) -> World:
        """The world whose task keeps its rows of most weight, those of an equal weight in their order.

        Args:
            world: the one that the selector was trained on.
            selector: ω, the last state's `selector`, shape (X,).

        Raises:
            ValueError: when there is not one ω for each context.
        """
        p, omega = np.asarray(world.capability.p), np.asarray(selector)
        if omega.shape != p.shape:
            raise ValueError(
                f"SEAL was given a selector of shape {omega.shape} for {p.shape[0]} contexts; give the state of a run on this world."
            )
        order = [x for x in np.argsort(-omega, kind="stable") if p[x] > 0]
        # A hair more than the share, since sums of weights such as 1/5 are not exact.
        kept = [x for x, so_far in zip(order, np.cumsum(p[order]), strict=True) if so_far <= self.share * (1 + 1e-9)]
        law = np.zeros_like(p)
        law[kept or order[:1]] = p[kept or order[:1]]
        task = DataLaw(law / law.sum(), world.capability.P)
        return World(world.safety, task, world.proxy, world.contexts, world.responses)

    def _weight(self, step: Any, engine: Engine) -> Any:
        xp = array_namespace(engine.data.task)
        epoch = xp.astype(xp.asarray(step * self.epochs // engine.steps), engine.data.task.dtype)
        return self.safety - self.drop * epoch


def importance(selector: Any, mass: Any) -> Any:
    r"""$p=N\,\mathrm{softmax}(\omega)$: what each row weighs in the task's loss, 1 on average over the data.

    Args:
        selector: ω, shape (X,).
        mass: $p_f(x)$, shape (X,).

    Example:
        >>> importance(np.log([1.0, 3.0]), np.array([0.5, 0.5])).tolist()
        [0.5, 1.5]
    """
    xp = array_namespace(selector)
    raised = xp.exp(selector - xp.max(selector))
    return raised / xp.sum(mass * raised)


def selector_gradient(selector: Any, mass: Any, losses: Any) -> Any:
    r"""$q_i(\ell_i-\sum_jq_j\ell_j)$: the gradient of the weighted loss in the selector, shape (X,).

    Args:
        selector: ω, shape (X,).
        mass: $p_f(x)$, shape (X,).
        losses: ℓ of each row, nats, shape (X,).
    """
    xp = array_namespace(selector)
    q = mass * importance(selector, mass)
    return q * (losses - xp.sum(q * losses))


def _mass(task: Any) -> Any:
    return array_namespace(task).sum(task, axis=-1)
