"""The toy experiments at their own settings: what their captions say is true of their data, and figures are reproducible."""

import dataclasses
import html
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import e8_text, report, theorems
from experiments.__main__ import run
from experiments.catalogue import CATALOGUE, entry
from tests.compiled import once
from tradeoff import plotting, worlds
from tradeoff.dynamics.engine import JaxEngine
from tradeoff.problems import Shape, Transformer
from tradeoff.strategies import registry
from tradeoff.strategies.constraints import fisher
from tradeoff.tolerances import FLOW, IDENTITY

GALLERY = Path(__file__).parents[2] / "figures" / "gallery"
SMALL = e8_text.Settings(seeds=2, prompts=3, layers=1, heads=1, width=8, steps=36, records=18)
FEW = {
    "theorems": {"names": ("T2b", "T4a", "T8a"), "instances": 500},
    "e3_parameter_constraint": {"points": 21},
    "e6_landscape": {"points": 16, "draws": 4},
    "e7_optimisation": {"examples": 2048, "batches": (1, 16), "rates": 32, "averages": 8},
    "e7_hypotheses": {"repeats": 8, "counts": (64, 128), "masks": 64, "shares": 11, "steps": 100},
    "e7_text": {"models": SMALL, "rates": 3, "batches": (4, 8), "examples": 32},
    "e8_text": {**vars(SMALL), "names": ("plain", "penalty", "sap")},
    "e8_league": {"names": ("plain", "penalty", "ema", "merge-slerp", "booster"), "seeds": 2},
}
"""Settings that make an experiment short; for the others, few flows."""


TRIED: list[str] = []
"""The experiments that have a test."""


def of(name):
    """Give a test the data of one toy experiment with few flows, whose figure was drawn."""
    TRIED.append(name)
    return pytest.mark.parametrize("data", [name], indirect=True)


@pytest.fixture
def data(request, tmp_path):
    one = entry(request.param)
    settings = dataclasses.replace(one.experiment.Settings(), **FEW.get(one.name, {"flow_every": 60}))
    with pytest.MonkeyPatch.context() as alone:
        alone.setattr(theorems, "CORES", 1)  # three claims need no processes of their own
        # Adam of optax raises a float to an integer power; their threads see what is set for all of them.
        jax.config.update("jax_numpy_dtype_promotion", "standard" if one.name.endswith("_text") else "strict")
        try:
            made = one.experiment.run(settings, tmp_path, progress=False)
        finally:
            jax.config.update("jax_numpy_dtype_promotion", "strict")
    first, again = ([path.read_bytes() for path in draw(one, made, tmp_path)] for _ in range(2))
    assert first == again, "a figure should be the same file twice"
    return made


def draw(one, data, folder):
    with plotting.style():
        return plotting.save(one.figure.draw(data), folder / one.name)


def test_every_toy_experiment_has_a_test():
    assert sorted(TRIED) == sorted(one.name for one in CATALOGUE if not one.checkpoint)


@of("e1_gap_against_penalty")
def test_e1_a_nearer_proxy_keeps_more_safety_at_every_penalty(data):
    assert np.all(data.safety_gap.sel(proxy="near") < data.safety_gap.sel(proxy="far"))
    np.testing.assert_allclose(data.safety_gap[:, -1], data.limit, rtol=1e-3)


@of("e2_context_overlap")
def test_e2_more_overlap_is_worse_at_every_safety_gap(data):
    grid = np.linspace(0.01, 0.8, 50)
    each = [data.sel(overlap=overlap) for overlap in data.overlap.values]
    curves = [np.interp(grid, one.safety_gap.values[::-1], one.capability_gap.values[::-1]) for one in each]
    curves = np.stack(curves)
    assert np.all(curves[1:] > curves[:-1])
    assert np.all(data.lower_limit <= data.capability_gap)


@of("e3_parameter_constraint")
def test_e3_a_small_ball_pays_the_price_and_one_in_the_metric_of_safety_pays_nothing(data):
    paid = {str(name): data.paid.sel(strategy=name).values for name in data.strategy.values}
    for name in ("ball", "soft", "early stopping"):
        np.testing.assert_allclose(paid[name][0], data.price, rtol=1e-2)
        assert np.all(paid[name] >= 1)
    np.testing.assert_allclose(paid["safety metric"], 1, rtol=1e-7)
    assert 1 < data.price < data.most


@of("e4_over_penalising")
def test_e4_safety_is_monotone_with_the_exact_proxy_and_turns_with_the_bad_one(data):
    assert np.all(np.diff(data.safety_gap.sel(proxy="exact")) <= 0)
    turned = np.diff(data.safety_gap.sel(proxy="bad")) > 0
    np.testing.assert_array_equal(turned, data.lam.values[:-1] >= 0.999 * float(data.best_penalty.sel(proxy="bad")))
    assert np.all(np.diff(data.proxy_gap.sel(proxy="bad")) < 0)


@of("e6_landscape")
def test_e6_fine_tuning_costs_the_safety_of_a_random_step_and_buys_capability(data):
    start, end = data.sel(t=0.0, method="nearest"), data.sel(t=1.0, method="nearest")
    np.testing.assert_allclose(start.safety_gap, 0, atol=FLOW.absolute)
    np.testing.assert_allclose(end.capability_gap, 0, atol=FLOW.absolute)
    assert end.random_safety_gap.min() < end.safety_gap < end.random_safety_gap.max()
    assert np.all(end.random_capability_gap > start.capability_gap)
    assert np.all(data.safety_gap <= data.bound + FLOW.absolute)
    near = data.isel(t=np.flatnonzero(np.abs(data.t.values) <= 0.15))
    np.testing.assert_allclose(near.local_law, near.safety_gap, rtol=0.1, atol=FLOW.absolute)


