"""The measuring of contenders: interleaved, accuracy first, honest about what is wrong, missing or not finished."""

import dataclasses
import json
import math
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import scipy.stats

from benchmarks import __main__ as command
from benchmarks import hypervolume, machine, page, protocol, scaling, told, verification
from benchmarks.protocol import Benchmark, Contender, Score
from tradeoff.tolerances import IDENTITY

WORK = Benchmark(
    name="work",
    title="work",
    contenders=lambda: [Contender("tradeoff", lambda: 1.0), Contender("peer", lambda: 1.0)],
    error=lambda result: abs(result - 1),
    tolerance=0.5,
    bars={"peer": 2.0, "absent": 3.0},
    repeats=2,
)


def score(name: str, *blocks: float, error: float = 0.0) -> Score:
    return Score(name, 0.0, 1.0, error, error <= WORK.tolerance, list(blocks))


def test_contenders_take_turns_after_two_warm_up_calls():
    calls: list[str] = []
    first = Contender("tradeoff", lambda: calls.append("o"))
    slow = Contender("slow", lambda: calls.append("s"), repeats=1)
    work = dataclasses.replace(WORK, contenders=lambda: [first, slow], error=lambda _: 0.0, repeats=3)
    protocol.measure(work, blocks=2)
    assert "".join(calls) == "ooss" + 2 * "osoo"


def test_a_slow_contender_is_warmed_up_once_and_blocks_end_when_every_bar_is_met(monkeypatch):
    monkeypatch.setattr(protocol, "ENOUGH", 0.0)
    slow = [Contender("tradeoff", lambda: 1.0), Contender("peer", lambda: time.sleep(1e-3) or 1.0)]
    work = dataclasses.replace(WORK, contenders=lambda: slow, repeats=1)
    ours, peer = protocol.measure(work)["contenders"]
    assert len(ours["blocks"]) == len(peer["blocks"]) == 1
    three = [*slow, Contender("other", lambda: 1.0)]
    never = protocol.measure(dataclasses.replace(work, contenders=lambda: three, bars={"peer": 1e9, "other": 0.0}))
    assert [len(each["blocks"]) for each in never["contenders"]] == [protocol.BLOCKS, protocol.BLOCKS, 1]
    calls: list[str] = []
    monkeypatch.setattr(protocol, "SLOW", 0.0)
    once = Contender("tradeoff", lambda: calls.append("o"))
    protocol.measure(dataclasses.replace(work, contenders=lambda: [once], error=lambda _: 0.0))
    assert "".join(calls) == "oo"


def test_a_ratio_is_of_least_times_and_a_bar_asks_for_the_best_block():
    ours, peer = score("tradeoff", 2.0, 1.0, 4.0), score("peer", 5.0, 2.25, 3.0)
    (found,) = protocol.comparisons([ours, peer], WORK)
    assert found["blocks"] == [2.5, 2.25, 0.75]
    assert (found["ratio"], found["met"]) == (2.25, True)
    (found,) = protocol.comparisons([ours, peer], dataclasses.replace(WORK, bars={"peer": 2.4}))
    assert found["met"] is True
    (found,) = protocol.comparisons([ours, peer], dataclasses.replace(WORK, bars={"peer": 2.6}))
    assert found["met"] is False  # negative control


@pytest.mark.parametrize("error", [0.6, math.nan])
def test_a_contender_that_is_wrong_scores_nothing(error):
    fast, right = score("tradeoff", 1e-9, error=error), score("tradeoff", 1.0)
    peer, wrong = score("peer", 3.0), score("peer", 3.0, error=error)
    assert not protocol.comparisons([fast, peer], WORK)[0]["met"], "however fast"
    assert (
        protocol.comparisons([right, peer], WORK)[0] | {"peer_valid": False}
        == protocol.comparisons([right, wrong], WORK)[0]
    )


