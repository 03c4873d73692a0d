r"""Pre-flight: what fine-tuning a checkpoint will cost in safety, foretold from where it stands, before any training.

Gradients and curvature products at the aligned weights give the losses on a small subspace (`local_losses`); its solutions
give the curves of plain fine-tuning, of Case I and of Case II (`forecast`). After a run, `compare` lays what happened over what
was foretold.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from tradeoff import loss_constraint, parameter_constraint
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.data_finetuning import TunedOnData
from tradeoff.bridge.finetuning import FineTuned
from tradeoff.bridge.forecast import Forecast, Line, curve, task_line
from tradeoff.bridge.gradient_overlap import cosine, feature_overlap
from tradeoff.bridge.local_losses import KINDS, LocalLosses, Tangents, expand
from tradeoff.bridge.outcome import Comparison, Point, Setting, recommended, settings_of
from tradeoff.bridge.recipe import Recipe
from tradeoff.bridge.tangent import tangents
from tradeoff.tolerances import EXACT
from tradeoff.worlds.world import World

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
RADII = (0.125, 0.25, 0.5, 1.0)
"""Of the length of the line, where no radii are given."""

SAME_START = 1e-3
"""Nats by which two scorings of one checkpoint may differ: rounding in float32 through thirty layers, and more."""


@dataclass(frozen=True, eq=False)
class Preflight:
    """What is foretold of fine-tuning a checkpoint for a task.

    Attributes:
        world: the text world; `None` on instruction data, whose entropy is not known: what are gaps elsewhere are then losses,
            nats per token.
        recipe: what is trained and how.
        losses: the losses on the subspace.
        plain: fine-tuning along the task gradient.
        penalised: Case I at each penalty; the first is 0, which is plain fine-tuning to the end.
        constrained: Case II at each radius.
        settings: plain fine-tuning, Case II and Case I in one list, in which the recommendation is sought.
        conflict: cosine of the task's gradient and that of the safety data which training sees: negative where the first
            step of the task undoes safety. At an aligned model the second is small, and the curvature soon decides.
        price: of isotropy (T15) within the subspace: what a small ball pays in safety above the best of equal gain. With
            matrices trained in full the true price is no lower, for the subspace hides free directions.
        feature_overlap: how much of what would make the model answer safety prompts as it should answer the task's lies in
            the span of the task's gradients: 0 none, 1 all (T17, with gradients for features); `None` on instruction data.
        proxy_limit: Φ, the safety gap that no penalty removes (T6), nats; `None` on instruction data.
        budget: rise of the safety gap that is accepted, nats.
        recommended: the recipe of the recommended setting; `None` where none keeps within the budget.
        gradients: that the pre-flight took.
        products: with curvatures that it took, about three gradients each.
        seconds_per_gradient: of training, by a clock.
    """

    world: World | None
    recipe: Recipe
    losses: LocalLosses
    plain: Line
    penalised: Forecast
    constrained: Forecast
    settings: tuple[Setting, ...]
    conflict: float
    price: float
    feature_overlap: float | None
    proxy_limit: float | None
    budget: float
    recommended: Recipe | None
    gradients: int
    products: int
    seconds_per_gradient: float

    @property
    def seconds(self) -> float:
        """Of the run that the recipe describes, one gradient a step."""
        return self.recipe.steps * self.seconds_per_gradient

    def as_dict(self) -> dict[str, Any]:
        """What a person or a program reads of it: start, signs, settings, recommendation and cost, as JSON values."""
        unit = "gap" if self.world is not None else "loss_per_token"
        start = {f"{k}_{unit}": getattr(self.losses, k).value for k in KINDS}
        line = self.plain.forecast
        signs = {
            "safety_curvature_along_the_task": self.plain.curvature["safety"],
            "conflict": self.conflict,
            "feature_overlap": self.feature_overlap,
            "price_of_isotropy": self.price,
            "proxy_limit": self.proxy_limit,
        }
        return {
            "start": start,
            "signs": {name: value for name, value in signs.items() if value is not None},
            "line": {
                "distance": line.distance.tolist(),
                "safety_gap": line.corrected.safety.tolist(),
                "safety_gap_error": line.error.safety.tolist(),
                "capability_gap": line.corrected.capability.tolist(),
            },
            "settings": [dataclasses.asdict(each) for each in self.settings],
            "recommended": None if self.recommended is None else dataclasses.asdict(self.recommended),
            "cost": {"steps": self.recipe.steps, "seconds": self.seconds},
        }

    def __str__(self) -> str:
        """The same as lines of text."""
        told = self.as_dict()
        rows = [
            f"{name.replace('_', ' '):>34s}  {value:.6g}" for name, value in (told["start"] | told["signs"]).items()
        ]
        rows += ["", f"{'strategy':22s}{'penalty':>9s}{'radius':>9s}{'safety gap':>22s}{'capability gap':>16s}"]
        for each in self.settings:
            gap = f"{each.safety_gap:.4f} ({each.quadratic_safety_gap:.4f})"
            radius = "" if each.radius is None else f"{each.radius:.3g}"
            rows.append(f"{each.strategy:22s}{each.penalty:9.3g}{radius:>9s}{gap:>22s}{each.capability_gap:16.4f}")
        best, advice = self.recommended, "none keeps within the budget"
        if best is not None:
            advice = f"penalty {best.penalty:g}, radius {'none' if best.radius is None else f'{best.radius:.4g}'}"
        rows += [
            "",
            "In parentheses what the quadratics say; beside it what the model scores at the weights they name.",
        ]
        rows.append(f"Recommended for a rise of the safety gap by {self.budget:g} nats at most: {advice}.")
        rows.append(f"{self.recipe.steps} steps would take about {self.seconds:.0f} s.")
        return "\n".join(rows)

    def predict(self, penalty: float = 0.0, radius: float | None = None) -> Point:
        """The gaps that the quadratics foretell at any setting, with the error seen at the settings that were scored.

        The error is of third order in the distance, so a scored point's counts further in by the third power of the distances'
        ratio; the largest is taken of those that are as far out, or else that of the farthest. The bounds on what a run
        descends hold of any model (V(λ), T2) and of the best of the scored points, which are there to be had.

        Args:
            penalty: λ ≥ 0.
            radius: ε > 0; `None` for no ball.

        Returns:
            A `Point`, nats.

        Raises:
            ValueError: as `LocalLosses.solve`.
        """
        most = np.inf if radius is None else radius
        z = self.losses.solve(penalty, most)
        distance = float(self.losses.distance(z))
        safety, capability = (float(getattr(self.losses, k).at(z)) for k in ("safety", "capability"))
        errors = self._error("safety", distance), self._error("capability", distance)
        least = 0.0
        if penalty and self.world is not None:
            least = float(loss_constraint.value(self.world.as_seen_through_proxy(), penalty))
        return Point(distance, safety, capability, *errors, least, self._reached(penalty, most))

    def compare(self, tuned: FineTuned | TunedOnData) -> Comparison:
        """What a finished run did, beside what was foretold of its setting.

        Args:
            tuned: a run from the same checkpoint, in the same world; on data one that measured "capability", "safety" and, if
                there is one, "proxy", on the data of the pre-flight.

        Returns:
            A `Comparison`.

        Raises:
            ValueError: when the run began elsewhere, or measured something else.
        """
        ends = _measured(tuned)
        start, began = self.losses.safety.value, float(ends["safety"][0])
        if not abs(began - start) <= SAME_START:
            raise ValueError(
                f"the run began at a safety gap of {began:.6g} nats and the pre-flight at {start:.6g}; compare a run with the "
                "pre-flight of the checkpoint that it started from, in the same world."
            )
        penalty = tuned.recipe.penalty
        safety, capability, proxy = (float(ends[kind][-1]) for kind in ("safety", "capability", "proxy"))
        foretold = self.predict(penalty, tuned.recipe.radius)
        return Comparison(tuned.recipe, foretold, safety, capability, capability + penalty * proxy)

    def _reached(self, penalty: float, radius: float) -> float:
        """The least objective at the scored points within a ball, and where the checkpoint stands."""
        found = [self.losses.capability.value + penalty * self.losses.proxy.value]
        for each in (self.penalised, self.constrained):
            objective = each.corrected.capability + penalty * each.corrected.proxy
            found += objective[each.distance <= radius * (1 + EXACT.relative)].tolist()
        return min(found)

    def _error(self, kind: str, distance: float) -> float:
        """The largest error that the scored points make likely at a distance, as `predict` says."""
        curves = (self.penalised, self.constrained)
        at = np.concatenate([each.distance for each in curves])
        error = np.concatenate([getattr(each.error, kind) for each in curves])
        farther = at >= min(distance, at.max())
        return float(np.max(error[farther] * (distance / at[farther]) ** 3))


def preflight(
    checkpoint: Checkpoint,
    world: World,
    recipe: Recipe,
    penalties: Sequence[float] = PENALTIES,
    radii: Sequence[float] | None = None,
    budget: float = 0.1,
    dimensions: int = 16,
    contexts: int = 8,
    progress: bool = False,
) -> Preflight:
    r"""Foretell the safety-capability curves of fine-tuning an aligned checkpoint, without training a step.

    The cost is a gradient for each loss and a few more, `dimensions` + 1 curvature products for each loss, and one scoring for
    each setting. What is recommended is, of plain fine-tuning and the settings of Case II and Case I, the one with the least
    corrected capability gap among those whose safety gap rises by no more than the budget, both as the quadratics have it and
    corrected; of equal ones the first in that order.

    Args:
        checkpoint: the aligned language model, in float64 or float32; it is left as it was.
        world: a text world.
        recipe: what is trained (rank, upper layers, seed), and how long.
        penalties: λ > 0 of Case I.
        radii: ε > 0 of Case II, in the Frobenius norm of the weights' change; an eighth to all of the line unless told.
        budget: rise of the safety gap that is accepted, nats, ≥ 0.
        dimensions: of the subspace, at least 2, with a proxy 3. The line needs no more; the order of penalties and radii gets
            better up to about as many as there are unless told.
        contexts: how many contexts of each side, the weightiest, the feature overlap looks at.
        progress: whether to show a progress bar.

    Returns:
        A `Preflight`.

    Raises:
        ValueError: when a penalty, a radius, the budget or a number of things is out of range, or as `curvature.hessian`.

    Source: T14, T15, T17, T19(b), T6 (framework).
    """
    check(penalties, radii, budget)
    if contexts < 1:
        raise ValueError(f"preflight was given contexts={contexts}; it must be at least 1.")
    total = (dimensions + 1) * (2 if world.proxy is None else 3)
    with (
        tqdm(total=total, desc="curvature products", disable=not progress) as bar,
        tangents(checkpoint, world, recipe, bar.update) as around,
    ):
        seconds = around.seconds()
        found = foretold(around, recipe, penalties, radii, budget, dimensions)
        shared = feature_overlap(around, world, contexts)
        return Preflight(
            world=world,
            recipe=recipe,
            **found,
            feature_overlap=shared,
            proxy_limit=float(world.proxy_mismatch),
            budget=budget,
            gradients=around.gradients,
            products=around.products,
            seconds_per_gradient=seconds,
        )


def foretold(
    around: Tangents,
    recipe: Recipe,
    penalties: Sequence[float],
    radii: Sequence[float] | None,
    budget: float,
    dimensions: int,
) -> dict[str, Any]:
    """What of a `Preflight` the losses around a checkpoint say."""
    losses = expand(around, dimensions)
    plain = task_line(around, losses)
    lengths = [part * float(plain.forecast.distance[-1]) for part in RADII] if radii is None else list(radii)
    free = [0.0, *penalties]
    penalised = curve(around, losses, free, [(each, np.inf) for each in free])
    constrained = curve(around, losses, lengths, [(0.0, each) for each in lengths])
    settings = settings_of(penalised, constrained)
    return {
        "losses": losses,
        "plain": plain,
        "penalised": penalised,
        "constrained": constrained,
        "settings": settings,
        "conflict": cosine(losses.capability.slope, losses.proxy.slope),
        "price": _price(losses),
        "recommended": recommended(settings, losses.safety.value + budget, recipe),
    }


def check(penalties: Sequence[float], radii: Sequence[float] | None, budget: float) -> None:
    """Check what a pre-flight is asked."""
    for name, values in (("penalties", penalties), ("radii", radii or ())):
        for value in values:
            if not 0 < value < np.inf:
                raise ValueError(f"preflight was given {value} among its {name}; each must be finite and positive.")
    if not 0 <= budget < np.inf:
        raise ValueError(f"preflight was given budget={budget}; it must be finite and not negative.")


def _measured(tuned: FineTuned | TunedOnData) -> dict[str, Any]:
    """What a run measured as it went, by kind."""
    if isinstance(tuned, FineTuned):
        return {kind: getattr(tuned, f"{kind}_gap") for kind in KINDS}
    if missing := {"capability", "safety"} - set(tuned.losses):
        raise ValueError(
            f"the run measured {', '.join(tuned.losses) or 'nothing'} and not {' and '.join(sorted(missing))}; give finetune_data("
            'measure={"capability": ..., "safety": ...}) the data of the pre-flight.'
        )
    return {"proxy": tuned.losses["safety"]} | dict(tuned.losses)


def _price(losses: LocalLosses) -> float:
    """The price of isotropy on the subspace, in the norm of the weights."""
    curvature, pull = losses.safety.curvature, -losses.capability.slope
    return float(parameter_constraint.price_of_isotropy(curvature, pull, losses.metric).price)
