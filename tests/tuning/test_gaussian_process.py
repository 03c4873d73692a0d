"""Normal laws against dense formulas."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.compiled import once
from tradeoff.tolerances import IDENTITY, LIMIT
from tradeoff.tuning import Gaussian, SquaredExponential, Standardised, Units, conditioned, gaussian_kl, log_likelihood

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 2))
PRIOR = SquaredExponential(jnp.array([0.7, 1.3]), 1.8, 0.01)
DENSE = 1.8 * np.exp(-0.5 * (((X[:, None] - X[None]) / np.array([0.7, 1.3])) ** 2).sum(-1))


def random_law(n=5):
    root = RNG.normal(size=(n, n))
    return Gaussian(jnp.asarray(RNG.normal(size=n)), jnp.asarray(root @ root.T + np.eye(n)))


def dense_kl(p, q):
    """The textbook formula."""
    inverse = np.linalg.inv(q.covariance)
    apart = np.asarray(p.mean - q.mean)
    logs = np.linalg.slogdet(q.covariance)[1] - np.linalg.slogdet(p.covariance)[1]
    return 0.5 * (np.trace(inverse @ p.covariance) + apart @ inverse @ apart - len(apart) + logs)


def test_the_posterior_is_the_dense_formula_whatever_the_padding():
    at, values = np.array([4, 1, 4]), np.array([0.3, -1.0, 0.4])
    K = DENSE[np.ix_(at, at)] + 0.01 * np.eye(3)
    mean = DENSE[:, at] @ np.linalg.solve(K, values)
    variance = np.diag(DENSE) - np.einsum("it,ti->i", DENSE[:, at], np.linalg.solve(K, DENSE[at]))
    padded = jnp.append(jnp.asarray(at), 2), jnp.append(jnp.asarray(values), 99.0), jnp.array([True, True, True, False])
    got, std = once(conditioned)(PRIOR.law(jnp.asarray(X)), 0.01, *padded)
    np.testing.assert_allclose(got, mean, *IDENTITY)
    np.testing.assert_allclose(std**2, variance, *IDENTITY)
    counted = conditioned(PRIOR.law(jnp.asarray(X)), 0.01, *padded[:2])[0]
    assert not np.allclose(counted, mean)  # the padding would count


def test_the_likelihood_is_scipys():
    law, values = random_law(), RNG.normal(size=5)
    exact = stats.multivariate_normal(law.mean, np.asarray(law.covariance) + 0.3 * np.eye(5)).logpdf(values)
    np.testing.assert_allclose(once(log_likelihood)(law, 0.3, jnp.asarray(values)), exact, *IDENTITY)


def test_the_divergence_is_the_dense_formula_and_never_negative():
    for _ in range(20):
        p, q = random_law(), random_law()
        np.testing.assert_allclose(gaussian_kl(p, q), dense_kl(p, q), *IDENTITY)
        assert gaussian_kl(p, q) > 0
        np.testing.assert_allclose(gaussian_kl(p, p), 0, atol=IDENTITY.absolute)


def test_nearly_equal_laws_have_a_divergence_that_the_dense_formula_loses():
    p, wider = random_law(), 1e-8
    q = Gaussian(p.mean, p.covariance * (1 + wider))
    exact = 5 / 4 * wider**2  # n/2 (log(1+w) - w/(1+w)) to second order
    np.testing.assert_allclose(gaussian_kl(p, q), exact, *LIMIT)
    assert abs(dense_kl(p, q) / exact - 1) > 0.1


def test_a_prior_in_other_units_is_the_same_prior():
    units = Units(jnp.array([1.0, -2.0]), jnp.array([2.0, 0.5]), jnp.array(3.0), jnp.array(4.0))
    raw = Standardised(PRIOR, units)
    same = SquaredExponential(jnp.array([1.4, 0.65]), 1.8 * 16, 0.16)
    points = jnp.asarray(X)
    np.testing.assert_allclose(raw.law(points).covariance, same.law(points).covariance, *IDENTITY)
    np.testing.assert_array_equal(raw.law(points).mean, 3.0)
    assert float(raw.noise) == pytest.approx(same.noise)
    x, y = jnp.asarray(RNG.normal(size=(3, 4, 2))), jnp.asarray(RNG.normal(size=(3, 4)))
    fitted = Units.of(x, y)
    np.testing.assert_allclose(jnp.std(fitted.points(x).reshape(-1, 2), 0), 1.0, atol=1e-6)
    np.testing.assert_allclose(jnp.mean(fitted.values(y)), 0.0, atol=IDENTITY.absolute)


@pytest.mark.parametrize("name", ["lengthscale", "variance", "noise"])
def test_numbers_that_are_not_positive_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0.0; it must be positive"):
        SquaredExponential(**{name: 0.0})
