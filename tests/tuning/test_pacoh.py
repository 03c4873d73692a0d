"""F-PACOH: its objective against dense formulas, and what it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.compiled import once
from tests.tuning import toys
from tests.tuning.test_gaussian_process import dense_kl
from tradeoff.tolerances import IDENTITY
from tradeoff.tuning import FPACOH, Gaussian, SquaredExponential, calibration_of
from tradeoff.tuning.pacoh import initial

TASKS, M, POINTS = 3, 6, 8


def instance():
    """Points, values and measurement sets of a few tasks."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(TASKS, M, 1)), rng.normal(size=(TASKS, M))
    return jnp.asarray(x), jnp.asarray(y), jnp.asarray(rng.uniform(size=(TASKS, POINTS, 1)))


PRIOR = initial(1, (4, 4), jax.random.key(0))


def dense_law(x):
    """The learned prior's law at points, in NumPy."""

    def network(layers):
        (one, first), (two, second), (three, last) = jax.tree.map(np.asarray, layers)
        return np.tanh(np.tanh(x @ one + first) @ two + second) @ three + last

    features = network(PRIOR.features) / np.log(2)  # softplus(0)
    apart = ((features[:, None] - features[None]) ** 2).sum(-1)
    return Gaussian(jnp.asarray(network(PRIOR.mean)[:, 0]), jnp.asarray(np.log(2) * np.exp(-apart / 2)))


def objective(settings):
    return float(once(lambda settings: settings.objective(PRIOR, *instance(), 20))(settings))


def test_the_objective_is_the_formula():
    total = 0.0
    for x, y, points in zip(*map(np.asarray, instance()), strict=True):
        law, at = dense_law(x), dense_law(points)
        fit = stats.multivariate_normal(law.mean, law.covariance + 0.01 * np.eye(M)).logpdf(y)
        wide = 2.0 * np.exp(-0.5 * ((points - points.T) / 0.2) ** 2) + 1e-3 * np.eye(POINTS)
        jittered = Gaussian(at.mean, at.covariance + 1e-3 * np.eye(POINTS))
        kl = dense_kl(jittered, Gaussian(jnp.zeros(POINTS), jnp.asarray(wide)))
        total += -fit / M + 0.3 * (1 / np.sqrt(20) + 1 / (20 * M)) * kl
    np.testing.assert_allclose(objective(FPACOH(prior_factor=0.3)), total / TASKS, *IDENTITY)


def test_the_librarys_objective_is_the_same_with_a_factor_m_times_as_large():
    """Its likelihood is per point already when it is divided by m."""
    library = objective(FPACOH(prior_factor=0.1, reading="library"))
    np.testing.assert_allclose(library * M, objective(FPACOH(prior_factor=0.1 * M)), *IDENTITY)
    assert abs(library * M / objective(FPACOH(prior_factor=0.1)) - 1) > 0.01


def test_the_divergence_from_the_wide_prior_is_zero_for_itself_only():
    points = instance()[2][0]
    divergence = once(lambda variance: FPACOH().divergence(SquaredExponential(0.2, variance), points))
    np.testing.assert_allclose(divergence(2.0), 0, atol=IDENTITY.absolute)
    assert divergence(1.0) > 0.5


def test_related_tasks_teach_a_prior_that_is_sharp_and_calibrated():
    """On sweeps that it has not seen."""
    prior = toys.learned()[1]
    new = toys.sweeps(1, 10)
    x = jnp.broadcast_to(toys.GRID[::4], (10, 11, 1))
    found = calibration_of(prior, x, new.safety[:, ::4])
    assert found.std < jnp.std(new.safety) / 5
    assert found.frequency > 0.8


def test_a_larger_prior_factor_keeps_the_prior_nearer_to_the_wide_one():
    grid = jnp.linspace(-1.5, 1.5, 20)[:, None]
    divergence = once(lambda prior: FPACOH().divergence(prior, grid))
    weak, strong = (divergence(toys.learned(factor)[1].prior) for factor in (0.1, 10.0))
    assert strong < weak / 5


def test_learning_is_random_by_the_key_only_and_refuses_what_is_no_data():
    x, gaps = toys.logged()
    settings = FPACOH(prior_factor=0.1, iterations=600, learning_rate=1e-2)
    again = settings.fit(x, gaps.safety, jnp.zeros(1), jnp.ones(1), jax.random.key(0))
    first = toys.learned()[1]
    jax.tree.map(np.testing.assert_array_equal, again, first)
    other = settings.fit(x, gaps.safety, jnp.zeros(1), jnp.ones(1), jax.random.key(1))
    assert float(other.noise) != float(first.noise)
    with pytest.raises(ValueError, match="not finite; leave out the runs that diverged"):
        settings.fit(x, gaps.safety * jnp.inf, jnp.zeros(1), jnp.ones(1), jax.random.key(0))
    with pytest.raises(ValueError, match="must be finite and in order"):
        settings.fit(x, gaps.safety, jnp.ones(1), jnp.zeros(1), jax.random.key(0))


def test_it_says_what_it_is():
    assert (FPACOH.kind, FPACOH.source, FPACOH.needs) == ("tuner", "fpacoh2022", ("earlier related tasks",))
    defaults = {field.name: field.default for field in dataclasses.fields(FPACOH)}
    sources = {"lengthscale": 0.2, "variance": 2.0, "jitter": 1e-3, "learning_rate": 1e-3, "iterations": 10_000}
    assert defaults.items() >= (sources | {"measured": 20, "hidden": (32, 32)}).items()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"reading": "paper"}, "give 'safe-bo' or 'library'"),
        ({"prior_factor": -1.0}, "κ must be finite and at least 0"),
        ({"variance": 0.0}, "variance=0.0; it must be positive"),
        ({"measured": 7}, "an even number of measured points"),
        ({"hidden": (32, 0)}, "give positive numbers"),
    ],
)
def test_settings_that_make_no_sense_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        FPACOH(**bad)
