"""Every registered claim, in the order of the framework."""

from difflib import get_close_matches
from types import ModuleType

from tradeoff.theorems import (
    case_one,
    case_two,
    classes,
    comparison,
    features,
    flows,
    limits,
    methods_policy,
    methods_quadratic,
    methods_training,
    overlap,
    sequences,
    similarity,
)
from tradeoff.theorems.claim import Theorem

MODULES: tuple[ModuleType, ...] = (
    case_one,
    overlap,
    similarity,
    limits,
    classes,
    sequences,
    case_two,
    flows,
    features,
    comparison,
    methods_quadratic,
    methods_training,
    methods_policy,
)


def all() -> tuple[Theorem, ...]:
    """Every registered claim, in order.

    Example:
        >>> all()[0]
        <Theorem T1: the minimiser is a mixture>
    """
    return tuple(claim for module in MODULES for claim in found_in(module))


def get(name: str) -> Theorem:
    """The registered claim of a name.

    Args:
        name: for example "T4a".

    Raises:
        KeyError: when there is none; the nearest names are suggested.

    Example:
        >>> get("T2b").title
        'compensation identity'
    """
    claims = {claim.name: claim for claim in all()}
    if name not in claims:
        near = get_close_matches(name, claims, n=3) or list(claims)
        raise KeyError(
            f"no theorem is named {name!r}; did you mean {', '.join(near)}? `tradeoff verify --list` shows all."
        )
    return claims[name]


def found_in(module: ModuleType) -> tuple[Theorem, ...]:
    """The claims that a module defines, in the order in which it defines them.

    Raises:
        ValueError: when two of them share a name.
    """
    claims = tuple(value for value in vars(module).values() if isinstance(value, Theorem))
    names = [claim.name for claim in claims]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{module.__name__} registers more than one theorem named {', '.join(twice)}; names must be unique."
        )
    return claims
