"""Files of results: written whole or not at all, and read back only when they are what they should be."""

from pathlib import Path

import xarray as xr

from tradeoff._files import write_atomically


def save(dataset: xr.Dataset, path: Path) -> None:
    """Write a dataset as netCDF, atomically; the same dataset always gives the same bytes.

    Raises:
        ValueError: when a variable holds NaN and its attribute "missing" does not say what that means (an undefined result
            never passes silently; infinities are results).
    """
    for name, variable in dataset.variables.items():
        if variable.dtype.kind == "f" and "missing" not in variable.attrs and bool(variable.isnull().any()):
            raise ValueError(
                f"result {name!r} for {path.name} holds NaN; find where it became undefined before saving it, or say in its "
                'attribute "missing" what a missing value means.'
            )
    write_atomically(path, lambda beside: dataset.to_netcdf(beside, engine="h5netcdf"))


def load(path: Path, cell: str | None = None) -> xr.Dataset | None:
    """Read a dataset, or `None` when there is none or it was made by other sources or settings.

    Args:
        path: the file.
        cell: the digest that the file must carry (`provenance(...)["cell"]`); any when `None`.

    Raises:
        ValueError: when the file is there and cannot be read; the message names it and the remedy.
    """
    if not path.exists():
        return None
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            dataset = opened.load()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a whole result file ({error}); delete it and run again.") from error
    return dataset if cell in (None, dataset.attrs.get("cell")) else None
