"""E4: raising λ always helps with the exact proxy, and hurts beyond λ* with a bad one (T2(c), T6(g))."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

import tradeoff as to
from experiments.common import flow_ends, penalties
from tradeoff import loss_constraint


@dataclass(frozen=True)
class Settings:
    """The theory's own over-penalised world, with its bad proxy and with the exact one."""

    least: float = 1e-2
    greatest: float = 1e3
    count: int = 201
    flow_every: int = 20


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """Gaps over the sweep for both proxies, the best penalty and the limit, and gradient flows along it."""
    lam = penalties(settings.least, settings.greatest, settings.count)
    flow_lam = lam[:: settings.flow_every]
    bad = to.worlds.over_penalised()
    exact, flows, marks = [], [], []
    for world in (bad.with_exact_proxy(), bad):
        at = loss_constraint.gaps(world, lam)
        ends = flow_ends(world, flow_lam)
        best = loss_constraint.best_penalty(world)
        exact.append([at.safety, at.capability, loss_constraint.proxy_gap(world, lam)])
        flows.append([ends.safety, ends.capability])
        marks.append([best, loss_constraint.gaps(world, best).safety, world.proxy_mismatch])
    exact, flows, marks = np.array(exact), np.array(flows), np.array(marks)
    if not np.all(np.diff(exact[0, 0]) <= 0):
        raise RuntimeError("with the exact proxy the safety gap rose with λ somewhere, against T2(c): this is a bug.")
    nats = {"units": "nats"}
    return xr.Dataset(
        {
            "safety_gap": (("proxy", "lam"), exact[:, 0], nats),
            "capability_gap": (("proxy", "lam"), exact[:, 1], nats),
            "proxy_gap": (("proxy", "lam"), exact[:, 2], nats),
            "flow_safety_gap": (("proxy", "flow_lam"), flows[:, 0], nats),
            "flow_capability_gap": (("proxy", "flow_lam"), flows[:, 1], nats),
            "best_penalty": ("proxy", marks[:, 0]),
            "least_safety_gap": ("proxy", marks[:, 1], nats),
            "limit": ("proxy", marks[:, 2], nats),
        },
        coords={"proxy": ["exact", "bad"], "lam": lam, "flow_lam": flow_lam},
    )
