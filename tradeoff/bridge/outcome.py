"""What is foretold of a run, and what came of it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from tradeoff.bridge.forecast import Forecast
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


def settings_of(penalised: Forecast, constrained: Forecast) -> tuple[Setting, ...]:
    """The settings of two forecasts in one list: plain fine-tuning, then Case II, then Case I.

    Args:
        penalised: Case I, of which the first penalty is 0.
        constrained: Case II.

    Returns:
        One `Setting` for each point.
    """
    points = [("plain", penalised, 0)]
    points += [("parameter constraint", constrained, i) for i in range(len(constrained.setting))]
    points += [("loss constraint", penalised, i) for i in range(1, len(penalised.setting))]
    return tuple(
        Setting(
            strategy,
            float(each.setting[i]) if each is penalised else 0.0,
            float(each.setting[i]) if each is constrained else None,
            float(each.quadratic.safety[i]),
            float(each.quadratic.capability[i]),
            float(each.corrected.safety[i]),
            float(each.corrected.capability[i]),
        )
        for strategy, each, i in points
    )


def recommended(settings: Sequence[Setting], most: float, recipe: Recipe) -> Recipe | None:
    """The setting of least corrected capability gap of those that keep the safety gap, by both predictions, below a limit.

    Args:
        settings: in the order in which the first of equal ones is taken.
        most: the limit, nats.
        recipe: whose penalty and radius are replaced.

    Returns:
        The recipe; `None` where no setting keeps below.
    """
    allowed = [each for each in settings if max(each.safety_gap, each.quadratic_safety_gap) <= most]
    if not allowed:
        return None
    best = min(allowed, key=lambda each: each.capability_gap)
    return dataclasses.replace(recipe, penalty=best.penalty, radius=best.radius)
