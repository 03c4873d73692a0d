"""What `import tradeoff` brings with it, and what it does not."""

import subprocess
import sys

import pytest

import tradeoff as to


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a statement loads in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_the_theory_loads_neither_torch_nor_matplotlib():
    heavy = {"torch", "transformers", "matplotlib", "diffrax", "equinox", "xarray", "tyro"}
    assert not heavy & loaded_by("import tradeoff")
    assert "torch" not in loaded_by(
        "import tradeoff; tradeoff.dynamics; tradeoff.theorems; tradeoff.plotting; tradeoff.studies"
    )


def test_float64_is_on():
    assert to.worlds.golden().safety.p.dtype == "float64"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'fronteir'"):
        to.fronteir  # noqa: B018


def test_every_advertised_name_is_there():
    for name in dir(to):
        assert getattr(to, name) is not None
