"""E8 on a checkpoint drawn: each strategy's path, and the safety gap that it ends with."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from tradeoff import plotting

TITLE = "E8, checkpoint. Who keeps safety where none need be lost"
CAPTION = (
    "The checkpoint of E10, fine-tuned on the task whose prompts share the most words with the safety prompts and none of the "
    "prompts: the exact frontier is at zero. The matrices of the upper layers are trained themselves. Left: paths, from right to "
    "left. Right: the gaps after the last step. One run each, at the settings that the registry ships: a strategy that gives "
    "little here may give more at others."
)
THEOREMS = ("T5a", "T7")
SHOWN = ("plain", "plain, gentler", "penalty (Case I)", "ball (Case II)", "ema", "merge-linear", "safegrad")
"""Whose paths are drawn; all are on the right."""


def draw(data: xr.Dataset) -> Figure:
    """Left, some paths; right, all ends in the order of the safety gap."""
    figure = Figure(figsize=(9.2, 4.4))
    plane, ends = figure.subplots(1, 2, width_ratios=(1.2, 1))
    for number, name in enumerate(SHOWN):
        one = data.sel(strategy=name)
        look = {"color": plotting.COLOURS[number], "linestyle": plotting.LINES[number % len(plotting.LINES)]}
        plane.plot(one.capability_gap, one.safety_gap, label=name, **look)
        plane.plot(one.capability_gap[-1], one.safety_gap[-1], "o", color=look["color"], markersize=5)
    plane.set(xscale="log", xlabel="capability gap (nats)", ylabel="safety gap (nats)", title="paths")
    plane.invert_xaxis()
    plane.legend(fontsize=7)
    last = data.isel(step=-1).sortby("safety_gap", ascending=False)
    places = np.arange(last.strategy.size)
    for marker, axis, label in (("o", "safety_gap", "safety gap"), ("s", "capability_gap", "capability gap")):
        colour = plotting.COLOURS[0 if axis == "safety_gap" else 1]
        ends.plot(last[axis], places, marker, color=colour, label=label, markersize=5)
    ends.set_yticks(places, last.strategy.values, fontsize=8)
    ends.set(xscale="symlog", xlabel="after the last step (nats)", title="ends", xlim=(0, None))
    ends.grid(axis="y", color="0.9")
    ends.legend(fontsize=7)
    return figure
