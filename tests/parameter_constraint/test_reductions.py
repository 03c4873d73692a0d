"""The Pareto set with a proxy and flat directions, Case II in a subspace, and projected descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from tests.test_parameter_constraint import random_pair
from tradeoff import parameter_constraint as c2
from tradeoff import worlds
from tradeoff.gaps import Gaps
from tradeoff.problems import SoftmaxLinear, quadratic
from tradeoff.problems.quadratic import LocalModel, Quadratic
from tradeoff.tolerances import DERIVATIVE, EXACT, IDENTITY, LIMIT, ROOT, agree

LAMS = np.append(np.geomspace(1e-3, 1e3, 24), np.inf)
RADII = np.array([0.1, 0.5, 1e3])


# --- the Pareto set ---------------------------------------------------------------------------------------------


def test_the_set_is_stationary_and_its_gaps_need_no_states():
    quad = random_pair(1, size=200, decades=1.5)
    lams = np.geomspace(1e-3, 1e3, 1000)
    at, alone = c2.penalised_path(quad, lams), c2.penalised_gaps(quad, lams)
    H_f, H_s, d, delta = (np.asarray(part) for part in (quad.H_f, quad.H_s, quad.displacement, at.displacement))

    def residual(delta: np.ndarray) -> float:
        left = (delta - d) @ H_f + lams[:, None] * (delta @ H_s)
        return np.linalg.norm(left, axis=1).max() / np.linalg.norm(H_f @ d)

    assert residual(delta) <= EXACT.relative
    assert residual(np.roll(delta, 1, axis=0)) > EXACT.relative  # a neighbour's point does not pass
    for ours, v, H in ((alone.safety, delta, H_s), (alone.capability, delta - d, H_f)):
        np.testing.assert_allclose(ours, (v @ H * v).sum(axis=1) / 2, rtol=ROOT.relative, atol=0)


@pytest.mark.parametrize("flat", [0, 2])
def test_a_proxy_is_descended_and_the_truth_measured(flat):
    quad, other = random_pair(2, decades=2.0, flat=flat), random_pair(3, decades=2.0)
    at = c2.penalised_path(quad, LAMS, proxy=(other.H_s, other.theta_s))
    H_f, H_s, H_q = (np.asarray(H) for H in (quad.H_f, quad.H_s, other.H_s))
    best, safe, seen = (np.asarray(theta) for theta in (quad.theta_f, quad.theta_s, other.theta_s))
    for i, lam in enumerate(LAMS):
        A, pull = (H_f + lam * H_q, H_f @ best + lam * H_q @ seen) if np.isfinite(lam) else (H_q, H_q @ seen)
        direct = scipy.linalg.solve(A, pull, assume_a="pos")
        np.testing.assert_allclose(at.theta[i], direct, rtol=IDENTITY.relative, atol=IDENTITY.relative)
        for gap, theta, H in ((at.gaps.safety[i], safe, H_s), (at.gaps.capability[i], best, H_f)):
            assert agree(float(gap), float((direct - theta) @ H @ (direct - theta)) / 2, IDENTITY)


def test_the_true_data_are_their_own_proxy():
    quad = random_pair(2, decades=2.0)
    exact, plain = c2.penalised_path(quad, LAMS, proxy=(quad.H_s, quad.theta_s)), c2.penalised_path(quad, LAMS)
    np.testing.assert_allclose(exact.theta, plain.theta, rtol=IDENTITY.relative, atol=IDENTITY.relative)
    np.testing.assert_allclose(exact.gaps.safety, plain.gaps.safety, rtol=IDENTITY.relative, atol=IDENTITY.absolute)


def test_flat_directions_of_the_proxy_are_no_penalty():
    """What the proxy does not see is given to the task whole, and what neither sees stays aligned."""
    H_f, seen = np.diag([1.0, 2.0, 0.0, 0.0, 1.0]), np.diag([1.0, 0.0, 0.0, 1.0, 0.0])
    quad = Quadratic(H_f, [1.0, 1.0, 9.0, 9.0, 2.0], np.eye(5), [0.0, 0.0, 0.5, 0.5, 0.0])
    at = c2.penalised_path(quad, LAMS, proxy=(seen, np.zeros(5)))
    expected = np.tile([0.0, 1.0, 0.5, 0.0, 2.0], (len(LAMS), 1))
    expected[:, 0] = 1 / (1 + LAMS)
    np.testing.assert_allclose(at.theta, expected, rtol=IDENTITY.relative, atol=IDENTITY.absolute)


def test_the_shortcut_for_definite_hessians_changes_nothing():
    """Under a trace nothing is known of the Hessians, and the general way is taken."""
    quad = random_pair(4, decades=3.0)
    traced = jax.jit(c2.penalised_path)(quad, jnp.asarray(LAMS))
    known = c2.penalised_path(quad, LAMS)
    np.testing.assert_allclose(traced.gaps.safety, known.gaps.safety, rtol=IDENTITY.relative)
    np.testing.assert_allclose(traced.gaps.capability, known.gaps.capability, rtol=IDENTITY.relative)


def test_flat_directions_are_found_under_a_trace_too():
    """At λ = 0 what is flat for the task stays aligned, and must be known as flat: the least rounding would move it."""
    quad = random_pair(5, decades=2.0, flat=2)
    lams = np.array([0.0, 1.0, np.inf])
    traced, known = jax.jit(c2.penalised_path)(quad, jnp.asarray(lams)), c2.penalised_path(quad, lams)
    np.testing.assert_allclose(traced.theta, known.theta, rtol=IDENTITY.relative, atol=IDENTITY.relative)
    curved = scipy.linalg.orth(np.asarray(quad.H_f), rcond=1e-10)
    outside = np.asarray(known.displacement[0]) - curved @ (curved.T @ np.asarray(known.displacement[0]))
    assert np.linalg.norm(outside) > 0.01  # of all minimisers of the task, the safest: it is not the nearest


def test_a_safety_loss_without_curvature_is_never_paid():
    quad = random_pair(6, decades=2.0)
    at = c2.penalised_path(Quadratic(quad.H_f, quad.theta_f, np.zeros((5, 5)), quad.theta_s), LAMS[:-1])
    np.testing.assert_array_equal(at.gaps.safety, 0)
    np.testing.assert_allclose(at.theta, np.tile(quad.theta_f, (len(LAMS) - 1, 1)), rtol=IDENTITY.relative)


# --- a subspace -------------------------------------------------------------------------------------------------


def test_a_subspace_is_the_same_problem_in_fewer_coordinates():
    quad, B = random_pair(5, decades=2.0), np.random.default_rng(0).normal(size=(5, 3))
    lora = c2.restrict(quad, B)
    at = c2.path(lora.pair, RADII)
    delta, Q = np.asarray(lora.lift(at.displacement)), scipy.linalg.orth(B)
    H_f, H_s, d = (np.asarray(part) for part in (quad.H_f, quad.H_s, quad.displacement))
    for i, (mu, radius) in enumerate(zip(np.asarray(at.multiplier), RADII, strict=True)):
        # Stationary within the span, and on the sphere.
        left = Q.T @ (H_f @ (delta[i] - d) + mu * delta[i])
        assert np.linalg.norm(left) <= IDENTITY.relative * np.linalg.norm(H_f @ d)
        assert mu == 0 or agree(float(np.linalg.norm(delta[i])), radius, IDENTITY)
        assert agree(float(at.gaps.safety[i]), float(delta[i] @ H_s @ delta[i]) / 2, IDENTITY)
        capability = float((delta[i] - d) @ H_f @ (delta[i] - d)) / 2
        assert agree(float(at.gaps.capability[i] + lora.irreducible), capability, IDENTITY)
    # T19(b): what no point of the subspace reaches.
    g, inner = Q.T @ H_f @ d, Q.T @ H_f @ Q
    floor = float(d @ H_f @ d - g @ np.linalg.solve(inner, g)) / 2
    assert agree(float(lora.irreducible), floor, IDENTITY)
    assert lora.irreducible > 0


def test_the_whole_space_is_a_subspace_without_loss():
    quad = random_pair(5, decades=1.0)
    whole, metric = c2.restrict(quad, np.triu(np.ones((5, 5)))), random_pair(7, decades=1.0).H_s
    assert float(whole.irreducible) <= EXACT.relative
    prices = [c2.price_of_isotropy(pair.H_s, pair.pull).price for pair in (quad, whole.pair)]
    assert agree(*map(float, prices), IDENTITY)
    inside = c2.path(whole.pair, RADII, metric=whole.form(metric))
    np.testing.assert_allclose(
        whole.lift(inside.displacement), c2.path(quad, RADII, metric=metric).displacement, rtol=DERIVATIVE.relative
    )


def test_how_long_the_columns_are_does_not_matter():
    quad, B = random_pair(5, decades=2.0), np.random.default_rng(0).normal(size=(5, 3))
    plain, scaled = (c2.restrict(quad, B * np.array(lengths)) for lengths in ([1, 1, 1], [1, 1e-20, 1]))
    ways = [lora.lift(c2.path(lora.pair, RADII).displacement) for lora in (plain, scaled)]
    np.testing.assert_allclose(*ways, rtol=IDENTITY.relative)


@pytest.mark.parametrize(
    ("B", "message"),
    [
        ([[1.0, 2.0], [1.0, 2.0]], "2 columns and rank 1.*linearly independent"),
        ([[0.0], [0.0]], "1 columns and rank 0"),
        ([[1.0]], r"shape \(1, 1\); a subspace of 2 parameters"),
        ([[1.0], [jnp.nan]], "finite columns"),
    ],
)
def test_a_subspace_needs_independent_columns(B, message):
    with pytest.raises(ValueError, match=message):
        c2.restrict(quadratic.golden(), B)


# --- projected descent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ellipsoid", [False, True])
def test_descent_finds_the_closed_form(ellipsoid):
    quad = random_pair(6, decades=1.5)
    metric = random_pair(7, decades=1.0).H_s if ellipsoid else None
    exact = c2.path(quad, RADII, metric=metric)
    for i, radius in enumerate(RADII):
        at = c2.projected_descent(quad, quad.theta_s, float(radius), metric=metric)
        assert at.converged
        np.testing.assert_allclose(at.parameters, exact.theta[i], rtol=ROOT.relative, atol=ROOT.absolute)
        assert agree(float(at.gaps.safety), float(exact.gaps.safety[i]), ROOT)
        assert at.distance <= radius * (1 + IDENTITY.relative)
        stopped = c2.projected_descent(quad, quad.theta_s, float(radius), metric=metric, steps=2)
        assert not stopped.converged
        assert stopped.residual > at.residual
        assert stopped.steps == 2


def test_a_policy_leaves_its_minimum_along_the_pull():
    """T15: the best point of a small ball is at the radius times the direction of the pull, on any problem."""
    problem = SoftmaxLinear(worlds.golden(), features=jnp.eye(4))
    aligned, radius = jnp.log(worlds.golden().safety.P), 1e-5
    at, model = c2.projected_descent(problem, aligned, radius), LocalModel.of(problem, aligned)
    assert at.converged
    assert at.parameters.shape == aligned.shape
    moved, pull = np.ravel(at.parameters - aligned), np.asarray(model.g)
    assert np.linalg.norm(moved - radius * pull / np.linalg.norm(pull)) <= LIMIT.relative * radius
    with pytest.raises(ValueError, match=r"safety loss has a gradient of length .* Descend the safety loss first"):
        LocalModel.of(problem, problem.zero())


def test_the_first_step_is_of_length_one_along_the_pull():
    quad = quadratic.golden()
    at = c2.projected_descent(quad, quad.theta_s, 2.0, steps=1)
    np.testing.assert_allclose(at.parameters, quad.pull / jnp.linalg.norm(quad.pull), rtol=EXACT.relative)


def test_descent_takes_a_shorter_step_where_the_whole_one_leads_nowhere():
    """-log(1 - x) - 3x + y²/2 begins with a step to x = 1, where it ends, and has its minimum at x = 2/3."""

    class Walled:
        def objective(self, z, lam):
            return -jnp.log(1 - z[0]) - 3 * z[0] + z[1] ** 2 / 2

        def gaps(self, z):
            return Gaps(jnp.zeros(()), self.objective(z, 0.0))

    at = c2.projected_descent(Walled(), jnp.zeros(2), 2.0)
    assert at.converged
    np.testing.assert_allclose(at.parameters, [2 / 3, 0], rtol=ROOT.relative, atol=ROOT.absolute)


def test_descent_says_what_it_needs():
    quad = quadratic.golden()
    with pytest.raises(ValueError, match="radius ε is -1"):
        c2.projected_descent(quad, quad.theta_s, -1.0)
    with pytest.raises(ValueError, match="positive definite metric"):
        c2.projected_descent(quad, quad.theta_s, 1.0, metric=jnp.zeros((2, 2)))
    quad = random_pair(6)
    with pytest.raises(ValueError, match="not finite after 0 steps; descend where it is"):
        c2.projected_descent(quad, quad.theta_s * jnp.nan, 1.0)
