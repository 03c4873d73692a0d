"""E7 drawn: what the optimiser loses above the frontier, by path and by noise, and what an average of the weights gives back."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from tradeoff import plotting

TITLE = "E7. At equal examples: what the optimiser loses, and what no optimiser could keep"
CAPTION = (
    "One pair of quadratic losses with gradient noise; every run sees the same number of examples, every point is an exact "
    "expectation. Left: each line sweeps the learning rate of one batch size, over the Case I frontier. Middle: for single "
    "examples, the safety gap split into what the frontier demands at the capability reached, what the path adds without "
    "noise, and what the noise adds. Right: at one learning rate that is too high, each of the three averages that go by the name "
    "EMA, swept over its coefficient, beside a sweep of the learning rate without any. In the legend, what each saves of the "
    "safety gap at a tenth of the capability gap when the learning rate is chosen as well."
)
THEOREMS = ("T14c", "noise-law", "ema-filter", "ema-noise", "ema-in-loop", "ema-to-start")


def draw(data: xr.Dataset) -> Figure:
    """Left, the plane of the gaps; middle, the split over learning rates; right, averages at equal capability."""
    figure = Figure(figsize=(9.6, 3.4))
    left, middle, right = figure.subplots(1, 3)
    first = data.isel(batch=0)
    order = np.argsort(data.capability_gap.values.ravel())
    left.plot(
        data.demanded.values.ravel()[order],
        data.capability_gap.values.ravel()[order],
        "k",
        linewidth=1.2,
        label="frontier",
    )
    for number, batch in enumerate(data.batch.values):
        one = data.sel(batch=batch)
        look = {"color": plotting.COLOURS[number], "linestyle": plotting.LINES[number]}
        left.plot(one.safety_gap, one.capability_gap, label=f"batch {batch}", **look)
    left.set(
        xlabel="safety gap $G_s$",
        ylabel="capability gap $G_f$",
        title="learning rates, by batch",
        xlim=(0, None),
        ylim=(0, None),
    )
    left.legend(fontsize=8)
    by_noise = np.maximum(first.safety_gap - first.demanded - first.by_path, 0)
    middle.stackplot(
        first.rate, first.demanded, first.by_path, by_noise, labels=("frontier", "path", "noise"),
        colors=("0.75", plotting.COLOURS[0], plotting.COLOURS[1]),
    )  # fmt: skip
    middle.set(
        xscale="log",
        xlabel="learning rate × largest curvature",
        ylabel="safety gap $G_s$",
        title="where it is lost (batch 1)",
    )
    middle.legend(fontsize=8, loc="upper left")
    right.plot(first.safety_gap, first.capability_gap, color="0.6", linewidth=4, label="learning rate")
    saved = 1 - least_safety(data).min("average") / least_safety(first)
    for number, reading in enumerate(data.reading.values):
        one = data.sel(reading=reading, rate=data.fixed_rate)
        look = {"color": plotting.COLOURS[number], "linestyle": plotting.LINES[number]}
        label = f"{reading} (saves {float(saved.sel(reading=reading)):.1%})"
        right.plot(one.averaged_safety_gap, one.averaged_capability_gap, label=label, **look)
    right.set(xlabel="safety gap $G_s$", ylabel="capability gap $G_f$", title="averages beside learning rates",
              xlim=(0, float(first.safety_gap.sel(rate=data.fixed_rate)) * 1.1), ylim=(0, float(data.start)))  # fmt: skip
    right.legend(fontsize=8)
    return figure


def least_safety(data: xr.Dataset) -> xr.DataArray:
    """The safety gap at which the capability gap first is the target as the learning rate rises, by everything else.

    Interpolated between neighbours; NaN where no learning rate gets there.
    """
    names = (
        ("averaged_safety_gap", "averaged_capability_gap")
        if "reading" in data.dims and "batch" in data.dims
        else ("safety_gap", "capability_gap")
    )

    def one(safety: np.ndarray, capability: np.ndarray) -> float:
        reached = np.flatnonzero(capability <= float(data.target))
        if not reached.size:
            return float("nan")
        i = max(int(reached[0]), 1)
        return float(np.interp(-float(data.target), -capability[i - 1 : i + 1], safety[i - 1 : i + 1]))

    return xr.apply_ufunc(one, *(data[name] for name in names), input_core_dims=[["rate"], ["rate"]], vectorize=True)
