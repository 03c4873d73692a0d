"""What is foretold of a run, and what came of it."""

from dataclasses import dataclass

from tradeoff.bridge.recipe import Recipe


@dataclass(frozen=True)
class Point:
    r"""Foretold gaps at one setting, nats.

    Attributes:
        distance: of the weights from the aligned ones, Frobenius norm over all layers together.
        safety: the safety gap, as the quadratics have it: below 0 where they are asked for more than they know.
        capability: the capability gap, likewise.
        safety_error: half the width of its interval, which speaks of these weights, not of where an optimiser may go instead.
        capability_error: likewise.
        least: of the objective $G_f+\lambda\hat G_s$: no model is below.
        reached: of the objective: the best of the weights that were scored has it, so a run that ends above ended too soon.
    """

    distance: float
    safety: float
    capability: float
    safety_error: float
    capability_error: float
    least: float
    reached: float


@dataclass(frozen=True)
class Setting:
    """One setting of the forecast, nats.

    Attributes:
        strategy: `plain`, `parameter constraint` (Case II) or `loss constraint` (Case I).
        penalty: λ.
        radius: ε; `None` for no ball.
        quadratic_safety_gap: as the quadratics have it; settings are ranked by it.
        quadratic_capability_gap: likewise.
        safety_gap: as the model has it at the predicted weights.
        capability_gap: likewise.
    """

    strategy: str
    penalty: float
    radius: float | None
    quadratic_safety_gap: float
    quadratic_capability_gap: float
    safety_gap: float
    capability_gap: float


@dataclass(frozen=True)
class Comparison:
    r"""A prediction and its outcome.

    Attributes:
        recipe: of the run.
        foretold: for its penalty and radius.
        safety_gap: where the run ended, nats.
        capability_gap: likewise.
        objective: $G_f+\lambda\hat G_s$ there, what the run descended.
    """

    recipe: Recipe
    foretold: Point
    safety_gap: float
    capability_gap: float
    objective: float

    @property
    def safety_factor(self) -> float:
        """The foretold safety gap over the one that came."""
        return max(self.foretold.safety, 0.0) / self.safety_gap

    @property
    def within(self) -> bool:
        """Whether the safety gap came within its interval."""
        return abs(self.safety_gap - self.foretold.safety) <= self.foretold.safety_error

    @property
    def ended_too_soon(self) -> bool:
        """Whether weights that were scored before the run serve its objective better than those it ended with."""
        return self.objective > self.foretold.reached
