"""E2 drawn: one frontier for each context overlap."""

import xarray as xr
from matplotlib.figure import Figure

from tradeoff import plotting

TITLE = "E2. More context overlap, a worse frontier"
CAPTION = (
    "The exact Pareto frontier of safety and capability (T7) at three overlaps ρ of the task's contexts with the safety data's, "
    "all else equal. Dots are gradient flows run to rest. With conditional laws fixed the frontier at ρ is the one at full "
    "overlap times ρ (T5c). Thin lines are the closed-form limit T8(c), below which no policy of any kind can be."
)
THEOREMS = ("T5b", "T5c", "T7", "T8c")


def draw(data: xr.Dataset) -> Figure:
    """One panel in the plane of the two gaps."""
    figure = Figure(figsize=(4.6, 3.6))
    ax = figure.subplots()
    for index, overlap in enumerate(data.overlap.values):
        one = data.sel(overlap=overlap)
        colour, line = plotting.COLOURS[index], plotting.LINES[index]
        plotting.frontier(
            ax, one.safety_gap, one.capability_gap, color=colour, linestyle=line, label=f"overlap {overlap:g}"
        )
        ax.plot(one.flow_safety_gap, one.flow_capability_gap, "o", color=colour, markeredgecolor="white")
        ax.plot(one.safety_gap, one.lower_limit, color=colour, linewidth=0.8, alpha=0.7)
    ax.plot([], [], color="0.4", linewidth=0.8, label="limit of any policy (T8)")
    ax.set(xlim=(0, None), ylim=(0, None))
    ax.legend()
    return figure
