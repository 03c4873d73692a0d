"""E5 drawn: a language model trained down to the exact frontier of its text world."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from tradeoff import plotting

TITLE = "E5. A real checkpoint meets its exact frontier"
CAPTION = (
    "SmolLM2-135M-Instruct lives in a text world as a table of log-probabilities: eight safety prompts, four task prompts, "
    "six responses, scored by teacher forcing. Left: LoRA training under three penalties runs down to the exact Pareto "
    "frontier (T7) and never below it, nor below the closed-form limit (T8). Stars are the exact optima, dots where training "
    "ended. Right: how far above the least possible sum of gaps, V(λ), each run still is."
)
THEOREMS = ("T7", "T8c")

FLOOR = 0.02
"""Where the logarithmic axes begin, nats."""


def draw(data: xr.Dataset) -> Figure:
    """Left, the paths over the frontier, on logarithmic axes; right, the surplus against the training step."""
    figure = Figure(figsize=(7.2, 3.6))
    plane, steps = figure.subplots(1, 2, width_ratios=(1.2, 1))
    frontier = data.frontier_safety_gap.values, data.frontier_capability_gap.values
    plotting.frontier(plane, *frontier, color="black", label="exact frontier (T7)", zorder=3)
    plane.fill_between(
        frontier[0],
        FLOOR,
        np.maximum(data.frontier_limit.values, FLOOR),
        color="0.8",
        linewidth=0,
        label="no model can be here (T8)",
    )
    for index, penalty in enumerate(data.penalty.values):
        one = data.sel(penalty=penalty)
        colour, line = plotting.COLOURS[index], plotting.LINES[index]
        plane.plot(one.safety_gap, one.capability_gap, ".-", color=colour, linewidth=0.6, markersize=2.5, alpha=0.8)
        end = one.isel(step=-1)
        look = {"color": colour, "markeredgecolor": "black", "markeredgewidth": 0.6, "linestyle": "none"}
        plane.plot(one.optimum_safety_gap, one.optimum_capability_gap, "*", markersize=12, zorder=4, **look)
        plane.plot(end.safety_gap, end.capability_gap, "o", zorder=5, label=rf"$\lambda$ = {penalty:g}", **look)
        steps.plot(data.step, one.surplus, color=colour, linestyle=line, label=rf"$\lambda$ = {penalty:g}")
    edge = 1.6 * float(max(data.safety_gap.max(), data.capability_gap.max()))
    plane.set(
        xscale="log", yscale="log", xlim=(FLOOR, edge), ylim=(FLOOR, edge), title="down to the frontier, never below"
    )
    plane.legend(loc="upper left", fontsize=7)
    steps.set(
        yscale="log",
        xlabel="training step",
        ylabel=r"$G_f+\lambda G_s-V(\lambda)$ (nats)",
        title="above the best possible",
    )
    steps.legend()
    return figure
