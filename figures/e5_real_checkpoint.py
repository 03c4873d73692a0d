"""E5 drawn: a language model trained down to the exact frontier of its text world."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from tradeoff import plotting

TITLE = "E5. A real checkpoint meets its exact frontier"
CAPTION = (
    "SmolLM2-135M-Instruct lives in a text world as a table of log-probabilities: eight safety prompts, four task prompts, six "
    "responses, scored by teacher forcing. Left: LoRA training under three penalties runs down to the exact Pareto frontier (T7) "
    "and never below it, nor below the closed-form limit (T8); stars are the exact optima. Right: how far above the least possible "
    "sum of gaps, V(λ), each run still is."
)


def draw(data: xr.Dataset) -> Figure:
    """Left, the paths over the frontier near its end; right, the surplus against the training step."""
    figure = Figure(figsize=(7.2, 3.4))
    plane, steps = figure.subplots(1, 2)
    plotting.frontier(
        plane, data.frontier_safety_gap, data.frontier_capability_gap, color="black", label="exact frontier (T7)"
    )
    reached = data.frontier_limit.values > 0
    plane.fill_between(
        data.frontier_safety_gap.values[reached], 0, data.frontier_limit.values[reached], color="0.85", linewidth=0,
        label="impossible for any model (T8)",
    )  # fmt: skip
    for index, penalty in enumerate(data.penalty.values):
        one = data.sel(penalty=penalty)
        colour, line = plotting.COLOURS[index], plotting.LINES[index]
        plane.plot(
            one.safety_gap,
            one.capability_gap,
            color=colour,
            linestyle=line,
            linewidth=1.1,
            label=rf"$\lambda$ = {penalty:g}",
        )
        plane.plot(one.safety_gap[-1], one.capability_gap[-1], "o", color=colour, markeredgecolor="white", zorder=3)
        plane.plot(one.optimum_safety_gap, one.optimum_capability_gap, "*", color=colour, markersize=11, markeredgecolor="black",
                   markeredgewidth=0.5, zorder=4)  # fmt: skip
        steps.plot(data.step, one.surplus, color=colour, linestyle=line, label=rf"$\lambda$ = {penalty:g}")
    edge = 1.25 * float(np.max([data.frontier_safety_gap.max(), data.frontier_capability_gap.max()]))
    plane.set(xlim=(0, edge), ylim=(0, edge), title="down to the frontier, never below")
    plane.legend()
    steps.set(
        yscale="log",
        xlabel="training step",
        ylabel=r"$G_f+\lambda G_s-V(\lambda)$ (nats)",
        title="above the best possible",
    )
    steps.yaxis.set_major_locator(LogLocator(base=10, numticks=10))
    return figure
