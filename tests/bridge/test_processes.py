"""Two processes, each with its share of a step's rows, end where one process does."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tradeoff.tolerances import IDENTITY

ROOT = Path(__file__).parents[2]
RUN = """
import os
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from tests.bridge.tiny_models import text_world
from tradeoff import bridge
from tradeoff.bridge import data, processes
from tradeoff.strategies import SafeGrad

world, (folder, out) = text_world(), map(Path, sys.argv[1:])
checkpoint = bridge.load(folder, device="cpu", dtype=torch.float64)
task, safety = (data.sample(world, law, 5, seed=1) for law in (world.capability, world.safety))
recipe = bridge.Recipe(penalty=0.0, steps=3, rank=2, upper_layers=2, learning_rate=0.1, optimiser="sgd")
run = bridge.finetune_data(
    checkpoint, recipe, task, safety, sampling=bridge.Sampling(rows=3, safety_rows=1), strategy=SafeGrad(),
    measure={"task": task}, folder=out / "run", progress=False,
)
(out / f"processes_{os.environ.get('RANK', 0)}").write_text(str(processes.count()))
if processes.is_first():
    save_file(dict(run.adapter), out / "weights.safetensors")
processes.together()
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def test_two_processes_end_where_one_does(tiny_folder, tmp_path, monkeypatch):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
    monkeypatch.setattr(sys, "argv", ["run.py", str(tiny_folder), str(tmp_path / "1")])
    runpy.run_path(str(script))
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    shared = subprocess.run(
        [*launched, str(script), str(tiny_folder), str(tmp_path / "2")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shared.returncode == 0, shared.stderr[-3000:]
    assert [(tmp_path / "2" / f"processes_{rank}").read_text() for rank in range(2)] == ["2", "2"]
    alone, both = (load_file(tmp_path / str(count) / "weights.safetensors") for count in (1, 2))
    assert alone.keys() == both.keys()
    for name, weights in alone.items():
        np.testing.assert_allclose(both[name], weights, rtol=IDENTITY.relative, atol=IDENTITY.absolute)
