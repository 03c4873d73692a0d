"""A theorem is an object: what it says, when it holds, where it comes from, and both of its sides as code.

From one `Theorem` come its test, its row in `tradeoff verify`, the objective of the falsifier, its page in the docs
and its citation. A user's conjecture is the same object, made by the same decorator in the user's own file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tradeoff.tolerances import BOUND, Tolerance

Sides = tuple[Float[Array, "*parts"], Float[Array, "*parts"]]
RELATIONS = ("<=", ">=", "==")


class Family(NamedTuple):
    """A family of instances: unconstrained parameters, and the map from them to instances that satisfy the assumptions.

    Args:
        sample: key -> parameters, a pytree; its float leaves may be moved freely (the falsifier does), the others are
            the discrete part of the instance (supports, sizes) and stay.
        build: parameters -> instance, a pytree; differentiable in the float leaves.
    """

    sample: Callable[[Array], Any]
    build: Callable[[Any], Any]

    def draw(self, key: Array) -> Any:
        """A random instance."""
        return self.build(self.sample(key))


class Assumption(NamedTuple):
    """A named condition on instances.

    Args:
        name: the tag.
        words: what it says.
        holds: instance -> whether it is met.
    """

    name: str
    words: str
    holds: Callable[[Any], Bool[Array, ""]]


class Tight(NamedTuple):
    """An instance on which a bound is attained, or as nearly as its constant allows.

    Args:
        instance: builds the instance.
        ratio: what left side over right side reaches there (the greatest over the parts).
    """

    instance: Callable[[], Any]
    ratio: float = 1.0


@dataclass(frozen=True, eq=False)
class Theorem:
    """A claim about instances, with everything that is needed to check it, break it and cite it.

    Args:
        name: its short name, as T4a.
        title: a few words.
        statement: the claim in LaTeX.
        sides: instance -> (left, right); scalars, or one entry for each of `parts`.
        family: the instances on which it is claimed.
        relation: "<=", ">=" or "==", or one of them for each part.
        parts: names of the inequalities when there are several; empty for one.
        assumptions: what an instance must satisfy.
        without: for each assumption, by name, an instance without it on which the claim fails, or why it is not needed.
        tight: where the bound is attained.
        makes_precise: the claim of the literature that it makes precise.
        source: citation key.
        tolerance: what counts as a violation.
        proved: false for a conjecture.
    """

    name: str
    title: str
    statement: str
    sides: Callable[[Any], Sides]
    family: Family
    relation: str | tuple[str, ...] = "<="
    parts: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    without: Mapping[str, Callable[[], Any] | str] = field(default_factory=dict)
    tight: Tight | None = None
    makes_precise: str = ""
    source: str = "framework"
    tolerance: Tolerance = BOUND
    proved: bool = True

    def __post_init__(self) -> None:
        relations = self.relations
        if any(relation not in RELATIONS for relation in relations):
            raise ValueError(
                f"theorem {self.name} has relation {self.relation!r}; each relation must be one of {RELATIONS}."
            )
        if len(relations) != max(len(self.parts), 1):
            raise ValueError(
                f"theorem {self.name} has {len(relations)} relations for {len(self.parts)} parts; give one for all, or one each."
            )
        known = {assumption.name for assumption in self.assumptions}
        if unknown := set(self.without) - known:
            raise ValueError(
                f"theorem {self.name} drops {sorted(unknown)}, which it does not assume; it assumes {sorted(known)}."
            )

    def __repr__(self) -> str:
        return f"<Theorem {self.name}: {self.title}>"

    @property
    def relations(self) -> tuple[str, ...]:
        """One relation for each part."""
        return (self.relation,) * max(len(self.parts), 1) if isinstance(self.relation, str) else tuple(self.relation)

    @property
    def meaning(self) -> str:
        """The claim in plain words."""
        return (self.sides.__doc__ or "").strip()

    def at(self, instance: Any) -> Sides:
        """Both sides at an instance, each of shape (parts,).

        Raises:
            ValueError: when the sides are not scalars, or not one for each part.
        """
        left, right = self.sides(instance)
        count = len(self.parts)
        wanted = (count,) if count else ()
        for side, value in (("left", left), ("right", right)):
            if jnp.shape(value) != wanted:
                raise ValueError(
                    f"the {side} side of {self.name} has shape {jnp.shape(value)} and {wanted} is required: a claim compares "
                    "two scalars, or names its inequalities in parts=(...) and returns one entry for each."
                )
        return jnp.atleast_1d(jnp.asarray(left, jnp.float64)), jnp.atleast_1d(jnp.asarray(right, jnp.float64))

    def violations(self, sides: Sides) -> Bool[Array, " parts"]:
        """Which parts fail beyond rounding; a side that is NaN fails."""
        return violations(sides, self.terms)

    @property
    def terms(self) -> "Terms":
        """What its sides are held to."""
        return Terms(
            jnp.array([-1.0 if relation == ">=" else 1.0 for relation in self.relations]),
            jnp.array([relation == "==" for relation in self.relations]),
            jnp.float64(self.tolerance.relative),
            jnp.float64(self.tolerance.absolute),
        )


class Terms(NamedTuple):
    """What the two sides of a claim are held to, as arrays, so that one program judges all claims.

    Args:
        signs: for each part, the sign of left minus right that would violate it, shape (parts,).
        equality: whether either sign would, shape (parts,).
        relative: the allowance relative to the larger side.
        absolute: the absolute allowance.
    """

    signs: Float[Array, " parts"]
    equality: Bool[Array, " parts"]
    relative: Float[Array, ""]
    absolute: Float[Array, ""]


def violations(sides: Sides, terms: Terms) -> Bool[Array, " parts"]:
    """Which parts fail beyond rounding; a side that is NaN fails."""
    left, right = sides
    excess = terms.signs * jnp.where(left == right, 0, left - right)
    excess = jnp.where(terms.equality, jnp.abs(excess), excess)
    size = jnp.maximum(jnp.abs(left), jnp.abs(right))
    allowed = terms.absolute + terms.relative * jnp.where(jnp.isfinite(size), size, 0)
    return ~(excess <= allowed)


def slack(sides: Sides, terms: Terms) -> Float[Array, " parts"]:
    """The slack of every part relative to its size, in [-1, 1], with infinities read as larger than any number.

    Slack is positive where the claim holds with room, negative where it fails, and NaN where a side is NaN. For an
    equality it is minus the relative error. Sizes below the absolute allowance of the tolerance count as that
    allowance: a difference of rounding is no slack.
    """
    left, right = sides
    size = jnp.maximum(jnp.maximum(jnp.abs(left), jnp.abs(right)), terms.absolute)
    finite = jnp.isfinite(left) & jnp.isfinite(right)
    relative = jnp.where(finite, right - left, 0) / jnp.where(finite & (size > 0), size, 1)
    room = jnp.where(finite, relative, jnp.where(left == right, 0, jnp.where(right > left, 1, -1)))
    room = jnp.where(jnp.isnan(left) | jnp.isnan(right), jnp.nan, room)
    return jnp.where(terms.equality, -jnp.abs(room), terms.signs * room)


def theorem(
    name: str, *, title: str, statement: str, family: Family, **rest: Any
) -> Callable[[Callable[[Any], Sides]], Theorem]:
    r"""Make a `Theorem` of a function from an instance to the two sides of a claim; its docstring is the plain meaning.

    Args:
        name: short name.
        title: a few words.
        statement: LaTeX.
        family: the instances, for example `tradeoff.theorems.instances.at_penalty()`.
        **rest: the other fields of `Theorem`.

    Example:
        >>> import jax
        >>> from tradeoff import loss_constraint
        >>> from tradeoff.theorems import instances, verify
        >>> @theorem("gap-below-one", title="a guess", statement=r"G_s\le 1", family=instances.at_penalty())
        ... def guess(instance):
        ...     "The safety gap never passes one nat."
        ...     return loss_constraint.gaps(instance.world, instance.lam).safety, 1.0
        >>> verify(guess, jax.random.key(0), instances=2000).holds
        False
    """

    def make(sides: Callable[[Any], Sides]) -> Theorem:
        return Theorem(name=name, title=title, statement=statement, family=family, sides=sides, **rest)

    return make
