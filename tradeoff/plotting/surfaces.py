"""Both losses around a model, drawn: planes, lines, and what many lines have in common."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tradeoff.landscape import Line, Plane
from tradeoff.plotting.axes import SAFETY
from tradeoff.plotting.style import COLOURS, LINES

SHADES = 13
LEVELS = (0.02, 0.1, 0.3, 0.6)
"""Which shares of a plane lie inside the lines of equal capability gap: they crowd where it is small."""


def landscape(ax: Axes, shown: Plane | Line | Sequence[Line], name: str = "", **look: Any) -> None:
    """Draw both gaps around a model: a plane, a line, or many lines as their mean and range.

    On a plane the safety gap is shaded and lines join points of equal capability gap. Several calls on one axes lay lines
    over each other.

    Args:
        ax: the axes.
        shown: what `tradeoff.landscape.plane` or `line` returned, or lines at the same distances.
        name: what the lines follow, for the legend.
        **look: of lines, passed to `Axes.plot`; of a plane, to `Axes.contourf`.

    Raises:
        ValueError: when there is no line, or lines differ in their distances.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> quad = to.problems.quadratic.golden()
        >>> landscape(ax, to.landscape.line(quad, quad.theta_s, quad.displacement, [0.0, 0.5, 1.0]), "fine-tuning")
        >>> ax.lines[0].get_label(), ax.lines[0].get_ydata().tolist()
        ('safety gap, fine-tuning', [0.0, 0.25, 1.0])
    """
    if isinstance(shown, Plane):
        _plane(ax, shown, look)
    else:
        _lines(ax, (shown,) if isinstance(shown, Line) else tuple(shown), name, look)


def _plane(ax: Axes, plane: Plane, look: dict[str, Any]) -> None:
    safety, capability = (np.ma.masked_invalid(gap) for gap in (plane.gaps.safety, plane.gaps.capability))
    # A plane on which nothing changes has no levels of its own.
    levels = np.linspace(0, float(safety.max()) or 1.0, SHADES)
    shades = ax.contourf(plane.x, plane.y, safety, **{"levels": levels, "cmap": "Blues", **look})
    ax.figure.colorbar(shades, ax=ax, label=SAFETY, format="%.2g")
    heights = np.unique(np.quantile(capability.compressed(), LEVELS))
    if len(heights) > 1:
        lines = ax.contour(plane.x, plane.y, capability, levels=heights, colors=COLOURS[1], linewidths=1.0)
        ax.clabel(lines, fmt="%.2g", fontsize=7)
        ax.plot([], [], color=COLOURS[1], linewidth=1.0, label="capability gap (nats)")
    ax.set(xlabel="along the first direction", ylabel="along the second direction")
    ax.grid(visible=False)


def _lines(ax: Axes, lines: tuple[Line, ...], name: str, look: dict[str, Any]) -> None:
    if not lines or any(not np.array_equal(line.distances, lines[0].distances) for line in lines):
        raise ValueError(
            f"landscape was given {len(lines)} lines{' at different distances' if lines else ''}; "
            "give at least one, all at the same distances."
        )
    t, several = np.asarray(lines[0].distances), len(lines) > 1
    styles = LINES[2:] if several else LINES[:2]
    for colour, style, gap in zip(COLOURS[:2], styles, ("safety", "capability"), strict=True):
        values = np.stack([getattr(line.gaps, gap) for line in lines])
        label = f"{gap} gap, {name}" if name else f"{gap} gap"
        own = {"color": colour, "linestyle": style, "linewidth": 1.2 if several else 1.8, "label": label}
        ax.plot(t, values.mean(axis=0), **{**own, **look})
        if several:
            ax.fill_between(t, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    ax.set(xlabel="distance", ylabel="gap (nats)")
