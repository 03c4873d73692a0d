"""E7, text world drawn: what settings of the optimiser lose where nothing need be lost, and how much of it the best ones avoid."""

import xarray as xr
from matplotlib.figure import Figure

from tradeoff import plotting

TITLE = "E7, text world. No prompt is shared: what the optimiser loses, and what is lost at its best setting too"
CAPTION = (
    "The transformer of E8's text world, fine-tuned by Adam on as many sampled examples whatever the batch; the frontier is at "
    "zero. Left: each line sweeps the learning rate of one batch size, medians over seeds. Middle: the safety gap at the end, "
    "at the smallest batch, split into what another learning rate or batch avoids at no larger a capability gap (an artefact of "
    "the optimiser) and what none of them does; the frontier demands none of either. Right: the safety gap at a tenth of the "
    "capability gap at the best learning rate (and coefficient): median and middle half over seeds. Averages are taken at the "
    "smallest batch. Accumulated micro-batches are their batch, and an average trained through is a smaller learning rate; "
    "both were checked."
)
THEOREMS = ("T5a", "accumulation", "ema-in-loop")


def draw(data: xr.Dataset) -> Figure:
    """Left, the plane of the gaps; middle, the split over learning rates; right, every kind of optimiser at its best."""
    figure = Figure(figsize=(9.6, 3.4))
    left, middle, right = figure.subplots(1, 3)
    for number, batch in enumerate(data.batch.values):
        one = data.sel(batch=batch).median("seed")
        look = {"color": plotting.COLOURS[number], "linestyle": plotting.LINES[number], "marker": "os^D"[number]}
        left.plot(one.safety_gap, one.capability_gap, label=f"batch {batch}", markersize=3.5, **look)
    left.plot(0, 0, "k*", markersize=9, label="frontier", clip_on=False)
    left.axhline(float(data.target.median()), color="0.4", linewidth=0.9, linestyle="--")
    left.set(xlabel="safety gap $G_s$", ylabel="capability gap $G_f$", title="learning rates, by batch")
    left.set(xlim=(0, 6), ylim=(0, None))
    left.legend(fontsize=8, loc="upper right")
    first = data.isel(batch=0)
    kept, lost = first.left.median("seed"), (first.safety_gap - first.left).median("seed")
    middle.stackplot(
        data.rate,
        kept,
        lost,
        labels=("no setting avoids it", "artefact"),
        colors=(plotting.COLOURS[0], plotting.COLOURS[4]),
    )
    middle.set(
        xscale="log",
        xlabel="learning rate of Adam",
        ylabel="safety gap $G_s$",
        title=f"where it is lost (batch {int(first.batch)})",
    )
    middle.legend(fontsize=8, loc="upper left")
    names = [name if name.startswith("batch") else f"average {name}" for name in data.optimiser.values]
    plotting.league(right, dict(zip(names, data.least.values, strict=True)), names)
    right.set(xlabel="safety gap $G_s$", title="at a tenth of the gap", xlim=(0, None))
    return figure
