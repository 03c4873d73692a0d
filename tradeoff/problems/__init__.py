"""Toy problems: two losses over parameters, differentiable, small enough to read on one screen."""

from tradeoff.problems.problem import Problem as Problem
from tradeoff.problems.quadratic import LocalModel as LocalModel
from tradeoff.problems.quadratic import Quadratic as Quadratic
from tradeoff.problems.sequence import Sequence as Sequence
from tradeoff.problems.softmax_linear import SoftmaxLinear as SoftmaxLinear
from tradeoff.problems.tabular import Tabular as Tabular
from tradeoff.problems.transformer import Shape as Shape
from tradeoff.problems.transformer import Transformer as Transformer
