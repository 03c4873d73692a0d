"""The noise of mini-batches: the law against SciPy's Lyapunov solver, and against runs of descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from tradeoff.dynamics import descend, minibatch_noise, noise_floor
from tradeoff.problems import Quadratic, quadratic
from tradeoff.strategies import EMA
from tradeoff.tolerances import IDENTITY

NOISE = np.array([[1.0, 0.6], [0.6, 2.0]])
RATE, AVERAGE = 0.3, 0.8
Z_SCORE = 4.0


def joint_law(A: np.ndarray, S: np.ndarray, rate: float, average: float) -> np.ndarray:
    """Covariance of the average of the weights: weights and average in one Lyapunov equation, by SciPy."""
    d = len(A)
    M, eye = np.eye(d) - rate * A, np.eye(d)
    both = np.block([[M, np.zeros((d, d))], [(1 - average) * M, average * eye]])
    enters = np.vstack([eye, (1 - average) * eye])
    return scipy.linalg.solve_discrete_lyapunov(both, rate**2 * enters @ S @ enters.T)[d:, d:]


@pytest.mark.parametrize("average", [0.0, AVERAGE])
def test_the_law_solves_the_lyapunov_equation(average):
    quad, lam = quadratic.golden(), 0.5
    law = noise_floor(quad, NOISE, RATE, batch=4, accumulation=3, average=average, lam=lam)
    A = np.asarray(quad.H_f + lam * quad.H_s)
    expected = joint_law(A, NOISE / 12, RATE, average)
    np.testing.assert_allclose(law.covariance, expected, rtol=IDENTITY.relative)
    np.testing.assert_allclose(law.excess.safety, np.trace(quad.H_s @ expected) / 2, rtol=IDENTITY.relative)
    np.testing.assert_allclose(law.mean, np.linalg.solve(A, quad.H_f @ quad.theta_f), rtol=IDENTITY.relative)
    at_mean = quad.gaps(law.mean)
    np.testing.assert_allclose(law.gaps.safety, at_mean.safety + law.excess.safety, rtol=IDENTITY.relative)
    np.testing.assert_allclose(law.gaps.capability, at_mean.capability + law.excess.capability, rtol=IDENTITY.relative)


def test_accumulation_is_a_larger_batch():
    quad = quadratic.golden()
    several, one = (noise_floor(quad, NOISE, RATE, batch=n, accumulation=k) for n, k in ((2, 6), (12, 1)))
    np.testing.assert_array_equal(several.covariance, one.covariance)


def test_descent_settles_at_the_law():
    """Gaps of many runs, the weights' and their average's; the law of another learning rate is told apart."""
    quad, noise = quadratic.golden(), minibatch_noise(NOISE, batch=4)
    keys = jax.random.split(jax.random.key(0), 20_000)

    def ends(average: float) -> tuple[np.ndarray, np.ndarray]:
        run = jax.vmap(
            lambda key: descend(quad, EMA(average), learning_rate=RATE, steps=60, every=60, key=key, noise=noise).gaps
        )(keys)
        return np.asarray(run.safety[:, -1]), np.asarray(run.capability[:, -1])

    def z_score(gaps: np.ndarray, expected: float) -> float:
        return float((gaps.mean() - expected) / (gaps.std(ddof=1) / np.sqrt(len(gaps))))

    for average in (0.0, AVERAGE):
        safety, capability = ends(average)
        law = noise_floor(quad, NOISE, RATE, batch=4, average=average).gaps
        assert abs(z_score(safety, float(law.safety))) < Z_SCORE
        assert abs(z_score(capability, float(law.capability))) < Z_SCORE
        other = noise_floor(quad, NOISE, 1.2 * RATE, batch=4, average=average).gaps
        assert abs(z_score(capability, float(other.capability))) > Z_SCORE


def test_where_nothing_holds_the_weights_noise_must_not_push():
    H = jnp.diag(jnp.array([1.0, 0.0]))
    flat = Quadratic(H, [1.0, 0.0], H, [0.0, 0.0])
    still = noise_floor(flat, np.diag([1.0, 0.0]), 0.5)
    assert still.covariance[1, 1] == 0
    with pytest.raises(ValueError, match="diffuse for ever"):
        noise_floor(flat, np.eye(2), 0.5)
    nowhere = Quadratic(0 * H, [1.0, 0.0], 0 * H, [0.0, 0.0])
    np.testing.assert_array_equal(noise_floor(nowhere, np.zeros((2, 2)), 1e9).covariance, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learning_rate": 0.7}, r"learning_rate is 0\.7; .* \(0, 0\.666667\)"),
        ({"learning_rate": 0.0}, "give a smaller one"),
        ({"noise": -NOISE}, "noise has eigenvalue"),
        ({"noise": np.eye(3)}, "there are 2 parameters"),
        ({"batch": 0}, "batch is 0"),
        ({"average": 1.0}, r"average is 1\.0"),
        ({"lam": np.inf}, "one finite penalty"),
    ],
)
def test_bad_input_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        noise_floor(quadratic.golden(), **({"noise": NOISE, "learning_rate": RATE} | change))
