"""The verdicts drawn: for every claim, how close its two sides come."""

import xarray as xr
from matplotlib.figure import Figure

from tradeoff import plotting

TITLE = "The theorems, each checked on random instances"
CAPTION = (
    "Every registered part of the framework's theorems, verified on random worlds, penalties and policies. A bar is the "
    "tightest ratio of the two sides that random instances reached, 1 where a bound is attained; hatched bars are identities "
    "and limits, equal to within rounding or the next term of their expansion."
)


def draw(data: xr.Dataset) -> Figure:
    """One row for each claim."""
    rows = []
    for claim in data.theorem.values:
        one = data.sel(theorem=claim)
        ratio = float(one.tightest) if bool(one.inequality) else float("nan")
        rows.append((str(claim), str(one.title.values), ratio, bool(one.holds)))
    figure = Figure(figsize=(7.2, 0.6 + 0.19 * len(rows)))
    ax = figure.subplots()
    plotting.verdicts(ax, rows)
    return figure
