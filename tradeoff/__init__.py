"""When an aligned language model is fine-tuned, how much safety must be lost, how much is, and who loses the rest?

`import tradeoff as to` turns on float64 in JAX: the theory lives where gaps are 1e-9, and float32 cannot see them.
Logs are natural and gaps are in nats. `to.plotting` loads matplotlib and `to.bridge` loads torch on first use, not
before.
"""

import importlib
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)

from tradeoff import divergences as divergences  # noqa: E402  (float64 comes first)
from tradeoff import frontier as frontier  # noqa: E402
from tradeoff import loss_constraint as loss_constraint  # noqa: E402
from tradeoff import worlds as worlds  # noqa: E402
from tradeoff.gaps import Gaps as Gaps  # noqa: E402
from tradeoff.gaps import capability_gap as capability_gap  # noqa: E402
from tradeoff.gaps import proxy_gap as proxy_gap  # noqa: E402
from tradeoff.gaps import safety_gap as safety_gap  # noqa: E402
from tradeoff.gaps import surplus as surplus  # noqa: E402
from tradeoff.worlds import DataLaw as DataLaw  # noqa: E402
from tradeoff.worlds import World as World  # noqa: E402

__version__ = "0.1.0"

_FROM = {"theorem": "theorems", "cite": "citations"}
_ON_FIRST_USE = (
    "bridge",
    "dynamics",
    "landscape",
    "mechanism",
    "parameter_constraint",
    "plotting",
    "problems",
    "strategies",
    "studies",
    "theorems",
    "tuning",
)


def __getattr__(name: str) -> Any:
    """Load a sub-package that costs time to import when it is first asked for."""
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"tradeoff.{name}")
    if name in _FROM:
        return getattr(importlib.import_module(f"tradeoff.{_FROM[name]}"), name)
    raise AttributeError(f"module 'tradeoff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ON_FIRST_USE, *_FROM])
