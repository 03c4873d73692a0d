"""Calibration against exact binomial sums, and the search for the sharpest calibrated prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.tuning import toys
from tradeoff.tolerances import IDENTITY
from tradeoff.tuning import (
    SquaredExponential,
    calibration_frequency,
    calibration_of,
    frontier_search,
    sharpest_calibrated,
)
from tradeoff.tuning.calibration import _next_query

LEAST = 0.8
SIZES = {5: 4000, 20: 4000, 100: 2000, 1000: 400}
"""Points to predict, and how often."""


def exact_frequency(m, times, least=LEAST):
    """Mean over levels of P(Bin(m, p) >= cm), p the mass of the interval of level c when its width is `times` the right one."""
    levels = np.linspace(least, 1, 20)
    mass = 2 * stats.norm.cdf(times * stats.norm.ppf((1 + levels) / 2)) - 1
    return float(np.mean(stats.binom.sf(np.ceil(levels * m - 1e-9) - 1, m, mass)))


@pytest.mark.parametrize("m", SIZES)
def test_the_frequency_of_an_oracle_is_the_binomial_sum(m):
    """Right, doubled and halved standard deviations."""
    errors = jnp.asarray(np.random.default_rng(m).normal(size=(SIZES[m], m)))
    frequency = jax.jit(lambda scale: jax.vmap(lambda row: calibration_frequency(row / scale, LEAST))(errors))
    for times in (1.0, 2.0, 0.5):
        drawn = np.asarray(frequency(times))
        allowed = 4 * drawn.std() / np.sqrt(len(drawn)) + 1e-3
        assert abs(drawn.mean() - exact_frequency(m, times)) < allowed
    assert 0.5 < exact_frequency(m, 1.0) < 0.68  # as likely above its level as below, and more so for few points
    assert exact_frequency(m, 2.0) >= 0.98
    assert exact_frequency(m, 0.5) >= 1 / 20


def test_its_limits_are_half_everything_and_the_last_level():
    assert exact_frequency(10**7, 1.0) == pytest.approx(21 / 40, abs=1e-3)
    assert exact_frequency(1000, 2.0) == pytest.approx(1.0, abs=1e-3)
    assert exact_frequency(100, 0.5) == pytest.approx(1 / 20, abs=1e-3)
    falling = [exact_frequency(m, 1.0) for m in SIZES]
    assert falling == sorted(falling, reverse=True)


def test_a_prior_is_tried_on_every_context():
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.uniform(size=(2, 5, 1))), jnp.asarray(rng.normal(size=(2, 5)))
    prior = SquaredExponential(0.3, 1.0, 0.05)
    frequencies, stds = [], []
    for x_task, y_task in zip(np.asarray(x), np.asarray(y), strict=True):
        K = np.exp(-0.5 * ((x_task - x_task.T) / 0.3) ** 2)
        for size in range(2, 5):
            solved = np.linalg.solve(K[:size, :size] + 0.05 * np.eye(size), K[:size, size:])
            std = np.sqrt(1 - np.sum(K[:size, size:] * solved, 0) + 0.05)
            errors = np.abs(y_task[size:] - y_task[:size] @ solved) / std
            levels = np.linspace(0.8, 1, 20)
            inside = errors <= np.sqrt(stats.chi2.ppf(levels, 1))[:, None]
            frequencies.append(np.mean(inside.mean(1) >= levels))
            stds.append(std.mean())
    got = calibration_of(prior, x, y)
    np.testing.assert_allclose(got.frequency, np.mean(frequencies), *IDENTITY)
    np.testing.assert_allclose(got.std, np.mean(stds), *IDENTITY)
    with pytest.raises(ValueError, match="calibration needs at least 3"):
        calibration_of(prior, x[:, :2], y[:, :2])


def undecided(a, b, point):
    """The largest area that either answer at a point leaves of a rectangle's undecided part, as a share of the whole."""
    x, y = (point - a) / (b - a)
    return max(x, y, 1 - x, 1 - y)


def test_the_query_halves_the_largest_undecided_rectangle_whatever_the_answer():
    low, high = np.array([0.0, 0.0]), np.array([1.0, 1.0])
    np.testing.assert_array_equal(_next_query([high], [], low, high), [0.5, 0.5])
    # Undecided: [0, 1] x [1/4, 1], the larger, and [1/2, 1] x [0, 1].
    np.testing.assert_allclose(_next_query([high], [np.array([0.5, 0.25])], low, high), [0.5, 0.625])
    assert _next_query([low], [], low, high) is None
    rng = np.random.default_rng(0)
    assert undecided(low, high, np.array([0.5, 0.5])) == 0.5
    assert all(undecided(low, high, point) > 0.5 for point in rng.uniform(size=(100, 2)))


def test_the_search_finds_the_sharpest_calibrated_point_of_a_monotone_problem():
    """Calibrated where ν >= 9 l; the standard deviation ν²/l is least at ν = 0.9, l = 0.1."""
    found = frontier_search(lambda length, nu: (nu / length / 10, nu**2 / length))
    assert len(found.std) == 50
    assert found.feasible[found.best]
    assert found.frequency[found.best] >= 0.9
    assert np.all(np.diff(found.best_std) <= 0)
    assert 8.1 <= found.best_std[-1] < 1.1 * 8.1
    assert found.best_std[10] > found.best_std[-1]
    assert 0 < found.feasible.sum() < 50


def test_what_is_not_monotone_may_be_missed():
    def evaluate(length, nu):
        return (1.0 if nu > 1.99 or 0.95 < nu < 1.0 else 0.0), nu / length

    found = frontier_search(evaluate)
    assert found.best_std[-1] > 1.9 / 5  # the sharpest calibrated point has 0.95 / 5
    assert np.all(found.feasible == (found.frequency >= 0.9))


def test_the_sharpest_calibrated_prior_of_earlier_tasks():
    x, gaps = toys.logged()
    prior, found = sharpest_calibrated(x, gaps.safety, noise=1e-4, variance=(0.9, 8.0), queries=15)
    at = calibration_of(prior, x, gaps.safety)
    assert at.frequency >= 0.9
    assert float(at.std) == pytest.approx(found.best_std[-1])
    assert found.best_std[-1] < found.best_std[0] / 10
    with pytest.raises(ValueError, match=r"has calibration frequency .*; allow a larger variance"):
        sharpest_calibrated(x, gaps.safety, noise=1e-4, threshold=0.999, variance=(0.01, 0.02))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"lengthscale": (0.0, 1.0)}, "lengthscale goes from 0.0 to 1.0"),
        ({"variance": (2.0, 1.0)}, "variance goes from 2.0 to 1.0"),
        ({"threshold": 1.5}, r"threshold in \(0, 1\]"),
        ({"queries": 0}, "at least 1 query"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        frontier_search(lambda length, nu: (1.0, 1.0), **bad)
