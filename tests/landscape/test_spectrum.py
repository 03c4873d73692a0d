"""Intervals cover as often as they say; traces and densities against dense answers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from jax.tree_util import Partial

from tests.compiled import OPTIMISED
from tests.landscape.test_lanczos import symmetric
from tests.problems import WORLDS
from tradeoff.landscape import (
    HostOperator,
    Operator,
    dense,
    density,
    from_matrix,
    hessian,
    trace,
)
from tradeoff.landscape.spectrum import _interval, _traced_samples
from tradeoff.problems import Tabular
from tradeoff.tolerances import DERIVATIVE, EXACT, IDENTITY

KEY = jax.random.key(0)
SEEDS = 1000
COVERS = (0.93, 0.97)
D = 120
RANK = np.arange(1, D + 1.0)
SEMIDEFINITE = {
    "flat": np.ones(D),
    "linear": RANK / D,
    "one over i": 1 / RANK,
    "one over i squared": 1 / RANK**2,
    "exponential": np.exp(-RANK / 20),
    "one spike": np.concatenate([[100.0], np.ones(D - 1)]),
    "twelve of a hundred": np.where(RANK <= 12, 1.0, 1e-3),
    "log-normal": np.exp(2 * scipy.stats.norm.ppf((RANK - 0.5) / D)),
}
INDEFINITE = {
    "indefinite": np.linspace(-1, 2, D),
    "indefinite with spikes": np.concatenate([[20.0, -15.0], np.linspace(-1, 1, D - 2)]),
}


def diagonal(spectrum, semidefinite=True):
    # In its own basis: Gaussian probes see every basis alike.
    return Operator(Partial(jnp.multiply, jnp.asarray(spectrum)), len(spectrum), semidefinite, "float64")


# Hundreds of seeds compute more than they compile, unlike other tests.
@partial(jax.jit, static_argnums=(2, 3), compiler_options=OPTIMISED)
def sampled(operator, keys, sketch, count):
    return jax.lax.map(lambda k: _traced_samples(operator, k, sketch, count), keys, batch_size=50)


def coverage(spectrum, products, semidefinite, law=None):
    """How often `trace`'s interval at so many products holds the trace, over the seeds."""
    sketch = products // 5
    keys = jax.random.split(jax.random.key(products), SEEDS)
    found, ones, twos = map(np.asarray, sampled(diagonal(spectrum), keys, sketch, products - 2 * sketch))
    interval = _interval(ones, twos, 0.95, semidefinite if law is None else law)
    rest = np.sum(spectrum) - found
    return np.mean((interval.lower <= rest) & (rest <= interval.upper))


@pytest.mark.parametrize("products", [10, 30, 100])
@pytest.mark.parametrize("name", SEMIDEFINITE)
def test_the_interval_of_a_semidefinite_trace_is_calibrated(name, products):
    assert COVERS[0] <= coverage(SEMIDEFINITE[name], products, True) <= COVERS[1]


@pytest.mark.parametrize("products", [10, 30, 100])
@pytest.mark.parametrize("name", INDEFINITE)
def test_the_interval_of_an_indefinite_trace_is_calibrated(name, products):
    assert COVERS[0] <= coverage(INDEFINITE[name], products, False) <= COVERS[1]


def test_the_usual_interval_is_not_calibrated():
    # Negative control: the same samples under Student's t miss the band on a skewed spectrum, as the docstring says.
    four = np.where(RANK <= 4, 1.0, 0.0)
    assert coverage(four, 10, True, law=False) < COVERS[0] - 0.02
    assert COVERS[0] <= coverage(four, 10, True) <= COVERS[1]


def test_a_trace_is_its_interval():
    A = symmetric(SEMIDEFINITE["one over i"])
    found = trace(from_matrix(A), KEY, products=30)
    assert float(found.lower) < np.trace(A) < float(found.upper)
    assert float(found.lower) < float(found.trace) < float(found.upper)
    assert (found.products, found.law) == (30, "chi-squared")
    # ... and that interval is the one whose coverage is tested above.
    exact, ones, twos = map(np.asarray, _traced_samples(from_matrix(A), KEY, 6, 18))
    expected = exact + _interval(ones, twos, 0.95, semidefinite=True)
    np.testing.assert_allclose([found.trace, found.lower, found.upper], expected, rtol=IDENTITY.relative)
    wide = trace(from_matrix(A), KEY, products=30, confidence=0.999)
    assert float(wide.upper - wide.lower) > float(found.upper - found.lower)


