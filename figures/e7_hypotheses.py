"""E7's hypotheses drawn: a panel of evidence for each, and what it comes to."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from tradeoff import plotting

TITLE = "E7. Six hypotheses about published methods, and what the toys say"
CAPTION = (
    "H1: noisy descent with an average trained through (lines) and plain descent with (1-η) times its learning rate (dots). "
    "H2: the largest safety loss on the way to a fixed time under SafeGrad. H3: merging over L2-SP in safety gap at half the "
    "capability gap, for random commuting curvatures: median and middle half of draws. H4: expected gaps of merging with half the "
    "entries dropped, less those of merging with all. H5: where descent on the two losses of dynamic safety shaping lets a "
    "token rise, by its probability at the start; dashed, the formula for their crossing. H6: safety gap of plain over previewed "
    "fine-tuning, at equal steps and at equal capability, without and with a harmful preview in the context."
)
THEOREMS = ("ema-in-loop", "l2sp-on-front", "dare-variance", "star-dss-k2", "star-dss-kl", "lookahead")


def draw(data: xr.Dataset) -> Figure:
    """Six panels; a title says whether its hypothesis holds."""
    figure = Figure(figsize=(9.6, 6.2))
    axes = figure.subplots(2, 3).ravel()
    for panel, axis, name in zip((_h1, _h2, _h3, _h4, _h5, _h6), axes, data.hypothesis.values, strict=True):
        panel(axis, data)
        verdict = "holds" if bool(data.holds.sel(hypothesis=name)) else "does not hold as stated"
        axis.set_title(f"{name} {verdict}", fontsize=10)
    return figure


def _h1(axis: Axes, data: xr.Dataset) -> None:
    for number, eta in enumerate(data.h1_eta.values):
        one, colour = data.sel(h1_eta=eta), plotting.COLOURS[number]
        axis.plot(data.h1_rate, one.h1_averaged, color=colour, label=f"η = {eta:g}")
        axis.plot(data.h1_rate, one.h1_smaller, "o", color=colour, markersize=4)
    axis.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="expected $G_s$")
    axis.legend(fontsize=8)


def _h2(axis: Axes, data: xr.Dataset) -> None:
    for number, way in enumerate(data.h2_way.values):
        one = data.sel(h2_way=way)
        look = {"color": plotting.COLOURS[number], "linestyle": plotting.LINES[number], "marker": "o", "markersize": 3}
        axis.plot(data.h2_rate, one.h2_leakage, label=f"{way}: slope {float(one.h2_slope):.2f}", **look)
    axis.set(xscale="log", yscale="log", xlabel="learning rate at fixed time", ylabel="largest $L_s$")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(bottom=1e-10)
    axis.legend(fontsize=7, loc="lower right")


def _h3(axis: Axes, data: xr.Dataset) -> None:
    low, middle, high = (np.exp(data.h3_log_ratio.quantile(q, "h3_draw")) for q in (0.25, 0.5, 0.75))
    axis.fill_between(data.h3_correlation, low, high, color=plotting.COLOURS[0], alpha=0.25, linewidth=0)
    axis.plot(data.h3_correlation, middle, color=plotting.COLOURS[0])
    axis.axhline(1, color="0.4", linewidth=0.9, linestyle="--")
    axis.set(yscale="log", xlabel="correlation of log-curvatures", ylabel="$G_s$ of merging over L2-SP")
    axis.yaxis.set_minor_formatter(ScalarFormatter())


def _h4(axis: Axes, data: xr.Dataset) -> None:
    for number, gap in enumerate(data.h4_gap.values):
        one = data.sel(h4_gap=gap)
        axis.errorbar(data.h4_share, one.h4_dropped - one.h4_whole, 2 * one.h4_error, color=plotting.COLOURS[number],
                      linestyle=plotting.LINES[number], label=f"{gap} gap")  # fmt: skip
    axis.axhline(0, color="0.4", linewidth=0.9, linestyle="--")
    axis.set(xlabel="share of the tuned weights", ylabel="excess of DARE, nats")
    axis.legend(fontsize=8)


def _h5(axis: Axes, data: xr.Dataset) -> None:
    for number, (name, label) in enumerate((("h5_k2", "k2, as shipped"), ("h5_full", "full divergence"))):
        axis.plot(
            data.h5_start, data[name], color=plotting.COLOURS[number], linestyle=plotting.LINES[number], label=label
        )
    axis.axvline(float(data.h5_crossing), color="0.4", linewidth=0.9, linestyle="--")
    axis.set(xscale="log", yscale="log", xlabel="probability at the start", ylabel="probability at rest")
    axis.legend(fontsize=8)


def _h6(axis: Axes, data: xr.Dataset) -> None:
    gain = data.h6_safety.sel(h6_training="plain") - data.h6_safety.sel(h6_training="previewed")
    for number, at in enumerate(data.h6_at.values):
        one = gain.sel(h6_at=at)
        error = 2 * one.std("h6_draw", ddof=1) / np.sqrt(data.h6_draw.size)
        axis.errorbar(
            np.arange(2) + 0.1 * (number - 0.5),
            one.mean("h6_draw"),
            error,
            fmt="o",
            color=plotting.COLOURS[number],
            label=at,
        )
    axis.axhline(0, color="0.4", linewidth=0.9, linestyle="--")
    axis.set(
        xticks=[0, 1], xticklabels=data.h6_context.values, ylabel="$G_s$ saved by LookAhead, nats", xlim=(-0.5, 1.5)
    )
    axis.legend(fontsize=8, loc="center")
