"""E6 on a real checkpoint drawn: the straight line between two fine-tuned models, over their exact frontier."""

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.e6_landscape import lines
from tradeoff import plotting

TITLE = "E6. Between a safe and a capable checkpoint the straight line follows the exact frontier"
CAPTION = (
    "SmolLM2-135M-Instruct in the text world of E5: two of its fine-tuned models, the safe one at 0, the capable one at 1. "
    "Left: both gaps along the straight line through them, over the exact Pareto frontier (T7), which no model can pass: "
    "between the models the line trades one gap for the other as the frontier does, beyond them it leaves it. Right: the "
    "same gaps against the distance, and along random filter-normalised directions as long (mean and range): a random step "
    "moves both gaps little. At the safe model the divergence of a small fine-tuning step over ½t²δᵀFδ is 1 (local law); "
    "the mean over t and -t is given for both precisions."
)
THEOREMS = ("T7",)


def draw(data: xr.Dataset) -> Figure:
    """Left, the line over the frontier on logarithmic axes; right, both gaps along it and along random directions."""
    figure = Figure(figsize=(7.2, 3.7))
    left, right = figure.subplots(1, 2)
    _over_the_frontier(left, data)
    _against_distance(right, data)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure


def _over_the_frontier(ax: Axes, data: xr.Dataset) -> None:
    front = data.frontier_safety_gap.values, data.frontier_capability_gap.values
    plotting.frontier(ax, *front, color="black", label="exact frontier (T7)", zorder=3)
    colour = plotting.COLOURS[2]
    ax.plot(
        data.safety_gap, data.capability_gap, ".-", color=colour, label="straight line", markersize=4, linewidth=0.8
    )
    between = data.where((data.t >= 0) & (data.t <= 1), drop=True)
    for t, name in ((0.0, "safe"), (1.0, "capable")):
        end = data.sel(t=t, method="nearest")
        at = float(end.safety_gap), float(end.capability_gap)
        ax.plot(*at, "o", color=colour, markeredgecolor="black", markeredgewidth=0.6, zorder=5)
        ax.annotate(name, at, xytext=(6, 4), textcoords="offset points", fontsize=8)
    shown = [float(each.min()) / 2 for each in (data.safety_gap, data.capability_gap)]
    ax.set(xscale="log", yscale="log", xlim=(shown[0], 2 * float(data.safety_gap.max())))
    ax.set(ylim=(shown[1], 2 * float(data.capability_gap.max())))
    ax.set_title(f"between them {float(between.distance.max()):.2g} nats away at most", fontsize=8)
    ax.legend(loc="lower left", fontsize=7)


def _against_distance(ax: Axes, data: xr.Dataset) -> None:
    lines(ax, data)
    # The lines leave for the sky beyond the two models; what lies between them fills the picture.
    top = 1.5 * float(max(data.safety_gap.sel(t=1, method="nearest"), data.capability_gap.sel(t=0, method="nearest")))
    ax.set(xlim=(float(data.t[0]), float(data.t[-1])), ylim=(0, top))
    ax.set_xlabel("distance (from safe at 0 to capable at 1)")
    means = data.local_law.mean("step")
    words = ", ".join(f"{float(means.sel(precision=p)):.6f} ({p})" for p in data.precision.values)
    ax.set_title(f"local law: {words}", fontsize=7)
