"""Results: whole or absent, the same bytes for the same data, and what made them."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

from tradeoff import studies


@dataclasses.dataclass(frozen=True)
class Settings:
    seed: int = 0
    sizes: tuple[int, ...] = (1, 2)


def dataset(value=1.0):
    return xr.Dataset({"gap": ("lam", [value, np.inf])}, coords={"lam": [0.0, 1.0]}, attrs={"cell": "a"})


def test_equal_datasets_are_equal_files(tmp_path):
    for name in ("one.nc", "two.nc"):
        studies.save(dataset(), tmp_path / name)
    assert (tmp_path / "one.nc").read_bytes() == (tmp_path / "two.nc").read_bytes()
    studies.save(dataset(2.0), tmp_path / "two.nc")
    assert (tmp_path / "one.nc").read_bytes() != (tmp_path / "two.nc").read_bytes()


def test_what_is_saved_is_loaded_when_its_cell_is_asked_for(tmp_path):
    path = tmp_path / "result.nc"
    assert studies.load(path) is None
    studies.save(dataset(), path)
    xr.testing.assert_identical(studies.load(path, "a"), dataset())
    assert studies.load(path, "b") is None


def test_an_undefined_result_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="'gap' for result.nc holds NaN"):
        studies.save(dataset(np.nan), tmp_path / "result.nc")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.nc"
    studies.save(dataset(), path)
    before = path.read_bytes()

    def fail(beside):
        beside.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        studies.write_atomically(path, fail)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["result.nc"]


@pytest.mark.parametrize("keep", [0, 10, 3000])
def test_a_file_cut_short_is_named(tmp_path, keep):
    path = tmp_path / "result.nc"
    studies.save(dataset(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"result\.nc is not a whole result file .*delete it and run again"):
        studies.load(path)


def test_provenance_changes_with_settings_and_sources_and_nothing_else(tmp_path):
    source = tmp_path / "experiment.py"
    source.write_text("a = 1")
    made = studies.provenance(Settings(), source)
    assert made == studies.provenance(Settings(), source)
    assert made["cell"] != studies.provenance(Settings(seed=1), source)["cell"]
    source.write_text("a = 2")
    assert made["cell"] != studies.provenance(Settings(), source)["cell"]
    assert {"package", "source", "settings", "libraries", "dtype", "device", "schema"} <= set(made)
