"""Compile for a single use."""

import jax

from tradeoff.theorems.verification import UNOPTIMISED, understood


def once(function):
    """`function` compiled without optimisation: a test that calls it once or twice would wait longer otherwise."""
    return jax.jit(function, compiler_options=understood(UNOPTIMISED))