def test_memory_is_a_gate_of_ours_and_is_seen():
    _, took = machine.peak_megabytes(lambda: bytearray(64 << 20))
    if took is None:
        pytest.skip("this system does not tell the peak of memory")
    assert 60 < took < 100
    ours, peer = score("tradeoff", 1.0), score("peer", 3.0)
    tight = dataclasses.replace(WORK, most_megabytes=0.5)
    assert protocol.comparisons([ours, peer], WORK)[0]["met"]
    assert not protocol.comparisons([ours, peer], tight)[0]["met"]


def test_a_missing_peer_is_named_and_one_that_fails_stops_nobody(tmp_path):
    def fail():
        raise OverflowError("too much")

    failing = Contender("peer", fail)
    result = protocol.measure(dataclasses.replace(WORK, contenders=lambda: [*WORK.contenders()[:1], failing]), blocks=1)
    assert result["skipped"] == ["absent"]
    assert result["contenders"][1]["failure"] == "failed: OverflowError: too much"
    page = protocol.table(result)
    assert "absent" in page
    assert "skipped: not installed" in page
    assert protocol.peer("no_such_package_anywhere") is None
    assert protocol.peer("json") is json


def test_the_file_holds_what_was_measured_and_what_made_it(tmp_path):
    result = protocol.measure(WORK, blocks=2)
    found = json.loads(protocol.save(result, tmp_path).read_text())
    assert set(found) == {
        *("schema", "benchmark", "title", "tolerance", "most_megabytes", "contenders", "comparisons", "skipped"),
        *("others_busy", "under_load", "environment", "seconds"),
    }
    ours = found["contenders"][0]
    assert set(ours) == {"name", "first_call", "megabytes", "error", "valid", "blocks", "failure", "best"}
    assert ours["best"] == min(ours["blocks"])
    assert len(ours["blocks"]) == 2
    assert {"processor", "cores", "threads", "python", "system", "versions", "source"} <= set(found["environment"])
    assert found["environment"]["versions"]["numpy"]
    undefined = dataclasses.replace(WORK, error=lambda _: math.nan)
    assert protocol.measure(undefined, blocks=1)["contenders"][0]["error"] is None


def test_shortfalls_are_said_in_words():
    result = protocol.measure(WORK, blocks=1)
    met = dict(result["comparisons"][0], ratio=2.1, met=True)
    assert protocol.missed({**result, "comparisons": [met]}) == []
    assert protocol.missed({**result, "comparisons": [dict(met, blocks=[1.2, 1.5], met=False)]}) == ["peer 1.50x of 2x"]
    wrong = dataclasses.replace(WORK, tolerance=-1.0)
    assert protocol.missed(protocol.measure(wrong, blocks=1)) == ["tradeoff misses the accuracy gate"]


@pytest.mark.parametrize(("cores", "loaded"), [(0.0, False), (1.5, True)])
def test_a_result_taken_beside_other_load_says_so(monkeypatch, cores, loaded):
    monkeypatch.setattr(machine, "_busy_seconds", lambda: cores * time.perf_counter())
    result = protocol.measure(WORK, blocks=1)
    assert result["under_load"] is loaded
    assert ("UNDER LOAD: other processes kept 1.5 cores busy" in protocol.table(result)) is loaded
    monkeypatch.setattr(machine, "_busy_seconds", lambda: None)
    assert protocol.measure(WORK, blocks=1)["under_load"] is None


@pytest.mark.parametrize("names", [[], ["tradeoff", "tradeoff"]])
def test_contenders_need_names_of_their_own(names):
    twice = dataclasses.replace(WORK, contenders=lambda: [Contender(name, lambda: 1.0) for name in names])
    with pytest.raises(ValueError, match="at least one, each with its own name"):
        protocol.measure(twice)


def test_every_benchmark_is_found_by_a_name_of_its_own(capsys):
    known = command.collect()
    assert {subject for subject, _ in known.values()} == set(command.subjects())
    for name, (_, each) in known.items():
        assert name == each.name
        assert name.isidentifier()
    with pytest.raises(SystemExit):
        command.main(["no_such_benchmark"])
    assert "no benchmark or subject is named 'no_such_benchmark'" in capsys.readouterr().err


