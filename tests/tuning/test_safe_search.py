"""Safe search: what it asks for, how often it is wrong, and what earlier tasks are worth."""

from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.tuning import toys
from tradeoff.dynamics import descend
from tradeoff.gaps import Gaps
from tradeoff.problems import Quadratic, quadratic
from tradeoff.strategies import Ball
from tradeoff.tolerances import IDENTITY, LIMIT
from tradeoff.tuning import (
    SafeSearch,
    SquaredExponential,
    Standardised,
    confidence_multiplier,
    largest_safe_weight,
    merging,
    replay,
    sharpest_calibrated,
    tune,
)

NOISE, QUERIES, DELTA = 1e-6, 12, 0.1
TRUE = SquaredExponential(0.2, 1.0, NOISE)
MIDDLE, SEARCHES = 20, 400


def functions(key, count):
    """Draws from the true prior that are 0 at the middle of the grid, which is what the start tells."""
    law = TRUE.law(toys.GRID)
    given = law.covariance[:, MIDDLE]
    values, vectors = np.linalg.eigh(law.covariance - np.outer(given, given))
    normal = np.random.default_rng(key).normal(size=(count, len(values)))
    return jnp.asarray((normal * np.sqrt(np.maximum(values, 0))) @ vectors.T)


def searched(prior, multiplier, safety, capability):
    search = SafeSearch(prior, prior, toys.LIMIT, multiplier, queries=QUERIES)
    return replay(search, Gaps(safety, capability), toys.GRID, MIDDLE)


def test_the_multiplier_comes_from_delta():
    c = confidence_multiplier(DELTA, QUERIES)
    assert stats.norm.sf(c) * QUERIES == pytest.approx(DELTA)
    assert c == pytest.approx(2.394, abs=1e-3)
    for bad in ((0.0, 5), (1.0, 5), (0.6, 1), (0.1, 0)):
        with pytest.raises(ValueError, match="below 1/2"):
            confidence_multiplier(*bad)


def test_with_the_right_prior_violations_are_rarer_than_delta_and_with_a_narrow_one_they_are_not():
    """Searches with any unsafe query, of 400; a narrow prior has a third of the deviation or twice the lengthscale."""
    safety, capability = functions(0, SEARCHES), functions(1, SEARCHES)
    c = confidence_multiplier(DELTA, QUERIES)
    right = searched(TRUE, c, safety, capability)
    assert np.mean(right.violations > 0) < DELTA
    assert np.mean([len(set(asked)) for asked in np.asarray(right.index)]) > 5  # it did go out
    assert np.mean(right.best_capability[:, -1]) < -0.5  # where the start has 0
    for narrow in (SquaredExponential(0.2, 1 / 9, NOISE), SquaredExponential(0.4, 1.0, NOISE)):
        assert np.mean(searched(narrow, c, safety, capability).violations > 0) > 3 * DELTA


def test_queries_never_leave_the_confidence_safe_set():
    """Recomputed from what was measured before each query, by dense formulas."""
    safety, capability = functions(2, SEARCHES), functions(3, SEARCHES)
    c = confidence_multiplier(DELTA, QUERIES)
    history = searched(TRUE, c, safety, capability)
    assert np.all(history.confident)
    K = np.asarray(TRUE.law(toys.GRID).covariance)
    outside, parts = 0, (history.index, history.gaps.safety, history.bound)
    rows = zip(*(np.asarray(part) for part in parts), strict=True)
    for index, measured, bounds in islice(rows, 8):
        assert index[0] == MIDDLE
        for t in range(1, QUERIES):
            at = index[:t]
            inverse = np.linalg.inv(K[np.ix_(at, at)] + NOISE * np.eye(t))
            mean = K[:, at] @ inverse @ measured[:t]
            variance = np.diag(K) - np.einsum("it,ts,si->i", K[:, at], inverse, K[at])
            upper = mean + c * np.sqrt(np.maximum(variance, 0))
            # Noise of 1e-6 leaves K ill-conditioned, and a standard deviation is a root.
            np.testing.assert_allclose(bounds[t], upper[index[t]], rtol=0, atol=LIMIT.relative)
            assert upper[index[t]] <= toys.LIMIT + LIMIT.relative or index[t] == MIDDLE
            outside += np.sum(upper > toys.LIMIT)
    assert outside > 100  # there was something to leave it for


def regret(history, sweep):
    best = jnp.min(jnp.where(sweep.safety <= toys.LIMIT, sweep.capability, jnp.inf), 1)
    return float(jnp.mean(history.best_capability[:, -1] - best))


