"""E1: the safety gap against the penalty, for a near and a far proxy that share their contexts (T6)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

import tradeoff as to
from experiments.common import flow_ends, key, penalties
from tradeoff import loss_constraint


@dataclass(frozen=True)
class Settings:
    """One world, two proxies of different similarity, a sweep of penalties."""

    seed: int = 3
    contexts: int = 32
    responses: int = 8
    overlap: float = 0.5
    conflict: float = 1.0
    near: float = 0.9
    far: float = 0.5
    least: float = 1e-3
    greatest: float = 1e4
    count: int = 141
    flow_every: int = 20


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """Both proxies' exact gaps over the sweep, their limits, and gradient flows at every `flow_every`-th penalty."""
    lam = penalties(settings.least, settings.greatest, settings.count)
    flow_lam = lam[:: settings.flow_every]
    exact, flows, limits = [], [], []
    for similarity in (settings.near, settings.far):
        world = to.worlds.random(
            key(settings.seed),
            settings.contexts,
            settings.responses,
            overlap=settings.overlap,
            conflict=settings.conflict,
            similarity=similarity,
        )
        at = loss_constraint.gaps(world, lam)
        ends = flow_ends(world, flow_lam)
        exact.append([at.safety, at.capability])
        flows.append([ends.safety, ends.capability])
        limits.append(
            [world.proxy_mismatch, loss_constraint.first_order_approach(world), loss_constraint.best_penalty(world)]
        )
    proxy = ("proxy", ["near", "far"])
    exact, flows, limits = np.array(exact), np.array(flows), np.array(limits)
    nats = {"units": "nats"}
    return xr.Dataset(
        {
            "similarity": ("proxy", [settings.near, settings.far]),
            "safety_gap": (("proxy", "lam"), exact[:, 0], nats),
            "capability_gap": (("proxy", "lam"), exact[:, 1], nats),
            "flow_safety_gap": (("proxy", "flow_lam"), flows[:, 0], nats),
            "flow_capability_gap": (("proxy", "flow_lam"), flows[:, 1], nats),
            "limit": ("proxy", limits[:, 0], nats | {"long_name": "Φ, the response mismatch of the proxy"}),
            "approach": ("proxy", limits[:, 1], nats | {"long_name": "Γ, the first-order approach to the limit"}),
            "best_penalty": ("proxy", limits[:, 2]),
        },
        coords={"proxy": proxy, "lam": lam, "flow_lam": flow_lam},
    )
