"""Worlds as JSON files."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tradeoff.worlds.world import DataLaw, World

_SHAPE = (
    '{"safety": {"p": [...], "P": [[...], ...]}, "capability": {...}, and optionally "proxy": {...}, '
    '"contexts": ["...", ...], "responses": ["...", ...]}'
)


def read(path: Path | str) -> World:
    """Read a world from a JSON file.

    Args:
        path: a file that holds an object with `safety` and `capability`, each with `p` (contexts) and `P` (contexts x
            responses), and optionally `proxy`, `contexts` and `responses`.

    Returns:
        The world.

    Raises:
        ValueError: when the file is not such a world; the message names the file, the field and the remedy.

    Example:
        >>> import tempfile
        >>> from tradeoff import worlds
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(worlds.golden(), Path(folder) / "golden.json")
        ...     read(Path(folder) / "golden.json")
        World(4 contexts x 3 responses, exact proxy)
    """
    path = Path(path)
    try:
        given = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; give a JSON file of the form {_SHAPE}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); a world has the form {_SHAPE}.") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path} holds a {type(given).__name__}; a world has the form {_SHAPE}.")
    known = {"safety", "capability", "proxy", "contexts", "responses"}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"{path} has unknown fields {unknown}; a world has the form {_SHAPE}.")
    try:
        laws = {role: _law(given.get(role), role) for role in ("safety", "capability", "proxy")}
        if laws["safety"] is None or laws["capability"] is None:
            raise ValueError("safety and capability are both required")
        return World(laws["safety"], laws["capability"], laws["proxy"], given.get("contexts"), given.get("responses"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def write(world: World, path: Path | str) -> None:
    """Write a world to a JSON file that `read` reads back to the last bit."""
    laws = {"safety": world.safety, "capability": world.capability, "proxy": world.proxy}
    made: dict[str, Any] = {
        role: {"p": np.asarray(law.p).tolist(), "P": np.asarray(law.P).tolist()}
        for role, law in laws.items()
        if law is not None
    }
    made |= {name: names for name in ("contexts", "responses") if (names := getattr(world, name)) is not None}
    Path(path).write_text(json.dumps(made, indent=1))


def _law(given: Any, role: str) -> DataLaw | None:
    if given is None:
        return None
    if not isinstance(given, dict) or set(given) != {"p", "P"}:
        raise ValueError(f'{role} must be an object with exactly "p" and "P"')
    try:
        return DataLaw(given["p"], given["P"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{role}: {error}") from error
