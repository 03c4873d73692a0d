"""A killed run ends where an unbroken one does, whatever its strategy remembers, and no state is taken for another's."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.bridge.runs import TINY, same_run
from tradeoff._records import record
from tradeoff.bridge.checkpoints import Checkpoint, load
from tradeoff.bridge.finetuning import Recipe, finetune, identity
from tradeoff.bridge.objective import Objective
from tradeoff.bridge.run_state import STATE_FILE, Store, described, flattened, unflattened
from tradeoff.strategies import EMA, EWC, SafeGrad, SafetyConstraint, Strategy, compose
from tradeoff.worlds import World


@pytest.fixture
def tiny(tiny_folder: Path) -> Checkpoint:
    return load(tiny_folder, device="cpu", dtype=torch.float64)


@record
class Counting(Strategy):
    """Its gradient depends on numbers and names that it keeps."""

    kind, source = "gradient", "framework"

    def init(self, weights: Any, engine: Any) -> Any:
        return {"steps": 0, "odd": False, "notes": [None, 0.1, "a/b"], "a/b": {"c": torch.tensor([1, 2])}}

    def gradient(self, inner: Any, state: Any, weights: Any, step: int, engine: Any) -> Any:
        factor = 1 + state["steps"] * state["notes"][1] + float(state["a/b"]["c"][1]) * state["odd"]
        return {name: factor * g for name, g in inner(weights).items()}

    def land(self, state: Any, weights: Any, moved: Any, step: int, engine: Any) -> Any:
        return moved, state | {"steps": state["steps"] + 1, "odd": not state["odd"]}


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run be interrupted in the middle of a step, once."""
    sound, calls = Objective.pull, [0]

    def pull(self: Objective, weights: np.ndarray) -> np.ndarray:
        calls[0] += 1
        if calls[0] == step + 1:
            raise KeyboardInterrupt
        return sound(self, weights)

    monkeypatch.setattr(Objective, "pull", pull)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("step", [0, 1, 2, 3, 5])
