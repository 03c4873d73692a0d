"""A user's own claims: from a file, through the command line and through pytest."""

import subprocess
import sys

import pytest

from tradeoff import cli, theorems

CLAIM = '''
import tradeoff as to
from tradeoff import loss_constraint as case_one


@to.theorem("{name}", title="a conjecture", statement="G_s", family=to.theorems.instances.at_penalty())
def claim(instance):
    """The safety gap is bounded by a multiple of the conflict over the penalty."""
    gap = case_one.gaps(instance.world, instance.lam).safety
    return gap, {constant} * instance.world.conflict_capability / instance.lam
'''


def write(tmp_path, text, name="my_bounds.py"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_claims_are_found_in_a_file(tmp_path):
    (claim,) = theorems.load(write(tmp_path, CLAIM.format(name="mine", constant=1.0)))
    assert claim.name == "mine"
    assert claim.meaning.startswith("The safety gap")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def f(:", r"my_bounds\.py, line 1 is not Python"),
        ("x = 1", "defines no theorem; decorate"),
        (
            CLAIM.format(name="mine", constant=1.0) + CLAIM.format(name="mine", constant=2.0),
            r"line 16 registers a second theorem named 'mine' \(the first is on line 6\)",
        ),
    ],
)
def test_a_file_without_usable_claims_is_refused_with_the_line(tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        theorems.load(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.py does not exist"):
        theorems.load(tmp_path / "nowhere.py")


def test_pytest_collects_claims_and_shows_the_instance_that_fails(tmp_path):
    write(tmp_path, CLAIM.format(name="true-one", constant=1.0) + CLAIM.format(name="false-one", constant=0.5).replace(
        "def claim(", "def other("), "test_mine.py")  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rA",
        "-p",
        "no:cacheprovider",
        "--theorem-instances",
        "500",
        str(tmp_path),
    ]
    out = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True).stdout
    assert "1 failed, 1 passed" in out
    assert "PASSED test_mine.py::true-one" in out
    assert "false-one FAILS on" in out
    assert "world.safety.p = " in out


def test_the_command_line_takes_a_file_and_breaks_it(tmp_path, monkeypatch, capsys):
    path = write(tmp_path, CLAIM.format(name="false-one", constant=0.5))
    monkeypatch.setattr(sys, "argv", ["tradeoff", "verify", str(path), "--falsify", "--restarts", "8"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "false-one is FALSE" in capsys.readouterr().out
