"""E8 drawn: the league table, at the capability that every strategy is asked for."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from tradeoff import plotting

TITLE = "E8. Every strategy where the frontier is exact: what half of the task costs in safety"
CAPTION = (
    "Safety gap above the frontier's at the moment when half of the capability gap is closed, at the best of a strategy's settings: "
    "median and middle half over worlds drawn anew. Colours tell what a strategy is given: nothing, or safety data, prompts, "
    "guards or other models. A cross: it never closes half. No mark: it needs a policy, and a pair of quadratics has none. In "
    "the isotropic pairs every rule that sees nothing walks one line, which is the frontier (what is left is interpolation between "
    "steps); in a table without shared prompts (not drawn) nothing moves. Strategies of the stage of alignment start from their "
    "own aligned model."
)


def draw(data: xr.Dataset) -> Figure:
    """A column for each world in which something can be lost; strategies in the order of the third."""
    drawn = ["isotropic", "conflicting", "shared prompts"]
    above = best_excess(data).sel(world=drawn)
    middle = quartiles(above.sel(world="shared prompts").values)[1]
    order = np.argsort(np.where(np.isfinite(middle), middle, np.inf), kind="stable")[::-1]
    above = above.isel(strategy=order)
    figure = Figure(figsize=(9.6, 9.0))
    axes = figure.subplots(1, 3, sharey=True)
    blind = above.needs.values == "nothing"
    places = np.arange(above.strategy.size)
    for axis, world in zip(axes, drawn, strict=True):
        one = above.sel(world=world)
        low, middle, high = quartiles(one.values)
        for number, mask in enumerate((blind, ~blind)):
            shown = mask & np.isfinite(middle)
            errors = np.stack([middle - low, high - middle])[:, shown]
            axis.errorbar(middle[shown], places[shown], xerr=errors, fmt="os"[number], color=plotting.COLOURS[number], markersize=4,
                          label=("sees the task only", "is given more")[number])  # fmt: skip
        never = np.isnan(middle) & np.isfinite(
            data.safety_gap.sel(world=world).isel(record=-1).max(("setting", "seed")).values[order]
        )
        axis.plot(np.full(never.sum(), 0.98), places[never], "x", color="0.5", transform=axis.get_yaxis_transform())
        axis.axvline(0, color="0.4", linewidth=0.9, linestyle="--")
        axis.set_xscale("symlog", linthresh=1e-3)
        axis.set(title=world, xlabel="$G_s$ above the frontier")
        axis.set_xticks([0, 1e-2, 1], ["0", "0.01", "1"])
    axes[0].set_yticks(places, above.strategy.values, fontsize=8)
    axes[0].legend(fontsize=8, loc="lower right")
    return figure


def best_excess(data: xr.Dataset) -> xr.DataArray:
    """The safety gap at half above the frontier's, at the setting with the least median; dimensions strategy, world, seed.

    A setting counts where at least three quarters of the seeds get there.
    """
    excess = data.at_half - data.least_at_half
    reached = excess.notnull().mean("seed") >= 0.75
    median = excess.copy(data=np.nan_to_num(excess.values, nan=np.inf)).median("seed").where(reached, np.inf)
    best = excess.isel(setting=median.argmin("setting"))
    return best.where(np.isfinite(median.min("setting")))


def quartiles(values: np.ndarray) -> np.ndarray:
    """Lower quartile, median and upper quartile over the last axis, of the numbers there are, shape (3, ...)."""
    rows = [row[np.isfinite(row)] for row in values.reshape(-1, values.shape[-1])]
    found = [np.quantile(row, (0.25, 0.5, 0.75)) if row.size else np.full(3, np.nan) for row in rows]
    return np.array(found).T.reshape(3, *values.shape[:-1])
