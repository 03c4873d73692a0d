"""The cells of an experiment: parts that are made by themselves, each a job and a file of its own.

An experiment with cells is a module with

* `cells(settings)`: the cells, in order;
* `make(settings, name, folder, progress)`: the dataset of one cell;
* `gather(settings, parts)`: the result, from the datasets of all cells by name;

and `run`, which is `run_cells` of the three.
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import xarray as xr


@dataclass(frozen=True)
class Cell:
    """One part of an experiment.

    Attributes:
        name: in letters, digits, dots and hyphens, for it names files.
        settings: the experiment's settings, narrowed to what this cell depends on: other changes leave the cell finished.
        after: cells that it starts from, as "experiment/cell".
    """

    name: str
    settings: Any
    after: tuple[str, ...] = ()


def run_cells(module: ModuleType, settings: Any, folder: Path, progress: bool) -> xr.Dataset:
    """The result of an experiment, one cell after the other, in this process."""
    parts = {one.name: module.make(one.settings, one.name, folder, progress) for one in module.cells(settings)}
    return module.gather(settings, parts)


def cell_of(module: ModuleType, settings: Any, name: str) -> Cell:
    """The cell of a name.

    Raises:
        SystemExit: when the experiment has none of this name with these settings.
    """
    found = {one.name: one for one in module.cells(settings)} if hasattr(module, "cells") else {}
    if name not in found:
        raise SystemExit(f"{module.__name__} has no cell {name!r}; it has {', '.join(found) or 'no cells'}.")
    return found[name]
