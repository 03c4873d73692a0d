"""`tradeoff lm` as a person would type it, on a tiny checkpoint."""

import json
import sys
from pathlib import Path

import pytest

import tradeoff as to
from tradeoff import cli
from tradeoff.bridge.data import sample
from tradeoff.tolerances import SCORE


@pytest.fixture
def lm(tiny_folder: Path, world: to.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Run a command of `tradeoff lm` on the tiny checkpoint; its exit status, output and error output."""
    to.worlds.write(world, tmp_path / "world.json")

    def run(command, *arguments):
        given = [command, str(tmp_path / "world.json"), "--checkpoint", str(tiny_folder), *arguments]
        monkeypatch.setattr(sys, "argv", ["tradeoff", "lm", *given])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


QUICK = ("--steps", "2", "--upper-layers", "1", "--json")


def test_finetune_prints_the_gaps_before_and_after_and_the_cost(lm, tmp_path):
    code, out, _ = lm("measure", "--json")
    at_rest = json.loads(out)
    code, out, _ = lm("finetune", *QUICK, "--strategy", "safegrad", "--rank", "2", "--folder", str(tmp_path / "run"))
    told = json.loads(out)
    assert code == 0
    assert told["capability_gap_before"] == pytest.approx(at_rest["capability_gap"], abs=1e-4)
    assert told["capability_gap"] < told["capability_gap_before"]
    assert told["gradients"] == 4
    again = json.loads(
        lm("finetune", *QUICK, "--strategy", "safegrad", "--rank", "2", "--folder", str(tmp_path / "run"))[1]
    )
    assert again == told, "the run is in the folder"


@pytest.fixture
def on_data(tiny_folder, world, tmp_path, monkeypatch, capsys):
    """Run `tradeoff lm measure` on data of the world and the tiny checkpoint."""
    for role in ("safety", "capability"):
        drawn = sample(world, getattr(world, role), 8).examples
        rows = [{"question": e.prompt[0].content, "answer": e.answer} for e in drawn]
        (tmp_path / f"{role}.json").write_text(json.dumps(rows))

    def run(*arguments):
        given = [str(tmp_path / a) if a.endswith(".json") else a for a in arguments]
        monkeypatch.setattr(sys, "argv", ["tradeoff", "lm", "measure", "--checkpoint", str(tiny_folder), *given])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


def test_measure_reads_data_as_well_as_worlds(on_data, tiny_folder):
    arguments = ("--safety", "safety.json", "--capability", "capability.json", "--limit", "6")
    code, out, _ = on_data(*arguments, "--baseline", str(tiny_folder), "--json")
    told = json.loads(out)
    assert code == 0
    assert told["gaps"]["capability"]["gap"]["value"] == 0
    assert told["gaps"]["safety"]["baseline"] == str(tiny_folder)
    code, out, _ = on_data(*arguments)
    assert f"{told['gaps']['safety']['loss']['value']:.4g}" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give either a world's JSON file, or data"),
        (("world.json", "--safety", "safety.json"), "give either a world's JSON file, or data"),
        (("--safety", "absent.json"), "absent.json is no file"),
        (("--safety", "safety.json", "--overlap"), "give both safety and capability data"),
        (("--safety", "safety.json", "--checkpoint", "/nowhere"), "No such folder: /nowhere"),
    ],
)
def test_a_wrong_measurement_is_answered_with_the_right_one(on_data, arguments, says):
    code, _, err = on_data(*arguments)
    assert code == 2
    assert says in err


def test_finetune_trains_in_full_and_speaks_to_people(lm):
    code, out, _ = lm("finetune", *QUICK[:-1], "--rank", "None", "--strategy", "ema")
    assert code == 0
    assert out.split()[0] == "safety_gap_before"


def test_a_strategy_of_alignment_is_trained_on_the_safety_data(lm):
    told = json.loads(lm("finetune", *QUICK, "--rank", "2", "--strategy", "vaccine")[1])
    assert told["safety_gap"] < told["safety_gap_before"]
    assert told["gradients"] == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--strategy", "emma"), "no strategy is named 'emma'"),
        (("--strategy", "booster", "--penalty", "1"), "penalty=1.0 with stage='alignment'"),
        (("--strategy", "tsdi"), "tsdi has settings without defaults"),
        (("--strategy", "resta"), "resta has settings without defaults"),
        (("--strategy", "lb-sgd"), "give Recipe(optimiser='sgd', learning_rate=1)"),
        (("--steps", "0"), "steps=0; it must be at least 1"),
        (("--checkpoint", "/nowhere"), "No such folder: /nowhere"),
    ],
)
def test_a_wrong_request_is_answered_with_the_right_one(lm, arguments, says):
    code, _, err = lm("finetune", *arguments)
    assert code == 2
    assert says in err


def test_finetune_on_data_writes_the_model_that_it_measured(tiny_folder, on_data, world, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tradeoff", "lm", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    task, tuned = str(tmp_path / "capability.json"), str(tmp_path / "tuned")
    given = ("finetune", "--checkpoint", str(tiny_folder), "--task", task, "--rank", "2", "--out", tuned)
    code, out, _ = run(*given, *QUICK)
    told = json.loads(out)
    assert code == 0
    assert told["task_loss"] < told["task_loss_before"]
    _, out, _ = run("measure", "--checkpoint", tuned, "--capability", task, "--json")
    measured = json.loads(out)["gaps"]["capability"]["loss"]["value"]
    assert measured == pytest.approx(told["task_loss"], abs=SCORE.absolute)
    code, _, err = run(*given, *QUICK)
    assert (code, "is there already" in err) == (2, True)
    code, _, err = run("finetune", "--checkpoint", str(tiny_folder))
    assert (code, "either a world's JSON file, or data" in err) == (2, True)
