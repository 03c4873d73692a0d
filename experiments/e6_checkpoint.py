"""E6 on a real checkpoint: both gaps from a safe model to a capable one, and along random directions (T7, local law)."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import xarray as xr

import tradeoff as to
from experiments import e5_real_checkpoint as e5
from experiments.common import key, penalties
from tradeoff import bridge, landscape
from tradeoff.bridge import curvature
from tradeoff.bridge.curvature import Tree
from tradeoff.tolerances import SCORE


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
    chosen = settings.runs
    world = to.worlds.requests(chosen.safety_prompts, chosen.task_prompts, overlap=chosen.overlap)
    checkpoint, runs = bridge.load(chosen.checkpoint), folder.with_name("e5_real_checkpoint")
    to_safe, to_capable = (
        bridge.landscape.displacement(checkpoint, e5.fine_tuned(chosen, checkpoint, world, penalty, runs, progress))
        for penalty in (settings.safe, settings.capable)
    )
    tuning = {name: jnp.asarray(np.asarray(to_capable[name]) - np.asarray(to_safe[name])) for name in to_safe}
    t = np.linspace(settings.back, settings.forth, settings.points)
    with curvature.moved(checkpoint, to_safe, 1.0):
        weights = curvature.parameters(checkpoint, sorted(tuning))
        # Random directions at the scale of each filter, then as long as the fine-tuning one: equal t is equal distance.
        keys = jax.random.split(key(settings.seed), settings.draws)
        ways = [_of_length(_length(tuning), landscape.direction(k, weights)) for k in keys]
        along, *lines = [
            bridge.landscape.line(checkpoint, world, way, t, progress=progress).gaps for way in (tuning, *ways)
        ]
    ratios = [_law(settings, precision, to_safe, tuning) for precision in (torch.float32, torch.float64)]
    front = to.frontier.exact(world, penalties(chosen.least, chosen.greatest, chosen.count))
    points = np.stack([np.stack([each.safety, each.capability], axis=-1) for each in (along, *lines)])
    distance = np.asarray(front.distance(points))
    if distance.min() < -SCORE.absolute:
        raise RuntimeError(
            f"a measured point lies {-distance.min():.3g} nats below the exact frontier (T7). No model can be there: this is "
            "a bug in the scores or in the frontier. Please report it with these settings."
        )
    nats = {"units": "nats"}
    return xr.Dataset(
        {
            "safety_gap": ("t", np.asarray(along.safety), nats),
            "capability_gap": ("t", np.asarray(along.capability), nats),
            "random_safety_gap": (("draw", "t"), points[1:, :, 0], nats),
            "random_capability_gap": (("draw", "t"), points[1:, :, 1], nats),
            "distance": ("t", distance[0], nats | {"long_name": "to the exact frontier, along the diagonal"}),
            "frontier_safety_gap": ("lam", np.asarray(front.safety_gap), nats),
            "frontier_capability_gap": ("lam", np.asarray(front.capability_gap), nats),
            "displacement": ((), _length(tuning), {"units": "parameter norm", "long_name": "from safe to capable"}),
            "weights": ((), _length(weights), {"units": "parameter norm", "long_name": "of the tensors that move"}),
            "local_law": (
                ("precision", "step"),
                np.array([law.ratio for law in ratios]),
                {"long_name": "KL(θ ‖ θ + tδ) over ½ t² δᵀFδ, at the safe model along fine-tuning"},
            ),
            "local_law_step": (("precision", "step"), np.array([law.distances for law in ratios])),
            "local_law_divergence": (("precision", "step"), np.array([law.divergence for law in ratios]), nats),
        },
        coords={
            "t": ("t", t, {"units": "fine-tuning displacements"}),
            "draw": np.arange(settings.draws),
            "lam": np.asarray(front.lam),
            "precision": ["float32", "float64"],
            "step": ["forth", "back"],
        },
        attrs={
            "checkpoint": checkpoint.name,
            "checkpoint_sha256": checkpoint.digest,
            "safe": settings.safe,
            "capable": settings.capable,
            "tensors": json.dumps(sorted(tuning)),
        },
    )


def _law(settings: Settings, precision: torch.dtype, to_safe: Tree, tuning: Tree) -> landscape.LocalLaw:
    """The local law in a precision, with a step of either sign, on a few prompts."""
    step = settings.law_step_float64 if precision == torch.float64 else settings.law_step_float32
    checkpoint = bridge.load(settings.runs.checkpoint, dtype=precision)
    world = to.worlds.requests(settings.law_prompts, 1, overlap=settings.runs.overlap)
    with curvature.moved(checkpoint, to_safe, 1.0):
        return curvature.local_law(checkpoint, world, tuning, [step, -step])


def _of_length(length: float, way: Tree) -> Tree:
    by = length / _length(way)
    return {name: jnp.asarray(np.asarray(leaf) * np.asarray(by, leaf.dtype)) for name, leaf in way.items()}


def _length(way: Tree) -> float:
    return float(np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in way.values())))
