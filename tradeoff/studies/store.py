"""Files of results: written whole or not at all, and read back only when they are what they should be."""

import hashlib
import json
from pathlib import Path

import numpy as np
import xarray as xr

from tradeoff._files import write_atomically
from tradeoff.studies.format import ATTRIBUTES, READABLE, SCHEMA, plain


def save(dataset: xr.Dataset, path: Path) -> None:
    """Write a dataset as netCDF with a checksum, atomically; the same dataset always gives the same bytes.

    Args:
        dataset: a result with the attributes of `provenance`.
        path: the file.

    Raises:
        ValueError: when the dataset does not say what made it, or a variable holds NaN and its attribute "missing" does not
            say what that means (an undefined result never passes silently; infinities are results).
        OSError: when the file cannot be written; what was there before is as it was.
    """
    if unsaid := [name for name in ATTRIBUTES if name not in dataset.attrs and name != "checksum"]:
        raise ValueError(
            f"the result for {path.name} lacks the attributes {', '.join(unsaid)}; "
            "add what made it first: dataset.attrs |= studies.provenance(settings, ...)."
        )
    for name, variable in dataset.variables.items():
        if variable.dtype.kind == "f" and "missing" not in variable.attrs and bool(variable.isnull().any()):
            raise ValueError(
                f"result {name!r} for {path.name} holds NaN; find where it became undefined before saving it, or say in its "
                'attribute "missing" what a missing value means.'
            )
    signed = dataset.assign_attrs(schema=SCHEMA, checksum=checksum(dataset.assign_attrs(schema=SCHEMA)))
    # By way of memory: a disk that is full then fails in a plain write, not inside the library that lays out the file.
    content = signed.to_netcdf(engine="h5netcdf")
    write_atomically(path, lambda beside: beside.write_bytes(content))


def load(path: Path, cell: str | None = None) -> xr.Dataset | None:
    """Read a dataset, or `None` when there is none or it was made by other sources or settings.

    Files of every schema are read; attributes that this version does not know are kept.

    Args:
        path: the file.
        cell: the digest that the file must carry (`provenance(...)["cell"]`); any when `None`.

    Raises:
        ValueError: when the file is there and is damaged, altered or of a newer schema; the message names it and the remedy.
    """
    if not path.exists():
        return None
    remedy = f"delete it and run again: rm '{path}'"
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            dataset = opened.load()
    except Exception as error:  # the libraries below raise errors of a dozen kinds on damaged bytes
        raise ValueError(f"{path} is not a whole result file ({error}); {remedy}") from error
    version = dataset.attrs.get("schema")
    if version not in READABLE:
        raise ValueError(
            f"{path} has schema {version!r}, and this tradeoff reads {', '.join(READABLE)}; read it with the version that "
            f"wrote it ({dataset.attrs.get('package', 'unknown')}), or {remedy}"
        )
    if version != "1" and dataset.attrs.get("checksum") != checksum(dataset):  # files of schema 1 carry none
        raise ValueError(f"{path} was altered: its content is not what its checksum says; {remedy}")
    return dataset if cell in (None, dataset.attrs.get("cell")) else None


def checksum(dataset: xr.Dataset) -> str:
    """SHA-256 over the attributes and variables of a result, its attribute "checksum" apart.

    Args:
        dataset: a result, as made or as read back: both give the same.

    Example:
        >>> import xarray as xr
        >>> one = checksum(xr.Dataset({"gap": 0.5}))
        >>> one == checksum(xr.Dataset({"gap": 0.5})), one == checksum(xr.Dataset({"gap": 0.25}))
        (True, False)
    """
    attributes = {name: value for name, value in plain(dataset.attrs).items() if name != "checksum"}
    running = hashlib.sha256(json.dumps(attributes, sort_keys=True).encode())
    for name in sorted(map(str, dataset.variables)):
        variable = dataset.variables[name]
        text = variable.dtype.kind in "OUT"
        kind = "string" if text else variable.dtype.str
        said = [name, list(variable.dims), list(variable.shape), kind, plain(variable.attrs)]
        running.update(json.dumps(said, sort_keys=True).encode())
        values = np.asarray(variable.values)
        running.update(json.dumps(values.tolist()).encode() if text else np.ascontiguousarray(values).tobytes())
    return running.hexdigest()
