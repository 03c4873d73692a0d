"""Instruction data are read in every shape, and whatever is wrong with them is told with its file and line."""

import json
import os
import pickle
import sys
import types
from pathlib import Path

import pytest

from tradeoff.bridge.data import Data, Example, read_data, read_prompts, sample
from tradeoff.bridge.data_files import DataError
from tradeoff.bridge.template import Turn, asked
from tradeoff.worlds import World

ALPACA = {"instruction": "Add.", "input": "2, 2", "output": "4"}
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Add 2, 2."},
    {"role": "assistant", "content": "4"},
]
SHAPES = {
    "alpaca": (ALPACA, asked("Add.\n\n2, 2")),
    "dolly": ({"instruction": "Add.", "context": "", "response": "4", "category": "qa"}, asked("Add.")),
    "question and answer": ({"question": "2 + 2?", "answer": "4"}, asked("2 + 2?")),
    "prompt and completion": ({"prompt": "2 + 2 =", "completion": "4"}, asked("2 + 2 =")),
    "chat": ({"messages": TALK}, (Turn("system", "Be short."), Turn("user", "Add 2, 2."))),
}


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_says_the_same_in_a_list_and_in_lines(shape: str, tmp_path: Path) -> None:
    row, prompt = SHAPES[shape]
    as_list = read_data(written(tmp_path, "rows.json", json.dumps([row, row], indent=1)))
    in_lines = read_data(written(tmp_path, "rows.jsonl", "\ufeff" + json.dumps(row) + "\n\n" + json.dumps(row)))
    assert as_list.shape == in_lines.shape == shape
    assert [(e.prompt, e.answer) for e in as_list.examples] == [(prompt, "4")] * 2
    assert as_list.digest == in_lines.digest
    assert in_lines.examples[1].place.endswith("rows.jsonl, line 3")


def test_a_table_is_read_by_its_first_line_and_knows_where_a_row_ends(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", 'question,answer\n"2 +\n2?",4\n3?,3\n')
    data = read_data(path)
    assert [e.prompt[0].content for e in data.examples] == ["2 +\n2?", "3?"]
    assert data.examples[1].place == f"{path}, line 4"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("list.json", '["Do it.", "Do more."]', ["Do it.", "Do more."]),
        ("columns.json", '{"instructions": ["Do it."], "tags": ["crime"], "inputs": []}', ["Do it."]),
        ("plain.csv", "Do it\nDo more\n", ["Do it", "Do more"]),
        ("named.csv", "goal,target\nDo it.,Sure\n", ["Do it."]),
        ("rows.jsonl", json.dumps(ALPACA), ["Add.\n\n2, 2"]),
        ("context.jsonl", '{"instruction": "Add.", "context": "2, 2"}', ["Add.\n\n2, 2"]),
        ("chat.jsonl", json.dumps({"messages": TALK[1:]}), ["Add 2, 2."]),
    ],
)
def test_prompts_come_out_of_lists_columns_and_rows(name: str, content: str, says: list[str], tmp_path: Path) -> None:
    prompts = read_prompts(written(tmp_path, name, content))
    assert [turns[-1].content for turns in prompts.conversations] == says


class Hostile:
    """Unpickled, it would make a folder."""

    def __reduce__(self) -> tuple:
        return (os.mkdir, ("executed",))


GOOD = json.dumps(ALPACA)
HOSTILE = {
    "cut off": ("rows.json", f"[{GOOD}, {GOOD[:20]}", r"rows\.json, line 1: this is not JSON.*cut off: fetch it anew"),
    "cut between rows": ("rows.json", f"[{GOOD},\n{GOOD}", r"line 2: this is not JSON \(Expecting ',' or '\]'"),
    "bytes of no text": ("rows.jsonl", GOOD.encode() + b"\n{\xff}", r"rows\.jsonl, line 2: byte 0xff is not UTF-8"),
    "UTF-16": ("rows.jsonl", GOOD.encode("utf-16"), r"line 1: byte 0xff is not UTF-8.*Save the file in UTF-8"),
    "pickle under a false name": ("rows.json", pickle.dumps(Hostile()), r"is not UTF-8|is not JSON"),
    "pickle": ("rows.pkl", pickle.dumps(Hostile()), r"must end in \.json.*pickles least of all"),
    "nesting bomb": ("rows.json", "[" * 200_000, r"line 1: this is not JSON \(RecursionError"),
    "digits bomb": ("rows.json", f'[{{"instruction": {"9" * 10_000}}}]', r"this is not JSON \(ValueError"),
    "two values in a line": (
        "rows.jsonl",
        f"{GOOD}\n{GOOD} {GOOD}",
        r"line 2: this is not JSON \(A line must hold one",
    ),
    "data after the list": ("rows.json", f"[{GOOD}]\n{GOOD}", r"line 2: this is not JSON \(Extra data"),
    "a number": ("rows.json", "7", r"holds a int; a list of rows"),
    "columns of different lengths": (
        "rows.json",
        '{"prompt": ["a"], "completion": ["b", "c"]}',
        r"must be of one length",
    ),
    "empty": ("rows.jsonl", "", r"holds no rows"),
    "empty list": ("rows.json", "[]", r"holds no rows"),
    "unknown keys": ("rows.jsonl", '{"text": "a"}', r"line 1: the keys \['text'\].*Give alpaca: instruction, output"),
    "a missing key": ("rows.jsonl", f'{GOOD}\n{{"instruction": "a"}}', r"line 2: the key 'output' is missing"),
    "an empty answer": (
        "rows.jsonl",
        '{"prompt": "a", "completion": " \\n"}',
        r"line 1: 'completion' is empty. Write it",
    ),
    "no answer": ("rows.jsonl", '{"prompt": "a", "completion": null}', r"'completion' is null; a text is required"),
    "a number for a text": ("rows.jsonl", '{"question": 3, "answer": "b"}', r"'question' is a int; a text is required"),
    "half a character": ("rows.jsonl", '{"prompt": "a", "completion": "\\ud800"}', r"half a character at 0"),
    "a row that is no object": ("rows.json", f"[{GOOD},\n3]", r"line 2: it is a int; an object is required"),
    "messages that are none": ("rows.jsonl", '{"messages": "hi"}', r"'messages' is a str; a list of"),
    "a strange role": (
        "rows.jsonl",
        '{"messages": [{"role": "root", "content": "a"}]}',
        r"message 1: the role is 'root'",
    ),
    "nobody answers": (
        "rows.jsonl",
        '{"messages": [{"role": "user", "content": "a"}]}',
        r"and then the assistant's answer",
    ),
    "a field too many": ("rows.csv", "question,answer\na,b,c\n", r"line 2: 3 fields where the first line has 2"),
    "an open quote": ("rows.csv", 'question,answer\n"a,b\n', r"line 2: this is not CSV"),
    "an endless field": (
        "rows.csv",
        f"question,answer\n{'a' * 200_000},b\n",
        r"line 2: this is not CSV \(field larger",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_wrong_is_told_with_its_place(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, content, complaint = HOSTILE[case]
    path = written(tmp_path, name, content)
    with pytest.raises(DataError, match=complaint) as raised:
        read_data(path)
    assert str(path) in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == [name], "nothing was executed"


@pytest.mark.parametrize("name", ["absent.json", "folder.json", "a/b/c"])
def test_what_is_no_file_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match=r"is no file|is not data that can be read"):
        read_data(tmp_path / name)


# --- packages that come with no extra ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "package", "command"),
    [("rows.parquet", "pyarrow", "pyarrow"), ("owner/name", "datasets", "datasets>=4")],
)
def test_a_missing_package_is_named_with_the_command(
    source: str, package: str, command: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "rows.parquet", b"PAR1")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=f"read by {package}, which is not installed. Run: pip install '{command}'"):
        read_data(source)


