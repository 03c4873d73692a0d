"""What strategies that bring a loss of their own share: how they descend it, and how they read tables of settings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from tradeoff._records import is_concrete
from tradeoff.strategies._named import Weights
from tradeoff.strategies.losses import Loss
from tradeoff.strategies.strategy import Engine, Gradient, State, Strategy


class OwnLoss(Strategy, Loss):
    """A loss that is a strategy too: it is descended in place of whatever training was given."""

    kind = "loss"
    owns = "loss"

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The gradient of this loss."""
        return engine.gradient(self, weights)


def table(values: Any, like: Any, shape: Sequence[int], what: str) -> Any:
    """Settings as an array of the library, type and device of another array.

    Args:
        values: a number, or numbers of shape `shape`, where 1 stands for any length.
        like: an array of the engine.
        shape: that the engine needs.
        what: for messages.

    Raises:
        ValueError: when the shapes do not fit.
    """
    xp = array_namespace(like)
    if is_torch_array(like):
        own = values if is_torch_array(values) else np.array(values)
        array = xp.asarray(own, dtype=like.dtype, device=like.device)
    else:
        array = xp.asarray(values, dtype=like.dtype)
    given, wanted = tuple(array.shape), tuple(shape)
    fits = len(given) == len(wanted) and all(a in (1, b) for a, b in zip(given, wanted, strict=True))
    if given and not fits:
        raise ValueError(
            f"{what} has shape {given} and the engine needs {wanted}; give a number or a table of that shape, 1 standing for "
            "any length."
        )
    return array


def check_table(strategy: Any, name: str, low: float, high: float, words: str) -> None:
    """Refuse a table of settings with a number that is not finite or not in [low, high]."""
    values = getattr(strategy, name)
    if not is_concrete(values):
        return
    numbers = np.asarray(values.detach().cpu() if is_torch_array(values) else values, np.float64)
    wrong = ~(np.isfinite(numbers) & (numbers >= low) & (numbers <= high))
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        place = f"{name}[{', '.join(map(str, at))}]" if at else name
        raise ValueError(
            f"{type(strategy).__name__} was given {place}={numbers[at]}; {words} must be {_range(low, high)}."
        )


def _range(low: float, high: float) -> str:
    if np.isfinite(high):
        return f"in [{low:g}, {high:g}]"
    return f"finite and at least {low:g}" if np.isfinite(low) else "finite"
