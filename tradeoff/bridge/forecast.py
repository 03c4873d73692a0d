r"""Predicted gaps of a strategy at many settings, from the losses on a subspace and a few scorings of the moved model.

Every prediction comes twice: as the quadratics have it, and corrected by what the model itself scores at weights that the
quadratics name. Half the width of an interval is the difference of the two: the error of the quadratics where it is known. An
interval speaks of the predicted weights. It says nothing of an optimiser that goes elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tradeoff.bridge.local_losses import KINDS, LocalLosses, Tangents

TRUSTED = 1.5
"""How far the safety gap may rise along the task gradient, nats, before its quadratic is asked no more."""

FRACTIONS = np.arange(1, 9) / 8
"""Of the reach: where the line is predicted."""

Values = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class ThreeGaps:
    """Gaps in nats at n points.

    Attributes:
        capability: of the task, shape (n,).
        safety: of the true safety data, shape (n,).
        proxy: of the safety data which training sees, shape (n,).
    """

    capability: Values
    safety: Values
    proxy: Values


@dataclass(frozen=True)
class Forecast:
    """Predicted gaps at n settings of one strategy.

    Attributes:
        setting: distance r along the task gradient, penalty λ, or radius ε, shape (n,).
        distance: of the predicted weights from the aligned ones, Frobenius norm over all layers together, shape (n,).
        quadratic: what the quadratics say; below 0 where they are asked for more than they know, still in their order.
        corrected: the same with what the model scored, a gap that there is.
    """

    setting: Values
    distance: Values
    quadratic: ThreeGaps
    corrected: ThreeGaps

    @property
    def error(self) -> ThreeGaps:
        """Half the width of the intervals: how far the two predictions are apart."""
        apart = {k: np.abs(getattr(self.corrected, k) - getattr(self.quadratic, k)) for k in KINDS}
        return ThreeGaps(**apart)

    @property
    def lower(self) -> ThreeGaps:
        """The lower ends of the intervals around `corrected`, not below 0."""
        return ThreeGaps(**{k: np.maximum(getattr(self.corrected, k) - getattr(self.error, k), 0) for k in KINDS})

    @property
    def upper(self) -> ThreeGaps:
        """The upper ends of the intervals around `corrected`."""
        return ThreeGaps(**{k: getattr(self.corrected, k) + getattr(self.error, k) for k in KINDS})


@dataclass(frozen=True)
class Line:
    r"""The gaps along the unit task direction v: $G(r)=G(0)+r\,v\cdot\nabla L+\tfrac12r^2\,v\cdot Hv$, H the Hessian.

    Attributes:
        forecast: at distances r in what is trained; corrected by the terms of third and fourth order that the gaps scored at
            half and at the whole of the last distance leave.
        slope: $v\cdot\nabla L$ by kind, nats per unit.
        curvature: $v\cdot Hv$ by kind, nats per unit squared: of two tasks, the one of the larger safety curvature is the
            more dangerous.
    """

    forecast: Forecast
    slope: dict[str, float]
    curvature: dict[str, float]


def task_line(tangents: Tangents, losses: LocalLosses) -> Line:
    """Plain fine-tuning along the task gradient, up to where its quadratics are meant for.

    That is where the quadratic of the safety gap has risen by `TRUSTED`, or that of the capability gap is at its least. One
    product with the Hessian for each loss, and two scorings.

    Args:
        tangents: the model.
        losses: its expansion, whose first direction is v.

    Returns:
        The line.
    """
    v = losses.basis[0]
    curvature = {k: float(v.astype(np.float64) @ tangents.hessian_product(k, v)) for k in tangents.kinds}
    curvature.setdefault("proxy", curvature["safety"])
    slope = {k: float(getattr(losses, k).slope[0]) for k in KINDS}
    start = {k: getattr(losses, k).value for k in KINDS}
    reach = _reach(start, slope, curvature)
    near, far = (tangents.values((reach * part * v).astype(v.dtype)) for part in (0.5, 1.0))
    r, rough, fine = FRACTIONS * reach, {}, {}
    for k in KINDS:
        quadratic = [start[k] + d * slope[k] + d**2 / 2 * curvature[k] for d in (r, reach / 2, reach)]
        # What is left of third and fourth order at the two distances, a x³ + b x⁴ with x = r/reach.
        half, whole = 8 * (near[k] - quadratic[1]), far[k] - quadratic[2]
        a, b = 2 * half - whole, 2 * (whole - half)
        rough[k] = quadratic[0]
        fine[k] = np.maximum(quadratic[0] + a * FRACTIONS**3 + b * FRACTIONS**4, 0)
    unit = float(losses.distance(np.eye(len(losses.metric))[0]))
    return Line(Forecast(r, r * unit, ThreeGaps(**rough), ThreeGaps(**fine)), slope, curvature)


def curve(
    tangents: Tangents, losses: LocalLosses, settings: Sequence[float], points: Sequence[tuple[float, float]]
) -> Forecast:
    """The best of the quadratics at each of some penalties and radii, one scoring each.

    Args:
        tangents: the model.
        losses: its expansion.
        settings: what to call the points, n numbers.
        points: penalty λ and radius ε of each.

    Returns:
        The forecast, corrected by the model's own scores at the solved weights.

    Raises:
        ValueError: as `LocalLosses.solve`.
    """
    solved = np.array([losses.solve(*point) for point in points])
    scored = [tangents.values(losses.lift(z)) for z in solved]
    quadratic = ThreeGaps(**{k: getattr(losses, k).at(solved) for k in KINDS})
    corrected = ThreeGaps(**{k: np.array([each[k] for each in scored]) for k in KINDS})
    return Forecast(np.array(settings, np.float64), losses.distance(solved), quadratic, corrected)


def _reach(start: dict[str, float], slope: dict[str, float], curvature: dict[str, float]) -> float:
    """How far along the line the quadratics are asked."""
    pull, s, c = -slope["capability"], slope["safety"], curvature["safety"]
    ends = []
    if curvature["capability"] > 0:
        ends.append(pull / curvature["capability"])
    if (root := s**2 + 2 * c * TRUSTED) > 0 and (c > 0 or s > 0):
        # The positive root of s r + c r²/2 = TRUSTED, in the form that does not cancel.
        ends.append(2 * TRUSTED / (s + np.sqrt(root)) if s > 0 else (np.sqrt(root) - s) / c)
    # Where nothing ends the quadratics, as far as the slope takes to the end of the gap.
    return float(min(ends)) if ends else start["capability"] / pull
