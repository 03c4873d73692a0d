"""What makes and breaks safety fine-tuning: prompts whose safety is known, a transformer trained on them, what changed in it.

`pcfg` makes the prompts and `nullspace` measures matrices, both in NumPy; `transformer`, `safety_tuning` and `study` need
torch (extra `lm`) and load it on first use.

Source: [makesandbreaks2024]; methods.md 9.
"""

import importlib
from typing import Any

from tradeoff.mechanism import nullspace as nullspace
from tradeoff.mechanism import pcfg as pcfg

_WITH_TORCH = ("safety_tuning", "small_study", "transformer")


def __getattr__(name: str) -> Any:
    """Load what needs torch when it is first asked for."""
    if name in _WITH_TORCH:
        return importlib.import_module(f"tradeoff.mechanism.{name}")
    if name == "study":
        return importlib.import_module("tradeoff.mechanism.small_study").study
    raise AttributeError(f"module 'tradeoff.mechanism' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WITH_TORCH, "study"])
