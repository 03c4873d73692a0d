"""The theorems behind the figures: T1 to T8, verified on random instances."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from tqdm import tqdm

import tradeoff as to
from experiments.common import key
from tradeoff.theorems.together import CORES


@dataclass(frozen=True)
class Settings:
    """How many instances of each claim, and of which claims; `tradeoff verify` does them all."""

    names: tuple[str, ...] = tuple(claim.name for claim in to.theorems.all() if re.match(r"T[1-8](?!\d)", claim.name))
    seed: int = 0
    instances: int = 10_000


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """The verdict on every claim.

    Raises:
        RuntimeError: when a claim fails; the message names the instance.
    """
    claims = [to.theorems.get(name) for name in settings.names]
    found = []
    with tqdm(desc="theorems", unit="claim", total=len(claims), disable=not progress) as bar:
        for verdict in to.theorems.verify_each(claims, key(settings.seed), settings.instances, processes=CORES):
            found.append(verdict)
            bar.update()
    if failed := [str(verdict) for verdict in found if not verdict.holds]:
        raise RuntimeError("\n".join(failed))
    # A ratio says nothing about an equality, and a file holds no NaN: the flag says where to read it.
    inequality = [any(relation != "==" for relation in claim.relations) for claim in claims]
    tightest = np.array([verdict.tightest for verdict in found])
    inequality = np.array(inequality) & np.isfinite(tightest)
    return xr.Dataset(
        {
            "title": ("theorem", [claim.title for claim in claims]),
            "proved": ("theorem", [claim.proved for claim in claims]),
            "holds": ("theorem", [verdict.holds for verdict in found]),
            "inequality": ("theorem", inequality),
            "tightest": ("theorem", np.where(inequality, tightest, 1.0)),
            "worst_slack": ("theorem", [verdict.worst_slack for verdict in found]),
            "worst_index": ("theorem", [verdict.worst_index for verdict in found]),
        },
        coords={"theorem": [claim.name for claim in claims]},
    )
