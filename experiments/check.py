"""Make a result again, from the settings in its file, and compare: `python -m experiments --check RESULT`."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import xarray as xr

from experiments import plan
from experiments.catalogue import CATALOGUE, Entry
from experiments.cells import Cell, cell_of
from tradeoff import studies

COMPILING = ("--xla_cpu_", "--xla_backend_optimization_level")
"""How flags begin that only say how to compile; others of a file, which might have files written, are not taken over."""


def check(path: Path) -> int:
    """Print what is equal and what differs; 0 when every variable is equal bit by bit, 1 when one is not.

    Only experiments of the catalogue are run; a file that names another module is refused. It is made by the compiler flags
    in its file, on which last bits depend, unless `XLA_FLAGS` is set.

    Raises:
        SystemExit: when there is no such file, or it does not say what made it, or that is not here.
        ValueError: when the file is damaged, or the experiment has other settings by now.
    """
    stored = studies.load(path)
    if stored is None:
        raise SystemExit(f"{path} is not there; results are in reproduced/data and figures/gallery.")
    one = _experiment(stored, path)
    flags = " ".join(flag for flag in stored.attrs["xla_flags"].split() if flag.startswith(COMPILING))
    if flags and "XLA_FLAGS" not in os.environ:  # JAX reads them once, as it starts
        command = [sys.executable, "-m", "experiments", "--check", str(path)]
        return subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, check=False).returncode
    settings = studies.restored(one.experiment.Settings, stored.attrs["settings"])
    part = stored.attrs["part"]
    cell = cell_of(one.experiment, settings, part) if part else None
    with tempfile.TemporaryDirectory() as folder:
        again = _again(one, settings, cell, Path(folder))
    for said in studies.changed_origins(stored, again):
        print(f"made by other: {said}")
    different = studies.differences(stored, again)
    for said in different:
        print(said)
    count = len(again.variables)
    print(
        f"{path}: {f'{len(different)} of {count} variables differ' if different else f'all {count} variables are equal'}."
    )
    return int(bool(different))


def _experiment(stored: xr.Dataset, path: Path) -> Entry:
    if stored.attrs["schema"] == "1":
        raise SystemExit(
            f"{path} has schema 1, which does not say what made a result; run the experiment again: python -m experiments."
        )
    for one in CATALOGUE:
        if stored.attrs["made_by"] == f"experiments.{one.name}":
            return one
    raise SystemExit(
        f"{path} says that {stored.attrs['made_by']!r} made it, which is no experiment of this checkout; it is not run. "
        f"There are {', '.join(each.name for each in CATALOGUE)}."
    )


def _again(one: Entry, settings: object, cell: Cell | None, folder: Path) -> xr.Dataset:
    """The result made in an empty folder, so that nothing finished is taken over, written and read back."""
    module = one.experiment
    place = folder / one.name
    data = module.make(settings, cell.name, place, progress=True) if cell else module.run(settings, place)
    data.attrs |= plan.provenance_of(one, settings, cell.name if cell else "")
    studies.save(data, folder / "again.nc")
    again = studies.load(folder / "again.nc")
    assert again is not None  # it was written a line above
    return again
