"""Rows out of JSON, JSON Lines, CSV, Parquet files and Hugging Face data sets, each with the place where it stands.

Nothing in a file is executed, and every complaint names the file and the line.
"""

import csv
import importlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


class DataError(ValueError):
    """Data that cannot be read or are not what they should be; the message names the file, the line and the remedy."""


@dataclass(frozen=True)
class RawRow:
    """A row before anything is known of its shape.

    Attributes:
        place: where it stands, such as `alpaca.json, line 12`.
        value: what stands there.
    """

    place: str
    value: Any


def read_rows(source: str | Path) -> tuple[RawRow, ...]:
    """Every row of a file or a data set.

    Args:
        source: a `.json` (a list of rows, or an object of columns), `.jsonl`, `.csv` or `.parquet` file, or the name of a
            Hugging Face data set, `owner/name` or `owner/name:split` (the split is `train` unless told).

    Returns:
        The rows in order, at least one.

    Raises:
        DataError: when there is no such file, it is damaged, it holds nothing, or a package is needed that is not there.
    """
    path = Path(source).expanduser()
    if not path.exists() and path.suffix.lower() not in SUFFIXES and str(source).count("/") == 1:
        rows = _from_hub(str(source))
    else:
        rows = _from_file(path)
    if not rows:
        raise DataError(f"{source} holds no rows. Give data with at least one.")
    return rows


def _from_file(path: Path) -> tuple[RawRow, ...]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path} is not data that can be read: its name must end in {', '.join(SUFFIXES)}, or be that of a Hugging Face "
            "data set (owner/name). Nothing else is opened, pickles least of all."
        )
    if not path.is_file():
        raise DataError(f"{path} is no file. Give the path of an existing {suffix} file.")
    try:
        if suffix == ".parquet":
            return tuple(_from_parquet(path))
        text = _text(path)
        if suffix == ".json":
            return tuple(_from_json(path, text))
        return tuple(_from_lines(path, text) if suffix == ".jsonl" else _from_csv(path, text))
    except OSError as error:
        raise DataError(f"{path} could not be read ({error}). Check the file and its permissions.") from error


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: byte {content[error.start]:#04x} is not UTF-8 ({error.reason}). Save the file in UTF-8."
        ) from error


# --- JSON --------------------------------------------------------------------------------------------------------


def _from_json(path: Path, text: str) -> Iterator[RawRow]:
    """The entries of a list with their lines, or an object of equally long columns as rows."""
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] == "[":
        yield from _entries(path, text, start)
        return
    given = _decoded(path, text, start)[0]
    if not isinstance(given, dict):
        raise DataError(f"{path} holds a {type(given).__name__}; a list of rows or an object of columns is required.")
    # An empty column is one that is not there: so some lists of prompts say that they have no inputs.
    columns = {name: column for name, column in given.items() if isinstance(column, list) and column}
    lengths = {name: len(column) for name, column in columns.items()}
    if not columns or len(set(lengths.values())) > 1:
        raise DataError(f"{path} is an object with lists of lengths {lengths}; its lists must be of one length.")
    for index, values in enumerate(zip(*columns.values(), strict=True)):
        yield RawRow(f"{path}, entry {index + 1}", dict(zip(columns, values, strict=True)))


def _entries(path: Path, text: str, start: int) -> Iterator[RawRow]:
    at, line, counted = _skip(text, start + 1), 1, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        value, end = _decoded(path, text, at)
        yield RawRow(f"{path}, line {line}", value)
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            raise _no_json(path, text, at, "Expecting ',' or ']' after an entry")
    if text[at + 1 :].strip():
        raise _no_json(path, text, _skip(text, at + 1), "Extra data after the list")


def _from_lines(path: Path, text: str) -> Iterator[RawRow]:
    at = 0
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            value, end = _decoded(path, text, at + len(line) - len(line.lstrip()))
            if text[end : at + len(line)].strip() or end > at + len(line):
                raise _no_json(path, text, at, "A line must hold one JSON value and nothing else")
            yield RawRow(f"{path}, line {number}", value)
        at += len(line) + 1


def _decoded(path: Path, text: str, at: int) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _no_json(path, text, error.pos, error.msg) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise _no_json(path, text, at, f"{type(error).__name__}: {error}") from error


def _no_json(path: Path, text: str, at: int, why: str) -> DataError:
    line = text.count("\n", 0, at) + 1
    return DataError(f"{path}, line {line}: this is not JSON ({why}). The file is damaged or cut off: fetch it anew.")


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in " \t\r\n":
        at += 1
    return at


# --- tables ------------------------------------------------------------------------------------------------------


def _from_csv(path: Path, text: str) -> Iterator[RawRow]:
    """Rows by the names in the first line; a file of one column without a name gives its entries as they are."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] | None = None
    try:
        for fields in reader:
            if not fields:
                continue
            place = f"{path}, line {reader.line_num}"
            if names is None:
                names = fields
                if len(fields) > 1 or fields[0].isidentifier():
                    continue
            if len(fields) != len(names):
                raise DataError(
                    f"{place}: {len(fields)} fields where the first line has {len(names)}. Quote what contains commas."
                )
            single = len(names) == 1 and not names[0].isidentifier()
            yield RawRow(place, fields[0] if single else dict(zip(names, fields, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: this is not CSV ({error}). Mend the line.") from error


def _from_parquet(path: Path) -> Iterator[RawRow]:
    arrow, parquet = _package("pyarrow", "pyarrow", path), _package("pyarrow.parquet", "pyarrow", path)
    try:
        rows = parquet.read_table(path).to_pylist()
    except (arrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no Parquet file or damaged ({error}). Fetch it anew.") from error
    for index, value in enumerate(rows):
        yield RawRow(f"{path}, row {index + 1}", value)


def _package(module: str, requirement: str, source: Any) -> ModuleType:
    """A package that comes with no extra, for few need it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise DataError(
            f"{source} is read by {module.partition('.')[0]}, which is not installed. Run: pip install '{requirement}'"
        ) from error


def _from_hub(name: str) -> tuple[RawRow, ...]:
    datasets = _package("datasets", "datasets>=4", name)
    if int(datasets.__version__.partition(".")[0]) < 4:  # before, a data set could bring Python that runs
        raise DataError(
            f"datasets {datasets.__version__} can run a data set's own code. Run: pip install 'datasets>=4'"
        )
    repository, _, split = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, split=split or "train")
    except Exception as error:
        complaint = (str(error).splitlines() or ["no message"])[0]
        raise DataError(
            f"the Hugging Face hub gave no data set {name!r} ({type(error).__name__}: {complaint}). Check the spelling "
            "(owner/name:split); without a network, give a file."
        ) from error
    return tuple(RawRow(f"{name}, row {index + 1}", dict(row)) for index, row in enumerate(loaded))
