"""Where the sliders stand: a view, its link, and the world that it shows."""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import parse_qsl, urlencode

import jax
import jax.numpy as jnp

from tradeoff import worlds
from tradeoff.problems import Quadratic
from tradeoff.worlds.world import World

NAMED: dict[str, Callable[[], World]] = {
    "golden": worlds.golden,
    "over-penalised": worlds.over_penalised,
    "late-minimum": worlds.late_minimum,
    "two-minima": worlds.two_minima,
}
"""The worlds of the theory without knobs."""
KNOBS: dict[str, tuple[str, ...]] = {
    "random": ("overlap", "conflict", "similarity"),
    "one-conflict": ("overlap",),
    **dict.fromkeys(NAMED, ()),
}
"""Every world by name, and which of the world's sliders move it."""
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 9999),
    "contexts": (2, 64),
    "responses": (2, 16),
    "overlap": (0.0, 1.0),
    "conflict": (0.0, 1.0),
    "similarity": (0.0, 1.0),
    "log10_penalty": (-3.0, 3.0),
    "radius": (0.01, 1.0),
}
"""The ends of every slider."""


@dataclass(frozen=True)
class View:
    r"""Where the sliders stand.

    Args:
        world: "random", "golden", "over-penalised", "late-minimum", "two-minima" or "one-conflict".
        seed: of the random world, 0 to 9999.
        contexts: of the random world, 2 to 64.
        responses: of the random world, 2 to 16.
        overlap: ρ in [0, 1]; moves the random world and "one-conflict".
        conflict: c in [0, 1]; moves the random world.
        similarity: σ in [0, 1]; moves the random world.
        log10_penalty: $\log_{10}\lambda$ in [-3, 3].
        radius: ε of Case II in [0.01, 1], in units of the distance between the aligned and the capable parameters.

    Raises:
        ValueError: when a value leaves its range or the world is unknown.

    Example:
        >>> view = View(overlap=0.25, log10_penalty=-1.0)
        >>> view.link()
        '?world=random&seed=3&contexts=32&responses=8&overlap=0.25&conflict=1.0&similarity=0.9&log10_penalty=-1.0&radius=0.5'
        >>> View.from_link(view.link()) == view
        True
    """

    world: str = "random"
    seed: int = 3
    contexts: int = 32
    responses: int = 8
    overlap: float = 0.5
    conflict: float = 1.0
    similarity: float = 0.9
    log10_penalty: float = 0.0
    radius: float = 0.5

    def __post_init__(self) -> None:
        if self.world not in KNOBS:
            raise ValueError(f"the view has world={self.world!r}; give one of {', '.join(KNOBS)}.")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:  # false for NaN too
                raise ValueError(f"the view has {name}={value}; {name} must lie in [{low:g}, {high:g}].")

    @property
    def penalty(self) -> float:
        """The penalty λ."""
        return 10.0**self.log10_penalty

    def link(self) -> str:
        """The view as the query part of an address; `from_link` reads it back to the last bit."""
        return "?" + urlencode(asdict(self))

    @classmethod
    def from_link(cls, query: str) -> "View":
        """The view of a link; what the link does not name stands at its default.

        Args:
            query: the query part of an address, with or without the question mark.

        Raises:
            ValueError: when a name is unknown or given twice, or a value is no number or out of range.
        """
        pairs = parse_qsl(query.removeprefix("?"), keep_blank_values=True)
        types: dict[str, type] = {field.name: type(field.default) for field in fields(cls)}
        remedy = "Copy the link again, or open the explorer without one."
        names = [name for name, _ in pairs]
        if wrong := sorted({name for name in names if name not in types or names.count(name) > 1}):
            raise ValueError(
                f"the link has {', '.join(map(repr, wrong))}; it may name each of {', '.join(types)} once. {remedy}"
            )
        given: dict[str, Any] = {}
        for name, text in pairs:
            try:
                given[name] = types[name](text)
            except ValueError as error:
                kind = "a whole number" if types[name] is int else "a number"
                raise ValueError(f"the link has {name}={text!r}, which is not {kind}. {remedy}") from error
        try:
            return cls(**given)
        except ValueError as error:
            raise ValueError(f"{error} {remedy}") from error


def world_of(view: View) -> World:
    """The world that a view shows.

    Example:
        >>> world_of(View(contexts=64, responses=16))
        World(64 contexts x 16 responses, proxy)
    """
    if view.world in NAMED:
        return NAMED[view.world]()
    if view.world == "one-conflict":
        return worlds.one_conflict(view.overlap)
    knobs = (jnp.float64(value) for value in (view.overlap, view.similarity, view.conflict))
    return _random(view.contexts, view.responses, jnp.uint32(view.seed), *knobs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _random(
    contexts: int, responses: int, seed: jax.Array, overlap: jax.Array, similarity: jax.Array, conflict: jax.Array
) -> World:
    """`worlds.random` as one program, the same for every knob and seed."""
    return worlds.random(jax.random.key(seed), contexts, responses, overlap, similarity, conflict)


PARAMETERS, DECADES, PAIR_SEED = 8, 2.0, 1
"""Of the pair of quadratics on which Case II is shown."""


@functools.cache
def pair() -> Quadratic:
    """The pair of quadratics of the paper's Case II: random axes, curvatures over two decades, the two models one apart.

    Example:
        >>> round(float(jnp.linalg.norm(pair().displacement)), 12)
        1.0
    """
    axes_f, axes_s, way = jax.random.split(jax.random.key(PAIR_SEED), 3)
    spread = jnp.logspace(-DECADES / 2, DECADES / 2, PARAMETERS)
    axes = (jnp.linalg.qr(jax.random.normal(k, (PARAMETERS, PARAMETERS)))[0] for k in (axes_f, axes_s))
    H_f, H_s = ((Q * spread[None, :]) @ Q.T for Q in axes)
    d = jax.random.normal(way, (PARAMETERS,))
    return Quadratic((H_f + H_f.T) / 2, d / jnp.linalg.norm(d), (H_s + H_s.T) / 2, jnp.zeros(PARAMETERS))
