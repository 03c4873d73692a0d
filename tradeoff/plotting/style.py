"""One look for every figure: colour-blind safe, readable in grey, the same bytes for the same data."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, ordered so that neighbours differ in lightness too."""
LINES = ("-", "--", "-.", ":")
"""Line styles that go with the colours, for readers of grey copies."""

_LOOK: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "tradeoff",
}


@contextmanager
def style() -> Iterator[None]:
    """The package's look, as a context manager around the making of a figure.

    Only what the look sets is set back: a notebook that chooses its way of showing figures inside keeps it.
    """
    before = {name: mpl.rcParams[name] for name in _LOOK}
    mpl.rcParams.update(_LOOK)
    try:
        yield
    finally:
        mpl.rcParams.update(before)


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write a figure as PNG and SVG beside each other, without dates, so that equal figures are equal files.

    Args:
        figure: the figure.
        stem: the path without an ending.

    Returns:
        The two paths.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    with style():
        figure.savefig(png, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return png, svg
