"""Instruction data: questions and their answers, in the shapes that are in use, checked row by row."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tradeoff.bridge.data_files import DataError, RawRow, read_rows
from tradeoff.bridge.template import Turn, asked
from tradeoff.worlds.world import DataLaw, World

ROLES = ("system", "user", "assistant")
PROMPT_NAMES = ("instruction", "prompt", "question", "goal", "instructions", "prompts")
"""The columns in which lists of prompts keep them."""


@dataclass(frozen=True)
class Example:
    """A question and the answer that the data want.

    Attributes:
        prompt: the conversation up to where the assistant answers.
        answer: the answer.
        place: where it stands in its file.
    """

    prompt: tuple[Turn, ...]
    answer: str
    place: str = ""


@dataclass(frozen=True)
class Data:
    """Questions with answers.

    Attributes:
        name: the file or data set that they are from.
        shape: how it is written: `alpaca`, `dolly`, `question and answer`, `chat`, `prompt and completion`, or `text world`.
        examples: in order.
    """

    name: str
    shape: str
    examples: tuple[Example, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of what is said, in order: the identity of the data in every result."""
        said = [[[[t.role, t.content] for t in each.prompt], each.answer] for each in self.examples]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def subset(self, count: int, seed: int = 0) -> "Data":
        """At most `count` examples, drawn without replacement by a seed and kept in order."""
        return replace(self, examples=tuple(_drawn(self.examples, count, seed)))


@dataclass(frozen=True)
class Prompts:
    """Questions without answers.

    Attributes:
        name: the file or data set that they are from.
        conversations: each up to where the assistant answers.
    """

    name: str
    conversations: tuple[tuple[Turn, ...], ...]

    @property
    def digest(self) -> str:
        """SHA-256 of what is asked, in order."""
        said = [[[t.role, t.content] for t in each] for each in self.conversations]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def subset(self, count: int, seed: int = 0) -> "Prompts":
        """At most `count` prompts, drawn without replacement by a seed and kept in order."""
        return replace(self, conversations=tuple(_drawn(self.conversations, count, seed)))


def read_data(source: str | Path) -> Data:
    r"""Instruction data from a file or a Hugging Face data set.

    The keys of the first row tell the shape, and every row must have it; other keys are left alone.

    | shape | keys | the user says |
    |---|---|---|
    | alpaca | instruction, output; input | the instruction, an empty line, the input if there is one |
    | dolly | instruction, response; context | the instruction, an empty line, the context if there is one |
    | question and answer | question, answer | the question |
    | chat | messages: a list of {role, content} | what was said before the last message, which is the assistant's |
    | prompt and completion | prompt, completion | the prompt |

    Args:
        source: as `read_rows`.

    Returns:
        The examples, with their places.

    Raises:
        DataError: for a file that cannot be read, an unknown shape, a missing key, a value of the wrong type, an empty
            question or answer; the message names the file and the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "rows.jsonl"
        ...     _ = path.write_text('{"question": "2 + 2?", "answer": "4"}')
        ...     data = read_data(path)
        >>> data.shape, data.examples[0].prompt[0].content, data.examples[0].answer
        ('question and answer', '2 + 2?', '4')
    """
    rows = read_rows(source)
    shape = _shape_of(rows[0])
    return Data(str(source), shape, tuple(_example(row, shape) for row in rows))


def read_prompts(source: str | Path) -> Prompts:
    """Prompts from a file: a list or one column of texts, or instruction data, whose answers are left out.

    Args:
        source: as `read_rows`.

    Returns:
        The prompts in order.

    Raises:
        DataError: as `read_data`.
    """
    return Prompts(str(source), tuple(_prompt_of(row) for row in read_rows(source)))


def sample(world: World, law: DataLaw, count: int, seed: int = 0) -> Data:
    """Examples drawn from a data law of a text world: data of which everything is known.

    Args:
        world: a text world.
        law: one of its laws, such as `world.safety`.
        count: how many, drawn with replacement.
        seed: of the draws.

    Returns:
        The examples; their places are their cells of the world.

    Raises:
        ValueError: when the world has no texts or `count` is less than 1.

    Example:
        >>> from tradeoff import worlds
        >>> world = worlds.requests()
        >>> sample(world, world.safety, 2).examples[0].answer
        "I'm sorry, but I can't help with that."
    """
    if world.contexts is None or world.responses is None or count < 1:
        raise ValueError(
            f"sample was given {world} and count={count}; a world with texts, such as worlds.requests(), and at least 1 draw "
            "are required."
        )
    cells = np.asarray(law.p[:, None] * law.P)
    drawn = np.random.default_rng(seed).choice(cells.size, size=count, p=cells.ravel() / cells.sum())
    examples = [
        Example(asked(world.contexts[x]), world.responses[y], f"cell ({x}, {y})")
        for x, y in zip(*np.unravel_index(drawn, cells.shape), strict=True)
    ]
    return Data(f"{count} draws from a text world, seed {seed}", "text world", tuple(examples))