@of("e7_optimisation")
def test_e7_an_average_trained_through_saves_nothing_and_noise_costs_the_more_the_higher_the_rate(data):
    by_noise = (data.safety_gap - data.demanded - data.by_path).isel(batch=0)
    assert np.all(np.diff(by_noise[data.rate > 0.02]) > 0)
    saved = 1 - entry("e7_optimisation").figure.least_safety(data).min("average") / entry(
        "e7_optimisation"
    ).figure.least_safety(data.isel(batch=0))
    assert abs(float(saved.sel(reading="through"))) < 0.01 < float(saved.sel(reading="tracked"))


@of("e7_hypotheses")
def test_e7_hypotheses_get_verdicts(data):
    assert data.holds.sel(hypothesis=["H1", "H4", "H5"]).all()
    slopes = data.h2_slope.sel(h2_way=["full batches", "plain fine-tuning"])
    np.testing.assert_allclose(slopes, [2, 0], atol=0.1)


@of("e8_league")
def test_e8_what_sees_nothing_walks_the_frontier_where_all_is_isotropic_and_safety_data_pay_elsewhere(data):
    above = entry("e8_league").figure.best_excess(data).mean("seed")
    assert np.all(np.abs(above.sel(world="isotropic", strategy=["plain", "ema"])) < 1e-3)
    assert above.sel(world="conflicting", strategy="penalty") < 0.7 * above.sel(world="conflicting", strategy="plain")
    assert np.nanmin(data.distance) >= -1e-9
    assert np.isnan(data.at_half.sel(world="conflicting", strategy="booster")).all()  # it needs answers
    assert data.gradients.sel(strategy="booster") == 3


@of("e7_text")
def test_e7_text_splits_what_is_lost_by_what_no_other_setting_avoids(data):
    safety, capability, left = (data[name].values.reshape(-1, 2) for name in ("safety_gap", "capability_gap", "left"))
    for one, seed in np.ndindex(*left.shape):
        no_worse = [other for other in range(len(safety)) if capability[other, seed] <= capability[one, seed]]
        assert left[one, seed] == min(safety[other, seed] for other in no_worse) <= safety[one, seed]
    assert data.safety_gap.isel(rate=-1).min() > data.safety_gap.isel(rate=0).max()


@of("e8_text")
def test_e8_text_plain_loses_what_safety_data_give_back_and_nothing_is_dropped_in_silence(data):
    back = entry("e8_text").figure.given_back(data).median("seed")
    assert np.all(back.sel(strategy="plain") == 0)
    assert back.sel(strategy="penalty", level="a tenth") > 0.5 > back.sel(strategy="sap", level="a tenth")
    assert np.nanmin(data.distance) >= 0
    assert np.all(data.safety_gap.sel(strategy=["plain", "penalty"], setting=0, record=0) < 0.1)
    names = {*data.left_out.values, *(row.name for row in e8_text.runnable(e8_text.Settings()))}
    assert names == {row["name"] for row in registry.table()}
    assert all(name in entry("e8_text").figure.CAPTION for name in data.left_out.values)


def test_e8_text_has_the_fisher_information_of_ewc():
    laws = worlds.DataLaw([0.7, 0.3], [[0.9, 0.1], [0.2, 0.8]]), worlds.DataLaw([0.5, 0.5], [[0.5, 0.5], [0.2, 0.8]])
    problem = Transformer(worlds.from_texts(["one word", "two words"], ["yes indeed", "no"], *laws), Shape(1, 1, 2))
    at = problem.initial(jax.random.key(0))
    wanted = once(lambda at: fisher(JaxEngine(problem, at, jax.random.key(0), 1).prepared(), at))(at)
    for name, values in once(lambda at: e8_text.importance(problem, at))(at).items():
        np.testing.assert_allclose(values, wanted[name], rtol=IDENTITY.relative, atol=IDENTITY.absolute)


@of("theorems")
def test_every_claim_holds(data):
    assert bool(data.holds.all())


def test_the_report_shows_every_figure_and_stands_alone(tmp_path):
    for folder in ("data", "figures"):
        (tmp_path / folder).symlink_to(GALLERY)
    shown = [one for one in CATALOGUE if (GALLERY / f"{one.name}.nc").exists()]
    page = report.write_report(shown, tmp_path).read_text()
    assert page.count("<svg") == len(shown) >= len(TRIED)
    for one in shown:
        assert one.figure.TITLE in html.unescape(page)
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page


def test_a_run_is_kept_and_a_second_one_does_nothing(tmp_path, capsys):
    one = entry("e2_context_overlap")
    data = tmp_path / "data" / f"{one.name}.nc"

    def kept():
        run(one, tmp_path)
        return "unchanged, kept" in capsys.readouterr().out

    assert not kept()
    before = data.read_bytes()
    assert kept()
    data.unlink()
    assert not kept()
    assert data.read_bytes() == before


def test_an_unknown_experiment_is_named_with_the_known_ones():
    with pytest.raises(SystemExit, match="no experiment is named 'e99'; there are theorems, e1"):
        entry("e99")
