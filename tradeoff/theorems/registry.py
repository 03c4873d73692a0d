"""Every registered claim, in the order of the framework."""

from difflib import get_close_matches
from types import ModuleType

from tradeoff.theorems import (
    case_one,
    classes,
    comparison,
    features,
    flows,
    isotropy,
    landscape_bounds,
    limits,
    methods_averaging,
    methods_barrier,
    methods_basin,
    methods_data,
    methods_fixed_points,
    methods_front,
    methods_guarded,
    methods_interference,
    methods_layers,
    methods_merging,
    methods_noise,
    methods_onset,
    methods_preferences,
    overlap,
    samples,
    sequences,
    similarity,
    square_root,
    trust_region,
)
from tradeoff.theorems.claim import Theorem

MODULES: tuple[ModuleType, ...] = (
    case_one,
    overlap,
    similarity,
    limits,
    classes,
    samples,
    sequences,
    landscape_bounds,
    square_root,
    trust_region,
    isotropy,
    flows,
    features,
    comparison,
    methods_front,
    methods_merging,
    methods_fixed_points,
    methods_onset,
    methods_averaging,
    methods_noise,
    methods_barrier,
    methods_interference,
    methods_guarded,
    methods_preferences,
    methods_data,
    methods_layers,
    methods_basin,
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
