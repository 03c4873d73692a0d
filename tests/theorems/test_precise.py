"""The 80-digit interpreter: it runs the code that JAX runs, in numbers that do not round where float64 does."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from tests.compiled import once
from tradeoff import theorems
from tradeoff.theorems import precise
from tradeoff.tolerances import ROOT, agree

KEY = jax.random.key(3)
CLAIMS = {claim.name: claim for claim in theorems.all()}
SEVENTY = mpmath.mpf(10) ** -70
MATRIX = np.array([[4.0, 1.0, 0.5], [1.0, 3.0, -1.0], [0.5, -1.0, 2.0]])


def sides_of(claim):
    """Both sides as a function of the family's parameters."""
    return lambda parameters: claim.at(claim.family.build(parameters))


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_can_be_evaluated(name):
    claim = CLAIMS[name]
    assert precise.missing(sides_of(claim), jax.eval_shape(claim.family.sample, KEY)) == set()


@pytest.mark.parametrize("name", ["T4a", "T7-one-penalty", "T14a", "T14e", "T15b", "T16d", "T16e-quartic", "T19a"])
def test_it_agrees_with_float64(name):
    claim = CLAIMS[name]
    parameters = once(claim.family.sample)(KEY)
    sides = once(sides_of(claim))(parameters)
    exact = precise.evaluate(sides_of(claim), parameters)
    for ours, theirs in zip(sides, exact, strict=True):
        assert all(agree(a, b, ROOT) for a, b in zip(ours.tolist(), map(float, theirs), strict=True))


def test_it_sees_what_float64_cannot():
    with mpmath.workdps(60):
        tiny = precise.evaluate(lambda x: jnp.log1p(x) - x, 2.0**-100, digits=80)
        assert abs(tiny / -(mpmath.mpf(2) ** -201) - 1) < mpmath.mpf(2) ** -99


def residual(function, *arguments):
    """The greatest entry of what should vanish."""
    with mpmath.workdps(80):
        return max(abs(entry) for entry in np.ravel(precise.evaluate(function, *arguments)))


def eigen(a):
    values, vectors = jnp.linalg.eigh(a)
    return a @ vectors - vectors * values[None, :]


def singular(a):
    u, s, v = jnp.linalg.svd(a[:, :2], full_matrices=False)
    return (u * s[None, :]) @ v - a[:, :2]


def factor(a):
    lower = jnp.linalg.cholesky(a)
    return lower @ lower.T - a


def solved(a):
    return a[::-1] @ jnp.linalg.solve(a[::-1], a) - a


def triangular(a):
    return jnp.tril(a) @ jax.scipy.linalg.solve_triangular(a, a, lower=True) - a


def inner_products(a):
    return jnp.stack([a[0] @ a[1] - jnp.sum(a[0] * a[1]), jnp.trace(a @ a) - jnp.sum(a * a.T)])


def from_the_right(a):
    lower = jnp.tril(a)
    x = jax.lax.linalg.triangular_solve(lower, a, left_side=False, lower=True, transpose_a=True)
    return x @ lower.T - a


@pytest.mark.parametrize("check", [eigen, singular, factor, solved, triangular, from_the_right, inner_products])
@pytest.mark.parametrize("batched", [False, True])
def test_linear_algebra_is_exact(check, batched):
    stack = np.stack([MATRIX, MATRIX + np.eye(3)])
    assert residual(jax.vmap(check) if batched else check, stack if batched else MATRIX) < SEVENTY
    assert residual(lambda a: check(a) + 1e-60, MATRIX) > SEVENTY


def test_loops_stop_lane_by_lane():
    def halvings(x):
        return jax.lax.while_loop(lambda c: c[0] > 1, lambda c: (c[0] / 2, c[1] + 1), (x, 0.0))[1]

    counts = precise.evaluate(jax.vmap(halvings), np.array([0.5, 2.0, 9.0]))
    assert counts.tolist() == [0, 1, 4]


def test_branches_sorting_and_the_greatest_entry():
    def mixed(x):
        chosen = jax.lax.cond(x[0] > x[1], lambda x: x, lambda x: -x, x)
        return jnp.sort(chosen), x[jnp.argmax(x)], jnp.ceil(x[0]) % 2

    ordered, greatest, rest = precise.evaluate(mixed, np.array([0.25, 3.0, -1.0]))
    assert (ordered.tolist(), greatest, rest) == ([-3.0, -0.25, 1.0], 3.0, 1.0)


def test_a_primitive_without_a_rule_is_named():
    with pytest.raises(precise.UnsupportedError, match="'lgamma'"):
        precise.evaluate(jax.scipy.special.gammaln, 2.5)
    with pytest.raises(precise.UnsupportedError, match="'convert_element_type'"):
        precise.evaluate(jnp.fft.fft, np.ones(2))  # complex numbers are not run in float64 behind anyone's back
    assert precise.missing(jax.scipy.special.gammaln, 2.5) == {"lgamma"}
    assert "fft" in precise.missing(jnp.fft.fft, np.ones(2))
