"""What has a name and a row or tile of its own: verdicts on theorems, strategies in a league."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from tradeoff.plotting.style import COLOURS
from tradeoff.theorems import Verdict

MARKS = "os^Dv"
"""The marks of kinds of strategies, which go with the colours."""


def verdicts(ax: Axes, found: Sequence[Verdict] | Sequence[tuple[str, float, bool]], columns: int = 5) -> None:
    """Draw one tile for each theorem: the darker, the closer its two sides come; identities and failures stand out.

    Args:
        ax: the axes.
        found: verdicts, or (name, tightest ratio, holds) rows; a ratio of NaN marks an equality.
        columns: tiles in a row.

    Raises:
        ValueError: when there is none.
    """
    rows = [(v.theorem.name, v.tightest, v.holds) if isinstance(v, Verdict) else v for v in found]
    if not rows:
        raise ValueError("verdicts was given none; give what `to.theorems.verify` returned, in a list.")
    attained, violated, equal = COLOURS[:3]
    for number, (name, ratio, holds) in enumerate(rows):
        down, across = divmod(number, columns)
        identity = bool(np.isnan(ratio))
        share = 1.0 if identity else float(np.clip(ratio, 0, 1))
        colour = (equal if identity else attained) if holds else violated
        corner, size = (across + 0.02, down + 0.06), (0.96, 0.88)
        ax.add_patch(Rectangle(corner, *size, facecolor=colour, alpha=0.15 + 0.75 * share**4, linewidth=0))
        ink = "white" if share > 0.9 else "black"
        word = ("=" if identity else f"{ratio:.3f}") if holds else "violated"
        ax.text(across + 0.06, down + 0.5, name, va="center", fontsize=6, color=ink)
        ax.text(across + 0.94, down + 0.5, word, va="center", ha="right", fontsize=6, color=ink)
    ax.set(xlim=(0, columns), ylim=(-(-len(rows) // columns), 0))
    ax.set_axis_off()


def league(
    ax: Axes,
    distances: Mapping[str, Any],
    order: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    within: tuple[float, float] = (0.25, 0.75),
) -> None:
    """Draw strategies by their distance to the exact frontier: medians and intervals over seeds, the nearest on top.

    A strategy without a single finite number gets a cross at the right edge.

    Args:
        ax: the axes.
        distances: for each strategy one number for each seed, nats, shape (seeds,), as of `Frontier.distance`; NaN where a
            seed has none (infinite counts as none).
        order: names from top to bottom, for axes that share them; by median unless told. Names without distances get an
            empty row.
        kinds: what each strategy is, say what data it sees; kinds differ by colour and mark.
        within: the quantiles that the interval spans; (0, 1) is the range.

    Raises:
        ValueError: when there is no strategy, a row is no row of numbers, or a name is in no row or of no kind.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> league(ax, {"plain": [0.5, 0.3, 0.4], "penalty": [0.1, 0.0, 0.2]})
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['penalty', 'plain']
    """
    found = {name: _interval(name, values, within) for name, values in distances.items()}
    if not found:
        raise ValueError("league was given no strategy; give a row of distances for each.")
    # NaN compares with nothing, so it is told apart first.
    order = order or sorted(found, key=lambda name: (np.isnan(found[name][1]), found[name][1]))
    kinds = kinds or dict.fromkeys(order, "")
    if lost := [name for name in found if name not in order or name not in kinds]:
        raise ValueError(f"{', '.join(lost)} have distances and no place in the order, or no kind; give them one.")
    place = {name: number for number, name in enumerate(order)}
    for number, kind in enumerate(dict.fromkeys(kinds.values())):
        shown = [name for name in found if kinds[name] == kind and np.isfinite(found[name][1])]
        low, middle, high = np.array([found[name] for name in shown]).reshape(-1, 3).T
        ax.errorbar(
            middle, [place[name] for name in shown], xerr=np.stack([middle - low, high - middle]),
            fmt=MARKS[number % len(MARKS)], color=COLOURS[number % len(COLOURS)], markersize=4.5, label=kind,
        )  # fmt: skip
    never = [place[name] for name, (_, middle, _) in found.items() if np.isnan(middle)]
    ax.plot([0.98] * len(never), never, "x", color="0.5", transform=ax.get_yaxis_transform())
    ax.axvline(0, color="0.4", linewidth=0.9, linestyle="--")
    ax.set_yticks(range(len(order)), list(order), fontsize=8)
    ax.set(xlabel="distance to the exact frontier (nats)", ylim=(len(order) - 0.3, -0.7))


def _interval(name: str, values: Any, within: tuple[float, float]) -> np.ndarray:
    """The lower end, the median and the upper end, of the numbers there are."""
    values = np.atleast_1d(np.asarray(values, np.float64))
    if values.ndim != 1 or not values.size:
        raise ValueError(
            f"the distances of {name} have shape {values.shape}; give one number for each seed, shape (seeds,)."
        )
    values = values[np.isfinite(values)]
    return np.quantile(values, (within[0], 0.5, within[1])) if values.size else np.full(3, np.nan)
