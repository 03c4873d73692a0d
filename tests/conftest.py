"""Every test runs in strict mode: no silent dtype or rank promotion, and shapes of public functions checked at run time."""

import gc

# Under the hook every module is compiled anew, those of others too, so they come before it.
import diffrax  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import mpmath  # noqa: F401
import optax  # noqa: F401
import scipy.stats  # noqa: F401
import tyro  # noqa: F401
import xarray  # noqa: F401
from jaxtyping import install_import_hook

import tests.typechecking  # noqa: F401  (the hook looks it up by name)

collect_ignore = ["mutation.py"]  # a program of its own, with a peer that the tests do not need

# Before the package is imported, so that annotations such as Float[Array, "X Y"] are enforced.
_hook = install_import_hook("tradeoff", "tests.typechecking.check")

import jax  # noqa: E402
import pytest  # noqa: E402

import tradeoff as to  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict) -> None:
    doctest_namespace["to"] = to
    doctest_namespace["jax"] = jax
    doctest_namespace["jnp"] = jax.numpy


def pytest_collection_finish() -> None:
    """What is imported stays; the collector of garbage need not go through it again and again."""
    gc.collect()
    gc.freeze()