def test_every_committed_result_is_of_the_schema():
    form, results = json.loads(protocol.FORM.read_text()), sorted(page.COMMITTED.glob("*.json"))
    assert len(results) > 10
    for path in results:
        jsonschema.validate(json.loads(path.read_text()), form)


def test_a_result_of_another_form_is_not_written(tmp_path):
    result = protocol.measure(WORK, blocks=1)
    for wrong in ({"seconds": -1.0}, {"contenders": []}, {"more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            protocol.save({**result, **wrong}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_document_says_what_the_committed_results_say():
    text = (Path(__file__).parents[1] / "docs" / "performance.md").read_text()
    results, scaling = told.load(page.COMMITTED), told.load_scaling(page.COMMITTED)
    assert page.document(text, results, scaling) == text, "run `python -m benchmarks.page docs/performance.md`"
    slower = [dict(results[0], contenders=[dict(results[0]["contenders"][0], best=9.0), *results[0]["contenders"][1:]])]
    assert page.document(text, [*slower, *results[1:]], scaling) != text
    with pytest.raises(ValueError, match="needs '<!-- made by"):
        page.document("no marks", results, scaling)


def test_the_page_tells_bars_gates_load_and_what_is_skipped(tmp_path):
    contenders = [score("tradeoff", 2.0), score("peer", 1.0), score("noisy", 9.0, error=5.0)]
    result = protocol.measure(WORK, blocks=1) | {"comparisons": protocol.comparisons(contenders, WORK)}
    result |= {"under_load": True, "others_busy": 1.5}
    assert told.shortfalls([result]) == ["work: peer 0.50x of 2x"]
    assert told.peers_to_prefer([result]) == ["work: peer takes 0.50 of our time"], "not the one that is wrong"
    protocol.save(result, tmp_path)
    shown = page.write_page(tmp_path).read_text()
    for words in ("0 of 1 bars met", "peer 0.50x of 2x", "work: absent", "others kept 1.5 cores busy", "<svg"):
        assert words in shown
    assert "http://" not in shown.replace("http://www.w3.org", ""), "it stands alone"


def test_a_law_is_the_line_of_least_squares_with_students_interval():
    sizes, noise = [64, 128, 256, 512, 1024], [1.1, 0.9, 1.05, 0.95, 1.0]
    values = [3e-6 * n**1.5 * e for n, e in zip(sizes, noise, strict=True)]
    law, line = scaling.power_law(sizes, values), scipy.stats.linregress(np.log(sizes), np.log(values))
    half = scipy.stats.t.ppf(0.975, 3) * line.stderr
    np.testing.assert_allclose(
        [law.exponent, law.lower, law.upper], line.slope + half * np.array([0, -1, 1]), rtol=IDENTITY.relative
    )
    assert law.lower < 1.5 < law.upper
    assert not scaling.power_law(sizes, [n**2 * e for n, e in zip(sizes, noise, strict=True)]).lower < 1.5
    middle, low, high = law.at(4096)
    assert low < 3e-6 * 4096**1.5 < high
    assert middle == pytest.approx(np.exp(line.intercept + line.slope * np.log(4096)), rel=IDENTITY.relative)


@pytest.mark.parametrize("work", verification.BENCHMARKS[:3], ids=lambda work: work.name)
def test_the_claims_by_numpy_have_the_sides_of_mpmath(work):
    found = next(each for each in work.contenders() if each.name == "numpy vectorised").run()
    assert work.error(found) <= work.tolerance
    for wrong in ({"left": found.left + 1e-6}, {"violations": 1}):
        assert work.error(found._replace(**wrong)) > work.tolerance


def test_a_point_too_many_misses_the_gate_of_the_front():
    work = hypervolume.BENCHMARKS[0]
    found = work.contenders()[0].run()
    assert work.error(found) <= work.tolerance
    assert work.error(found._replace(kept=found.kept | True)) == math.inf
    assert work.error(found._replace(area=found.area * (1 + 1e-12))) > work.tolerance
