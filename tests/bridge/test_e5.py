"""E5 on a tiny checkpoint: its data are what they say, it resumes, and a point below the frontier is called a bug."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import tradeoff as to
from experiments import e5_real_checkpoint as e5
from experiments.e5_real_checkpoint import Settings
from tradeoff.bridge import finetuning
from tradeoff.tolerances import EXACT

SAME = EXACT.relative


@pytest.fixture
def settings(tiny_folder: Path) -> Settings:
    return Settings(
        checkpoint=str(tiny_folder),
        penalties=(0.5, 2.0),
        safety_prompts=2,
        task_prompts=1,
        steps=3,
        rank=4,
        upper_layers=2,
        count=9,
    )


def test_the_data_are_the_gaps_and_what_the_theory_says_of_them(settings: Settings, tmp_path: Path) -> None:
    data = e5.run(settings, tmp_path, progress=False)
    world = to.worlds.requests(2, 1)
    assert dict(data.sizes) == {"penalty": 2, "step": 4, "frontier_lam": 9}
    at = to.loss_constraint.gaps(world, np.array(settings.penalties))
    assert np.array_equal(data.optimum_safety_gap, at.safety)
    assert np.array_equal(data.optimum_capability_gap, at.capability)
    assert np.allclose(
        data.surplus, data.capability_gap + data.penalty * data.safety_gap - data.value, rtol=0, atol=SAME
    )
    assert float(data.distance.min()) > 0
    assert bool((data.limit <= data.capability_gap).all())
    assert bool((data.frontier_limit <= data.frontier_capability_gap + SAME).all())
    assert np.array_equal(data.safety_gap[0, 0], data.safety_gap[1, 0]), "every penalty starts at the same checkpoint"


def test_the_data_say_what_made_them(settings: Settings, tmp_path: Path) -> None:
    attrs = e5.run(settings, tmp_path, progress=False).attrs
    assert attrs["checkpoint"] == settings.checkpoint
    assert (attrs["model_device"], attrs["model_dtype"]) in {("cpu", "float32"), ("cuda", "float32")}
    assert "model.safetensors" in attrs["checkpoint_files"]
    assert '"layout": "packed"' in attrs["contract"]


def test_finished_cells_are_kept_and_other_settings_start_others(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = e5.run(settings, tmp_path, progress=False)
    cells = set(tmp_path.iterdir())
    assert len(cells) == 2
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "_train", lambda *_: pytest.fail("a finished cell was trained again"))
        assert e5.run(settings, tmp_path, progress=False).identical(first)
    e5.run(dataclasses.replace(settings, seed=1), tmp_path, progress=False)
    assert len(set(tmp_path.iterdir()) - cells) == 2
