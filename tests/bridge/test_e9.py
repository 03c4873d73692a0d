"""E9 on a tiny checkpoint and data of a text world: every way is there, no row has two parts, and data are known again."""

import dataclasses
import json
from itertools import product

import numpy as np
import pytest

from experiments import e9_real_data as e9
from figures import e9_real_data as figure
from tradeoff import studies

TINY = {
    "seeds": (0, 1),
    "tasks": ("maths", "instructions"),
    "penalties": (0.5,),
    "radii": (0.5,),
    "align_rows": 3,
    "align_steps": 2,
}
TINY |= {"steps": 2, "rows": 2, "held": 3, "asked": 2, "rank": 2, "upper_layers": 1, "dimensions": 3}


@pytest.fixture
def settings(tiny_folder, world, tmp_path, monkeypatch) -> e9.Settings:
    folder = tmp_path / "data"
    folder.mkdir()
    said = list(product(world.contexts, world.responses))
    refusals = [{"instruction": q, "input": "", "output": a} for q, a in said[:20]]
    rows = [{"question": q, "answer": a} for q, a in said[20:40]]
    (folder / e9.REFUSALS).write_text(json.dumps(refusals))
    (folder / e9.TASKS["maths"]).write_text("\n".join(map(json.dumps, rows)))
    others = [{"instruction": q, "input": "", "output": a} for q, a in said[10:30]]
    (folder / e9.TASKS["instructions"]).write_text(json.dumps(others))
    (folder / e9.OTHERS).write_text("goal\n" + "\n".join(world.contexts))
    (folder / e9.ASKED).write_text(json.dumps({"instructions": list(world.contexts)}))
    monkeypatch.setenv("TRADEOFF_DATA", str(folder))
    monkeypatch.setattr(e9, "CANNED", world.responses[0])
    return e9.Settings(checkpoint=str(tiny_folder), **TINY)


def test_every_way_is_measured_and_foretold_and_its_figure_drawn(settings, tmp_path):
    data = e9.run(settings, tmp_path / "cells", progress=False)
    assert list(data.way.values) == ["plain", "average", "ball 0.5", "near 0.5", "far 0.5"]
    assert dict(data.sizes) == {"task": 2, "seed": 2, "way": 5}
    ball, plain = (data.sel(way=way).distance.values for way in ("ball 0.5", "plain"))
    assert np.all(ball <= 0.5 * plain * (1 + 1e-5))
    assert np.all(data.safety_before == data.safety_before.isel(way=0))  # all start at one aligned checkpoint
    assert len(np.unique(data.safety_before)) == 2  # which is another for each seed
    assert np.all(data.safety_before < data.safety_unaligned)
    assert np.isnan(data.foretold_safety.sel(way="average")).all()
    assert np.isfinite(data.foretold_safety.drop_sel(way="average")).all()
    assert np.all(data.foretold_safety_error.drop_sel(way="average") >= 0)
    data.attrs |= studies.provenance(settings)
    studies.save(data, tmp_path / "e9.nc")
    assert len(figure.draw(data).axes) == 4


def test_no_row_has_two_parts(settings):
    parts, _ = e9.read(settings, "maths")
    for one, other in (
        ("aligned on", "near"),
        ("aligned on", "held safety"),
        ("near", "held safety"),
        ("task", "held task"),
    ):
        assert not set(parts[one].examples) & set(parts[other].examples)
    assert len(parts["far"].examples) == 3


def test_data_are_known_again(settings, tmp_path, monkeypatch):
    (tmp_path / "data" / e9.OTHERS).write_text("goal\nsomething else")
    with pytest.raises(ValueError, match="the data that its settings name"):
        e9.read(settings, "maths")
    monkeypatch.delenv("TRADEOFF_DATA")
    with pytest.raises(ValueError, match="E9 needs real data: set TRADEOFF_DATA"):
        e9.read(dataclasses.replace(settings, data=""), "maths")
