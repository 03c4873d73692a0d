"""What made a result: versions, sources and settings, and a digest that changes when any of them does."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import typing
from pathlib import Path
from typing import Any

import jax

import tradeoff
from tradeoff.studies.dependencies import PACKAGE, sources
from tradeoff.studies.format import SCHEMA

LIBRARIES = ("jax", "jaxlib", "numpy", "scipy", "xarray", "diffrax")


def provenance(settings: Any, *files: Path, libraries: tuple[str, ...] = (), part: str = "") -> dict[str, str]:
    """Attributes for a result file; the same inputs give the same text, so files can be compared byte by byte.

    Args:
        settings: a dataclass whose fields are JSON values; the module that defines it is said to have made the result.
        *files: what makes the result, such as the experiment's module: it depends on these and on all that they import
            of the package and beside it. Without any it depends on the whole package.
        libraries: further libraries whose versions matter.
        part: the cell of the experiment that the result is; empty for the whole.

    Returns:
        Text attributes: all of `ATTRIBUTES` but the checksum, which a file gets when it is saved.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Settings:
        ...     seed: int = 0
        >>> made = provenance(Settings())
        >>> made["settings"], made["seed"], made["x64"]
        ('{"seed": 0}', '0', 'true')
    """
    depended = sources(*files) if files else tuple(sorted(PACKAGE.rglob("*.py")))
    source = digest(*depended)
    written = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    versions = {name: _version(name) for name in (*LIBRARIES, *libraries)}
    made_by = type(settings).__module__
    key = json.dumps([SCHEMA, made_by, part, source, written, versions], sort_keys=True)
    commit, dirty = _commit(depended)
    return {
        "schema": SCHEMA,
        "made_by": made_by,
        "part": part,
        "package": f"tradeoff {tradeoff.__version__}",
        "source": source,
        "commit": commit,
        "dirty": dirty,
        "settings": written,
        "settings_sha256": hashlib.sha256(written.encode()).hexdigest(),
        "seed": str(getattr(settings, "seed", "")),
        "cell": hashlib.sha256(key.encode()).hexdigest(),
        "libraries": json.dumps(versions, sort_keys=True),
        "dtype": "float64",
        "x64": json.dumps(bool(jax.config.read("jax_enable_x64"))),
        "device": jax.devices()[0].platform,
        "threads": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "xla_flags": os.environ.get("XLA_FLAGS", "").strip(),
        "platform": f"Python {platform.python_version()}, {platform.machine()}",
    }


def restored(kind: type, written: str) -> Any:
    """The settings that a result was made with, from its attribute "settings".

    Args:
        kind: the dataclass of the settings.
        written: the attribute.

    Raises:
        ValueError: when the dataclass has other fields by now.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Settings:
        ...     sizes: tuple[int, ...] = ()
        >>> restored(Settings, '{"sizes": [1, 2]}').sizes
        (1, 2)
    """
    return _instance(kind, json.loads(written))


def digest(*files: Path) -> str:
    """SHA-256 over the names and contents of files, in the order given."""
    running = hashlib.sha256()
    for file in files:
        running.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return running.hexdigest()


def _instance(kind: type, values: dict[str, Any]) -> Any:
    types = typing.get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}
    if known != set(values):
        raise ValueError(
            f"the settings of {kind.__module__} are {', '.join(sorted(known))}; the result was made with "
            f"{', '.join(sorted(values))}. Check out the commit that it names, or make the result anew."
        )
    return kind(
        **{
            name: _instance(types[name], value) if dataclasses.is_dataclass(types[name]) else _tuples(value)
            for name, value in values.items()
        }
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


_version = functools.cache(importlib.metadata.version)


@functools.cache
def _commit(files: tuple[Path, ...]) -> tuple[str, str]:
    """The last commit that touched files, and whether they differ from it; other commits leave the answer as it is."""
    unknown = ("unknown", "unknown")
    asked = [str(file) for file in files]
    log = _git(files[0].parent, "log", "-1", "--format=%H", "--", *asked)
    status = _git(files[0].parent, "status", "--porcelain", "--", *asked)
    return (log, json.dumps(bool(status))) if log and status is not None else unknown


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or `None` when it is not there or this is no checkout of its own."""
    try:
        asked = subprocess.run(["git", "-C", str(folder), *arguments], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return None if asked.returncode else asked.stdout.strip()
