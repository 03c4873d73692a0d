"""The numbers that the docs quote are the recorded ones."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import scipy.stats
import xarray as xr

from figures import e8_league, e8_text
from tradeoff import theorems

ROOT = Path(__file__).parents[1]


def test_the_concepts_page_quotes_the_recorded_checkpoint():
    prose = " ".join((ROOT / "docs" / "concepts.md").read_text().split())
    runs = xr.load_dataset(ROOT / "figures" / "gallery" / "e5_real_checkpoint.nc", engine="h5netcdf")
    run = runs.sel(penalty=1.0)
    for words in (
        f"starts at gaps of ({float(run.safety_gap[0]):.1f}, {float(run.capability_gap[0]):.1f}) nats",
        f"ends at ({float(run.safety_gap[-1]):.3f}, {float(run.capability_gap[-1]):.3f})",
        f"optimum is ({float(run.optimum_safety_gap):.3f}, {float(run.optimum_capability_gap):.3f})",
        f"{float(run.distance[-1]):.3f} nats above the frontier",
    ):
        assert words in prose
    assert (runs.distance > 0).all()


def test_the_worked_example_is_what_the_page_says(tmp_path):
    """The false conjecture of the docs: how often random instances break it, and that it is written with `@to.theorem`."""
    page = ROOT / "docs" / "bring-your-own-theorem.md"
    (source,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    path = tmp_path / "my_bounds.py"
    path.write_text(source)
    (claim,) = theorems.load(path)
    verdict = theorems.verify(claim, jax.random.key(0))
    assert f"{verdict.violations:,} violations in {verdict.instances:,}" in " ".join(page.read_text().split())


def test_the_rates_that_the_page_quotes_are_the_recorded_ones():
    words = " ".join((ROOT / "docs" / "bring-your-own-theorem.md").read_text().split())
    found = json.loads((ROOT / "docs" / "evidence" / "falsifier.json").read_text())
    wrong, attained, near = found["wrong theorems"], found["attained bounds"], found["reached to 0.99"]
    assert (
        f"Of {wrong} wrong theorems `verify` finds {found['found by verify']} and `falsify` {found['found by falsify']}"
        in words
    )
    assert f"of the {attained} attained bounds `falsify` reaches {near} to a ratio of at least 0.99" in words
    assert near == sum(ratio >= 0.99 for ratio in found["ratios"].values())


def test_the_page_on_real_models_quotes_the_recorded_checkpoint():
    """E10 and E8 on SmolLM2: where the runs end, and what foretold it."""
    text = (ROOT / "docs" / "language-models.md").read_text()
    prose = " ".join(text.split())
    tasks, league = (
        xr.load_dataset(ROOT / "figures" / "gallery" / f"{name}.nc", engine="h5netcdf")
        for name in ("e10_overlap_of_meaning", "e8_checkpoint")
    )
    apart = tasks.safety_gap[(tasks.known.sel(foreteller="context_overlap") == 0).values]
    ends, greatest = apart.isel(step=-1), apart.max("step")
    last, most = (tasks.rank_correlation.sel(lost=lost) for lost in tasks.lost.values)
    first = league.isel(step=0, strategy=0)
    for words in (
        f"six of them share no prompt. On these six the safety gap goes from {float(apart[0, 0]):.3f} nats to between "
        f"{float(ends.min()):.2f} and {float(ends.max()):.2f}",
        f"by way of {float(greatest.min()):.2f} to {float(greatest.max()):.2f}",
        f"from ({float(first.safety_gap):.3f}, {float(first.capability_gap):.3f}) to",
        *(
            said.format(*(float(each.sel(foreteller=name)) for each in (last, most)))
            for said, name in (
                ("rank correlation {:.2f} with the safety gap after the last step and {:.2f}", "feature_overlap"),
                ("share of prompts has {:.2f} and {:.2f}", "context_overlap"),
                ("shared words have {:.2f} and {:.2f}", "word_overlap"),
                ("conflict of the gradients {:.2f} and {:.2f}", "conflict"),
                ("along the task gradient {:.2f} and {:.2f}", "curvature"),
            )
        ),
    ):
        assert words in prose
    assert len(apart) == 6
    assert most.idxmax().item() == last.idxmax().item() == "feature_overlap"
    for name, one in league.isel(step=-1).groupby("strategy"):
        assert f"| {name} | {float(one.safety_gap.item()):.2f} | {float(one.capability_gap.item()):.2f} |" in text


def test_the_page_on_real_models_quotes_the_papers_experiment():
    """E9 on SmolLM2: what each way costs and brings, on both tasks."""
    prose = " ".join((ROOT / "docs" / "language-models.md").read_text().split())
    data = xr.load_dataset(ROOT / "figures" / "gallery" / "e9_real_data.nc", engine="h5netcdf")
    assert data.attrs["profile"] == "two cores"
    near, far = (data.safety.sel(way=[f"{proxy} {lam}" for lam in ("0.1", "1", "10")]) for proxy in ("near", "far"))
    assert np.all(near.values < far.values)
    assert np.all(np.diff(near, axis=-1) < 0)
    assert np.all(np.diff(far, axis=-1) > 0)
    lost, learnt = (
        (sign * (data[kind] - data[f"{kind}_before"])).mean("seed")
        for kind, sign in (("safety", 1), ("capability", -1))
    )

    def of(values: xr.DataArray, task: str, *ways: str) -> list[float]:
        return [float(values.sel(task=task, way=way)) for way in ways]

    before, after = float(data.safety_unaligned.mean()), float(data.safety_before.mean())
    sure = data.refused.sel(way=["far 1", "far 10"])
    foretold = data.sel(way=data.way != "average")
    ranks = {
        kind: [
            scipy.stats.spearmanr(cell[f"foretold_{kind}"], cell[kind]).statistic
            for cell in (foretold.sel(task=task, seed=seed) for task in data.task for seed in data.seed)
        ]
        for kind in ("safety", "capability")
    }
    assert np.all(sure == 1)
    for words in (
        f"from {before:.2f} to {after:.2f} nats a token",
        "({:.3f}, {:.3f}, {:.3f} nats at λ = 0.1, 1, 10 on maths".format(
            *of(lost, "maths", "near 0.1", "near 1", "near 10")
        ),
        "plain fine-tuning costs {:.3f})".format(*of(lost, "maths", "plain")),
        "({:.2f}, {:.2f}, {:.2f}): over-penalising".format(*of(lost, "maths", "far 0.1", "far 1", "far 10")),
        "instructions cost {:.3f} nats of safety for {:.2f} nats learnt".format(
            *of(lost, "instructions", "plain"), *of(learnt, "instructions", "plain")
        ),
        "maths {:.3f} for {:.2f}".format(*of(lost, "maths", "plain"), *of(learnt, "maths", "plain")),
        "maths costs {:.4f} nats for {:.2f} learnt".format(
            *of(lost, "maths", "ball 0.5"), *of(learnt, "maths", "ball 0.5")
        ),
        "at λ = 1 costs {:.4f} for {:.2f}".format(*of(lost, "maths", "near 1"), *of(learnt, "maths", "near 1")),
        "on instructions {:.3f} for {:.3f} against {:.3f} for {:.3f}".format(
            *(of(each, "instructions", way)[0] for way in ("ball 0.5", "near 1") for each in (lost, learnt))
        ),
        f"would rather refuse {float(data.refused_before.mean()):.2f}, the plainly tuned ones "
        "{:.2f} and {:.2f}".format(
            *(of(data.refused.mean("seed"), task, "plain")[0] for task in ("maths", "instructions"))
        ),
        "correlations of {:.2f}, {:.2f}, {:.2f} and {:.2f} in the four cells".format(*ranks["safety"]),
        "with {:.2f}, {:.2f}, {:.2f} and {:.2f}. In size".format(*ranks["capability"]),
    ):
        assert words in prose, words


def quoted_rows(text: str) -> list[tuple[str, str, str]]:
    """Of a table of strategies: the name and the two last columns of each row."""
    return re.findall(r"^\| `([a-z0-9-]+)`.*\| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)


def test_the_strategies_page_quotes_the_recorded_text_world():
    text = (ROOT / "docs" / "which-strategy.md").read_text()
    league, optimisers = (
        xr.load_dataset(ROOT / "figures" / "gallery" / f"{name}.nc", engine="h5netcdf")
        for name in ("e8_text", "e7_text")
    )
    back = e8_text.given_back(league).median("seed")
    rows = quoted_rows(text.split("## When no prompt")[1])
    assert len(rows) > 10
    for name, *quoted in rows:
        for words, level in zip(quoted, ("half", "a tenth"), strict=True):
            value = float(back.sel(strategy=name, level=level))
            assert words == ("never there" if np.isnan(value) else f"{round(value, 2) + 0.0:.0%}")
    plain, best = league.sel(strategy="plain").isel(setting=0), e8_text.best_at(league).median("seed")
    first, last = (plain.isel(record=record).median("seed") for record in (0, -1))
    least = {str(name): f"{float(values.median()):.2f}" for name, values in optimisers.least.groupby("optimiser")}
    prose = " ".join(text.split())
    for words in (
        f"from {float(first.safety_gap):.3f} to {float(last.safety_gap):.2f} nats",
        f"from {float(first.capability_gap):.2f} to {float(last.capability_gap):.3f}",
        "has lost {:.2f} and {:.2f} nats".format(*best.sel(strategy="plain").values),
        f"a batch of 32 loses {least['batch 32']} nats, of 8 {least['batch 8']}, of 2 {least['batch 2']}",
        f"tracked brings {least['tracked']}, one to the start {least['to the start']}, one trained through {least['through']}",
    ):
        assert words in prose


def test_the_strategies_page_quotes_the_recorded_league_and_verdicts():
    text = (ROOT / "docs" / "which-strategy.md").read_text()
    gallery = ROOT / "figures" / "gallery"
    league = xr.load_dataset(gallery / "e8_league.nc", engine="h5netcdf")
    middle = e8_league.quartiles(e8_league.best_excess(league).values)[1]
    rows = quoted_rows(text.split("## When no prompt")[0])
    assert len(rows) > 5
    for name, *quoted in rows:
        found = middle[league.strategy.values.tolist().index(name)]
        for words, world in zip(quoted, ("conflicting", "shared prompts"), strict=True):
            value = found[league.world.values.tolist().index(world)]
            assert words == ("needs a policy" if np.isnan(value) else f"{value:.4f}")
    verdicts = xr.load_dataset(gallery / "e7_hypotheses.nc", engine="h5netcdf")
    for name, held, evidence in zip(
        verdicts.hypothesis.values, verdicts.holds.values, verdicts.evidence.values, strict=True
    ):
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {name}:"))
        assert evidence in line
        assert ("| holds |" in line) == bool(held)
