"""E6 on a real checkpoint: both gaps from a safe model to a capable one, and along random directions (T7, local law)."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import xarray as xr

import tradeoff as to
from experiments import e5_real_checkpoint as e5
from experiments.cells import Cell, run_cells
from experiments.checkpoint_cells import described, description
from experiments.common import key, penalties
from tradeoff import bridge, landscape
from tradeoff.bridge import curvature
from tradeoff.bridge.curvature import Tree
from tradeoff.tolerances import SCORE

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
LAW, STEPS = ("local_law", "local_law_step", "local_law_divergence"), ["forth", "back"]


@dataclass(frozen=True)
class Settings:
    """Two of the runs of E5: the safe model in the middle, and the capable one at the end of the direction."""

    runs: e5.Settings = field(default_factory=e5.Settings)
    safe: float = 3.0
    capable: float = 0.3
    back: float = -1.0
    forth: float = 2.0
    points: int = 16
    draws: int = 2
    seed: int = 0
    law_prompts: int = 2
    law_step_float32: float = 1e-2
    law_step_float64: float = 1e-4


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """Measure both gaps on the lines, and the local law at the safe model in both precisions.

    The runs are those of E5, which goes first and leaves them beside this folder; where it has not, they are made.

    Raises:
        RuntimeError: when a measured point lies below the frontier, where no policy can be.
    """
    return run_cells(sys.modules[__name__], settings, folder, progress)


def cells(settings: Settings) -> tuple[Cell, ...]:
    """A cell for each line, and for the local law in each precision; all of them start from two runs of E5."""
    runs = tuple(f"e5_real_checkpoint/{e5.name(penalty)}" for penalty in (settings.safe, settings.capable))
    return tuple(Cell(name, settings, runs) for name in (*lines(settings), *PRECISIONS))


def lines(settings: Settings) -> tuple[str, ...]:
    """The names of the lines: the fine-tuning direction, then the random ones."""
    return ("fine-tuning", *(f"random-{draw}" for draw in range(settings.draws)))


def make(settings: Settings, name: str, folder: Path, progress: bool = True) -> xr.Dataset:
    """Both gaps along one line, or the local law in one precision."""
    chosen, runs = settings.runs, folder.with_name("e5_real_checkpoint")
    world, checkpoint = e5.text_world(chosen), bridge.load(chosen.checkpoint)
    to_safe, to_capable = (
        bridge.landscape.displacement(checkpoint, e5.fine_tuned(chosen, checkpoint, world, penalty, runs, progress))
        for penalty in (settings.safe, settings.capable)
    )
    tuning = {name: jnp.asarray(np.asarray(to_capable[name]) - np.asarray(to_safe[name])) for name in to_safe}
    if name in PRECISIONS:
        return _law(settings, PRECISIONS[name], to_safe, tuning)
    number, t = lines(settings).index(name), distances(settings)
    with curvature.moved(checkpoint, to_safe, 1.0):
        weights, way = curvature.parameters(checkpoint, sorted(tuning)), tuning
        if number > 0:
            # At the scale of each filter, then as long as the fine-tuning one: equal t is equal distance.
            drawn = jax.random.split(key(settings.seed), settings.draws)[number - 1]
            way = _of_length(_length(tuning), landscape.direction(drawn, weights))
        gaps = bridge.landscape.line(checkpoint, world, way, t, progress=progress).gaps
    nats, norm = {"units": "nats"}, {"units": "parameter norm"}
    return xr.Dataset(
        {
            "safety_gap": ("t", np.asarray(gaps.safety), nats),
            "capability_gap": ("t", np.asarray(gaps.capability), nats),
            "displacement": ((), _length(tuning), norm | {"long_name": "from safe to capable"}),
            "weights": ((), _length(weights), norm | {"long_name": "of the tensors that move"}),
        },
        coords={"t": ("t", t, {"units": "fine-tuning displacements"})},
        attrs=described(checkpoint) | {"tensors": json.dumps(sorted(tuning))},
    )


def gather(settings: Settings, parts: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """The lines and the local law together, with their distance to the exact frontier."""
    along, laws = parts["fine-tuning"], [parts[name] for name in PRECISIONS]
    t, chosen, world = distances(settings), settings.runs, e5.text_world(settings.runs)
    front = to.frontier.exact(world, penalties(chosen.least, chosen.greatest, chosen.count))
    points = np.stack(
        [np.stack([parts[name].safety_gap, parts[name].capability_gap], axis=-1) for name in lines(settings)]
    )
    distance = np.asarray(front.distance(points))
    if distance.min() < -SCORE.absolute:
        raise RuntimeError(
            f"a measured point lies {-distance.min():.3g} nats below the exact frontier (T7). No model can be there: this is "
            "a bug in the scores or in the frontier. Please report it with these settings."
        )
    nats = {"units": "nats"}
    return xr.Dataset(
        {
            "safety_gap": along.safety_gap,
            "capability_gap": along.capability_gap,
            "random_safety_gap": (("draw", "t"), points[1:, :, 0], nats),
            "random_capability_gap": (("draw", "t"), points[1:, :, 1], nats),
            "distance": ("t", distance[0], nats | {"long_name": "to the exact frontier, along the diagonal"}),
            "frontier_safety_gap": ("lam", np.asarray(front.safety_gap), nats),
            "frontier_capability_gap": ("lam", np.asarray(front.capability_gap), nats),
            "displacement": along.displacement,
            "weights": along.weights,
        }
        | {name: (("precision", "step"), np.stack([law[name] for law in laws]), laws[0][name].attrs) for name in LAW},
        coords={
            "t": ("t", t, {"units": "fine-tuning displacements"}),
            "draw": np.arange(settings.draws),
            "lam": np.asarray(front.lam),
            "precision": list(PRECISIONS),
            "step": STEPS,
        },
        attrs=description(along)
        | {"safe": settings.safe, "capable": settings.capable, "tensors": along.attrs["tensors"]},
    )


def distances(settings: Settings) -> np.ndarray:
    """Where on a line the gaps are measured, in fine-tuning displacements from the safe model."""
    return np.linspace(settings.back, settings.forth, settings.points)


def _law(settings: Settings, precision: torch.dtype, to_safe: Tree, tuning: Tree) -> xr.Dataset:
    """The local law in a precision, with a step of either sign, on a few prompts."""
    step = settings.law_step_float64 if precision == torch.float64 else settings.law_step_float32
    checkpoint = bridge.load(settings.runs.checkpoint, dtype=precision)
    world = to.worlds.requests(settings.law_prompts, 1, overlap=settings.runs.overlap)
    with curvature.moved(checkpoint, to_safe, 1.0):
        law = curvature.local_law(checkpoint, world, tuning, [step, -step])
    said = {"long_name": "KL(θ ‖ θ + tδ) over ½ t² δᵀFδ, at the safe model along fine-tuning"}
    return xr.Dataset(
        {
            "local_law": ("step", np.asarray(law.ratio), said),
            "local_law_step": ("step", np.asarray(law.distances)),
            "local_law_divergence": ("step", np.asarray(law.divergence), {"units": "nats"}),
        },
        coords={"step": STEPS},
        attrs=described(checkpoint),
    )


def _of_length(length: float, way: Tree) -> Tree:
    by = length / _length(way)
    return {name: jnp.asarray(np.asarray(leaf) * np.asarray(by, leaf.dtype)) for name, leaf in way.items()}


def _length(way: Tree) -> float:
    return float(np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in way.values())))
