"""Immutable records of arrays that JAX can map over, and the check that tells a value from a tracer."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.core
from jaxtyping import ArrayLike

Record = TypeVar("Record", bound=type)
Numbers = ArrayLike | Sequence[Any]
"""What a user may write where an array is wanted: a number, an array, a list of either."""


def static(**options: Any) -> Any:
    """Declare a field that belongs to the structure of a record (names, labels), not to its arrays."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def record(cls: Record) -> Record:
    """Make `cls` a frozen dataclass and a pytree.

    A record is checked where a user builds it and never where JAX rebuilds it: unflattening bypasses `__init__`,
    so tracers, batches and the placeholders of `jax.tree.map` pass through untouched.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, init="__init__" not in vars(cls), repr=False)(cls)
    if "__repr__" not in vars(cls):
        type.__setattr__(cls, "__repr__", _describe)
    fields = dataclasses.fields(cls)
    arrays = tuple(f.name for f in fields if not f.metadata.get("static"))
    statics = tuple(f.name for f in fields if f.metadata.get("static"))

    children_of, structure_of = _reader(arrays), _reader(statics)

    def flatten(self: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return children_of(self), structure_of(self)

    def flatten_with_keys(self: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children, aux = flatten(self)
        return tuple((jax.tree_util.GetAttrKey(n), c) for n, c in zip(arrays, children, strict=True)), aux

    def unflatten(aux: tuple[Any, ...], children: Iterable[Any]) -> Any:
        self = object.__new__(cls)
        for name, value in zip(arrays + statics, (*children, *aux), strict=True):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def _reader(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """What reads so many attributes at once: every call of a compiled program flattens its records, some three times."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda self: tuple(getattr(self, name) for name in names)


def is_concrete(*values: Any) -> bool:
    """Whether every leaf holds numbers now, so that its values can be checked."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def _describe(self: Any) -> str:
    parts = []
    for field in dataclasses.fields(self):
        value = getattr(self, field.name)
        shape = getattr(value, "shape", None)
        parts.append(f"{field.name}={value!r}" if not shape else f"{field.name}=<array {shape}>")
    return f"{type(self).__name__}({', '.join(parts)})"
