"""What is to be made, and under which names: every file is named by the content that it follows from.

A result is kept as `cells/<experiment>/<cell>-<key>.nc`, where the key is the digest of settings, sources and libraries. A file
that is there is therefore finished and up to date, whatever its date; what has changed has another name, and is not there.
"""

import functools
import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.catalogue import Entry, entry
from experiments.cells import Cell, cell_of
from tradeoff import studies

FIGURES = Path(__file__).parents[1] / "figures"
WHOLE = "result"
"""The name of the file that holds all of an experiment."""


@dataclass(frozen=True)
class Job:
    """What one command makes: a cell, or a result and its figure.

    Attributes:
        experiment: its name.
        cell: the cell's name; empty for the result.
        makes: files, relative to the folder of the results; data first.
        after: files that must be there before.
        checkpoint: whether it trains or measures a checkpoint.
        priority: jobs of a higher one begin earlier.
    """

    experiment: str
    cell: str
    makes: tuple[str, ...]
    after: tuple[str, ...]
    checkpoint: bool
    priority: int


def plan(chosen: Sequence[Entry]) -> list[Job]:
    """Every job that the chosen experiments need, the cells of others that theirs start from included."""
    jobs: dict[tuple[str, str], Job] = {}

    def add_cell(one: Entry, cell: Cell) -> str:
        path = str(result_file(one, cell))
        after = tuple(map(add_named, cell.after))
        jobs[one.name, cell.name] = Job(one.name, cell.name, (path,), after, one.checkpoint, 0)
        return path

    def add_named(name: str) -> str:
        other, _, part = name.partition("/")
        one = entry(other)
        return add_cell(one, cell_of(one.experiment, one.experiment.Settings(), part))

    for one in chosen:
        settings = one.experiment.Settings()
        cells = one.experiment.cells(settings) if hasattr(one.experiment, "cells") else ()
        after = tuple(add_cell(one, cell) for cell in cells)
        makes = tuple(map(str, (result_file(one), *figure_files(one))))
        # A result that is put together from cells costs little: it needs no machine to itself.
        jobs[one.name, ""] = Job(one.name, "", makes, after, one.checkpoint and not cells, round(100 * one.minutes))
    return list(jobs.values())


def as_json(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The jobs as the workflow reads them."""
    return [asdict(job) for job in jobs]


def made_by(one: Entry, cell: Cell | None = None) -> dict[str, str]:
    """The provenance of a result, or of one of its cells, as it would be made here."""
    return provenance_of(one, cell.settings if cell else one.experiment.Settings(), cell.name if cell else "")


@functools.cache
def provenance_of(one: Entry, settings: Any, part: str) -> dict[str, str]:
    """The provenance of a result with given settings, of the sources as they are when it is first asked for.

    Args:
        one: the experiment.
        settings: its settings.
        part: the name of the cell; empty for the whole.
    """
    libraries = ("torch", "transformers", "peft") if one.checkpoint else ()
    return studies.provenance(settings, Path(str(one.experiment.__file__)), libraries=libraries, part=part)


def result_file(one: Entry, cell: Cell | None = None) -> Path:
    """Where a result or one of its cells is kept, relative to the folder of the results."""
    return Path("cells", one.name, f"{cell.name if cell else WHOLE}-{made_by(one, cell)['cell'][:16]}.nc")


def figure_files(one: Entry) -> tuple[Path, Path]:
    """Where a figure is kept, as PNG and SVG: named by its data, its own sources and matplotlib."""
    drawn_by = studies.digest(*studies.sources(FIGURES / f"{one.name}.py")), importlib.metadata.version("matplotlib")
    key = hashlib.sha256(f"{made_by(one)['cell']}\n{drawn_by}".encode()).hexdigest()[:16]
    return Path("cells", one.name, f"figure-{key}.png"), Path("cells", one.name, f"figure-{key}.svg")
