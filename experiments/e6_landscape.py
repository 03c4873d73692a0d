"""E6: one landscape of safety and capability, along the fine-tuning direction and along random ones (T12, local law)."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import tradeoff as to
from experiments.common import key
from tradeoff import landscape
from tradeoff.tolerances import BOUND


@dataclass(frozen=True)
class Settings:
    """One tabular model, aligned and then fine-tuned to the end."""

    seed: int = 3
    contexts: int = 32
    responses: int = 8
    overlap: float = 0.5
    conflict: float = 1.0
    reach: float = 1.5
    points: int = 61
    draws: int = 32
    threshold: float = 0.1


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """Both gaps on a plane and on lines through the aligned model, the certified bound, and the safety basin."""
    world_key, plane_key, basin_key = jax.random.split(key(settings.seed), 3)
    world = to.worlds.random(
        world_key, settings.contexts, settings.responses, overlap=settings.overlap, conflict=settings.conflict
    )
    problem = to.problems.Tabular(world)
    aligned = problem.aligned()
    rest = 30 * to.dynamics.relaxation_time(world, 0.0)
    tuned = to.dynamics.gradient_flow(problem, aligned, [float(rest)]).parameters[0]
    tuning = tuned - aligned
    distance = jnp.linalg.norm(tuning)
    # Random directions as long as the fine-tuning one, so that equal coordinates are equal distances.
    ways = [distance * landscape.direction(k, aligned, "unit") for k in jax.random.split(plane_key, settings.draws)]
    t = np.linspace(-settings.reach, settings.reach, 2 * settings.points - 1)
    plane = landscape.plane(problem, aligned, tuning, ways[0], t[::2], t[::2])
    path = landscape.along(problem, aligned, tuning, t)
    lines = [landscape.line(problem, aligned, way, t).gaps for way in ways]
    law = landscape.local_law(problem, aligned, tuning, [1.0])
    constants = landscape.ball_constants(problem, aligned, settings.reach * float(distance), basin_key)
    bound = constants.smoothness * (t * distance) ** 2 / 2
    if bool(jnp.any(path.gaps.safety > bound * (1 + BOUND.relative) + BOUND.absolute)):
        raise RuntimeError("the safety gap passes the certified bound ½β_s‖θ - θ_s‖² (T12b): this is a bug.")
    basin = landscape.basin(
        problem, aligned, basin_key, settings.threshold, "unit", settings.draws, reach=4 * float(distance)
    )
    nats, norm = {"units": "nats"}, {"units": basin.unit}
    return xr.Dataset(
        {
            "plane_safety_gap": (("y", "x"), np.asarray(plane.gaps.safety), nats),
            "plane_capability_gap": (("y", "x"), np.asarray(plane.gaps.capability), nats),
            "safety_gap": ("t", np.asarray(path.gaps.safety), nats),
            "capability_gap": ("t", np.asarray(path.gaps.capability), nats),
            "random_safety_gap": (("draw", "t"), np.array([gaps.safety for gaps in lines]), nats),
            "random_capability_gap": (("draw", "t"), np.array([gaps.capability for gaps in lines]), nats),
            "local_law": ("t", t**2 * float(law.quadratic[0]), nats | {"long_name": "½ t² δᵀFδ"}),
            "bound": ("t", np.asarray(bound), nats | {"long_name": "T12(b), certified"}),
            "distance": ((), float(distance), norm | {"long_name": "from the aligned model to the fine-tuned one"}),
            "basin_radius": ((), float(basin.radius), norm),
            "basin_interval": ("end", np.array([basin.lower, basin.upper]), norm | {"long_name": "95 %"}),
            "basin_threshold": ((), settings.threshold, nats),
        },
        coords={
            "x": ("x", t[::2], {"units": "fine-tuning displacements"}),
            "y": ("y", t[::2], {"units": "as far, in a random direction"}),
            "t": ("t", t, {"units": "fine-tuning displacements"}),
            "draw": np.arange(settings.draws),
            "end": ["lower", "upper"],
        },
    )