def test_a_trace_is_unbiased():
    traces = [float(trace(diagonal(SEMIDEFINITE["linear"]), jax.random.key(i), products=10).trace) for i in range(200)]
    z = (np.mean(traces) - SEMIDEFINITE["linear"].sum()) / (np.std(traces, ddof=1) / np.sqrt(len(traces)))
    assert abs(z) < 4


def test_enough_products_make_it_exact():
    problem = Tabular(WORLDS["random"])
    operator = hessian(problem, problem.aligned())
    found = trace(operator, KEY, products=operator.size)
    assert found.law == "exact"
    np.testing.assert_allclose(found.trace, np.trace(dense(operator)), rtol=EXACT.relative)
    assert float(found.lower) <= float(found.trace) <= float(found.upper)


def test_a_rank_within_the_sketch_leaves_only_rounding():
    A = symmetric([5.0, 3.0] + [0.0] * 98)
    found = trace(from_matrix(A), KEY, products=30)
    assert float(found.lower) <= 8.0 <= float(found.upper)
    assert float(found.upper - found.lower) < 8 * IDENTITY.relative


def test_a_zero_operator_and_a_host_operator():
    assert float(trace(from_matrix(np.zeros((9, 9))), KEY, products=5).trace) == 0.0
    A = symmetric(np.linspace(0, 1, 40))
    host = trace(HostOperator(lambda v: A @ v, 40, semidefinite=True), KEY, products=12)
    np.testing.assert_allclose(host.trace, trace(from_matrix(A), KEY, products=12).trace, rtol=DERIVATIVE.relative)


# --- density -----------------------------------------------------------------------------------------------------


def smoothed(spectrum, grid, width):
    return scipy.stats.norm.pdf(np.asarray(grid)[:, None], spectrum, width).mean(axis=1)


def test_the_density_of_all_steps_has_the_answer_in_its_intervals():
    spectrum = np.concatenate([np.linspace(-1, 1, 57), [4.0, 6.0, 6.0]])
    grid = np.linspace(-2, 7, 60)
    true = smoothed(spectrum, grid, 0.3)
    covered = []
    for seed in range(20):
        found = density(from_matrix(symmetric(spectrum)), jax.random.key(seed), grid, width=0.3, steps=40, probes=5)
        covered.append(np.mean((found.lower - EXACT.relative <= true) & (true <= found.upper + EXACT.relative)))
    # Points of one curve move together, so a run covers all of it or misses a stretch: only the mean is near 95 %.
    assert 0.90 <= np.mean(covered) <= 0.99


def test_a_lone_eigenvalue_has_a_calibrated_density():
    spectrum = np.concatenate([np.zeros(49), [5.0]])
    true = smoothed(spectrum, [5.0], 0.1)[0]
    found = [
        density(diagonal(spectrum), jax.random.key(seed), [5.0], width=0.1, steps=2, probes=4) for seed in range(500)
    ]
    covered = np.mean([float(one.lower[0]) <= true <= float(one.upper[0]) for one in found])
    assert COVERS[0] <= covered <= COVERS[1]


def test_a_density_has_mass_one():
    grid = np.linspace(-3, 9, 600)
    found = density(from_matrix(symmetric(np.linspace(0, 5, 80))), KEY, grid, width=0.2, steps=30, probes=40)
    # Each probe's mass is |z|²/d, which is one on average and not by construction.
    mass = float(jnp.sum(found.density) * (grid[1] - grid[0]))
    assert abs(mass - 1) < 4 * np.sqrt(2 / (80 * 40))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: trace(from_matrix(np.eye(9)), KEY, products=2), "products is 2; an interval needs at least 3"),
        (
            lambda: trace(from_matrix(np.eye(9)), KEY, confidence=95.0),
            r"confidence is 95\.0; it must be between 0 and 1",
        ),
        (lambda: trace(HostOperator(lambda v: v / 0.0, 9, True), KEY, products=5), "NaN or infinite"),
        (lambda: density(from_matrix(np.eye(9)), KEY, [0.0], width=0.0), r"width is 0\.0 and probes 10"),
        (lambda: density(from_matrix(np.eye(9)), KEY, [0.0], width=1.0, probes=1), "probes 1; the width"),
        (lambda: density(from_matrix(np.eye(9)), KEY, [np.inf], width=1.0), "give finite eigenvalues"),
        (lambda: density(from_matrix(np.eye(9)), KEY, [0.0], width=1.0), "steps is 30 for an operator of 9"),
    ],
)
def test_bad_input_is_refused(call, says):
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=says):
        call()
