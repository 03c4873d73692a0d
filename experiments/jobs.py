"""One job of the workflow: make a cell or a result unless it is there, draw a figure, put finished files where they are read."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

import tradeoff as to
from experiments.catalogue import Entry
from experiments.cells import Cell
from experiments.locks import alone, clear
from experiments.plan import figure_files, made_by, result_file
from experiments.report import write_report
from tradeoff import studies


def make(one: Entry, out: Path, cell: Cell | None = None) -> xr.Dataset:
    """The result of an experiment or of one of its cells, from its file or made now; two processes never make one twice."""
    path, origin = out / result_file(one, cell), made_by(one, cell)
    with alone(path):
        kept = studies.load(path, origin["cell"])
        if kept is not None:
            return kept
        began = time.perf_counter()
        data = _computed(one, out, cell)
        data.attrs |= origin
        studies.save(data, path)
        name = f"{one.name}, {cell.name}" if cell else one.name
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        return data


def draw(one: Entry, out: Path) -> None:
    """The result of an experiment and its figure, what is there of them kept."""
    data = make(one, out)
    targets = [out / path for path in figure_files(one)]
    with alone(targets[0]):
        if all(path.exists() for path in targets):
            return
        with tempfile.TemporaryDirectory() as folder, to.plotting.style():
            for drawn, path in zip(
                to.plotting.save(one.figure.draw(data), Path(folder, "figure")), targets, strict=True
            ):
                _write(path, drawn.read_bytes())


def publish(one: Entry, out: Path) -> bool:
    """Put the newest data and figure of an experiment in `data/` and `figures/`; whether that changed a file.

    Raises:
        ValueError: when the data are damaged; what was published before is as it was.
    """
    data, (png, svg) = result_file(one), figure_files(one)
    studies.load(out / data)
    places = {data: "data", png: "figures", svg: "figures"}
    changed = [_put(out / path, out / place / f"{one.name}{path.suffix}") for path, place in places.items()]
    return any(changed)


def report(chosen: Sequence[Entry], out: Path) -> Path:
    """Publish every chosen experiment and write the page that shows them."""
    for one in chosen:
        if not publish(one, out):
            print(f"{one.name}: unchanged, kept", flush=True)
    return write_report(chosen, out)


def _computed(one: Entry, out: Path, cell: Cell | None) -> xr.Dataset:
    module, folder = one.experiment, out / "cells" / one.name
    if cell is not None:
        return module.make(cell.settings, cell.name, folder, progress=True)
    settings = module.Settings()
    if not hasattr(module, "cells"):
        return module.run(settings, folder)
    return module.gather(settings, {each.name: make(one, out, each) for each in module.cells(settings)})


def _put(source: Path, target: Path) -> bool:
    content = source.read_bytes()
    clear(target)
    if target.exists() and target.read_bytes() == content:
        return False
    _write(target, content)
    return True


def _write(path: Path, content: bytes) -> None:
    studies.write_atomically(path, lambda beside: beside.write_bytes(content))
