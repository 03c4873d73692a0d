"""The format of a result file: its version, its published JSON Schema, and the header that the schema describes."""

from typing import Any

import numpy as np
import xarray as xr

SCHEMA = "2"
"""Version of the result format; raised when a reader of older files would misread new ones."""
READABLE = ("1", SCHEMA)

ATTRIBUTES = {
    "schema": "version of this format",
    "made_by": "module of the experiment",
    "part": "the cell of the experiment that the file holds; empty when it holds the whole result",
    "package": "name and version of the package",
    "source": "SHA-256 over the source files that the result depends on",
    "commit": "last commit of these files; 'unknown' outside a git checkout",
    "dirty": "whether these files differed from that commit: true, false or unknown",
    "settings": "settings of the experiment, as JSON",
    "settings_sha256": "SHA-256 of the settings",
    "seed": "seed of the random numbers; empty when the settings name none",
    "cell": "SHA-256 of schema, module, part, source, settings and library versions: the key that a result is found by",
    "libraries": "versions of the libraries, as JSON",
    "dtype": "precision of the theory",
    "x64": "whether JAX computed in double precision",
    "device": "where JAX computed",
    "threads": "how many cores the process could use",
    "xla_flags": "flags of the compiler",
    "platform": "Python and processor",
    "checksum": "SHA-256 over the attributes and variables",
}
"""What every result file says of itself."""
FIRST_ATTRIBUTES = ("schema", "package", "source", "settings", "cell", "libraries", "dtype", "device", "platform")
"""What files of schema 1 said."""
_DIGESTS = ("source", "settings_sha256", "cell", "checksum")


def header(dataset: xr.Dataset) -> dict[str, Any]:
    """Everything that a result says of itself except its numbers, as JSON values; `schema` describes it.

    Args:
        dataset: a result.

    Returns:
        Attributes, the length of each dimension, and for each variable its dimensions, type and attributes.

    Example:
        >>> import xarray as xr
        >>> header(xr.Dataset({"gap": ("step", [0.5, 0.25], {"units": "nats"})}))["variables"]
        {'gap': {'dims': ['step'], 'dtype': 'float64', 'coordinate': False, 'attributes': {'units': 'nats'}}}
    """
    return {
        "attributes": plain(dataset.attrs),
        "dims": {str(name): int(length) for name, length in dataset.sizes.items()},
        "variables": {
            str(name): {
                "dims": [str(dim) for dim in variable.dims],
                "dtype": "string" if variable.dtype.kind in "OUT" else str(variable.dtype),
                "coordinate": name in dataset.coords,
                "attributes": plain(variable.attrs),
            }
            for name, variable in dataset.variables.items()
        },
    }


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the header of a result, of every version that can be read.

    Example:
        >>> schema()["properties"]["attributes"]["properties"]["schema"]["enum"]
        ['1', '2']
    """
    text = {name: {"type": "string", "description": said} for name, said in ATTRIBUTES.items()}
    text["schema"]["enum"] = list(READABLE)  # type: ignore[index]
    for name in _DIGESTS:
        text[name]["pattern"] = "^[0-9a-f]{64}$"
    latest = {"properties": {"schema": {"const": SCHEMA}}}
    variable = {
        "type": "object",
        "required": ["dims", "dtype", "coordinate", "attributes"],
        "properties": {
            "dims": {"type": "array", "items": {"type": "string"}},
            "dtype": {"enum": ["float64", "float32", "int64", "int32", "bool", "string"]},
            "coordinate": {"type": "boolean", "description": "whether it labels a dimension"},
            "attributes": {
                "type": "object",
                "properties": {
                    "units": {"type": "string", "description": "unit of the values; without one they are pure numbers"},
                    "long_name": {"type": "string"},
                    "missing": {"type": "string", "description": "what NaN means; without it no value is NaN"},
                },
            },
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Header of a result of tradeoff",
        "description": "A result is a netCDF-4 file with named dimensions. Attributes that are not listed are kept.",
        "type": "object",
        "required": ["attributes", "dims", "variables"],
        "properties": {
            "attributes": {
                "type": "object",
                "properties": text,
                "required": list(FIRST_ATTRIBUTES),
                "if": latest,
                "then": {"required": list(ATTRIBUTES)},
            },
            "dims": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
            "variables": {"type": "object", "additionalProperties": variable},
        },
    }


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes as JSON values: what NumPy made of them when they were read is undone."""
    return {str(name): np.asarray(value).tolist() for name, value in attributes.items()}
