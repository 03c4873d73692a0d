"""E1 drawn: the safety gap against the penalty, one curve for each proxy."""

import xarray as xr
from matplotlib.figure import Figure

from tradeoff import plotting

TITLE = "E1. A nearer proxy keeps more safety"
CAPTION = (
    "Safety gap against the penalty λ on proxy safety data, for a near and a far proxy that share the safety data's contexts. "
    "Lines are the closed form (T2), dots are gradient flows run to rest. As λ grows the gap tends to the mismatch Φ "
    "of the proxy (T6c): over-penalising cannot remove it. Right: what is kept is paid for in capability."
)
THEOREMS = ("T2a", "T6c")


def draw(data: xr.Dataset) -> Figure:
    """Two panels: both gaps against the penalty."""
    figure = Figure(figsize=(7.2, 3.1))
    left, right = figure.subplots(1, 2)
    for index, proxy in enumerate(data.proxy.values):
        one = data.sel(proxy=proxy)
        colour, line = plotting.COLOURS[index], plotting.LINES[index]
        label = f"{proxy} proxy (similarity {float(one.similarity):g})"
        for ax, gap in ((left, "safety_gap"), (right, "capability_gap")):
            plotting.gap_against_penalty(
                ax, data.lam.values, one[gap].values, color=colour, linestyle=line, label=label
            )
            ax.plot(data.flow_lam, one[f"flow_{gap}"], "o", color=colour, markeredgecolor="white")
        left.axhline(float(one.limit), color=colour, linewidth=0.8, linestyle=":")
        left.annotate(
            rf"$\Phi$ = {float(one.limit):.3f}", (data.lam.values[0], float(one.limit)), xytext=(2, 3), textcoords="offset points",
            color=colour, fontsize=8,
        )  # fmt: skip
    left.set(ylabel=plotting.SAFETY, title="a nearer proxy keeps more safety", ylim=(0, None))
    right.set(ylabel=plotting.CAPABILITY, title="and leaves less capability", ylim=(0, None))
    left.legend(loc="upper right")
    return figure
