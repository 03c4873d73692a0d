"""The plots of the framework, one function each, for any world."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import tradeoff
from tradeoff.gaps import Gaps
from tradeoff.theorems import Verdict
from tradeoff.worlds.world import World

ROUNDING = 1e-17
"""Where errors of zero are drawn on a logarithmic axis."""
SAFETY, CAPABILITY = "safety gap $G_s$ (nats)", "capability gap $G_f$ (nats)"


def gap_against_penalty(ax: Axes, lam: Any, gap: Any, **look: Any) -> None:
    """Draw a gap against the penalty, with a logarithmic penalty axis.

    Args:
        ax: the axes.
        lam: penalties, shape (L,).
        gap: nats, shape (L,).
        **look: passed to `Axes.plot`.
    """
    ax.plot(np.asarray(lam), np.asarray(gap), **look)
    ax.set(xscale="log", xlabel=r"penalty $\lambda$")


def frontier(ax: Axes, safety: Any, capability: Any, **look: Any) -> None:
    """Draw a frontier in the plane of the two gaps.

    Args:
        ax: the axes.
        safety: safety gaps, nats, shape (L,).
        capability: capability gaps, nats, shape (L,).
        **look: passed to `Axes.plot`.
    """
    ax.plot(np.asarray(safety), np.asarray(capability), **look)
    ax.set(xlabel=SAFETY, ylabel=CAPABILITY)


def flow(ax: Axes, gaps: Gaps, **look: Any) -> None:
    """Draw a training run in the plane of the two gaps, with a mark at its end."""
    safety, capability = np.asarray(gaps.safety), np.asarray(gaps.capability)
    (line,) = ax.plot(safety, capability, **{"linewidth": 1.0, **look})
    ax.plot(
        safety[-1:], capability[-1:], "o", color=line.get_color(), markeredgecolor="white", zorder=line.get_zorder() + 1
    )


def limit(ax: Axes, world: World, safety: Any, **look: Any) -> None:
    """Shade what no policy of any kind can reach, by the closed-form limit T8(c).

    Args:
        ax: the axes.
        world: the world.
        safety: safety gaps at which to evaluate the limit, nats, shape (N,), increasing.
        **look: passed to `Axes.fill_between`.
    """
    below = np.asarray(tradeoff.frontier.lower_limit(world, safety))
    ax.fill_between(
        np.asarray(safety), 0, below, **{"color": "0.8", "linewidth": 0, "label": "impossible (T8)", **look}
    )


def verdicts(ax: Axes, found: Sequence[Verdict] | Sequence[tuple[str, float, bool]], columns: int = 5) -> None:
    """Draw one tile for each theorem: the darker, the closer its two sides come; identities and failures stand out.

    Args:
        ax: the axes.
        found: verdicts, or (name, tightest ratio, holds) rows; a ratio of NaN marks an equality.
        columns: tiles in a row.
    """
    rows = [(v.theorem.name, v.tightest, v.holds) if isinstance(v, Verdict) else v for v in found]
    attained, violated, equal = tradeoff.plotting.COLOURS[:3]
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


def ratios(ax: Axes, found: Sequence[tuple[str, Any]]) -> None:
    """Draw how often random instances come how close to each bound: the share of them at or above a ratio.

    Args:
        ax: the axes.
        found: the name of each inequality, and the ratios of its smaller side to its larger one, shape (N,).
    """
    _shares(ax, [(name, np.clip(np.asarray(values), 0, 1)) for name, values in found])
    ax.set(xlim=(0, 1.01), xlabel="ratio of the two sides (1: attained)")


def errors(ax: Axes, found: Sequence[tuple[str, Any]]) -> None:
    """Draw the relative errors of identities: the share of random instances at or above an error.

    Args:
        ax: the axes.
        found: the name of each identity, and its relative errors, shape (N,).
    """
    _shares(ax, [(name, np.maximum(np.asarray(values), ROUNDING)) for name, values in found])
    ax.set(xscale="log", xlabel="relative error of the identity")


def _shares(ax: Axes, found: Sequence[tuple[str, Any]]) -> None:
    """The share of values at or above each, on a grid of quantiles: a drawing needs no more."""
    below = np.linspace(0, 1, 201)
    for number, (name, values) in enumerate(found):
        colour, line = (every[number % len(every)] for every in (tradeoff.plotting.COLOURS, tradeoff.plotting.LINES))
        ax.plot(np.quantile(values, below), 1 - below, color=colour, linestyle=line, linewidth=1.4, label=name)
    ax.set(ylim=(0, 1.02), ylabel="instances at or above")
    if len(found) > 1:
        ax.figure.legend(loc="outside upper left", ncols=2)
