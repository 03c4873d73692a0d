"""E3 drawn: what a ball around the aligned parameters costs above the best, and the price that foretells it."""

import xarray as xr
from matplotlib.figure import Figure

from tradeoff import plotting

TITLE = "E3. A ball pays the price of isotropy; a ball in the metric of safety does not"
CAPTION = (
    "One pair of quadratic losses, random axes, curvatures over two decades. Left: Case II as a hard ball (line), as a soft "
    "penalty (dots on it: the same path, T14b) and as early stopping, against the Case I frontier, which no parameters pass. "
    "Right: the safety gap over the least one at equal gain. For small gains the ball and early stopping pay the price "
    "predicted from curvature alone (T15, dashed), below Kantorovich's bound over all directions; a ball in the metric of the "
    "safety Hessian is Case I itself and pays nothing (T15b)."
)
THEOREMS = ("T14a", "T14b", "T14c", "T15", "T15-bracket", "T15a-flow", "T15b", "T18a-quadratic")


def draw(data: xr.Dataset) -> Figure:
    """Left, the curves in the plane of the two gaps; right, what each pays at equal gain."""
    figure = Figure(figsize=(7.2, 3.4))
    left, right = figure.subplots(1, 2)
    plotting.frontier(
        left,
        data.frontier_safety_gap,
        data.frontier_capability_gap,
        color="black",
        linewidth=1.2,
        label="Case I frontier",
    )
    looks = {"ball": 0, "early stopping": 1, "safety metric": 2}
    for name, number in looks.items():
        one = data.sel(strategy=name)
        look = {"color": plotting.COLOURS[number], "linestyle": plotting.LINES[number]}
        label = {"ball": "ball", "early stopping": "early stopping", "safety metric": "ball, safety metric"}[name]
        plotting.frontier(left, one.safety_gap, one.capability_gap, label=label, **look)
        right.plot(one.gain / data.start, one.paid, **look)
    soft = data.sel(strategy="soft").isel(point=slice(None, None, 8))
    left.plot(
        soft.safety_gap, soft.capability_gap, "o", color=plotting.COLOURS[0], markersize=3.5, label="soft penalty"
    )
    left.set(xlim=(0, 1.05 * float(data.safety_gap.max())), ylim=(0, 1.05 * float(data.start)),
             xlabel="safety gap $G_s$", ylabel="capability gap $G_f$", title="in the plane of the two gaps")  # fmt: skip
    for value, words in ((float(data.price), "price of isotropy"), (float(data.most), "Kantorovich's bound")):
        right.axhline(value, color="0.4", linewidth=0.9, linestyle="--" if value < data.most else ":")
        right.annotate(f"{words} {value:.3g}", (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                       fontsize=8, color="0.3")  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="share of the capability gap closed", ylabel="safety gap over the least",
              title="at equal gain")  # fmt: skip
    right.set(ylim=(0.8, 1.6 * float(data.most)))
    figure.legend(loc="outside lower center", ncols=5)
    return figure
