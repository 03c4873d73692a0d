"""The plane of the two gaps and the gaps against the penalty, for any world."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

import tradeoff
from tradeoff import loss_constraint
from tradeoff.frontier import Frontier
from tradeoff.gaps import Gaps
from tradeoff.plotting.style import COLOURS, LINES
from tradeoff.worlds.world import World

ROUNDING = 1e-17
"""Where errors of zero are drawn on a logarithmic axis."""
SAFETY = "safety gap $G_s$ (nats)"
CAPABILITY = "capability gap $G_f$ (nats)"
PENALTIES = np.concatenate([[0.0], np.logspace(-4, 4, 161), [np.inf]])
"""Where a world is swept when it is drawn: from the task alone to the safety data alone."""
LABELS = {"safety": SAFETY, "capability": CAPABILITY, "proxy": r"proxy gap $\hat G_s$ (nats)"}
"""The gaps of a world that `gap_against_penalty` draws."""


def frontier(ax: Axes, of: World | Frontier | Gaps | Any, capability: Any = None, **look: Any) -> None:
    """Draw a frontier in the plane of the two gaps.

    Args:
        ax: the axes.
        of: a world (its exact frontier, whatever the proxy), a `Frontier`, or points in order: `Gaps`, or safety gaps,
            nats, shape (L,).
        capability: where safety gaps are given, the capability gaps that go with them, nats, shape (L,).
        **look: passed to `Axes.plot`.

    Raises:
        ValueError: when the two kinds of gaps do not go together.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> frontier(ax, to.worlds.golden(), label="exact")
        >>> round(float(ax.lines[0].get_ydata().max()), 6)
        0.422234
    """
    if isinstance(of, World):
        of = tradeoff.frontier.exact(of, PENALTIES)
    if isinstance(of, Frontier):
        of = Gaps(of.safety_gap, of.capability_gap)
    safety, capability = (of.safety, of.capability) if isinstance(of, Gaps) else (of, capability)
    ax.plot(*_together("safety gaps", safety, "capability gaps", capability), **look)
    ax.set(xlabel=SAFETY, ylabel=CAPABILITY)


def gap_against_penalty(ax: Axes, of: World | Any, gap: Any = "safety", **look: Any) -> None:
    """Draw a gap against the penalty, with a logarithmic penalty axis.

    Args:
        ax: the axes.
        of: a world (fine-tuned on its proxy), or penalties, shape (L,).
        gap: of a world, "safety", "capability" or "proxy"; with penalties, the gap at each, nats, shape (L,).
        **look: passed to `Axes.plot`.

    Raises:
        ValueError: when a world has no such gap, or gaps and penalties do not go together.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> gap_against_penalty(ax, to.worlds.over_penalised())
        >>> ax.get_ylabel(), round(float(ax.lines[0].get_ydata()[-1]), 2)
        ('safety gap $G_s$ (nats)', 0.51)
    """
    if isinstance(of, World):
        if not isinstance(gap, str) or gap not in LABELS:
            raise ValueError(f"gap is {gap!r}; of a world it must be one of {', '.join(map(repr, LABELS))}.")
        lam = PENALTIES[1:-1]
        values = loss_constraint.proxy_gap(of, lam) if gap == "proxy" else getattr(loss_constraint.gaps(of, lam), gap)
        ax.set(ylabel=LABELS[gap])
    else:
        lam, values = of, gap
    ax.plot(*_together("penalties", lam, "gaps", values), **look)
    ax.set(xscale="log", xlabel=r"penalty $\lambda$")


def flow(ax: Axes, gaps: Gaps, **look: Any) -> None:
    """Draw a training run in the plane of the two gaps, with a mark at its end."""
    safety, capability = np.asarray(gaps.safety), np.asarray(gaps.capability)
    (line,) = ax.plot(safety, capability, **{"linewidth": 1.0, **look})
    ax.plot(
        safety[-1:], capability[-1:], "o", color=line.get_color(), markeredgecolor="white", zorder=line.get_zorder() + 1
    )


def limit(ax: Axes, world: World, safety: Any = None, **look: Any) -> None:
    """Shade what no policy of any kind can reach, by the closed-form limit T8(c).

    Args:
        ax: the axes.
        world: the world.
        safety: safety gaps at which to evaluate the limit, nats, shape (N,), increasing; those of the exact frontier
            unless told.
        **look: passed to `Axes.fill_between`.
    """
    if safety is None:
        along = np.asarray(tradeoff.frontier.exact(world, PENALTIES).safety_gap)
        safety = np.sort(along[np.isfinite(along)])
    below = np.asarray(tradeoff.frontier.lower_limit(world, safety))
    ax.fill_between(
        np.asarray(safety), 0, below, **{"color": "0.8", "linewidth": 0, "label": "impossible (T8)", **look}
    )


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
        colour, line = (every[number % len(every)] for every in (COLOURS, LINES))
        ax.plot(np.quantile(values, below), 1 - below, color=colour, linestyle=line, linewidth=1.4, label=name)
    ax.set(ylim=(0, 1.02), ylabel="instances at or above")
    if len(found) > 1:
        ax.figure.legend(loc="outside upper left", ncols=2)


def _together(one: str, x: Any, other: str, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of numbers of one length."""
    if isinstance(y, str) or y is None:
        raise ValueError(f"{one} come without their {other}; give {other} of the same shape, or a World.")
    x, y = np.asarray(x), np.asarray(y)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"{one} have shape {x.shape} and {other} {y.shape}; give both with one shape (L,).")
    return x, y
