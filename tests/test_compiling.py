"""Compiler options of closed forms: kept where a program is whole, absent where it is a part, dropped where unknown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tradeoff import loss_constraint, worlds
from tradeoff._compiling import BRIEF, LEAN, WIDE, compiled, understood
from tradeoff.tolerances import EXACT


@compiled(WIDE | LEAN)
def _shifted(x, by=1.0):
    return jnp.exp(x) + by


def test_only_whole_programs_have_options(monkeypatch):
    ran, plain = [], jax.jit

    def spied(function, compiler_options=None):
        program = plain(function, compiler_options=compiler_options)
        return lambda *args: (ran.append(compiler_options), program(*args))[1]

    monkeypatch.setattr(jax, "jit", spied)
    doubled = compiled(WIDE)(lambda x: 2 * x)
    jax.vmap(doubled)(jnp.ones(3))
    jax.grad(doubled)(1.0)
    assert ran == [None, None]
    doubled(jnp.ones(3))
    assert ran[2:] == [WIDE]


def test_it_is_a_part_of_any_other_program():
    points = jnp.array([0.0, 1.0])
    for transformed in (_shifted, jax.jit(_shifted), jax.vmap(_shifted), jax.jit(jax.vmap(_shifted))):
        np.testing.assert_allclose(transformed(points), np.exp(points) + 1, rtol=EXACT.relative)
    for slope in (jax.grad(_shifted), jax.jit(jax.grad(_shifted))):
        assert float(slope(0.0)) == 1
    assert float(_shifted(0.0, by=jnp.asarray(3.0))) == 4


def test_a_program_may_close_over_the_values_of_one():
    world, lam = worlds.golden(), jnp.asarray(1.0)
    outside = loss_constraint.gaps(world, lam).safety
    inside = jax.jit(lambda x: x + loss_constraint.gaps(world, lam).safety)(0.0)
    np.testing.assert_allclose(inside, outside, rtol=EXACT.relative)


def test_options_that_this_xla_does_not_know_are_left_out():
    assert understood(BRIEF) == BRIEF
    strange = BRIEF | {"xla_cpu_of_another_year": 1}
    assert understood(strange) == BRIEF
    doubled = compiled(strange)(lambda x: 2 * x)
    assert [float(doubled(x)) for x in (1.0, 2.0)] == [2, 4]


def test_an_error_of_another_kind_is_told():
    def fails(x):
        return jax.pure_callback(lambda _: 1 / 0, x, x)

    with pytest.raises(jax.errors.JaxRuntimeError, match="ZeroDivisionError"):
        jax.block_until_ready(compiled(BRIEF)(fails)(jnp.zeros(())))
