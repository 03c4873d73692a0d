"""What made a result: versions, sources and settings, and a digest that changes when any of them does."""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import jax

import tradeoff

SCHEMA = "1"
"""Version of the result format; raised when a reader of older files would misread new ones."""
LIBRARIES = ("jax", "jaxlib", "numpy", "scipy", "xarray", "diffrax")


def provenance(settings: Any, *sources: Path, libraries: tuple[str, ...] = ()) -> dict[str, str]:
    """Attributes for a result file; the same inputs give the same text, so files can be compared byte by byte.

    Args:
        settings: a dataclass whose fields are JSON values.
        *sources: files besides the package that the result depends on, such as the experiment's module.
        libraries: further libraries whose versions matter.

    Returns:
        Text attributes: schema, package version, source digest, settings as JSON, the digest of all these (`cell`),
        library versions, dtype, device and platform.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Settings:
        ...     seed: int = 0
        >>> provenance(Settings())["settings"]
        '{"seed": 0}'
    """
    package = Path(tradeoff.__file__).parent
    source = digest(*sorted(package.rglob("*.py")), *sources)
    written = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    versions = {name: importlib.metadata.version(name) for name in (*LIBRARIES, *libraries)}
    return {
        "schema": SCHEMA,
        "package": f"tradeoff {tradeoff.__version__}",
        "source": source,
        "settings": written,
        "cell": hashlib.sha256(f"{SCHEMA}\n{source}\n{written}\n{versions}".encode()).hexdigest(),
        "libraries": json.dumps(versions, sort_keys=True),
        "dtype": "float64",
        "device": jax.devices()[0].platform,
        "platform": f"Python {platform.python_version()}, {platform.machine()}",
    }


def digest(*files: Path) -> str:
    """SHA-256 over the names and contents of files, in the order given."""
    running = hashlib.sha256()
    for file in files:
        running.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return running.hexdigest()
