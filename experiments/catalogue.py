"""Every experiment by name: its module, its figure, what it costs."""

import difflib
import importlib
import os
import sys
from dataclasses import dataclass
from types import ModuleType

TOY = 1.0
"""The most minutes that a toy takes."""


@dataclass(frozen=True)
class Entry:
    """One experiment; the module in `experiments/` and the one in `figures/` share its name.

    Attributes:
        name: of both modules.
        checkpoint: whether it trains or measures a checkpoint.
        minutes: that it takes, about, where it is no checkpoint's; what takes longer begins earlier.
        needs: an environment variable without which it cannot be made, and is left out unless it is asked for by name.
    """

    name: str
    checkpoint: bool = False
    minutes: float = 0.2
    needs: str = ""

    @property
    def experiment(self) -> ModuleType:
        """The module with `Settings` and `run`."""
        return importlib.import_module(f"experiments.{self.name}")

    @property
    def figure(self) -> ModuleType:
        """The module with `draw`, `TITLE` and `CAPTION`."""
        return importlib.import_module(f"figures.{self.name}")


CATALOGUE = (
    Entry("theorems", minutes=0.8),
    Entry("e1_gap_against_penalty"),
    Entry("e2_context_overlap"),
    Entry("e3_parameter_constraint"),
    Entry("e4_over_penalising"),
    Entry("e5_real_checkpoint", checkpoint=True),
    Entry("e6_landscape", minutes=0.4),
    Entry("e6_checkpoint", checkpoint=True),
    Entry("e7_optimisation"),
    Entry("e7_hypotheses", minutes=0.5),
    Entry("e7_text", minutes=2.5),
    Entry("e8_league", minutes=1),
    Entry("e8_text", minutes=5),
    Entry("e8_checkpoint", checkpoint=True),
    Entry("e9_real_data", checkpoint=True, needs="TRADEOFF_DATA"),
    Entry("e10_overlap_of_meaning", checkpoint=True),
)


def everything(toy: bool) -> list[Entry]:
    """What runs where nothing is named; what lacks something is left out, and that is said.

    Args:
        toy: whether to leave out what trains or measures a checkpoint, and what takes more than `TOY` minutes.
    """
    chosen = [one for one in CATALOGUE if not (toy and (one.checkpoint or one.minutes > TOY))]
    for one in chosen:
        if lacks(one):
            print(
                f"{one.name} is left out, for {one.needs} is not set; experiments/{one.name}.py says to what to set it.",
                file=sys.stderr,
            )
    return [one for one in chosen if not lacks(one)]


def asked(name: str) -> Entry:
    """The entry of a name, to be made.

    Raises:
        SystemExit: when there is none, or it lacks something.
    """
    one = entry(name)
    if lacks(one):
        raise SystemExit(
            f"{name} cannot be made, for {one.needs} is not set; experiments/{name}.py says to what to set it."
        )
    return one


def lacks(one: Entry) -> bool:
    """Whether a variable that an experiment needs is not set."""
    return bool(one.needs) and not os.environ.get(one.needs)


def entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        SystemExit: when there is none; the names are listed.
    """
    for one in CATALOGUE:
        if one.name == name:
            return one
    names = [e.name for e in CATALOGUE]
    near = difflib.get_close_matches(name, names, n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise SystemExit(f"no experiment is named {name!r}; there are {', '.join(names)}.{meant}")
