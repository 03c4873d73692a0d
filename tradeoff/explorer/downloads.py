"""What can be taken away of a view: its data as netCDF and its figure as PNG and SVG."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tradeoff import plotting, studies
from tradeoff.explorer.answers import PENALTIES, RADII, Answer
from tradeoff.explorer.view import world_of


def to_dataset(shown: Answer) -> xr.Dataset:
    """The curves of an answer as labelled data, with the view and what made them as attributes.

    Example:
        >>> from tradeoff.explorer import View, answer
        >>> data = to_dataset(answer(View(world="golden")))
        >>> dict(data.sizes)
        {'lam': 200, 'time': 49, 'radius': 200}
    """
    nats, curves, ball = {"units": "nats"}, shown.curves, shown.ball
    unit = {"units": "unit of the losses"}
    return xr.Dataset(
        {
            "safety_gap": ("lam", curves.trained.safety, nats),
            "capability_gap": ("lam", curves.trained.capability, nats),
            "floor": ("lam", curves.floor, nats | {"long_name": "below the safety gap, T4(c), T6(d)"}),
            "ceiling": ("lam", curves.ceiling, nats | {"long_name": "above the safety gap, T6(b)"}),
            "frontier_safety_gap": ("lam", curves.exact.safety, nats),
            "frontier_capability_gap": ("lam", curves.exact.capability, nats),
            "lower_limit": ("lam", curves.limit, nats | {"long_name": "T8(c) at the frontier's safety gap"}),
            "flow_safety_gap": ("time", shown.flow.safety, nats),
            "flow_capability_gap": ("time", shown.flow.capability, nats),
            "ball_safety_gap": ("radius", ball.gaps.safety, unit),
            "ball_capability_gap": ("radius", ball.gaps.capability, unit),
            "pair_safety_gap": ("lam", shown.pair_frontier.safety, unit),
            "pair_capability_gap": ("lam", shown.pair_frontier.capability, unit),
        },
        coords={"lam": PENALTIES, "time": shown.times, "radius": RADII},
        attrs=studies.provenance(shown.view),
    )


def draw(shown: Answer) -> Figure:
    """The plane of the two gaps, the safety gap against the penalty, and Case II, as one figure of vectors."""
    figure = Figure(figsize=(10.2, 3.4))
    plane, against, case_two = figure.subplots(1, 3)
    _plane(plane, shown)
    _against(against, shown)
    _case_two(case_two, shown)
    figure.suptitle(f"{shown.view.world} world, penalty {shown.view.penalty:.3g}, radius {shown.view.radius:g}")
    return figure


def _plane(ax: Axes, shown: Answer) -> None:
    curves, (blue, orange, green) = shown.curves, plotting.COLOURS[:3]
    order = np.argsort(curves.exact.safety)
    plotting.limit(ax, world_of(shown.view), curves.exact.safety[order])
    plotting.frontier(ax, curves.exact.safety, curves.exact.capability, color=blue, label="exact frontier")
    plotting.frontier(
        ax, curves.trained.safety, curves.trained.capability, color=orange, linestyle="--", label="with the proxy"
    )
    plotting.flow(ax, shown.flow, color=green, label="gradient flow")
    ax.set(xlim=(0, None), ylim=(0, None), title="the two gaps")
    ax.legend()


def _against(ax: Axes, shown: Answer) -> None:
    curves, (blue, orange, green) = shown.curves, plotting.COLOURS[:3]
    ax.fill_between(PENALTIES, curves.floor, curves.ceiling, color="0.85", linewidth=0, label="bounds (T4c, T6b, T6d)")
    plotting.gap_against_penalty(ax, PENALTIES, curves.exact.safety, color=blue, label="exact proxy")
    plotting.gap_against_penalty(
        ax, PENALTIES, curves.trained.safety, color=orange, linestyle="--", label="with the proxy"
    )
    ax.plot(shown.view.penalty, shown.point.gaps.safety, "o", color=green, markeredgecolor="white")
    ax.set(ylim=(0, None), ylabel=plotting.SAFETY, title="the safety gap")
    ax.legend()


def _case_two(ax: Axes, shown: Answer) -> None:
    ball, at = shown.ball.gaps, shown.at_radius.gaps
    blue, orange, green = plotting.COLOURS[:3]
    plotting.frontier(ax, shown.pair_frontier.safety, shown.pair_frontier.capability, color=blue, label="Case I")
    plotting.frontier(ax, ball.safety, ball.capability, color=orange, linestyle="--", label="ball")
    ax.plot(at.safety, at.capability, "o", color=green, markeredgecolor="white")
    ax.set(
        xlim=(0, None),
        ylim=(0, None),
        xlabel="safety gap",
        ylabel="capability gap",
        title="Case II, two quadratic losses",
    )
    ax.legend()


def written(shown: Answer, ending: str) -> bytes:
    """The file of an answer with one of the endings "nc", "png" and "svg", as bytes."""
    makers: dict[str, Callable[[Path], object]] = {
        "nc": lambda stem: studies.save(to_dataset(shown), stem.with_suffix(".nc")),
        "png": lambda stem: _pictures(shown, stem),
        "svg": lambda stem: _pictures(shown, stem),
    }
    with tempfile.TemporaryDirectory() as folder:
        stem = Path(folder) / "tradeoff"
        makers[ending](stem)
        return stem.with_suffix(f".{ending}").read_bytes()


def _pictures(shown: Answer, stem: Path) -> None:
    with plotting.style():
        plotting.save(draw(shown), stem)
