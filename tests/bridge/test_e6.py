"""E6 on a tiny checkpoint: the line passes through the two models of E5, and a point below the frontier is called a bug."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import tradeoff as to
from experiments import e5_real_checkpoint as e5
from experiments import e6_checkpoint as e6
from tradeoff import bridge
from tradeoff.frontier import Frontier
from tradeoff.tolerances import LIMIT, SCORE


@pytest.fixture(scope="module")
def settings(tiny_folder: Path) -> e6.Settings:
    runs = e5.Settings(
        checkpoint=str(tiny_folder), safety_prompts=2, task_prompts=1, steps=3, rank=4, upper_layers=1, count=9
    )
    return e6.Settings(runs=runs, safe=2.0, capable=0.5, back=-1.0, forth=1.0, points=3, draws=1)


@pytest.fixture(scope="module")
def data(settings: e6.Settings, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return e6.run(settings, tmp_path_factory.mktemp("cells") / "e6_checkpoint", progress=False)


def test_the_line_passes_through_both_models_and_random_ones_through_the_safe_one(settings, data, tmp_path):
    checkpoint, world = bridge.load(settings.runs.checkpoint), to.worlds.requests(2, 1)
    for penalty, t in ((2.0, 0.0), (0.5, 1.0)):
        tuned = e5.fine_tuned(settings.runs, checkpoint, world, penalty, tmp_path, progress=False)
        with bridge.adapted(checkpoint, tuned) as there:
            gaps = to.gaps.both(world, bridge.log_policy(there, world))
        at = data.sel(t=t)
        np.testing.assert_allclose(at.safety_gap, gaps.safety, rtol=0, atol=SCORE.absolute)
        np.testing.assert_allclose(at.capability_gap, gaps.capability, rtol=0, atol=SCORE.absolute)
    start = data.sel(t=0.0)
    np.testing.assert_allclose(start.random_safety_gap, start.safety_gap, rtol=0, atol=SCORE.absolute)
    assert float(np.abs(data.random_safety_gap - data.safety_gap).max()) > SCORE.absolute  # negative control
    assert float(data.distance.min()) > 0


def test_the_local_law_holds_in_float64(data):
    assert abs(float(data.local_law.sel(precision="float64").mean()) - 1) < LIMIT.relative
    assert np.all(data.local_law_step.sel(step="forth") == -data.local_law_step.sel(step="back"))


def test_a_point_where_no_model_can_be_is_called_a_bug(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(Frontier, "distance", lambda self, points: np.full(points.shape[:-1], -1e-3))
    with pytest.raises(RuntimeError, match=r"0\.001 nats below the exact frontier \(T7\)"):
        e6.run(dataclasses.replace(settings, points=1, draws=0), tmp_path / "e6_checkpoint", progress=False)
