"""Two results side by side: where their numbers differ and by how much, and what differs in how they were made."""

import json

import numpy as np
import xarray as xr

from tradeoff.studies.format import ATTRIBUTES, header


def differences(old: xr.Dataset, new: xr.Dataset) -> tuple[str, ...]:
    """A sentence for every variable in which two results differ, bit by bit; none when they are equal.

    Args:
        old: a result.
        new: the same result, made again.

    Example:
        >>> import xarray as xr
        >>> old, new = (xr.Dataset({"gap": ("step", [0.5, end])}, coords={"step": [0, 1]}) for end in (0.25, 0.375))
        >>> differences(old, new)
        ('gap differs in 1 of 2 values, by at most 0.125: 0.25 became 0.375 at step = 1',)
        >>> differences(old, old)
        ()
    """
    said = []
    first, second = header(old)["variables"], header(new)["variables"]
    for name in sorted(first.keys() | second.keys()):
        if name not in second or name not in first:
            said.append(f"{name} is {'missing now' if name in first else 'new'}")
        elif first[name] != second[name] or old[name].shape != new[name].shape:
            said.append(f"{name} was {_kind(old, name)} and is {_kind(new, name)}")
        elif sentence := _apart(name, old[name], new[name]):
            said.append(sentence)
    return tuple(said)


def changed_origins(old: xr.Dataset, new: xr.Dataset) -> tuple[str, ...]:
    """A sentence for everything that differs in how two results were made, libraries one by one.

    Example:
        >>> import xarray as xr
        >>> old, new = (xr.Dataset(attrs={"threads": count, "checkpoint": "a"}) for count in ("2", "4"))
        >>> changed_origins(old, new)
        ('threads: 2 became 4',)
    """
    first, second = (_origins(header(each)["attributes"]) for each in (old, new))
    follows = ("checksum", "cell", "settings_sha256")  # from the others
    return tuple(
        f"{name}: {first.get(name, 'nothing')} became {second.get(name, 'nothing')}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name) and name not in follows
    )


def _origins(attributes: dict) -> dict:
    libraries = json.loads(attributes.get("libraries", "{}"))
    return {k: v for k, v in attributes.items() if k in ATTRIBUTES and k != "libraries"} | libraries


def _kind(dataset: xr.Dataset, name: str) -> str:
    values = dataset[name]
    return f"{values.dtype} {dict(values.sizes)} {values.attrs or ''}".strip()


def _apart(name: str, old: xr.DataArray, new: xr.DataArray) -> str:
    """How two arrays of one shape differ; empty when they do not. NaN equals NaN."""
    before, after = np.asarray(old.values), np.asarray(new.values)
    number = before.dtype.kind == "f"
    different = before != after
    if number:
        different &= ~(np.isnan(before) & np.isnan(after))
    if not different.any():
        return ""
    size, where = np.zeros(before.shape), np.argwhere(different)[0]
    if number:
        with np.errstate(invalid="ignore"):
            size = np.where(different, np.abs(after - before), 0.0)
        size = np.where(np.isnan(size), np.inf, size)
        where = np.array(np.unravel_index(np.argmax(size), size.shape))
    at = ", ".join(
        f"{dim} = {old[dim].values[index] if dim in old.coords else index}"
        for dim, index in zip(old.dims, where, strict=True)
    )
    most = f", by at most {size.max():.6g}" if number else ""
    values = f"{before[tuple(where)]} became {after[tuple(where)]}"
    return f"{name} differs in {int(different.sum())} of {different.size} values{most}: {values}" + (
        f" at {at}" if at else ""
    )
