"""E6 drawn: the plane of the fine-tuning direction and a random one, and both losses along each."""

import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tradeoff import Gaps, plotting
from tradeoff.landscape import Line, Plane

TITLE = "E6. Fine-tuning costs the safety that a random step of its length costs, and buys capability for it"
CAPTION = (
    "A tabular model, aligned at (0, 0) and fine-tuned to the end at (1, 0). Left: the safety gap (shaded) and the capability "
    "gap (lines, nats) on the plane of the fine-tuning direction and a random one of the same length. Right: both gaps along "
    "the fine-tuning direction and, at the same distances, along random ones (mean and range). Here the safety gap does not "
    "tell the two apart; the capability gap does. Near the aligned model the safety gap along fine-tuning is the local law "
    "½t²δᵀFδ (long dashes), and nowhere does it pass the certified bound ½β‖δ‖²t² (T12b, fine dots). The point with a bar is the radius of "
    "the safety basin over random directions, with its 95 % interval, at the threshold that defines it."
)
THEOREMS = ("T12b",)


def draw(data: xr.Dataset) -> Figure:
    """Left, the plane; right, the lines."""
    figure = Figure(figsize=(7.2, 3.4))
    left, right = figure.subplots(1, 2)
    _plane(left, data)
    _lines(right, data)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _plane(ax: Axes, data: xr.Dataset) -> None:
    x, y = jnp.asarray(data.x.values), jnp.asarray(data.y.values)
    plotting.landscape(ax, Plane(x, y, _gaps(data.plane_safety_gap, data.plane_capability_gap)))
    for place, name in ((0, "aligned"), (1, "fine-tuned")):
        ax.plot(place, 0, "o", color="black", markeredgecolor="white")
        ax.annotate(name, (place, 0), xytext=(0, -12), textcoords="offset points", ha="center", fontsize=8)
    ax.set(xlabel="along fine-tuning", ylabel="along a random direction")


def lines(ax: Axes, data: xr.Dataset) -> None:
    """Both gaps along fine-tuning and along random directions, by the coordinate `t`."""
    t = jnp.asarray(data.t.values)
    plotting.landscape(ax, Line(t, _gaps(data.safety_gap, data.capability_gap)), "fine-tuning")
    each = zip(data.random_safety_gap, data.random_capability_gap, strict=True)
    plotting.landscape(ax, [Line(t, _gaps(*pair)) for pair in each], "random")


def _gaps(safety: xr.DataArray, capability: xr.DataArray) -> Gaps:
    return Gaps(jnp.asarray(safety.values), jnp.asarray(capability.values))


def _lines(ax: Axes, data: xr.Dataset) -> None:
    lines(ax, data)
    ax.plot(data.t, data.local_law, color="0.2", linestyle=(0, (8, 2)), linewidth=1.0, label="local law")
    ax.plot(data.t, data.bound, color="black", linestyle=":", linewidth=1.0, label="bound (T12b)")
    top = 1.1 * float(max(data.safety_gap.max(), data.capability_gap.max(), data.random_safety_gap.max()))
    radius, ends = (np.asarray(x) / float(data.distance) for x in (data.basin_radius, data.basin_interval))
    ax.errorbar(
        [float(radius)], [float(data.basin_threshold)], xerr=[[float(radius - ends[0])], [float(ends[1] - radius)]],
        fmt="o", color="black", markersize=3, capsize=3,
    )  # fmt: skip
    ax.set(xlim=(float(data.t[0]), float(data.t[-1])), ylim=(0, top))
    ax.set_xlabel("distance (fine-tuning displacements)")
