"""E2: the Case I frontier at low, medium and high context overlap (T5), with the limit that no policy passes (T8)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

import tradeoff as to
from experiments.common import flow_ends, key, penalties


@dataclass(frozen=True)
class Settings:
    """Three worlds that differ in overlap alone."""

    seed: int = 3
    contexts: int = 32
    responses: int = 8
    conflict: float = 1.0
    overlaps: tuple[float, ...] = (0.1, 0.4, 0.9)
    least: float = 1e-3
    greatest: float = 1e3
    count: int = 181
    flow_every: int = 30


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """Exact frontiers, the fundamental limit along each, and gradient flows at every `flow_every`-th penalty."""
    lam = penalties(settings.least, settings.greatest, settings.count)
    flow_lam = lam[:: settings.flow_every]
    exact, flows, limits = [], [], []
    for overlap in settings.overlaps:
        world = to.worlds.random(
            key(settings.seed), settings.contexts, settings.responses, overlap=overlap, conflict=settings.conflict
        )
        front = to.frontier.exact(world, lam)
        ends = flow_ends(world.with_exact_proxy(), flow_lam)
        exact.append([front.safety_gap, front.capability_gap])
        flows.append([ends.safety, ends.capability])
        limits.append(to.frontier.lower_limit(world, front.safety_gap))
    exact, flows = np.array(exact), np.array(flows)
    nats = {"units": "nats"}
    return xr.Dataset(
        {
            "safety_gap": (("overlap", "lam"), exact[:, 0], nats),
            "capability_gap": (("overlap", "lam"), exact[:, 1], nats),
            "flow_safety_gap": (("overlap", "flow_lam"), flows[:, 0], nats),
            "flow_capability_gap": (("overlap", "flow_lam"), flows[:, 1], nats),
            "lower_limit": (("overlap", "lam"), np.array(limits), nats | {"long_name": "T8(c) at the safety gap of λ"}),
        },
        coords={"overlap": list(settings.overlaps), "lam": lam, "flow_lam": flow_lam},
    )
