"""E10 drawn: tasks that share no prompt with the safety data, what they cost in safety, and what foretold it."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from tradeoff import plotting

TITLE = "E10. No prompt shared, safety lost all the same"
CAPTION = (
    "A checkpoint aligned on six safety prompts, then fine-tuned plainly on tasks that share words with them, arithmetic, or some of "
    "the prompts themselves. Left: the path through the plane of the gaps, from right to left. Where no prompt is shared the exact "
    "frontier is at zero, so all of the safety gap could be avoided. Right: rank correlation, over the eight tasks, of what was known "
    "before training with the safety gap after the last step and with the greatest on the way."
)
THEOREMS = ("T5a", "T7")
NAMES = {
    "context_overlap": "prompts shared (Ω)",
    "word_overlap": "words shared",
    "feature_overlap": "gradient features shared",
    "conflict": "conflict of gradients",
    "curvature": "safety curvature along\nthe task gradient",
}


def draw(data: xr.Dataset) -> Figure:
    """Left, the paths; right, a bar for each foreteller."""
    figure = Figure(figsize=(9.2, 4.0))
    plane, bars = figure.subplots(1, 2, width_ratios=(1.6, 1))
    for number, task in enumerate(data.task.values):
        one = data.sel(task=task)
        look = {
            "color": plotting.COLOURS[number % len(plotting.COLOURS)],
            "linestyle": plotting.LINES[number % len(plotting.LINES)],
        }
        plane.plot(one.capability_gap, one.safety_gap, label=task.replace(" and ", ", "), **look)
        plane.plot(one.capability_gap[-1], one.safety_gap[-1], "o", color=look["color"], markersize=5)
    plane.set(
        xscale="log", xlabel="capability gap (nats)", ylabel="safety gap (nats)", title="plain fine-tuning, 20 steps"
    )
    plane.invert_xaxis()
    plane.legend(fontsize=7, title="shared with the safety prompts", title_fontsize=7)
    places = np.arange(data.foreteller.size)[::-1]
    for number, lost in enumerate(data.lost.values):
        look = {"color": plotting.COLOURS[number], "height": 0.36, "label": lost}
        bars.barh(places + 0.2 - 0.4 * number, data.rank_correlation.sel(lost=lost), **look)
    bars.legend(fontsize=7, title="safety gap", title_fontsize=7, loc="lower right")
    bars.axvline(0, color="0.3", linewidth=0.8)
    bars.set(xlim=(-1.05, 1.05), xlabel="rank correlation", title="what foretold it")
    bars.set_yticks(places, [NAMES[name] for name in data.foreteller.values])
    return figure
