"""Schedules of two losses: some steps on the safety data, some on the task's, in turn."""

from typing import Any

from jaxtyping import Array

from tradeoff._records import record, static
from tradeoff.strategies._named import Weights, less, moved
from tradeoff.strategies._settings import at_least_zero, within
from tradeoff.strategies.losses import SAFETY
from tradeoff.strategies.strategy import Engine, Gradient, State, Strategy


@record
class Lisa(Strategy):
    r"""Steps on the safety data and steps on the task in turn, each pulled to where the other ended last.

    Of every $K_1+K_2$ steps the first $K_1$ descend $\hat L_s(\theta)+\tfrac\rho2\|\theta-w_u\|^2$ and the others
    $L_f(\theta)+\tfrac\rho2\|\theta-w_s\|^2$; $w_s$ and $w_u$ are the weights at the ends of the last stretch on the safety data
    and on the task, both the start before the first. Where every stretch is solved exactly, a pair of quadratics has the fixed
    point $H_s(w_s-\theta_s)+\rho(w_s-w_u)=0$, $H_f(w_u-\theta_f)+\rho(w_u-w_s)=0$: each loss's own optimum as ρ → 0, and as ρ → ∞
    the point of the frontier with equal weights. At a finite ρ neither state is on the frontier.

    Args:
        rho: ρ ≥ 0.
        aligning: $K_1$ ≥ 0, steps on the safety data; 0 is none.
        tuning: $K_2$ ≥ 1, steps on the task.
        free: the share of all steps, in [0, 1), at whose beginning nothing pulls.
        exported: which state is used: "last", the weights as training leaves them; "aligned", $w_s$; "tuned", $w_u$.

    Unknown: which state the paper evaluates; its code goes on with one set of weights, and "last" is what it leaves. ρ = 1 and
    100 to 900 are its script's (0.1 and 500 to 500 its arguments' defaults).

    Source: [lisa2024]; methods.md P2.
    """

    rho: float | Array = 1.0
    aligning: int = static(default=100)
    tuning: int = static(default=900)
    free: float | Array = static(default=0.1)
    exported: str = static(default="last")

    kind = "schedule"
    source = "lisa2024"
    needs = ("safety data",)
    owns = "loss"

    @property
    def exports(self) -> str:
        """One of its two states, if asked for."""
        return "" if self.exported == "last" else "own"

    def __post_init__(self) -> None:
        """Check the settings."""
        at_least_zero(self, "rho", "the pull ρ")
        within(self, "free", 0, 1, "the share of steps without pull")
        if self.aligning < 0 or self.tuning < 1:
            raise ValueError(
                f"Lisa was given aligning={self.aligning} and tuning={self.tuning} steps; give at least 0 and at least 1."
            )
        if self.exported not in ("last", "aligned", "tuned"):
            raise ValueError(f"Lisa was given exported={self.exported!r}; give 'last', 'aligned' or 'tuned'.")

    def init(self, weights: Weights, engine: Engine) -> State:
        """Both states at the start."""
        return {"aligned": weights, "tuned": weights}

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The gradient of the loss whose turn it is, and the pull to the other's last weights."""

        def pulled(gradient: Weights, other: Weights) -> Weights:
            return engine.either(
                step > int(self.free * engine.steps),
                lambda: moved(gradient, self.rho, less(weights, other)),
                lambda: gradient,
            )

        return engine.either(
            step % (self.aligning + self.tuning) < self.aligning,
            lambda: pulled(engine.gradient(SAFETY, weights), state["tuned"]),
            lambda: pulled(inner(weights), state["aligned"]),
        )

    def land(self, state: State, weights: Weights, moved: Weights, step: Any, engine: Engine) -> tuple[Weights, State]:
        """The weights as they moved; at the end of a stretch they are its state."""
        done = (step + 1) % (self.aligning + self.tuning)
        aligned = state["aligned"]
        if self.aligning:
            aligned = engine.either(done == self.aligning, lambda: moved, lambda: state["aligned"])
        return moved, {"aligned": aligned, "tuned": engine.either(done == 0, lambda: moved, lambda: state["tuned"])}

    def export(self, state: State, weights: Weights, engine: Engine) -> Weights:
        """The state that was asked for."""
        return weights if self.exported == "last" else state[self.exported]