def test_earlier_tasks_are_worth_queries_and_cost_no_violations():
    """Merge weights of 40 new quadratics with four queries each, against priors that know the units or are calibrated too."""
    new, (x, gaps) = toys.sweeps(1, 40), toys.logged()
    meta = toys.learned()
    plain = SquaredExponential(jnp.array(0.2), jnp.array(1.0))
    vanilla = [Standardised(plain, prior.units) for prior in meta]
    options = {"noise": 1e-4, "variance": (0.9, 8.0), "queries": 15}
    calibrated = [sharpest_calibrated(x, gap, **options)[0] for gap in (gaps.capability, gaps.safety)]
    runs = {
        name: replay(SafeSearch(*priors, toys.LIMIT, 2.5, queries=4), new, toys.GRID)
        for name, priors in {"meta": meta, "vanilla": vanilla, "calibrated": calibrated}.items()
    }
    lost = {name: regret(run, new) for name, run in runs.items()}
    assert lost["meta"] < lost["calibrated"] / 3 < lost["vanilla"] / 3
    assert int(jnp.sum(runs["meta"].violations)) <= int(jnp.sum(runs["calibrated"].violations)) == 0
    # Tasks that were ten times safer teach what is wrong here, and the search overshoots.
    misled = replay(SafeSearch(*toys.learned(safer=10.0), toys.LIMIT, 2.5, queries=4), new, toys.GRID)
    assert np.mean(misled.violations > 0) > 0.5


def test_overshoot_is_measured_exactly():
    quad, limit = quadratic.golden(), 0.25
    end = largest_safe_weight(quad, limit)
    np.testing.assert_allclose(merging(quad)(jnp.array([end])).safety, limit, *IDENTITY)
    flat = Quadratic(quad.H_f, quad.theta_f, jnp.zeros((2, 2)), quad.theta_s)
    assert largest_safe_weight(flat, limit) == np.inf
    candidates = jnp.linspace(0.0, 1.0, 41)[:, None]
    honest, bold = SquaredExponential(0.5, 4.0), SquaredExponential(3.0, 0.01)
    for prior, over in ((honest, False), (bold, True)):
        found = tune(SafeSearch(prior, prior, limit, queries=12), merging(quad), candidates)
        np.testing.assert_array_equal(found.safe, found.settings[:, 0] <= end)
        assert bool(found.violations > 0) == over == bool(jnp.max(found.settings) > end)


def test_running_settings_and_replaying_their_sweep_are_one_search():
    quad, candidates, asked = quadratic.golden(), jnp.linspace(0.0, 1.0, 41)[:, None], []
    sweep = jax.vmap(merging(quad))(candidates)
    search = SafeSearch(SquaredExponential(0.5, 4.0), SquaredExponential(0.5, 4.0), 0.25, queries=12)

    def evaluate(setting):
        asked.append(float(setting[0]))
        return merging(quad)(setting)

    ran, replayed = tune(search, evaluate, candidates), replay(search, sweep, candidates)
    np.testing.assert_array_equal(ran.index, replayed.index)
    np.testing.assert_array_equal(ran.gaps.safety, replayed.gaps.safety)
    assert len(asked) == len(set(asked)) == len(set(np.asarray(ran.index)))  # a setting is run once
    assert float(ran.gaps.capability[ran.best]) == float(ran.best_capability[-1])
    assert np.all(np.diff(ran.best_capability) <= 0)


def test_a_strategys_setting_is_tuned_from_its_off_setting():
    """The radius of a ball, from one so small that training stays at the aligned parameters."""
    quad, radii, limit = quadratic.golden(), jnp.linspace(0.01, 0.81, 41)[:, None], 0.2

    def evaluate(radius):
        run = descend(quad, Ball(radius[0]), learning_rate=0.2, steps=60, every=60)
        return jax.tree.map(lambda gap: gap[-1], run.gaps)

    search = SafeSearch(SquaredExponential(0.8, 4.0), SquaredExponential(0.8, 4.0), limit, queries=12)
    found = tune(search, evaluate, radii)
    assert int(found.violations) == 0
    assert found.gaps.capability[found.best] < found.gaps.capability[0] / 2
    assert found.gaps.safety[found.best] > limit / 2
    assert evaluate(radii[-1]).safety > limit


def test_a_start_that_is_not_safe_is_refused():
    quad, candidates = quadratic.golden(), jnp.linspace(0.0, 1.0, 41)[:, None]
    search = SafeSearch(SquaredExponential(0.5, 4.0), SquaredExponential(0.5, 4.0), 0.25, queries=12)
    with pytest.raises(ValueError, match="the start has a safety gap of 1 and the limit is 0.25"):
        tune(search, merging(quad), candidates, start=40)
    sweep = jax.vmap(merging(quad))(candidates)
    with pytest.raises(ValueError, match="needs a start that is safe"):
        replay(search, sweep, candidates, start=40)
    with pytest.raises(ValueError, match="start is 41 and there are 41 candidates"):
        tune(search, merging(quad), candidates, start=41)


def test_what_is_not_finite_or_not_positive_is_refused():
    candidates = jnp.linspace(0.0, 1.0, 41)[:, None]
    prior = SquaredExponential(0.5, 4.0)
    search = SafeSearch(prior, prior, 0.25, queries=12)
    broken = Gaps(jnp.full(41, jnp.nan), jnp.zeros(41))
    with pytest.raises(ValueError, match="the sweep has a gap that is not finite"):
        replay(search, broken, candidates)
    with pytest.raises(ValueError, match="both gaps must be finite"):
        tune(search, lambda setting: Gaps(jnp.array(jnp.inf), jnp.array(0.0)), candidates)
    for name in ("limit", "multiplier", "resolution", "queries"):
        with pytest.raises(ValueError, match=f"{name}=0; it must be positive and finite"):
            SafeSearch(**{"capability": prior, "safety": prior, "limit": 1.0, name: 0})
