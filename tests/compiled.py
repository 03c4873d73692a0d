"""How tests compile: without optimisation, which costs them more than it saves, unless a test computes a lot."""

import jax

from tradeoff._compiling import understood
from tradeoff.theorems.verification import UNOPTIMISED

OPTIMISED = understood({"xla_backend_optimization_level": 3})
"""Compiler options for what runs longer than it compiles."""


def once(function):
    """`function` compiled without optimisation, however the tests are run."""
    return jax.jit(function, compiler_options=understood(UNOPTIMISED))