# --- shapes ------------------------------------------------------------------------------------------------------


def _with(extra: str) -> Callable[[Mapping[str, Any], str], tuple[Turn, ...]]:
    def prompt(row: Mapping[str, Any], place: str) -> tuple[Turn, ...]:
        more = _text(row, extra, place, optional=True)
        instruction = _text(row, "instruction", place)
        return asked(f"{instruction}\n\n{more}" if more.strip() else instruction)

    return prompt


def _only(name: str) -> Callable[[Mapping[str, Any], str], tuple[Turn, ...]]:
    return lambda row, place: asked(_text(row, name, place))


_SHAPES: dict[str, tuple[tuple[str, str], Callable[[Mapping[str, Any], str], tuple[Turn, ...]]]] = {
    "alpaca": (("instruction", "output"), _with("input")),
    "dolly": (("instruction", "response"), _with("context")),
    "question and answer": (("question", "answer"), _only("question")),
    "prompt and completion": (("prompt", "completion"), _only("prompt")),
}


def _shape_of(row: RawRow) -> str:
    given = row.value
    if isinstance(given, dict):
        if "messages" in given:
            return "chat"
        for shape, (required, _) in _SHAPES.items():
            if set(required) <= set(given):
                return shape
    known = "; ".join(f"{shape}: {', '.join(keys)}" for shape, (keys, _) in _SHAPES.items())
    found = f"the keys {sorted(given)}" if isinstance(given, dict) else f"a {type(given).__name__}"
    raise DataError(f"{row.place}: {found}, and that is no shape of instruction data. Give {known}; chat: messages.")


def _example(row: RawRow, shape: str) -> Example:
    given = _object(row)
    if shape == "chat":
        turns = _conversation(given, row.place)
        if len(turns) < 2 or turns[-1].role != "assistant":
            raise DataError(
                f"{row.place}: the roles are {[t.role for t in turns]}; a question and then the assistant's answer are required."
            )
        return Example(turns[:-1], turns[-1].content, row.place)
    (_, answer), prompt = _SHAPES[shape]
    return Example(prompt(given, row.place), _text(given, answer, row.place), row.place)


def _prompt_of(row: RawRow) -> tuple[Turn, ...]:
    given = row.value
    if isinstance(given, str):
        return asked(_words(given, "the prompt", row.place))
    given = _object(row)
    if "messages" in given:
        turns = _conversation(given, row.place)
        return turns[:-1] if turns[-1].role == "assistant" else turns
    if "instruction" in given:
        return _with("context" if "context" in given else "input")(given, row.place)
    for name in PROMPT_NAMES:
        if name in given:
            return asked(_text(given, name, row.place))
    raise DataError(
        f"{row.place}: the keys are {sorted(given)}, and no prompt is among them. Give one of {', '.join(PROMPT_NAMES)}."
    )


def _conversation(row: Mapping[str, Any], place: str) -> tuple[Turn, ...]:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{place}: 'messages' is {_kind(messages)}; a list of {{role, content}} is required.")
    turns = []
    for number, message in enumerate(messages, 1):
        where = f"{place}, message {number}"
        if not isinstance(message, dict):
            raise DataError(f"{where}: it is {_kind(message)}; an object with role and content is required.")
        turns.append(Turn(_text(message, "role", where), _text(message, "content", where)))
        if turns[-1].role not in ROLES:
            raise DataError(f"{where}: the role is {turns[-1].role!r}; it must be one of {', '.join(ROLES)}.")
    return tuple(turns)


def _object(row: RawRow) -> dict[str, Any]:
    if not isinstance(row.value, dict):
        raise DataError(f"{row.place}: it is {_kind(row.value)}; an object is required.")
    return row.value


def _text(row: Mapping[str, Any], key: str, place: str, optional: bool = False) -> str:
    if optional and row.get(key) in (None, ""):
        return ""
    if key not in row:
        raise DataError(f"{place}: the key {key!r} is missing; there are {sorted(row)}. Every row needs the same keys.")
    return _words(row[key], repr(key), place)


def _words(given: Any, what: str, place: str) -> str:
    if not isinstance(given, str):
        raise DataError(f"{place}: {what} is {_kind(given)}; a text is required.")
    if not given.strip():
        raise DataError(f"{place}: {what} is empty. Write it, or leave the row out.")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: {what} has half a character at {error.start} (a lone surrogate). Mend it."
        ) from error
    return given


def _kind(given: Any) -> str:
    return "null" if given is None else f"a {type(given).__name__}"


def _drawn(items: Sequence[Any], count: int, seed: int) -> list[Any]:
    if count < 1:
        raise ValueError(f"subset was given count={count}; at least 1 is required.")
    if count >= len(items):
        return list(items)
    return [items[i] for i in sorted(np.random.default_rng(seed).choice(len(items), count, replace=False))]
