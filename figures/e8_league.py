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
THEOREMS = ("T5a", "T7", "T14c", "filters-null")


def draw(data: xr.Dataset) -> Figure:
    """A column for each world in which something can be lost; strategies in the order of the third."""
    drawn = ["isotropic", "conflicting", "shared prompts"]
    above = best_excess(data).sel(world=drawn)
    middle = quartiles(above.sel(world="shared prompts").values)[1]
    order = above.strategy.values[np.argsort(np.where(np.isfinite(middle), middle, np.inf), kind="stable")]
    given = {str(one.strategy.values): str(one.values) != "nothing" for one in above.needs}
    kinds = {
        name: ("sees the task only", "is given more")[given[name]] for name in sorted(given, key=given.__getitem__)
    }
    figure = Figure(figsize=(9.6, 9.0))
    axes = figure.subplots(1, 3, sharey=True)
    for axis, world in zip(axes, drawn, strict=True):
        ran = np.isfinite(data.safety_gap.sel(world=world).isel(record=-1)).any(("setting", "seed"))
        one = above.sel(world=world, strategy=ran.values)
        rows = dict(zip(one.strategy.values.tolist(), one.values, strict=True))
        plotting.league(axis, rows, order.tolist(), kinds)
        axis.set_xscale("symlog", linthresh=1e-3)
        axis.set(title=world, xlabel="$G_s$ above the frontier")
        axis.set_xticks([0, 1e-2, 1], ["0", "0.01", "1"])
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
