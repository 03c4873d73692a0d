"""Every experiment by name: its module, its figure, what it costs."""

import importlib
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Entry:
    """One experiment; the module in `experiments/` and the one in `figures/` share its name."""

    name: str
    checkpoint: bool = False

    @property
    def experiment(self) -> ModuleType:
        """The module with `Settings` and `run`."""
        return importlib.import_module(f"experiments.{self.name}")

    @property
    def figure(self) -> ModuleType:
        """The module with `draw`, `TITLE` and `CAPTION`."""
        return importlib.import_module(f"figures.{self.name}")


CATALOGUE = (
    Entry("theorems"),
    Entry("e1_gap_against_penalty"),
    Entry("e2_context_overlap"),
    Entry("e3_parameter_constraint"),
    Entry("e4_over_penalising"),
    Entry("e5_real_checkpoint", checkpoint=True),
    Entry("e6_landscape"),
    Entry("e6_checkpoint", checkpoint=True),
    Entry("e7_optimisation"),
    Entry("e7_hypotheses"),
    Entry("e7_text"),
    Entry("e8_league"),
    Entry("e8_text"),
    Entry("e8_checkpoint", checkpoint=True),
    Entry("e10_overlap_of_meaning", checkpoint=True),
)


def entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        SystemExit: when there is none; the names are listed.
    """
    for one in CATALOGUE:
        if one.name == name:
            return one
    raise SystemExit(f"no experiment is named {name!r}; there are {', '.join(e.name for e in CATALOGUE)}.")
