"""Toy problems: two losses over parameters, differentiable, small enough to read on one screen."""

from tradeoff.problems.problem import Problem as Problem
from tradeoff.problems.tabular import Tabular as Tabular
