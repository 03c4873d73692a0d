"""The experiments as a graph, tried on stand-ins that take a moment each: killed anywhere it resumes and redoes nothing finished."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tradeoff.cli
from experiments import e8_checkpoint
from experiments.catalogue import asked, entry
from experiments.locks import hold
from tradeoff import studies

ROOT = Path(__file__).parents[2]
ENGINE = ("__init__", "__main__", "cells", "check", "jobs", "locks", "plan", "report")
CELLS = ("first", "left", "right")

CHAIN = '''
"""Cells that take a moment and say in a journal when they begin and end."""
import dataclasses, os, sys, time
import numpy as np, xarray as xr
from experiments.cells import Cell, run_cells

@dataclasses.dataclass(frozen=True)
class Settings:
    left: float = 1.0
    seed: int = 3

def cells(settings):
    alike = dataclasses.replace(settings, left=Settings.left)
    return (
        Cell("first", alike),
        Cell("left", settings, ("chain/first",)),
        Cell("right", alike, ("chain/first",)),
    )

def make(settings, name, folder, progress=True):
    with open(os.environ["JOURNAL"], "a") as journal:
        print("begin", name, file=journal, flush=True)
        time.sleep(float(os.environ["MOMENT"]))
        print("end", name, file=journal, flush=True)
    random = np.random.default_rng([settings.seed, len(name)])
    return xr.Dataset({"gap": ("step", settings.left * random.random(50))})

def gather(settings, parts):
    return xr.concat(parts.values(), dim="cell").assign_coords(cell=list(parts))

def run(settings, folder, progress=True):
    return run_cells(sys.modules[__name__], settings, folder, progress)
'''
FIGURE = '''
"""A line."""
from matplotlib.figure import Figure

TITLE, CAPTION, THEOREMS = "A chain", "Three cells.", ("T4a",)

def draw(data):
    figure = Figure()
    figure.subplots().plot(data.gap.values.ravel())
    return figure
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The workflow with one stand-in experiment, in a folder of its own."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "experiments" / "profiles", root / "experiments" / "profiles")
    (root / "figures").mkdir()
    for name in (*(f"{name}.py" for name in ENGINE), "Snakefile"):
        shutil.copy(ROOT / "experiments" / name, root / "experiments" / name)
    catalogue = (ROOT / "experiments" / "catalogue.py").read_text()
    only = re.sub(r"CATALOGUE = \(.*?\n\)", 'CATALOGUE = (Entry("chain"),)', catalogue, flags=re.DOTALL)
    (root / "experiments" / "catalogue.py").write_text(only)
    (root / "experiments" / "chain.py").write_text(CHAIN)
    (root / "figures" / "__init__.py").touch()
    (root / "figures" / "chain.py").write_text(FIGURE)
    return root


def start(checkout, *arguments, out="out", moment=0.0):
    """The command a person types, in a process group of its own."""
    environment = {**os.environ, "JOURNAL": str(checkout / f"{out}.journal"), "MOMENT": str(moment)}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", "--out", str(checkout / out), *arguments],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(*arguments, **options):
    process = start(*arguments, **options)
    said, _ = process.communicate(timeout=400)
    return process.returncode, said


def begun(checkout, out="out"):
    journal = checkout / f"{out}.journal"
    return re.findall(r"begin (\w+)", journal.read_text()) if journal.exists() else []


def finished(checkout, out="out"):
    return {path.name.split("-")[0] for path in (checkout / out / "cells" / "chain").glob("[!.]*.nc")} & set(CELLS)


def contents(folder):
    kept = [*folder.glob("data/*"), *folder.glob("figures/*"), folder / "report.html"]
    return {path.relative_to(folder): path.read_bytes() for path in kept}


@pytest.fixture(scope="module")
def undisturbed(checkout):
    """A run from nothing to the report."""
    code, said = finish(checkout)
    assert code == 0, said
    return checkout / "out"


def test_a_run_makes_every_cell_once_and_what_it_writes_says_so(checkout, undisturbed):
    assert sorted(begun(checkout)) == sorted(CELLS)
    assert begun(checkout)[0] == "first"
    data = studies.load(undisturbed / "data" / "chain.nc")
    assert list(data.cell.values) == list(CELLS)
    assert (data.attrs["made_by"], data.attrs["seed"]) == ("experiments.chain", "3")
    (cell,) = (undisturbed / "cells" / "chain").glob("left-*.nc")
    assert cell.stem.endswith(studies.load(cell).attrs["cell"][:16])


def test_killed_anywhere_it_resumes_without_redoing_a_finished_cell(checkout, undisturbed):
    drawn, out = random.Random(1), "killed"
    # All of it in its first cell; then the workflow alone, when one cell is finished and two others live on for a moment.
    for kill, cells in ((os.killpg, {"first"}), (os.kill, {"left", "right"})):
        process = start(checkout, out=out, moment=1.0)
        while not cells <= set(begun(checkout, out)) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(drawn.uniform(0, 0.9))
        kill(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()
    assert "first" in finished(checkout, out)
    assert not (checkout / out / "report.html").exists()
    code, said = finish(checkout, out=out)
    assert code == 0, said
    assert [begun(checkout, out).count(name) for name in CELLS] == [2, 1, 1]
    assert contents(checkout / out) == contents(undisturbed)
    assert not list((checkout / out).rglob(".*.nc")), "half a file was left"


def test_dates_mean_nothing(checkout, undisturbed):
    before, count = contents(undisturbed), len(begun(checkout))
    for number, path in enumerate(
        path for path in checkout.rglob("*.*") if path.suffix in (".py", ".nc", ".png", ".svg")
    ):
        os.utime(path, (10**9 - number * 10**6,) * 2)
    code, said = finish(checkout)
    assert (code, begun(checkout)[count:]) == (0, [])
    assert "chain: unchanged, kept" in said
    assert contents(undisturbed) == before


def test_a_change_redoes_exactly_what_depends_on_it(checkout, undisturbed):
    """Files that are there are kept, so what a change redoes is what has another name then."""
    module, figure, other = (
        checkout / name for name in ("experiments/chain.py", "figures/chain.py", "experiments/jobs.py")
    )

    def wanted():
        planned = [sys.executable, "-m", "experiments", "--do", "plan"]
        jobs = json.loads(subprocess.run(planned, cwd=checkout, check=True, capture_output=True).stdout)
        files = [file for job in jobs for file in job["makes"]]
        return {Path(file).name.rsplit("-", 1)[0] for file in files if not (undisturbed / file).exists()}

    for path, text, redone in (
        (other, other.read_text() + "# a comment\n", set()),
        (figure, FIGURE.replace("Figure()", "Figure(figsize=(3, 2))"), {"figure"}),
        (module, CHAIN.replace("cells(settings):", "cells(settings):  # as before"), {*CELLS, "result", "figure"}),
    ):
        was = path.read_text()
        path.write_text(text)
        assert wanted() == redone
        path.write_text(was)
    assert wanted() == set()


def test_another_setting_is_another_name_for_the_cells_that_depend_on_it_only():
    pytest.importorskip("torch", reason="the extra lm is not installed")
    one, two = (
        {cell.name: cell.settings for cell in e8_checkpoint.cells(each)}
        for each in (e8_checkpoint.Settings(), e8_checkpoint.Settings(gentle=1e-5, names=("ema", "vaccine")))
    )
    assert {name for name in one.keys() & two.keys() if one[name] != two[name]} == {"gentle"}
    assert one.keys() - two.keys() == {"merge-linear", "l2-sp", "mixing", "safegrad", "spag", "booster"}


def test_a_damaged_result_is_named_and_nothing_published_is_lost(checkout, undisturbed):
    (result,) = (undisturbed / "cells" / "chain").glob("result-*.nc")
    content, before = result.read_bytes(), contents(undisturbed)
    result.write_bytes(content[:3000])
    code, said = finish(checkout)
    result.write_bytes(content)
    assert code != 0
    assert f"{result} is not a whole result file" in said
    assert "delete it and run again" in said
    assert contents(undisturbed) == before


def test_a_result_is_made_again_and_compared(checkout, undisturbed, tmp_path):
    def checked(path, **more):
        environment = {**os.environ, "JOURNAL": str(tmp_path / "journal"), "MOMENT": "0"} | more
        options = {"cwd": checkout, "env": {name: value for name, value in environment.items() if value is not None}}
        done = subprocess.run(
            [sys.executable, "-m", "experiments", "--check", str(path)],
            check=False,
            capture_output=True,
            text=True,
            **options,
        )
        return done.returncode, done.stdout + done.stderr

    code, said = checked(undisturbed / "data" / "chain.nc")
    assert (code, "all 2 variables are equal" in said) == (0, True), said
    assert (tmp_path / "journal").read_text().count("begin") == len(CELLS)
    data = studies.load(undisturbed / "data" / "chain.nc")
    data.gap[1, 2] += 0.25
    studies.save(data.assign_attrs(threads="900"), tmp_path / "other.nc")
    code, said = checked(tmp_path / "other.nc")
    assert code == 1
    assert "gap differs in 1 of 150 values, by at most 0.25" in said
    assert "at cell = left, step = 2" in said
    assert "made by other: threads: 900 became" in said
    flags = f"--xla_backend_optimization_level=1 --xla_dump_to={tmp_path / 'dump'}"
    studies.save(data.assign_attrs(xla_flags=flags), tmp_path / "compiled.nc")
    _, said = checked(tmp_path / "compiled.nc", XLA_FLAGS=None)
    assert f"xla_flags: {flags} became --xla_backend_optimization_level=1\n" in said
    assert not (tmp_path / "dump").exists()
    _, said = checked(tmp_path / "compiled.nc", XLA_FLAGS="--xla_backend_optimization_level=0")
    assert f"xla_flags: {flags} became --xla_backend_optimization_level=0\n" in said
    studies.save(data.assign_attrs(made_by="os"), tmp_path / "foreign.nc")
    code, said = checked(tmp_path / "foreign.nc")
    assert code == 1
    assert "says that 'os' made it, which is no experiment of this checkout; it is not run" in said


def test_two_at_once_are_told_apart(checkout, undisturbed):
    held = hold(undisturbed / ".lock")
    try:
        code, said = finish(checkout)
    finally:
        os.close(held)
    assert code != 0
    assert re.search(rf"another run is at work in .*out \(process {os.getpid()}\)\. Wait for it, stop it", said)


def test_the_cluster_is_planned_as_this_machine_is(checkout, undisturbed):
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="snakemake-executor-plugin-slurm is not installed")
    code, said = finish(checkout, "--profile", str(checkout / "experiments/profiles/slurm"), "--dry-run", out="cluster")
    assert code == 0, said
    assert all(f"chain-{name}" in said for name in CELLS)
    assert not begun(checkout, "cluster")


def test_a_folder_that_cannot_be_made_is_named(checkout):
    (checkout / "taken").write_text("a file")
    code, said = finish(checkout, out="taken")
    assert code != 0
    assert re.search(r"taken.*give another one with --out", said), said


def test_an_unknown_experiment_has_a_nearest_name():
    with pytest.raises(SystemExit, match="no experiment is named 'e2_contxt_overlap'.*Did you mean e2_context_overlap"):
        entry("e2_contxt_overlap")


def test_the_command_asks_the_checkout(tmp_path, capfd, monkeypatch):
    check = tradeoff.cli.Check(ROOT / "figures" / "gallery" / "e2_context_overlap.nc")
    if studies.load(check.result).attrs["schema"] == "1":
        assert check.run() == 1
        assert "does not say what made a result; run the experiment again" in capfd.readouterr().err
    monkeypatch.setattr(tradeoff.cli, "__file__", str(tmp_path / "tradeoff" / "cli.py"))
    assert check.run() == 2
    assert "is no checkout of it; clone it" in capfd.readouterr().err


def test_an_experiment_that_lacks_its_data_says_what_to_set(monkeypatch):
    monkeypatch.delenv("TRADEOFF_DATA", raising=False)
    with pytest.raises(SystemExit, match=r"e9_real_data cannot be made, for TRADEOFF_DATA is not set.*says to what"):
        asked("e9_real_data")
    monkeypatch.setenv("TRADEOFF_DATA", "data")
    assert asked("e9_real_data").checkpoint