def test_parquet_is_read_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: no Parquet file can be written or read")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist([ALPACA, ALPACA]), tmp_path / "rows.parquet")
    assert read_data(tmp_path / "rows.parquet").examples[1].answer == "4"
    written(tmp_path, "broken.parquet", b"PAR1 and no more")
    with pytest.raises(DataError, match=r"broken\.parquet is no Parquet file or damaged"):
        read_data(tmp_path / "broken.parquet")


def test_a_data_set_of_the_hub_is_read_by_its_split_and_never_with_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for = []

    def load_dataset(name: str, split: str) -> list:
        asked_for.append((name, split))
        if name == "no/body":
            raise FileNotFoundError("no such data set")
        return [ALPACA]

    hub = types.ModuleType("datasets")
    hub.__version__, hub.load_dataset = "4.1.0", load_dataset
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert read_data("owner/name:test").examples[0].answer == "4"
    assert read_data("owner/name").examples[0].place == "owner/name, row 1"
    assert asked_for == [("owner/name", "test"), ("owner/name", "train")]
    with pytest.raises(DataError, match=r"no data set 'no/body'.*without a network, give a file"):
        read_data("no/body")
    hub.__version__ = "2.14.0"
    with pytest.raises(DataError, match=r"can run a data set's own code"):
        read_data("owner/name")


# --- subsets and draws -------------------------------------------------------------------------------------------


def test_a_subset_is_drawn_by_its_seed_in_order() -> None:
    data = Data("d", "alpaca", tuple(Example(asked(str(i)), "a") for i in range(50)))
    drawn = [int(e.prompt[0].content) for e in data.subset(10, seed=1).examples]
    assert drawn == sorted(set(drawn))
    assert drawn != [int(e.prompt[0].content) for e in data.subset(10, seed=2).examples]
    assert data.subset(99) == data
    assert data.subset(10).digest != data.digest
    with pytest.raises(ValueError, match="count=0; at least 1 is required"):
        data.subset(0)


def test_draws_from_a_world_follow_its_law(world: World) -> None:
    drawn = [e.prompt[0].content for e in sample(world, world.capability, 4000).examples]
    share = drawn.count(world.contexts[0]) / 4000
    p = float(world.capability.p[0])
    assert abs(share - p) < 4 * (p * (1 - p) / 4000) ** 0.5
    with pytest.raises(ValueError, match="count=0; a world with texts"):
        sample(world, world.safety, 0)


# --- real data ---------------------------------------------------------------------------------------------------


def real_data() -> Path:
    folder = os.environ.get("TRADEOFF_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TRADEOFF_DATA names no folder of real data")
    return Path(folder)


def test_real_instruction_data_are_read_whole() -> None:
    folder = real_data()
    found = {name: read_data(folder / name) for name in ("refusals_train.json", "alpaca_rows.json")}
    found |= {name: read_data(folder / name) for name in ("dolly_rows.jsonl", "gsm8k_rows.jsonl")}
    assert [data.shape for data in found.values()] == ["alpaca", "alpaca", "dolly", "question and answer"]
    assert [len(data.examples) for data in found.values()] == [1800, 1400, 387, 2000]


def test_real_lists_of_prompts_are_read_whole() -> None:
    folder = real_data()
    names = ("advbench_harmful_behaviors.csv", "malicious_instructions.json", "alpaca_style_prompts.json")
    assert [len(read_prompts(folder / name).conversations) for name in names] == [520, 100, 50]
