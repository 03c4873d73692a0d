"""Toy problems: what they refuse, and that their gaps are those of their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tradeoff as to
from tests.problems import WORLDS
from tradeoff.problems import Problem
from tradeoff.problems.quadratic import Quadratic, golden
from tradeoff.problems.softmax_linear import SoftmaxLinear
from tradeoff.tolerances import EXACT, IDENTITY, agree


def test_a_quadratic_is_a_problem():
    quad = golden()
    assert isinstance(quad, Problem)
    at = quad.gaps(jnp.array([1.0, 1.0]))
    assert float(at.safety) == 2.0
    assert float(at.capability) == 2.0
    assert float(quad.objective(jnp.array([1.0, 1.0]), 3.0)) == 8.0
    np.testing.assert_array_equal(jax.hessian(lambda z: quad.gaps(z).safety)(quad.theta_s), quad.H_s)


def test_a_gain_is_exact_for_the_smallest_step():
    quad = golden()
    assert agree(
        float(quad.gain(jnp.array([0.5, 0.2]))), 2.0 - float(quad.gaps(jnp.array([0.5, 0.2])).capability), EXACT
    )
    assert agree(float(quad.gain(jnp.array([1e-150, 0.0]))), 3e-150, EXACT)


@pytest.mark.parametrize(
    ("H_f", "theta_f", "says"),
    [
        ([[1.0, 2.0], [0.0, 1.0]], [0.0, 0.0], r"H_f is not symmetric: H_f\[0, 1\] is 2 and H_f\[1, 0\] is 0"),
        ([[1.0, 0.0], [0.0, float("nan")]], [0.0, 0.0], r"H_f\[1, 1\] is nan"),
        ([[1.0, 0.0], [0.0, -0.5]], [0.0, 0.0], r"H_f has eigenvalue -0\.5.*semidefinite"),
        ([[1.0, 0.0]], [0.0, 0.0], r"H_f has shape \(1, 2\)"),
        (np.eye(2), [0.0, float("inf")], "theta_f is .* must be finite"),
        (np.eye(3), [0.0, 0.0], "different numbers of parameters"),
    ],
)
def test_a_quadratic_refuses_what_is_none(H_f, theta_f, says):
    with pytest.raises(ValueError, match=says):
        Quadratic(H_f, theta_f, np.eye(2), [0.0, 0.0])


def test_rounding_in_a_hessian_is_forgiven():
    H = np.array([[1.0, 0.5], [0.5 + 1e-15, 0.25]])  # singular up to rounding, symmetric up to rounding
    quad = Quadratic(H, [0.0, 0.0], np.eye(2), [0.0, 0.0])
    np.testing.assert_array_equal(quad.H_f, quad.H_f.T)


def test_one_hot_features_are_a_table():
    world = WORLDS["golden"]
    problem = SoftmaxLinear(world, jnp.eye(4))
    table = to.problems.Tabular(world)
    logits = jax.random.normal(jax.random.key(0), (4, 3))
    assert isinstance(problem, Problem)
    assert problem.gaps(logits).safety == table.gaps(logits).safety
    assert problem.objective(logits, 2.0) == table.objective(logits, 2.0)
    assert agree(float(problem.feature_overlap()), 0.8, EXACT)


def test_orthogonal_features_forget_nothing_in_sixty_steps():
    """The framework's own test of T17: descent on the task, safety features orthogonal to the task's."""
    rng = np.random.default_rng(0)
    features = np.zeros((4, 4))
    features[:2, :2], features[2:, 2:] = rng.normal(size=(2, 2)), rng.normal(size=(2, 2))
    laws = [to.DataLaw(p, rng.dirichlet(np.ones(3), size=4)) for p in ([0.4, 0.6, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5])]
    problem = SoftmaxLinear(to.World(*laws), features)
    theta = problem.zero()
    for _ in range(60):
        theta = theta - 0.5 * jax.grad(lambda z: problem.gaps(z).capability)(theta)
    assert problem.gaps(theta).safety == problem.gaps(problem.zero()).safety
    assert problem.gaps(theta).capability < problem.gaps(problem.zero()).capability


def test_descent_keeps_to_the_span_of_the_tasks_features():
    world = WORLDS["golden"]
    problem = SoftmaxLinear(world, jax.random.normal(jax.random.key(1), (4, 6)))
    slope = jax.grad(lambda z: problem.gaps(z).capability)(problem.zero())
    np.testing.assert_allclose(problem.task_span() @ slope, slope, rtol=0, atol=IDENTITY.absolute)


@pytest.mark.parametrize("features", [np.ones(4), np.ones((3, 2)), np.full((4, 2), np.nan)])
def test_features_must_fit_the_world(features):
    with pytest.raises(ValueError, match="one row of finite features for each context"):
        SoftmaxLinear(WORLDS["golden"], features)
