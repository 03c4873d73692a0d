"""E9 drawn in the form of the paper: the loss of safety against the penalty by proxy, and the curves of each way to fine-tune."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tradeoff import plotting

TITLE = "E9. The paper's experiment on real data"
CAPTION = (
    "A checkpoint aligned on refusals and fine-tuned on grade-school maths or on ordinary instructions; losses are nats per token on "
    "rows that no training saw, the safety loss as its rise above the aligned checkpoint (the scale is linear up to 0.1, then "
    "logarithmic). Left: Case I against the penalty, with a near proxy (rows like those it was aligned on) and a far one (other "
    "requests, one and the same refusal); the grey line is plain fine-tuning. Right: every way in the plane of the two losses. Filled "
    "marks are means over seeds, bars span them; hollow marks are what the pre-flight foretold from the aligned checkpoint before any "
    "training, with its mean error either way."
)
THEOREMS = ("T2c", "T6c", "T6g", "T18a")
LOOKS = {"near": (0, "o"), "far": (1, "s"), "ball": (2, "^")}
"""Colour and mark of Case I by proxy, and of Case II."""


LINEAR_TO = 0.1
"""Nats per token of the rise up to which the scale is linear."""


def draw(data: xr.Dataset) -> Figure:
    """A row for each task."""
    figure = Figure(figsize=(9.2, 3.4 * data.task.size))
    for row, task in zip(figure.subplots(data.task.size, 2, squeeze=False), data.task.values, strict=True):
        one = data.sel(task=task)
        one = one.assign(rise=one.safety - one.safety_before, foretold_rise=one.foretold_safety - one.safety_before)
        _penalties(row[0], one)
        _plane(row[1], one)
        row[0].set_title(f"{task}: safety against the penalty")
        row[1].set_title(f"{task}: safety against capability")
        for ax in row:
            ax.axhline(0, color="0.3", linewidth=0.8)
            ax.set_yscale("symlog", linthresh=LINEAR_TO)
            ax.set_ylabel("rise of the safety loss (nats per token)")
            ax.legend(fontsize=7)
    return figure


def _penalties(ax: Axes, one: xr.Dataset) -> None:
    ax.axhline(float(one.rise.sel(way="plain").mean("seed")), color="0.6", linewidth=1.2, label="plain")
    for proxy in ("near", "far"):
        ways = _ways(one, proxy)
        penalty = ways.penalty.isel(seed=0)
        _spanned(ax, penalty, ways.rise, proxy, f"{proxy} proxy")
        _foretold(ax, penalty, ways, proxy)
    ax.set(xscale="log", xlabel=r"penalty $\lambda$")


def _plane(ax: Axes, one: xr.Dataset) -> None:
    for kind, label in (("near", "Case I, near"), ("far", "Case I, far"), ("ball", "Case II")):
        ways = _ways(one, kind)
        _spanned(ax, ways.capability.mean("seed"), ways.rise, kind, label)
        _foretold(ax, ways.foretold_capability.mean("seed"), ways, kind)
    for name, mark in (("plain", "D"), ("average", "P")):
        way = one.sel(way=name).mean("seed")
        ax.plot(way.capability, way.rise, mark, color="0.35", markersize=6, label=name, linestyle="none")
    ax.plot(one.capability_before.mean(), 0, "*", color="black", markersize=9, label="aligned", linestyle="none")
    ax.set_xlabel("capability loss (nats per token)")


def _ways(one: xr.Dataset, kind: str) -> xr.Dataset:
    return one.sel(way=[way for way in one.way.values if way.startswith(f"{kind} ")])


def _spanned(ax: Axes, x: xr.DataArray, rise: xr.DataArray, kind: str, label: str) -> None:
    """The mean over seeds with bars from the least to the greatest."""
    colour, mark = LOOKS[kind]
    middle = rise.mean("seed")
    bars = np.stack([middle - rise.min("seed"), rise.max("seed") - middle])
    ax.errorbar(x, middle, bars, marker=mark, color=plotting.COLOURS[colour], label=label, linewidth=1.2, capsize=2)


def _foretold(ax: Axes, x: xr.DataArray, ways: xr.Dataset, kind: str) -> None:
    colour, mark = LOOKS[kind]
    ax.errorbar(
        x, ways.foretold_rise.mean("seed"), ways.foretold_safety_error.mean("seed"), fmt=mark, color=plotting.COLOURS[colour],
        markerfacecolor="none", markersize=7, elinewidth=0.8,
    )  # fmt: skip
