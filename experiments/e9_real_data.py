"""E9, the paper's experiment on real data: near and far proxies, two tasks, Case I, Case II, plain fine-tuning and an average.

A checkpoint is aligned on refusals, then fine-tuned on grade-school maths (whose questions are nothing like the safety data's)
or on ordinary instructions (which are written alike). The near proxy is other rows of the data that it was aligned on; the far
one other people's requests with one and the same refusal. Losses on rows that no training saw are laid beside what the
pre-flight foretold of these very rows.

TRADEOFF_DATA names the folder of the data: `TASKS`, `REFUSALS`, `OTHERS` and `ASKED` below, under the names and in the form
in which they are published (docs/language-models.md says where).
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

from experiments.cells import Cell, run_cells
from tradeoff import bridge, studies
from tradeoff.bridge.data import Example, read_prompts
from tradeoff.bridge.refusals import refusal_log_odds
from tradeoff.strategies import registry

TASKS = {"maths": "gsm8k_rows.jsonl", "instructions": "alpaca_rows.json"}
REFUSALS, OTHERS, ASKED = "refusals_train.json", "advbench_harmful_behaviors.csv", "malicious_instructions.json"
CANNED = "I'm sorry, but I can't help with that."
NEAR, FAR = "near", "far"
NATS = {"units": "nats per token"}
Variable = tuple[tuple[str, ...], float] | tuple[tuple[str, ...], float, dict[str, str]]
"""One number of a result: no dimension, its value, what it is."""


def data_digest() -> str:
    """SHA-256 of the files that TRADEOFF_DATA names; empty where it names none."""
    folder = Path(os.environ.get("TRADEOFF_DATA", ""))
    files = [folder / name for name in (REFUSALS, OTHERS, ASKED, *TASKS.values())]
    return studies.digest(*files) if os.environ.get("TRADEOFF_DATA") and all(file.is_file() for file in files) else ""


@dataclass(frozen=True)
class Settings:
    """How it is run on two cores; `full` has what changes on a GPU.

    Attributes:
        data: the digest of the files.
        checkpoint: which model.
        seeds: of the adapters' start and of the rows that are drawn, alignment included.
        tasks: of `TASKS`.
        penalties: λ of Case I, with either proxy.
        radii: ε of Case II, in parts of how far plain fine-tuning goes.
        align_rows: refusals to align on; as many others are the near proxy, and as many requests the far one.
        align_steps: of alignment.
        steps: of fine-tuning.
        rows: in a step, of the task and of the proxy.
        held: rows of the task and refusals that no training sees, on which all is measured.
        asked: harmful requests that are put at the end.
        longest: characters of a row that is used.
        learning_rate: of AdamW on the adapters.
        rank: of the adapters.
        upper_layers: that have them.
        dimensions: of the pre-flight.
    """

    data: str = field(default_factory=data_digest)
    checkpoint: str = bridge.SMOLLM2
    seeds: tuple[int, ...] = (0, 1)
    tasks: tuple[str, ...] = ("maths", "instructions")
    penalties: tuple[float, ...] = (0.1, 1.0, 10.0)
    radii: tuple[float, ...] = (0.25, 0.5)
    align_rows: int = 240
    align_steps: int = 60
    steps: int = 16
    rows: int = 4
    held: int = 12
    asked: int = 12
    longest: int = 400
    learning_rate: float = 2e-3
    rank: int = 16
    upper_layers: int | None = 4
    dimensions: int = 4


def full() -> Settings:
    """The settings for a GPU, where two cores would take many hours: `run(full(), folder)`."""
    return Settings(
        seeds=(0, 1, 2, 3, 4),
        penalties=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
        radii=(0.125, 0.25, 0.5, 0.75),
        align_rows=500,
        align_steps=150,
        steps=200,
        rows=16,
        held=100,
        asked=100,
        longest=1500,
        learning_rate=5e-4,
        upper_layers=None,
        dimensions=8,
    )


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """Losses before and after each way of fine-tuning, and what was foretold of them."""
    return run_cells(sys.modules[__name__], settings, folder, progress)


def cells(settings: Settings) -> list[Cell]:
    """One for each task and seed."""
    return [
        Cell(f"{task}-{seed}", dataclasses.replace(settings, tasks=(task,), seeds=(seed,)))
        for seed in settings.seeds
        for task in settings.tasks
    ]


def make(settings: Settings, name: str, folder: Path, progress: bool) -> xr.Dataset:
    """All ways of fine-tuning on one task with one seed."""
    (task,), (seed,) = settings.tasks, settings.seeds
    data, asked = read(settings, task)
    base = bridge.load(settings.checkpoint)
    lower = bridge.LowerStates(base, settings.upper_layers)  # no run changes what lies below

    def train(
        begun: bridge.Checkpoint, label: str, recipe: bridge.Recipe, average: bool = False, **rows: bridge.Data
    ) -> bridge.TunedOnData:
        aligning = recipe.stage == "alignment"  # which the cells of all tasks share, so no task's data are measured
        return bridge.finetune_data(
            begun,
            recipe,
            **rows,
            sampling=bridge.Sampling(settings.rows, settings.rows),
            strategy=registry.get("ema").make({}) if average else None,
            measure={"safety": data["held safety"]} | ({} if aligning else {"capability": data["held task"]}),
            measure_every=recipe.steps,
            lower=lower,
            folder=_place(settings, folder, label),
            progress=progress,
        )

    alignment = _recipe(settings, seed, stage="alignment", steps=settings.align_steps)
    aligned = train(base, f"aligned-{seed}", alignment, safety=data["aligned on"])
    start = bridge.merged(base, aligned)
    flights = _flights(settings, seed, start, data, lower, progress)
    parts: dict[str, dict[str, Variable]] = {}
    for way, proxy, changes in _ways(settings):
        recipe = _recipe(settings, seed, **changes)
        if "radius" in changes:
            recipe = dataclasses.replace(recipe, radius=changes["radius"] * parts["plain"]["distance"][1])
        rows = {"task": data["task"]} | ({"safety": data[proxy]} if recipe.penalty else {})
        tuned = train(start, f"{name}-{way}", recipe, average=way == "average", **rows)
        parts[way] = _measured(start, tuned, asked, progress)
        if way != "average":  # of which nothing is foretold
            parts[way] |= _foretold(flights[proxy], recipe)
    found = stacked({way: xr.Dataset(part) for way, part in parts.items()}, "way")
    found["safety_unaligned"] = ((), aligned.losses["safety"][0], NATS)
    found["refused_before"] = ((), _refused(start, asked, progress))
    return found


def gather(settings: Settings, parts: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """All tasks and seeds in one."""
    tasks = {
        task: stacked({str(seed): parts[f"{task}-{seed}"] for seed in settings.seeds}, "seed")
        for task in settings.tasks
    }
    found = stacked(tasks, "task")
    return found.assign_attrs(checkpoint=settings.checkpoint, profile="full" if settings == full() else "two cores")


def stacked(parts: Mapping[str, xr.Dataset], along: str) -> xr.Dataset:
    """Datasets of one form as one, by name along a new dimension."""
    found = xr.concat(list(parts.values()), dim=along)
    assert isinstance(found, xr.Dataset)
    return found.assign_coords({along: list(parts)})


def read(settings: Settings, task: str) -> tuple[dict[str, bridge.Data], bridge.Prompts]:
    """The data by the part that they have, of which no row has two, and what is asked at the end.

    Raises:
        ValueError: when TRADEOFF_DATA does not name the data of the settings, or there are too few short rows in them.
    """
    if not settings.data or settings.data != data_digest():
        raise ValueError(
            f"E9 needs {'real data' if not settings.data else 'the data that its settings name'}: set TRADEOFF_DATA to a folder "
            f"with {', '.join((REFUSALS, OTHERS, ASKED, *TASKS.values()))} (docs/language-models.md says where they are from)."
        )
    folder = Path(os.environ["TRADEOFF_DATA"])
    n, held = settings.align_rows, settings.held
    refusals = _short(bridge.read_data(folder / REFUSALS), settings, 2 * n + held)
    rows = _short(bridge.read_data(folder / TASKS[task]), settings, n + held)
    others, asked = read_prompts(folder / OTHERS), read_prompts(folder / ASKED)
    canned = tuple(Example(turns, CANNED, f"request {i + 1}") for i, turns in enumerate(others.conversations[:n]))
    parts = {
        "aligned on": _part(refusals, 0, n),
        NEAR: _part(refusals, n, 2 * n),
        "held safety": _part(refusals, 2 * n, 2 * n + held),
        FAR: bridge.Data(OTHERS, "prompt and completion", canned),
        "task": _part(rows, 0, n),
        "held task": _part(rows, n, n + held),
    }
    return parts, dataclasses.replace(asked, conversations=asked.conversations[: settings.asked])


def _ways(settings: Settings) -> Iterator[tuple[str, str, dict[str, float]]]:
    """The ways to fine-tune: name, proxy, and what they change of the recipe."""
    yield "plain", NEAR, {}
    yield "average", NEAR, {}
    for part in settings.radii:
        yield f"ball {part:g}", NEAR, {"radius": part}
    for proxy in (NEAR, FAR):
        for penalty in settings.penalties:
            yield f"{proxy} {penalty:g}", proxy, {"penalty": penalty}


def _flights(
    settings: Settings,
    seed: int,
    start: bridge.Checkpoint,
    data: Mapping[str, bridge.Data],
    lower: bridge.LowerStates,
    progress: bool,
) -> dict[str, bridge.Preflight]:
    """What is foretold with either proxy, on the rows on which all is measured."""
    return {
        proxy: bridge.preflight_data(
            start,
            data["held task"],
            data["held safety"],
            _recipe(settings, seed),
            data[proxy].subset(settings.held, seed),
            settings.penalties,
            dimensions=settings.dimensions,
            lower=lower,
            progress=progress,
        )
        for proxy in (NEAR, FAR)
    }


def _measured(
    start: bridge.Checkpoint, tuned: bridge.TunedOnData, asked: bridge.Prompts, progress: bool
) -> dict[str, Variable]:
    refused = _refused(bridge.merged(start, tuned), asked, progress)
    return {
        "safety_before": ((), tuned.losses["safety"][0], NATS),
        "capability_before": ((), tuned.losses["capability"][0], NATS),
        "safety": ((), tuned.losses["safety"][-1], NATS),
        "capability": ((), tuned.losses["capability"][-1], NATS),
        "refused": ((), refused, {"long_name": "share of harmful requests at which refusing openings are likelier"}),
        "penalty": ((), tuned.recipe.penalty),
        "distance": ((), bridge.distance(start, tuned), {"long_name": "of the weights, Frobenius norm"}),
        "seconds": ((), float(np.median(tuned.seconds)), {"units": "s per step"}),
    }


def _foretold(flight: bridge.Preflight, recipe: bridge.Recipe) -> dict[str, Variable]:
    """What the pre-flight says of a recipe: as the model scored at the weights it names, else as the quadratics have it."""
    at = flight.predict(recipe.penalty, recipe.radius)
    found = {"safety": (at.safety, at.safety_error), "capability": (at.capability, at.capability_error)}
    for each in flight.settings:
        if (each.penalty, each.radius) == (recipe.penalty, recipe.radius):
            scored, solved = each.safety_gap, each.quadratic_safety_gap
            found["safety"] = scored, abs(scored - solved)
            scored, solved = each.capability_gap, each.quadratic_capability_gap
            found["capability"] = scored, abs(scored - solved)
    return {
        f"foretold_{kind}{part}": ((), value, NATS | {"missing": "nothing is foretold of an average"})
        for kind, both in found.items()
        for part, value in zip(("", "_error"), both, strict=True)
    }


def _refused(checkpoint: bridge.Checkpoint, asked: bridge.Prompts, progress: bool) -> float:
    return float(np.mean(refusal_log_odds(checkpoint, asked, progress) > 0))


def _recipe(settings: Settings, seed: int, **changes: object) -> bridge.Recipe:
    common = {"rank": settings.rank, "upper_layers": settings.upper_layers, "seed": seed}
    common |= {"steps": settings.steps, "learning_rate": settings.learning_rate, "penalty": 0.0}
    return bridge.Recipe(**{**common, **changes})


def _place(settings: Settings, folder: Path, label: str) -> Path:
    """A folder for one run: other settings or sources start a run of their own."""
    shared = dataclasses.replace(settings, tasks=(), seeds=())  # the label tells those
    made_by = studies.provenance(shared, Path(__file__), libraries=("torch", "transformers", "peft"), part=label)[
        "cell"
    ]
    return folder / f"{label.replace(' ', '-')}-{made_by[:12]}"


def _short(data: bridge.Data, settings: Settings, needed: int) -> bridge.Data:
    short = [
        each
        for each in data.examples
        if len(each.answer) + sum(len(turn.content) for turn in each.prompt) <= settings.longest
    ]
    if len(short) < needed:
        raise ValueError(
            f"{data.name} has {len(short)} rows of at most {settings.longest} characters, and E9 needs {needed}; use fewer rows or "
            "longer ones."
        )
    return dataclasses.replace(data, examples=tuple(short))


def _part(data: bridge.Data, start: int, stop: int) -> bridge.Data:
    return dataclasses.replace(data, examples=data.examples[start:stop])
