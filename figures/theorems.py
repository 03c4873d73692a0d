"""The verdicts drawn: for every claim, how close its two sides come."""

import re

import xarray as xr
from matplotlib.figure import Figure

from tradeoff import plotting, theorems

TITLE = "The theorems, each checked on random instances"
CAPTION = (
    "Every claim on Case I in the rich class (T1 to T8), verified on random worlds, penalties and policies, with the tightest "
    "ratio of its two sides that random instances reached: 1 where a bound is attained, 0 where one side is always zero. Claims "
    "marked = are identities and limits, equal to within rounding or the next term of their expansion; orange would be a violation."
)
THEOREMS = tuple(claim.name for claim in theorems.all() if re.match(r"T[1-8](?!\d)", claim.name))
COLUMNS = 5


def draw(data: xr.Dataset) -> Figure:
    """One tile for each claim."""
    rows = []
    for claim in data.theorem.values:
        one = data.sel(theorem=claim)
        ratio = float(one.tightest) if bool(one.inequality) else float("nan")
        rows.append((str(claim), ratio, bool(one.holds)))
    figure = Figure(figsize=(7.6, 0.3 + 0.25 * -(-len(rows) // COLUMNS)))
    plotting.verdicts(figure.subplots(), rows, COLUMNS)
    return figure
