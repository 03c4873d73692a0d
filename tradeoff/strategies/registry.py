"""Every strategy by name, with the setting at which it does nothing: one line each, and the common tests find it."""

from collections.abc import Callable
from typing import NamedTuple

from tradeoff.strategies._named import Weights
from tradeoff.strategies.averaging import EMA
from tradeoff.strategies.constraints import EWC, L2SP, Ball, Penalty, SafetyConstraint
from tradeoff.strategies.strategy import Plain, Strategy
from tradeoff.strategies.surgery import AGEM, SafeGrad

Make = Callable[[Weights], Strategy]
"""A strategy from the aligned weights, of which those that need other models' weights make an example."""


class Row(NamedTuple):
    """A strategy in the list of all.

    Args:
        name: by which it is asked for.
        make: it, with its defaults.
        off: it, at a setting at which it is plain fine-tuning (of the stage it belongs to), or the reason that there is none.
        stage: "alignment" for what makes a model harder to misalign before the task is known, "fine-tuning" for the rest.
    """

    name: str
    make: Make
    off: Make | str
    stage: str = "fine-tuning"


ROWS: tuple[Row, ...] = (
    Row("plain", lambda _: Plain(), lambda _: Plain()),
    Row("penalty", lambda _: Penalty(), lambda _: Penalty(0.0)),
    Row("constraint", lambda _: SafetyConstraint(0.05), lambda _: SafetyConstraint(1e6)),
    Row("ball", lambda _: Ball(0.1), lambda _: Ball(float("inf"))),
    Row("l2-sp", lambda _: L2SP(), lambda _: L2SP(0.0)),
    Row("ewc", lambda _: EWC(), lambda _: EWC(0.0)),
    Row("ema", lambda _: EMA(), lambda _: EMA(coefficient=0.0)),
    Row("ema-through", lambda _: EMA(0.5, reading="through"), lambda _: EMA(0.0, reading="through")),
    Row("ema-to-start", lambda _: EMA(0.1, reading="to the start"), lambda _: EMA(0.0, reading="to the start")),
    Row("safegrad", lambda _: SafeGrad(), "without conflict and ρ it is plain, with conflict it projects"),
    Row("a-gem", lambda _: AGEM(), "it projects whenever there is conflict"),
)


def all() -> tuple[Row, ...]:
    """Every row, in order."""
    return ROWS


def get(name: str) -> Row:
    """The row of a name.

    Raises:
        KeyError: when there is none; the nearest names are given.
    """
    for row in ROWS:
        if row.name == name:
            return row
    names = ", ".join(row.name for row in ROWS)
    raise KeyError(f"no strategy is named {name!r}; the names are {names}.")
