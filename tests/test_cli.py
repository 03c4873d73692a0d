"""The command line as a person would type it."""

import json
import sys

import pytest

import tradeoff as to
from tradeoff import cli


def tradeoff(monkeypatch, capsys, *arguments):
    """Run the command; its exit status, output and error output."""
    monkeypatch.setattr(sys, "argv", ["tradeoff", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_verify_prints_a_line_for_each_claim_and_succeeds(monkeypatch, capsys):
    code, out, _ = tradeoff(monkeypatch, capsys, "verify", "T2b", "T4a", "--instances", "200")
    assert code == 0
    assert "T2b" in out
    assert "2 of 2 hold on 200 instances each." in out


def test_verify_speaks_json(monkeypatch, capsys):
    code, out, _ = tradeoff(monkeypatch, capsys, "verify", "T4a", "--instances", "200", "--json")
    (row,) = json.loads(out)
    assert code == 0
    assert row["holds"]
    assert row["instances"] == 200
    assert 0 < row["tightest"] <= 1 + 1e-9


def test_verify_lists_every_claim(monkeypatch, capsys):
    _, out, _ = tradeoff(monkeypatch, capsys, "verify", "--list")
    assert [line.split()[0] for line in out.splitlines()] == [claim.name for claim in to.theorems.all()]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("verify", "T4x"), "no theorem is named 'T4x'; did you mean T4"),
        (("verify", "T4a", "--instances", "0"), "at least 1 is required"),
        (("frontier", "nowhere.json"), "nowhere.json does not exist"),
    ],
)
def test_a_wrong_request_is_answered_with_the_right_one(monkeypatch, capsys, arguments, says):
    code, _, err = tradeoff(monkeypatch, capsys, *arguments)
    assert code == 2
    assert says in err


def test_frontier_prints_the_golden_row(monkeypatch, capsys, tmp_path):
    to.worlds.write(to.worlds.golden(), tmp_path / "world.json")
    code, out, _ = tradeoff(monkeypatch, capsys, "frontier", str(tmp_path / "world.json"), "--count", "3")
    assert code == 0
    assert "0.0865564926" in out
    code, out, _ = tradeoff(monkeypatch, capsys, "frontier", str(tmp_path / "world.json"), "--json", "--count", "3")
    assert json.loads(out)["frontier"]["penalty"] == pytest.approx([0.01, 1.0, 100.0])


def test_frontier_refuses_a_sweep_that_is_none(monkeypatch, capsys, tmp_path):
    to.worlds.write(to.worlds.golden(), tmp_path / "world.json")
    code, _, err = tradeoff(monkeypatch, capsys, "frontier", str(tmp_path / "world.json"), "--least", "-1")
    assert code == 2
    assert "0 < least < greatest" in err


def test_strategies_lists_every_row_with_a_source_that_can_be_cited(monkeypatch, capsys):
    code, out, _ = tradeoff(monkeypatch, capsys, "strategies", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["name"] for row in rows[:-1]] == [row.name for row in to.strategies.registry.all()]
    for row in rows:
        assert to.cite(row["source"]).startswith("@")
    _, out, _ = tradeoff(monkeypatch, capsys, "strategies")
    assert len(out.splitlines()) == len(rows) + 1


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["verfy"], "did you mean verify?"), (["lm", "mesure"], "did you mean measure?"), (["x"], "there are")],
)
def test_a_wrong_name_suggests_the_right_one(words, meant, monkeypatch, capsys):
    code, _, err = tradeoff(monkeypatch, capsys, *words)
    assert code == 2
    assert meant in err


def test_the_names_that_are_suggested_are_those_that_there_are(monkeypatch, capsys):
    for words, known in ((["--help"], cli.COMMANDS), (["lm", "--help"], cli.LM_COMMANDS)):
        _, out, _ = tradeoff(monkeypatch, capsys, *words)
        assert out.split("{")[1].split("}")[0].split(",") == list(known)
