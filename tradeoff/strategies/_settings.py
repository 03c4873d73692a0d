"""What is said of a setting that makes no sense."""

from typing import Any

from tradeoff._records import is_concrete


def at_least_zero(strategy: Any, name: str, words: str) -> None:
    """Refuse a setting that is negative or not a finite number."""
    value = getattr(strategy, name)
    if is_concrete(value) and not 0 <= float(value) < float("inf"):
        raise ValueError(
            f"{type(strategy).__name__} was given {name}={value}; {words} must be finite and at least 0: 0 is none."
        )


def above_zero(strategy: Any, name: str, words: str) -> None:
    """Refuse a setting that is not a positive number."""
    value = getattr(strategy, name)
    if is_concrete(value) and not float(value) > 0:
        raise ValueError(f"{type(strategy).__name__} was given {name}={value}; {words} must be positive.")


def within(strategy: Any, name: str, low: float, high: float, words: str) -> None:
    """Refuse a setting outside [low, high)."""
    value = getattr(strategy, name)
    if is_concrete(value) and not low <= float(value) < high:
        raise ValueError(f"{type(strategy).__name__} was given {name}={value}; {words} must be in [{low:g}, {high:g}).")
