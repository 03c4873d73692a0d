"""Results: whole or absent, the same bytes for the same data, signed, and what made them."""

import dataclasses
import errno
import gc
import json
import os
import random
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import xarray as xr

from experiments.catalogue import CATALOGUE
from tradeoff import studies

ROOT = Path(__file__).parents[1]
GALLERY = sorted((ROOT / "figures" / "gallery").glob("*.nc"))
PUBLISHED = json.loads((ROOT / "docs" / "result-schema.json").read_text())


@dataclasses.dataclass(frozen=True)
class Part:
    rates: tuple[float, ...] = (0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    seed: int = 0
    sizes: tuple[int, ...] = (1, 2)
    part: Part = dataclasses.field(default_factory=Part)


def dataset(value=1.0, **attrs):
    return xr.Dataset(
        {"gap": ("lam", [value, np.inf], {"units": "nats"}), "name": ("lam", ["exact", "näher"]), "holds": True},
        coords={"lam": [0.0, 1.0]},
        attrs={**studies.provenance(Settings()), "safe": 3.0, "count": 2, "note": "", **attrs},
    )


def violations(data):
    return [error.message for error in jsonschema.Draft202012Validator(PUBLISHED).iter_errors(studies.header(data))]


def test_equal_datasets_are_equal_files(tmp_path):
    for name in ("one.nc", "two.nc"):
        studies.save(dataset(), tmp_path / name)
    assert (tmp_path / "one.nc").read_bytes() == (tmp_path / "two.nc").read_bytes()
    studies.save(dataset(2.0), tmp_path / "two.nc")
    assert (tmp_path / "one.nc").read_bytes() != (tmp_path / "two.nc").read_bytes()


def test_what_is_saved_is_loaded_when_its_cell_is_asked_for(tmp_path):
    path, made = tmp_path / "result.nc", dataset(cell="a" * 64, from_the_future="kept")
    assert studies.load(path) is None
    studies.save(made, path)
    loaded = studies.load(path, "a" * 64)
    assert loaded.attrs.pop("checksum")
    xr.testing.assert_identical(loaded, made)
    assert studies.load(path, "b") is None


def test_an_undefined_result_and_one_without_origin_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="'gap' for result.nc holds NaN"):
        studies.save(dataset(np.nan), tmp_path / "result.nc")
    with pytest.raises(ValueError, match=r"lacks the attributes schema, made_by.*add what made it first"):
        studies.save(xr.Dataset({"gap": 1.0}), tmp_path / "result.nc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(call, tmp_path, monkeypatch):
    path = tmp_path / "result.nc"
    studies.save(dataset(), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, full)
        with pytest.raises(OSError, match=r"result\.nc was not written \(No space left.*free some space") as caught:
            studies.save(dataset(2.0), path)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["result.nc"]


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users to change to on this system")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    closed, me = tmp_path / "closed", os.geteuid()
    closed.mkdir(mode=0o555)
    try:
        if me == 0:  # nothing is closed to root
            for folder in (tmp_path, *tmp_path.parents[:2]):
                folder.chmod(0o755)
            os.seteuid(65534)
        with pytest.raises(
            PermissionError, match=r"closed/result\.nc was not written \(Permission denied\).*can be written"
        ):
            studies.save(dataset(), closed / "result.nc")
    finally:
        os.seteuid(me)
    assert not list(closed.iterdir())


@pytest.mark.parametrize("keep", [0, 10, 3000])
def test_a_file_cut_short_is_named(tmp_path, keep):
    path = tmp_path / "result.nc"
    studies.save(dataset(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"result\.nc is not a whole result file .*delete it and run again: rm"):
        studies.load(path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # h5netcdf closes what it could not open
def test_no_flipped_bit_passes_for_the_result(tmp_path):
    path = tmp_path / "result.nc"
    studies.save(dataset(), path)
    whole, content = studies.load(path), path.read_bytes()
    values = content.index(np.array([1.0, np.inf]).tobytes())
    drawn = random.Random(0)
    refused = 0
    for place in [values + 3, *(drawn.randrange(len(content)) for _ in range(150))]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << drawn.randrange(8)
        path.write_bytes(flipped)
        try:
            assert studies.load(path).identical(whole), place  # the bit was in what nothing is read from
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017  (either is right)
            refused += 1
        if place == values + 3:
            assert refused == 1
    gc.collect()  # what was half open is closed here, where its complaints are ignored
    assert refused > 10


def test_files_of_schema_1_are_read_and_newer_ones_are_refused(tmp_path):
    path = tmp_path / "result.nc"
    made = dataset(schema="1", from_the_future="kept")
    made.to_netcdf(path, engine="h5netcdf")
    assert studies.load(path).identical(made)
    dataset(schema="3", package="tradeoff 9.0").to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ValueError, match=r"schema '3', and this tradeoff reads 1, 2.*tradeoff 9\.0"):
        studies.load(path)


def test_the_published_schema_is_that_of_the_code_and_a_schema():
    jsonschema.Draft202012Validator.check_schema(PUBLISHED)
    assert studies.schema() == PUBLISHED, "write docs/result-schema.json anew: json.dumps(studies.schema(), indent=1)"


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_every_file_of_the_gallery_is_read_and_fits_the_published_schema(path):
    assert violations(studies.load(path)) == []


def test_what_is_written_fits_the_published_schema_and_what_lacks_its_origin_does_not(tmp_path):
    studies.save(dataset(), tmp_path / "result.nc")
    loaded = studies.load(tmp_path / "result.nc")
    assert violations(loaded) == []
    for name in ("checksum", "made_by", "cell"):
        lacking = loaded.copy()
        del lacking.attrs[name]
        assert any(f"'{name}' is a required property" in each for each in violations(lacking))
    assert violations(loaded.assign_attrs(schema="3"))
    assert violations(loaded.assign(gap=loaded.gap.assign_attrs(units=1)))


def test_provenance_changes_with_settings_and_sources_and_nothing_else(tmp_path):
    source = tmp_path / "experiment.py"
    source.write_text("a = 1")
    made = studies.provenance(Settings(), source)
    assert made == studies.provenance(Settings(), source)
    keys = {made["cell"], studies.provenance(Settings(seed=1), source)["cell"]}
    keys |= {studies.provenance(Settings(), source, part="one")["cell"]}
    source.write_text("a = 2")
    keys |= {studies.provenance(Settings(), source)["cell"]}
    assert len(keys) == 4
    assert made["made_by"] == __name__
    assert set(made) | {"checksum"} == set(PUBLISHED["properties"]["attributes"]["properties"])


def test_a_result_depends_on_what_it_imports_and_on_nothing_else(tmp_path):
    package = tmp_path / "study"
    package.mkdir()
    for name, text in {
        "__init__": "from study.alpha import a as a\nfrom study.beta import b as b\n",
        "alpha": "import numpy\na = 1\n",
        "beta": "b = 2\n",
        "gamma": "def late():\n    from study import beta\n    return beta\n",
        "main": "from study import a, gamma\nimport tradeoff as to\nto.loss_constraint.gaps\n",
    }.items():
        (package / f"{name}.py").write_text(text)
    found = studies.sources(package / "main.py")
    beside = {path.stem for path in found if path.is_relative_to(package)}
    assert beside == {"__init__", "alpha", "beta", "gamma", "main"}
    (package / "gamma.py").write_text("")
    beside = {path.stem for path in studies.sources(package / "main.py") if path.is_relative_to(package)}
    assert beside == {"__init__", "alpha", "gamma", "main"}
    names = {path.relative_to(ROOT / "tradeoff").as_posix() for path in found if path.is_relative_to(ROOT / "tradeoff")}
    assert {"__init__.py", "loss_constraint.py", "gaps.py", "divergences.py"} <= names
    assert not {"cli.py", "plotting/axes.py", "bridge/__init__.py", "theorems/claim.py"} & names


@pytest.mark.parametrize("one", CATALOGUE, ids=lambda one: one.name)
def test_settings_come_back_from_what_is_written_of_them(one):
    pytest.importorskip("torch", reason="the extra lm is not installed") if one.checkpoint else None
    settings = one.experiment.Settings()
    written = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    assert studies.restored(type(settings), written) == settings
    assert type(settings).__module__ == f"experiments.{one.name}"


def test_settings_with_other_fields_are_refused():
    with pytest.raises(ValueError, match="was made with seed, size"):
        studies.restored(Settings, '{"seed": 1, "size": 3}')
    assert studies.restored(Settings, json.dumps(dataclasses.asdict(Settings(3)))) == Settings(3)


def test_differences_are_found_where_they_are():
    old = dataset()
    assert studies.differences(old, old.copy(deep=True)) == ()
    (said,) = studies.differences(old, dataset(1.5))
    assert said == "gap differs in 1 of 2 values, by at most 0.5: 1.0 became 1.5 at lam = 0.0"
    assert studies.differences(old, old.drop_vars("name")) == ("name is missing now",)
    (said,) = studies.differences(old, old.assign(gap=old.gap.assign_attrs(units="bits")))
    assert re.match("gap was .*nats.* and is .*bits", said)
    other = dataset(threads="many", libraries='{"jax": "0"}')
    assert {said.split(":")[0] for said in studies.changed_origins(old, other)} >= {"threads", "jax", "numpy"}
