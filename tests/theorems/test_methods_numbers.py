"""The numbers quoted for published methods come out, and what their laws compute is what SciPy, or NumPy by hand, does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from tests.compiled import once
from tests.theorems.test_methods import part
from tradeoff.dynamics.quadratic import quadratic_flow
from tradeoff.problems import quadratic
from tradeoff.theorems import _linear
from tradeoff.theorems import methods_averaging as averaging
from tradeoff.theorems import methods_barrier as barriers
from tradeoff.theorems import methods_basin as basin
from tradeoff.theorems import methods_fixed_points as fixed_points
from tradeoff.theorems import methods_guarded as guarded
from tradeoff.theorems import methods_interference as interference
from tradeoff.theorems import methods_layers as layers
from tradeoff.theorems import methods_preferences as preferences
from tradeoff.theorems._linear import covariance_of, end_of
from tradeoff.theorems.methods_instances import front_displacement
from tradeoff.tolerances import BOUND, DERIVATIVE, EXACT, IDENTITY, LIMIT, agree


def stationary(value, strength, probability):
    """π*(y) under the shipped estimator and under the whole divergence."""
    held = (1 - value) * strength
    return min(1.0, probability * np.exp(value / held)), (value + held * probability) / (value + held)


def test_the_shipped_estimator_multiplies_by_seven_where_the_mixture_lifts_from_nothing():
    multiplied, mixed = stationary(0.5, 0.5, 1e-6)
    assert agree(multiplied, 1e-6 * np.exp(2), EXACT)
    assert f"{np.exp(2):.1f}" == "7.4"
    impossible = guarded.mixture(jnp.array([0.0, 1.0]), jnp.array(0), jnp.float64(0.5), jnp.float64(0.5))
    assert agree(float(impossible[0]), 0.5 / 0.75, EXACT)
    assert multiplied < mixed


@pytest.mark.parametrize(("value", "printed"), [(0.5, ".094"), (0.7, ".008")])
def test_where_the_shipped_estimator_stops_being_stricter(value, printed):
    held = (1 - value) * 0.5
    meets = value / (value - held * np.expm1(-value / held))
    threshold = meets * np.exp(-value / held)
    assert f"{threshold:.3f}"[1:] == printed
    assert agree(*stationary(value, 0.5, threshold), EXACT)
    below, above = stationary(value, 0.5, threshold / 2), stationary(value, 0.5, threshold * 2)
    assert below[0] < below[1]
    assert above[0] > above[1]


@pytest.mark.parametrize("kappa", [1.0, 1.5, 2.0, 2.5])
def test_an_understated_curvature_leaves_one_minus_half_of_it(kappa):
    instance = barriers.barrier(curved=kappa, told=1.0)
    left, _ = part("lb-sgd-halving", "first constraint", instance)
    assert agree(float(left), 1 - kappa / 2, IDENTITY)
    assert barriers.TRUE_SMOOTHNESS.holds(instance) == (kappa <= 1)


@pytest.mark.parametrize(("beta", "printed"), [(0.5, "15.2"), (2.0, "3.8")])
def test_where_the_constraint_meets_its_clamp(beta, printed):
    assert f"{preferences.EXTENT / beta:.1f}" == printed


def test_the_noise_floor_is_that_of_scipy():
    """Also where nothing shares an axis: ½ tr(BC), C = (I-hA)C(I-hA) + h²S/n."""
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(3, 3, 3))
    A, B, S = (root @ root.T for root in roots)
    h = 1 / np.linalg.eigvalsh(A)[-1]
    M = np.eye(3) - h * A
    ours = covariance_of(jnp.asarray(M), jnp.asarray(h**2 * S / 8))
    theirs = scipy.linalg.solve_discrete_lyapunov(M, h**2 * S / 8)
    assert agree(float(jnp.sum(B * ours)) / 2, np.trace(B @ theirs) / 2, DERIVATIVE)


@pytest.mark.parametrize("rate", [0.3, 1.0, 4.0])
def test_the_averaged_flow_is_that_of_a_matrix_exponential(rate):
    system = np.array([[-1.0, 0.0], [rate, -rate]])
    shadow = (scipy.linalg.expm(0.7 * system) @ np.ones(2))[1]
    assert agree(float(averaging._follows(jnp.ones(()), jnp.float64(rate), jnp.float64(0.7))), shadow, EXACT)


@pytest.mark.parametrize(("pull", "slope"), [((0.0, 1.0), 4), ((0.5, 1.0), 2)])
def test_the_onset_is_quartic_only_where_the_task_pulls_across(pull, slope):
    A = np.array([[1.0, 0.6], [0.6, 2.0]])
    lost = []
    for time in (1e-5, 2e-5):
        moved = time * scipy.linalg.expm(np.block([[-A * time, np.eye(2)], [np.zeros((2, 4))]]))[:2, 2:] @ pull
        lost.append(moved[0] ** 2 / 2)
    assert agree(np.log2(lost[1] / lost[0]), slope, LIMIT)


def test_without_mixed_curvature_nothing_is_lost_at_any_time():
    quad = quadratic.Quadratic(np.diag([1.0, 2.0]), [0.0, 1.0], np.diag([1.0, 0.0]), [0.0, 0.0])
    assert (quadratic_flow(quad, 0.0, jnp.array([0.1, 1.0, 10.0])).gaps.safety == 0).all()


def test_both_states_of_an_alternation_are_off_the_front():
    golden = quadratic.golden()
    H_s = jnp.eye(3).at[:2, :2].set(golden.H_s)
    quad = quadratic.Quadratic(jnp.diag(jnp.array([3.0, 1.0, 1.0])), jnp.append(golden.theta_f, 0.5), H_s, jnp.zeros(3))
    front = once(jax.vmap(lambda nu: quad.gaps(front_displacement(quad, nu))))(jnp.logspace(-4, 4, 4001))
    for state in once(lambda quad: fixed_points._lisa(quad, jnp.ones(())))(quad):
        at = quad.gaps(state)
        # On the front the two gradients are opposite: here some third point is better for both losses.
        assert bool(jnp.any((front.safety < at.safety) & (front.capability < at.capability)))


def test_the_minimum_norm_edit_is_that_of_a_pseudo_inverse():
    instance = layers._edit()
    U = np.asarray(instance.P @ instance.Q)
    stated = (np.asarray(instance.R) - np.asarray(instance.W) @ U) @ np.linalg.pinv(U)
    rate = 1 / np.sum(U**2)
    change = np.zeros_like(stated)
    for _ in range(2_000):
        change = change - rate * ((np.asarray(instance.W) + change) @ U - np.asarray(instance.R)) @ U.T
    assert agree(float(np.abs(change - stated).max()), 0.0, IDENTITY)
    left, right = part("minimum-norm-edit", "no smaller edit", instance)
    assert agree(float(left), float(np.linalg.norm(stated)), IDENTITY)
    assert agree(float(right), float(np.linalg.norm(stated)), IDENTITY)


def test_the_normal_law_is_that_of_scipy():
    x = np.linspace(-9, 9, 181)
    ours = np.asarray(basin.normal_law(jnp.asarray(x)))
    assert all(agree(a, b, IDENTITY) for a, b in zip(ours.tolist(), scipy.stats.norm.cdf(x).tolist(), strict=True))
    assert agree(float(basin.normal_law(jnp.float64(50.0))), 1.0, EXACT)


def test_a_half_space_meets_its_certificate():
    left, right = part("basin", "certificate", basin._half_space())
    assert agree(float(left), scipy.stats.norm.cdf(-1.0), BOUND)
    assert agree(float(left), float(right), BOUND)


def test_no_failure_reads_as_zero():
    """A run that diverges has no end: its distance from anything is undefined, not zero."""
    ended = end_of(jnp.diag(jnp.array([-1.5, 0.5])), jnp.ones(2))
    assert not jnp.isfinite(_linear.length(ended - jnp.ones(2)))


def test_interference_is_descent_with_momentum_scale_and_decay():
    """What the claim calls training is the textbook's: v = μv + s∇L, θ = θ - η(v + wθ), here by NumPy with gradients by hand."""
    at = interference._interfering(decay=0.1, scale=(1.0, 0.3, 2.0))
    theta, benign = np.asarray(at.start), np.asarray(at.benign)
    velocity = np.zeros_like(theta)
    for rate in np.asarray(at.rates):
        odds = np.exp(benign @ theta)
        missed = odds / odds.sum(axis=1, keepdims=True) - np.eye(theta.shape[1])[np.asarray(at.labels)]
        velocity = 0.5 * velocity + np.asarray(at.scale)[:, None] * (benign.T @ missed)
        theta = theta - rate * (velocity + 0.1 * theta)
    moved = interference._fine_tune(at, jnp.ones(2))
    np.testing.assert_allclose(moved, theta - np.asarray(at.start), rtol=IDENTITY.relative, atol=IDENTITY.absolute)
