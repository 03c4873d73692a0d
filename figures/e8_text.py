"""E8, text world drawn: what each strategy gives back of the safety that plain fine-tuning loses, and what a step of it costs."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.e8_league import quartiles
from tradeoff import plotting

TITLE = "E8, text world. No prompt is shared: how much of what plain fine-tuning loses each strategy gives back"
CAPTION = (
    "A transformer of two layers, trained from scratch and aligned; the task's prompts are made of the same words as the safety "
    "prompts but for their topic, and no prompt is shared. No safety need be lost: the exact frontier is at zero. Left and middle: "
    "the part of plain fine-tuning's safety gap that a strategy does without at the same capability gap, half and a tenth of the "
    "start's, at the best of its settings: median and range over seeds (prompts and first weights drawn anew). 0 is plain "
    "fine-tuning, 1 is the frontier; a mark on the left edge is beyond it, a cross does not get there in most seeds. Right: how "
    "many gradients a step asks for. Not run: raft and dpo, which never see the task; derta and lookahead-virtual, which map "
    "texts; tsdi, which acts while decoding; f-pacoh, which tunes others."
)
KINDS = {"sees the task only": "o", "is given more": "s", "acts while aligning": "^"}
LEFT_EDGE = -0.25


def draw(data: xr.Dataset) -> Figure:
    """A column for each capability and one for the cost; strategies in the order of the harder one."""
    back = given_back(data)
    middle = quartiles(back.sel(level="a tenth").values)[1]
    order = np.lexsort((quartiles(back.sel(level="half").values)[1], np.nan_to_num(middle, nan=-np.inf)))
    back, data = back.isel(strategy=order), data.isel(strategy=order)
    figure = Figure(figsize=(9.6, 9.6))
    axes = figure.subplots(1, 3, sharey=True, width_ratios=(3, 3, 1.2))
    places = np.arange(back.strategy.size)
    aligns = [stage.endswith("alignment") for stage in data.stage.values]
    kind = np.where(aligns, 2, np.where(data.needs.values == "nothing", 0, 1))
    for axis, level in zip(axes, back.level.values, strict=False):
        _marks(axis, back.sel(level=level).values, places, kind)
        plain = float(best_at(data).sel(level=level, strategy="plain").median("seed"))
        axis.set(
            title=f"{level} of the capability gap left",
            xlabel=f"given back of plain's {plain:.2f} nats",
            xlim=(LEFT_EDGE - 0.03, 1.04),
        )
    axes[2].plot(data.gradients, places, "|", color="0.2", markersize=9, markeredgewidth=2)
    axes[2].set(title="cost", xlabel="gradients a step", xlim=(0.5, None))
    axes[0].set_yticks(places, back.strategy.values, fontsize=8)
    axes[0].set_ylim(-0.7, places[-1] + 0.7)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, ncols=3, loc="outside lower center")
    return figure


def _marks(axis: Axes, back: np.ndarray, places: np.ndarray, kind: np.ndarray) -> None:
    """Medians and ranges of one column, by the kind of strategy."""
    low, middle, high = (np.full(len(back), np.nan) for _ in range(3))
    for row, values in enumerate(back):
        if np.isfinite(values).any():
            low[row], middle[row], high[row] = np.nanmin(values), np.nanmedian(values), np.nanmax(values)
    low, middle, high = (np.maximum(values, LEFT_EDGE) for values in (low, middle, high))
    for number, (label, marker) in enumerate(KINDS.items()):
        shown = (kind == number) & np.isfinite(middle)
        errors = np.stack([middle - low, high - middle])[:, shown]
        axis.errorbar(
            middle[shown],
            places[shown],
            xerr=errors,
            fmt=marker,
            color=plotting.COLOURS[number],
            markersize=4.5,
            label=label,
        )
    never = ~np.isfinite(middle)
    axis.plot(np.full(never.sum(), LEFT_EDGE), places[never], "x", color="0.5")
    for place in (0, 1):
        axis.axvline(place, color="0.4", linewidth=0.9, linestyle="--")


def given_back(data: xr.Dataset) -> xr.DataArray:
    """One less the least safety gap over plain fine-tuning's of the same seed; dimensions strategy, level, seed."""
    best = best_at(data)
    return 1 - best / best.sel(strategy="plain", drop=True)


def best_at(data: xr.Dataset) -> xr.DataArray:
    """The safety gap at each capability gap, at the setting with the least median; dimensions strategy, level, seed.

    A setting counts where at least three quarters of the seeds get there.
    """
    found = data["at"]
    reached = found.notnull().mean("seed") >= 0.75
    median = found.copy(data=np.nan_to_num(found.values, nan=np.inf)).median("seed").where(reached, np.inf)
    best = found.isel(setting=median.argmin("setting"))
    return best.where(np.isfinite(median.min("setting")))
