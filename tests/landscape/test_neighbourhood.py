"""Paths against finite formulas; constants that bound what they must and nothing less; the local law and its order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

import tradeoff as to
from tests.problems import WORLDS
from tradeoff.landscape import along, ball_constants, dense, hessian, local_law
from tradeoff.problems import Quadratic, Sequence, SoftmaxLinear, Tabular, quadratic
from tradeoff.tolerances import BOUND, DERIVATIVE, EXACT, IDENTITY, LIMIT, ROOT

KEY = jax.random.key(0)
WORLD = WORLDS["random"]
ORDER = 0.1  # of a fitted slope
VISIBLE = 0.05  # a difference that no rounding explains
FEATURES = np.random.default_rng(0).normal(size=(6, 3))


def test_a_path_of_a_quadratic_is_a_parabola():
    quad = quadratic.golden()
    t = np.linspace(-1, 2, 7)
    path = along(quad, quad.theta_s, quad.displacement, t)
    d, H_s, H_f = (np.asarray(x) for x in (quad.displacement, quad.H_s, quad.H_f))
    np.testing.assert_allclose(path.gaps.safety, t**2 * (d @ H_s @ d) / 2, rtol=EXACT.relative, atol=IDENTITY.absolute)
    np.testing.assert_allclose(
        path.slope.capability, (t - 1) * (d @ H_f @ d), rtol=EXACT.relative, atol=IDENTITY.absolute
    )
    np.testing.assert_allclose(path.curvature.safety, np.full(7, d @ H_s @ d), rtol=EXACT.relative)
    np.testing.assert_allclose(path.steepness.safety, np.abs(t) * np.linalg.norm(H_s @ d), rtol=EXACT.relative)


def test_the_curvature_of_a_path_is_the_hessians_form():
    problem = Sequence(WORLD, tokens=2)
    at, way = problem.zero(), jax.random.normal(KEY, problem.zero().shape)
    path = along(problem, at, way, [0.0, 0.4])
    for i, t in enumerate([0.0, 0.4]):
        H, delta = dense(hessian(problem, at + t * way)), ravel_pytree(way)[0]
        np.testing.assert_allclose(path.curvature.safety[i], delta @ H @ delta, rtol=DERIVATIVE.relative)


# --- constants ---------------------------------------------------------------------------------------------------


def random_pair(seed, d=5, rank=5):
    rng = np.random.default_rng(seed)
    A, B = (M @ M.T for M in rng.normal(size=(2, d, rank)))
    return Quadratic(A, rng.normal(size=d), B, rng.normal(size=d))


@pytest.mark.parametrize("seed", range(6))
def test_constants_of_a_quadratic_are_attained_and_never_passed(seed):
    quad = random_pair(seed, rank=5 if seed % 2 else 3)
    rng = np.random.default_rng(seed + 100)
    centre, radius = rng.normal(size=5), 10.0 ** rng.uniform(-3, 1)
    found = ball_constants(quad, jnp.asarray(centre), radius, KEY, "capability")
    assert found.kind == "exact"
    assert found.certified
    H, target = np.asarray(quad.H_f), np.asarray(quad.theta_f)
    np.testing.assert_allclose(found.smoothness, np.linalg.eigvalsh(H)[-1], rtol=EXACT.relative)

    def minus_steepness(z):
        return -np.linalg.norm(H @ (centre + radius * z / max(np.linalg.norm(z), 1e-300) - target))

    reached = max(
        -scipy.optimize.minimize(minus_steepness, rng.normal(size=5), method="BFGS", options={"gtol": 1e-10}).fun
        for _ in range(5)
    )
    np.testing.assert_allclose(found.lipschitz, reached, rtol=ROOT.relative)


def test_the_hard_case_of_the_lipschitz_constant():
    # At the minimiser g = 0 and every point of the sphere along the top eigenvector is steepest; beside it along the
    # weak axis, the pull has no part in the top one, and the maximiser leaves the axis all the same.
    quad = Quadratic(np.diag([3.0, 1.0]), [0.0, 0.0], np.diag([3.0, 1.0]), [0.0, 0.0])
    at_rest = ball_constants(quad, jnp.zeros(2), 0.5, KEY)
    np.testing.assert_allclose(at_rest.lipschitz, 1.5, rtol=EXACT.relative)
    aside = ball_constants(quad, jnp.array([0.0, 0.1]), 0.5, KEY)
    # max 9a² + (0.1 + b)² over a² + b² = 1/4, attained at b = 0.1/8.
    b = 0.1 / 8
    np.testing.assert_allclose(aside.lipschitz, np.sqrt(9 * (0.25 - b**2) + (0.1 + b) ** 2), rtol=EXACT.relative)
    flat = Quadratic(np.zeros((2, 2)), [0.0, 0.0], np.eye(2), [0.0, 0.0])
    assert float(ball_constants(flat, jnp.zeros(2), 1.0, KEY, "capability").lipschitz) == 0.0


@pytest.mark.parametrize("of", ["safety", "capability"])
@pytest.mark.parametrize("problem", [Tabular(WORLD), SoftmaxLinear(WORLD, FEATURES)], ids=["tabular", "linear"])
def test_certified_constants_of_policies_bound_every_point(problem, of):
    start = problem.aligned() if isinstance(problem, Tabular) else problem.zero()
    found = ball_constants(problem, start, 1.0, KEY, of)
    assert found.certified
    for i in range(20):
        at = 10.0 ** (i % 3) * jax.random.normal(jax.random.key(i), start.shape)
        gradient = jax.grad(lambda z: getattr(problem.gaps(z), of))(at)
        assert float(jnp.linalg.norm(gradient)) <= float(found.lipschitz) * (1 + BOUND.relative)
        top = np.linalg.eigvalsh(dense(hessian(problem, at, of)))[-1]
        assert top <= float(found.smoothness) * (1 + BOUND.relative)


def test_the_smoothness_of_a_table_is_attained():
    # Two responses, equal: diag π - ππᵀ has the eigenvalue one half.
    problem = Tabular(to.worlds.over_penalised())
    found = ball_constants(problem, jnp.zeros((1, 2)), 1.0, KEY)
    top = np.linalg.eigvalsh(dense(hessian(problem, jnp.zeros((1, 2)))))[-1]
    np.testing.assert_allclose(found.smoothness, top, rtol=IDENTITY.relative)


def test_an_estimate_is_called_one_and_stays_below_the_certificate():
    world = WORLDS["one_conflict"]

    class Unknown:
        """A table in disguise: nothing is known of its kind."""

        def gaps(self, parameters):
            return Tabular(world).gaps(parameters)

        def objective(self, parameters, lam):
            return Tabular(world).objective(parameters, lam)

    start = Tabular(world).aligned()
    seen = ball_constants(Unknown(), start, 1.0, KEY, samples=3, steps=2)
    proved = ball_constants(Tabular(world), start, 1.0, KEY)
    assert seen.kind == "lower estimate"
    assert not seen.certified
    assert 0 < float(seen.lipschitz) <= float(proved.lipschitz)
    assert 0 < float(seen.smoothness) <= float(proved.smoothness)


# --- the local law -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "problem",
    [Tabular(WORLD), SoftmaxLinear(WORLD, FEATURES), Sequence(WORLD, tokens=2)],
    ids=["tabular", "linear", "tree"],
)
def test_the_local_law_holds_to_first_order(problem):
    at = problem.zero() if isinstance(problem, SoftmaxLinear) else problem.aligned()
    at = at + 0.3 * jax.random.normal(jax.random.key(1), at.shape)
    way = jax.random.normal(jax.random.key(2), at.shape)
    t = np.array([1e-1, 1e-2, 1e-3, 1e-4])
    law = local_law(problem, at, way, t)
    off = np.abs(np.asarray(law.ratio) - 1)
    assert off[-1] < LIMIT.relative
    slopes = np.diff(np.log(off[1:])) / np.diff(np.log(t[1:]))
    np.testing.assert_allclose(slopes, 1, atol=ORDER)
    # Both signs together cancel the cubic term, and the law is of second order.
    both = (np.asarray(law.ratio) + np.asarray(local_law(problem, at, way, -t).ratio)) / 2 - 1
    assert np.abs(both[1]) < off[1] / 5


def test_the_local_law_fails_for_another_form():
    # Negative control: the other data's Fisher matrix is not the curvature of this divergence.
    problem = Tabular(WORLD)
    at, way = problem.aligned(), jax.random.normal(KEY, problem.aligned().shape)
    right, other = local_law(problem, at, way, [1e-4]), local_law(problem, at, way, [1e-4], "capability")
    assert abs(float(right.divergence[0] / other.quadratic[0]) - 1) > VISIBLE


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda q: along(q, q.theta_s, jnp.ones(3), [0.0]), r"direction has arrays \[\('', \(3,\)\)\]"),
        (lambda q: along(q, q.theta_s, q.pull, []), "at least one"),
        (lambda q: along(q, q.theta_s, q.pull * jnp.nan, [0.0]), r"parameter 0 \(counted flat\) is nan"),
        (lambda q: ball_constants(q, q.theta_s, 0.0, KEY), r"radius is 0\.0; a ball needs"),
        (lambda q: ball_constants(q, q.theta_s, 1.0, KEY, samples=0), "samples is 0 and steps 20"),
        (lambda q: ball_constants(q, q.theta_s, 1.0, KEY, "both"), "of is 'both'"),
        (lambda q: local_law(q, q.theta_s, q.pull, [1.0]), "local_law was given .* which has no policy"),
        (
            lambda q: local_law(Tabular(WORLD), jnp.zeros((6, 4)), jnp.ones((6, 4)), [0.0]),
            "the law compares steps that are not zero",
        ),
        (
            lambda q: local_law(Tabular(WORLD), jnp.zeros((6, 4)), jnp.zeros((6, 4)), [1.0]),
            "does not move the policy",
        ),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call(quadratic.golden())
