"""E4 drawn: what a penalty does with the exact proxy, and with a bad one."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from tradeoff import plotting

TITLE = "E4. Beyond λ* a bad proxy makes more penalty less safe"
CAPTION = (
    "One world, its exact safety data and a bad proxy. Left: with the exact proxy the safety gap only falls as λ grows (T2c); "
    "with the bad one it is zero at λ* and then rises towards Φ, while the gap that the penalty sees keeps falling. Right: "
    "past λ* the sweep pays more capability for less safety, so that stretch is dominated (T6g). Dots are gradient flows."
)
THEOREMS = ("T2c", "T6c", "T6g")


def draw(data: xr.Dataset) -> Figure:
    """Left, the gaps against the penalty; right, the same sweeps in the plane of the two gaps."""
    figure = Figure(figsize=(7.2, 3.3))
    left, right = figure.subplots(1, 2)
    for index, proxy in enumerate(data.proxy.values):
        one = data.sel(proxy=proxy)
        look = {"color": plotting.COLOURS[index], "linestyle": plotting.LINES[index], "label": f"{proxy} proxy"}
        plotting.gap_against_penalty(left, data.lam, one.safety_gap, **look)
        left.plot(data.flow_lam, one.flow_safety_gap, "o", color=look["color"], markeredgecolor="white")
        plotting.frontier(right, one.safety_gap, one.capability_gap, **look)
        right.plot(one.flow_safety_gap, one.flow_capability_gap, "o", color=look["color"], markeredgecolor="white")
    bad = data.sel(proxy="bad")
    best = float(bad.best_penalty)
    plotting.gap_against_penalty(
        left,
        data.lam,
        bad.proxy_gap,
        color=plotting.COLOURS[1],
        linestyle=":",
        linewidth=1.2,
        label="gap that the penalty sees",
    )
    left.axvline(best, color="0.5", linewidth=0.8)
    left.annotate(
        rf"$\lambda^*$ = {best:.3g}", (best, 0.3), xytext=(3, 0), textcoords="offset points", fontsize=8, color="0.3"
    )
    left.axhline(float(bad.limit), color=plotting.COLOURS[1], linewidth=0.8, linestyle=":")
    left.annotate(r"$\Phi$", (data.lam.values[0], float(bad.limit)), xytext=(2, 3), textcoords="offset points",
                  color=plotting.COLOURS[1])  # fmt: skip
    worse = bad.lam.values > best
    right.plot(bad.safety_gap.values[worse], bad.capability_gap.values[worse], color=plotting.COLOURS[1], linewidth=5, alpha=0.25,
               label="dominated")  # fmt: skip
    left.set(ylabel=plotting.SAFETY, title="against the penalty", ylim=(0, 1.15 * float(np.max(bad.safety_gap))))
    right.set(title="in the plane of the two gaps", xlim=(0, None), ylim=(0, None))
    handles, labels = left.get_legend_handles_labels()
    stretch, name = right.get_legend_handles_labels()
    figure.legend([*handles, stretch[-1]], [*labels, name[-1]], loc="outside lower center", ncols=4)
    return figure