def test_interrupted_at_any_step_a_run_ends_where_an_unbroken_one_does(
    step: int, dtype: torch.dtype, tiny_folder: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load(tiny_folder, device="cpu", dtype=dtype)
    unbroken = finetune(checkpoint, world, TINY, tmp_path / "unbroken", progress=False)
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            finetune(checkpoint, world, TINY, tmp_path / "broken", progress=False)
    saved = step // TINY.save_every * TINY.save_every
    assert (tmp_path / "broken" / STATE_FILE).exists() == (saved > 0)
    resumed = finetune(checkpoint, world, TINY, tmp_path / "broken", progress=False)
    assert same_run(unbroken, resumed)
    assert load_file(tmp_path / "broken" / STATE_FILE).keys() == load_file(tmp_path / "unbroken" / STATE_FILE).keys()


STRATEGIES = {
    "average": EMA(0.9),
    "multiplier": SafetyConstraint(0.05),
    "both, and one's own numbers": compose(SafetyConstraint(0.05), Counting(), EMA(0.9, every=2)),
}


@pytest.mark.parametrize("rank", [4, None], ids=["factors", "in full"])
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_what_a_strategy_remembers_is_resumed_too(
    strategy: Strategy,
    rank: int | None,
    tiny: Checkpoint,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = dataclasses.replace(TINY, rank=rank)
    unbroken = finetune(tiny, world, recipe, tmp_path / "unbroken", progress=False, strategy=strategy)
    with monkeypatch.context() as patch:
        interrupt_at(2 * 3 if strategy is not STRATEGIES["average"] else 3, patch)
        with pytest.raises(KeyboardInterrupt):
            finetune(tiny, world, recipe, tmp_path / "broken", progress=False, strategy=strategy)
    assert Store(tmp_path / "broken", identity(tiny, world, recipe, strategy)).load() is not None
    assert same_run(unbroken, finetune(tiny, world, recipe, tmp_path / "broken", progress=False, strategy=strategy))
    again = finetune(tiny, world, recipe, tmp_path / "unbroken", progress=False, strategy=strategy)
    assert same_run(unbroken, again), "a finished run is read back with the weights that are used"


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[3])
torch.set_num_threads(1)
from tests.bridge.runs import TINY
from tests.bridge.tiny_models import text_world
from tradeoff.bridge import finetune, load
from tradeoff.bridge.objective import Objective
from tradeoff.strategies import EMA, SafetyConstraint, compose
sound, calls = Objective.pull, [0]
def pull(self, weights):
    calls[0] += 1
    if calls[0] == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return sound(self, weights)
Objective.pull = pull
checkpoint = load(sys.argv[1], device="cpu", dtype=torch.float64)
strategy = compose(SafetyConstraint(0.05), EMA(0.9))
finetune(checkpoint, text_world(), TINY, sys.argv[2], progress=False, strategy=strategy)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a POSIX system to kill a process outright")
def test_killed_outright_a_strategy_ends_where_an_unbroken_one_does(
    tiny_folder: Path, tiny: Checkpoint, world: World, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(tiny_folder), str(tmp_path), str(Path(__file__).parents[2])]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    strategy = compose(SafetyConstraint(0.05), EMA(0.9))
    saved = Store(tmp_path, identity(tiny, world, TINY, strategy)).load()
    assert saved is not None
    assert saved.step == 4
    resumed = finetune(tiny, world, TINY, tmp_path, progress=False, strategy=strategy)
    assert same_run(resumed, finetune(tiny, world, TINY, progress=False, strategy=strategy))


def test_no_finished_step_is_repeated(
    tiny: Checkpoint, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            finetune(tiny, world, TINY, tmp_path, progress=False)
    sound, calls = Objective.pull, [0]

    def counted(self: Objective, weights: np.ndarray) -> np.ndarray:
        calls[0] += 1
        return sound(self, weights)

    monkeypatch.setattr(Objective, "pull", counted)
    finetune(tiny, world, TINY, tmp_path, progress=False)
    assert calls[0] == TINY.steps - 4
    finetune(tiny, world, TINY, tmp_path, progress=False)
    assert calls[0] == TINY.steps - 4, "a finished run was trained again"


CHILD = """
import sys, torch
sys.path.insert(0, sys.argv[3])
torch.set_num_threads(1)
from tests.bridge.tiny_models import text_world
from tradeoff.bridge import Recipe, finetune, load
recipe = Recipe(penalty=1.0, steps=4000, upper_layers=2, rank=4, save_every=1, learning_rate=1e-2)
finetune(load(sys.argv[1], device="cpu"), text_world(), recipe, sys.argv[2], progress=False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a POSIX system to kill a process outright")
def test_killed_outright_a_run_leaves_a_whole_state(tiny_folder: Path, world: World, tmp_path: Path) -> None:
    """SIGKILL gives no chance to tidy up: whatever the moment, the state on disk is the last whole one."""
    folder = tmp_path / "run"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tiny_folder), str(folder), str(Path(__file__).parents[2])]
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / STATE_FILE).exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    recipe = Recipe(penalty=1.0, steps=4000, upper_layers=2, rank=4, save_every=1, learning_rate=1e-2)
    checkpoint = load(tiny_folder, device="cpu")
    state = Store(folder, identity(checkpoint, world, recipe)).load()
    assert state is not None
    assert 0 < state.step < recipe.steps
    assert state.measured.shape[0] == state.step
    assert [p.name for p in folder.iterdir()] == [STATE_FILE], "what the killed writer left behind is still there"


def test_a_write_that_fails_leaves_the_old_state(
    tiny: Checkpoint, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = [0]
    sound = os.fsync

    def fsync(handle: int) -> None:
        written[0] += 1
        if written[0] == 2:
            raise OSError(28, "No space left on device")
        sound(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"No space left"):
        finetune(tiny, world, TINY, tmp_path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == [STATE_FILE]
    state = Store(tmp_path, identity(tiny, world, TINY)).load()
    assert state is not None
    assert state.step == TINY.save_every


def spoil_nothing(path: Path) -> None:
    """The control: an untouched state is accepted."""


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_nothing, None),
        (truncate, r"state\.safetensors is truncated or damaged.*rm '"),
        (empty, r"state\.safetensors is truncated or damaged.*rm '"),
        (flip_a_bit, r"state\.safetensors was altered.*rm '"),
    ],
)
def test_a_spoilt_state_is_named_with_the_remedy(
    spoil: Callable[[Path], None], message: str | None, tiny: Checkpoint, world: World, tmp_path: Path
) -> None:
    run = finetune(tiny, world, TINY, tmp_path, progress=False)
    spoil(tmp_path / STATE_FILE)
    if message is None:
        assert same_run(run, finetune(tiny, world, TINY, tmp_path, progress=False))
    else:
        with pytest.raises(ValueError, match=message):
            finetune(tiny, world, TINY, tmp_path, progress=False)


def test_another_runs_state_is_refused(tiny: Checkpoint, world: World, tmp_path: Path) -> None:
    finetune(tiny, world, TINY, tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"belongs to another run .recipe: saved.*Give another folder"):
        finetune(tiny, world, dataclasses.replace(TINY, penalty=2.0), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"belongs to another run .world: saved"):
        finetune(tiny, world.with_exact_proxy(), TINY, tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"belongs to another run .strategy: saved.*Plain.*EMA"):
        finetune(tiny, world, TINY, tmp_path, progress=False, strategy=EMA())


def test_saving_more_or_less_often_is_the_same_run(tiny: Checkpoint, world: World, tmp_path: Path) -> None:
    run = finetune(tiny, world, TINY, tmp_path, progress=False)
    assert same_run(run, finetune(tiny, world, dataclasses.replace(TINY, save_every=5), tmp_path, progress=False))


# --- what a strategy is, and what it remembers -------------------------------------------------------------------


def test_a_state_comes_back_as_it_was() -> None:
    shared = torch.arange(3.0)
    state = ({"a/b": {"c": shared}, "a": {"b/c": shared + 1}}, [1, True, 0.1, None, "word"], torch.tensor(2), ())
    structure, tensors = flattened(state)
    assert sorted(tensors) == ["0/a%2Fb/c", "0/a/b%2Fc", "2"]
    back = unflattened(json.loads(json.dumps(structure)), tensors)
    assert repr(back) == repr(state)
    for wrong in ({"count": np.zeros(2)}, {1: shared}, {"record": EMA()}):
        with pytest.raises(ValueError, match=r"state holds a (ndarray|dict|EMA).*cannot be saved; keep tensors"):
            flattened(wrong)


def test_settings_are_told_apart_and_arrays_by_what_they_hold() -> None:
    marks = [EWC(1.0, {"w": array}) for array in (np.zeros(2), np.zeros(3), np.ones(2))]
    strategies = [EMA(0.9), EMA(0.8), EMA(0.9, every=2), compose(SafeGrad(), EMA(0.9)), *marks]
    said = [json.dumps(described(strategy)) for strategy in strategies]
    assert len(set(said)) == len(said)
    assert described(EWC(1.0, {"w": torch.zeros(2, dtype=torch.float64)})) == described(marks[0])
    assert described(EWC(1.0, np.mean)) == {"is": "EWC", "strength": 1.0, "importance": {"is": "numpy:mean"}}
    with pytest.raises(ValueError, match=r"no name to tell this run from another.*without a folder"):
        described(EWC(1.0, lambda weights: weights))
