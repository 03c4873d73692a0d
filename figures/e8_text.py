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
    "fine-tuning, 1 is the frontier; an arrow is beyond the left edge, a cross does not get there in most seeds. Right: how "
    "many gradients a step asks for. Not run: raft and dpo, which never see the task; derta and lookahead-virtual, which map "
    "texts; tsdi, which acts while decoding; f-pacoh, which tunes others."
)
THEOREMS = ("T5a", "T7")
KINDS = ("sees the task only", "is given more", "acts while aligning")
LEFT_EDGE = -0.3


def draw(data: xr.Dataset) -> Figure:
    """A column for each capability and one for the cost; strategies in the order of the harder one."""
    back = given_back(data)
    middle = quartiles(back.sel(level="a tenth").values)[1]
    order = np.lexsort((quartiles(back.sel(level="half").values)[1], np.nan_to_num(middle, nan=-np.inf)))
    names = back.strategy.values[order[::-1]].tolist()
    figure = Figure(figsize=(9.6, 9.6))
    axes = figure.subplots(1, 3, sharey=True, width_ratios=(3, 3, 1.2))
    for axis, level in zip(axes, back.level.values, strict=False):
        _given_back(axis, back.sel(level=level), names, _kinds(data))
        plain = float(best_at(data).sel(level=level, strategy="plain").median("seed"))
        axis.set(
            title=f"{level} of the capability gap left",
            xlabel=f"given back of plain's {plain:.2f} nats",
            xlim=(LEFT_EDGE, 1.04),
        )
    gradients = data.gradients.sel(strategy=names)
    axes[2].plot(gradients, range(len(names)), "|", color="0.2", markersize=9, markeredgewidth=2)
    axes[2].set(title="cost", xlabel="gradients a step", xlim=(0.5, None))
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, ncols=3, loc="outside lower center")
    return figure


def _kinds(data: xr.Dataset) -> dict[str, str]:
    """What each strategy is, in the order in which kinds are drawn."""
    aligns = [stage.endswith("alignment") for stage in data.stage.values]
    numbers = np.where(aligns, 2, np.where(data.needs.values == "nothing", 0, 1))
    return {str(data.strategy.values[row]): KINDS[numbers[row]] for row in np.argsort(numbers, kind="stable")}


def _given_back(axis: Axes, back: xr.DataArray, names: list[str], kinds: dict[str, str]) -> None:
    """Medians and ranges of one column, and a mark on the left edge for what lies beyond it or nowhere."""
    rows = {str(one.strategy.values): one.values for one in back if np.isfinite(one).any()}
    plotting.league(axis, rows, names, kinds, within=(0, 1))
    beyond = [place for place, name in enumerate(names) if name in rows and np.nanmedian(rows[name]) < LEFT_EDGE]
    never = [place for place, name in enumerate(names) if name not in rows]
    axis.plot([LEFT_EDGE + 0.03] * len(beyond), beyond, "<", color="0.5")
    axis.plot([LEFT_EDGE + 0.03] * len(never), never, "x", color="0.5")
    axis.axvline(1, color="0.4", linewidth=0.9, linestyle="--")


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
