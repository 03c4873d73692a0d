"""Case II on quadratics: golden numbers, 50-digit arithmetic, certificates, the edges, the price of isotropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from mpmath import findroot, matrix, mp, mpf, sqrt

from tests.oracle import relative_error
from tradeoff import parameter_constraint as c2
from tradeoff.parameter_constraint import ball
from tradeoff.parameter_constraint.records import SOLVED
from tradeoff.problems import quadratic
from tradeoff.problems.quadratic import Quadratic
from tradeoff.tolerances import DERIVATIVE, EXACT, FLOW, IDENTITY, PRINTED, ROOT, agree

mp.dps = 50


def random_pair(seed: int, size: int = 5, decades: float = 6.0, flat: int = 0) -> Quadratic:
    rng = np.random.default_rng(seed)

    def hessian(flat: int) -> np.ndarray:
        U = np.linalg.qr(rng.normal(size=(size, size)))[0]
        values = 10 ** rng.uniform(-decades / 2, decades / 2, size)
        values[:flat] = 0
        return (U * values) @ U.T

    H_f, H_s = hessian(flat), hessian(0)
    return Quadratic((H_f + H_f.T) / 2, rng.normal(size=size), (H_s + H_s.T) / 2, rng.normal(size=size))


def exact_point(quad: Quadratic, radius: float):
    """The trust-region point in 50 digits by linear solves: multiplier, safety gap, capability gap."""
    H_f, H_s = (matrix(np.asarray(H).tolist()) for H in (quad.H_f, quad.H_s))
    d = matrix([mpf(float(f)) - mpf(float(s)) for f, s in zip(quad.theta_f, quad.theta_s, strict=True)])
    eye = mp.eye(len(d))

    def delta(mu):
        return mp.lu_solve(H_f + mu * eye, H_f * d)

    def excess(log_mu):
        moved = delta(mp.exp(log_mu))
        return mp.log(sqrt((moved.T * moved)[0])) - mp.log(mpf(radius))

    start = mp.log(mpf(float(c2.solve(quad, radius).multiplier)))
    mu = mp.exp(findroot(excess, (start, start + mpf("1e-3"))))
    moved = delta(mu)
    left = moved - d
    return mu, (moved.T * H_s * moved)[0] / 2, (left.T * H_f * left)[0] / 2


def close(ours, printed) -> bool:
    return bool(np.all([agree(float(a), b, PRINTED) for a, b in zip(np.ravel(ours), printed, strict=True)]))


# --- golden numbers ---------------------------------------------------------------------------------------------


def test_the_golden_trust_region():
    at = c2.path(quadratic.golden(), [0.25, 0.5, 1.0])
    assert close(at.multiplier, [9.900008882402, 3.647097410689, 0.704518606907])
    assert close(at.gaps.safety, [0.047623818365, 0.178287182158, 0.590354214560])
    assert close(at.gaps.capability, [1.295916231065, 0.759531559938, 0.139670013150])


def test_the_golden_penalties():
    at = c2.penalised_path(quadratic.golden(), [0.1, 1.0, 10.0])
    assert close(at.gaps.safety, [0.907029478458, 0.444444444444, 0.027777777778])
    assert close(at.gaps.capability, [0.004535147392, 0.222222222222, 1.388888888889])


def test_the_golden_price():
    quad = quadratic.golden()
    paid = c2.price_of_isotropy(quad.H_s, quad.pull)
    assert close(paid.price, [1.28])
    assert agree(float(paid.most), 9 / 7, EXACT)  # 1.2857142857


def test_a_price_along_curved_directions_has_no_bound_where_others_are_flat():
    paid = c2.price_of_isotropy(jnp.diag(jnp.array([0.0, 1.0, 2.0])), [0.0, 1.0, 1.0])
    assert agree(float(paid.price), 1.125, EXACT)
    assert paid.most == jnp.inf


def test_the_safety_gap_peaks_inside_the_way():
    quad = quadratic.not_monotone()
    at = c2.path(quad, [0.919409, 2**0.5])
    assert round(float(at.gaps.safety[0]), 6) == 0.342457
    assert round(float(at.multiplier[0]), 4) == 9.3689  # the radius is printed with six digits
    assert close(at.gaps.safety[1], [0.01])
    grid = c2.path(quad, jnp.linspace(0.01, 1.41, 2001)).gaps.safety
    assert jnp.max(grid) <= at.gaps.safety[0] + PRINTED.absolute


# --- against high precision and an independent library ----------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fraction", [1e-6, 1e-2, 0.5, 0.999])
def test_the_path_is_exact(seed, fraction):
    quad = random_pair(seed, decades=3.0)
    radius = fraction * float(jnp.linalg.norm(quad.displacement))
    at = c2.solve(quad, radius)
    for ours, theirs in zip(
        (at.multiplier, at.gaps.safety, at.gaps.capability), exact_point(quad, radius), strict=True
    ):
        assert relative_error(ours, theirs) < IDENTITY.relative


@pytest.mark.parametrize("seed", range(3))
def test_no_general_solver_does_better(seed):
    quad = random_pair(seed, size=4, decades=2.0)
    radius = 0.4 * float(jnp.linalg.norm(quad.displacement))
    H_f, d = np.asarray(quad.H_f), np.asarray(quad.displacement)
    found = scipy.optimize.minimize(
        lambda z: 0.5 * (z - d) @ H_f @ (z - d),
        np.zeros(4),
        jac=lambda z: H_f @ (z - d),
        constraints={"type": "ineq", "fun": lambda z: radius**2 - z @ z, "jac": lambda z: -2 * z},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    ours = float(c2.solve(quad, radius).gaps.capability)
    assert agree(ours, float(found.fun), FLOW)


@pytest.mark.parametrize("flat", [0, 2])
def test_every_point_carries_its_certificate(flat):
    quad = random_pair(11, size=20, flat=flat)
    radii = jnp.geomspace(1e-9, 10.0, 200) * jnp.linalg.norm(quad.displacement)
    at = c2.path(quad, radii)
    assert jnp.max(at.excess) <= EXACT.relative
    assert jnp.max(at.residual) <= IDENTITY.relative
    assert jnp.all(jnp.diff(at.multiplier) <= 0)
    assert jnp.all(jnp.diff(at.gaps.capability) <= 0)
    np.testing.assert_allclose(
        jnp.linalg.norm(at.displacement, axis=-1)[at.multiplier > 0],
        radii[at.multiplier > 0],
        rtol=EXACT.relative,
        atol=0,
    )


def test_beyond_the_reach_comes_the_minimiser_of_least_norm():
    quad = Quadratic([[2.0, 0.0], [0.0, 0.0]], [1.0, 5.0], jnp.eye(2), [0.0, 0.0])
    at = c2.path(quad, [0.5, 1.0, 7.0, jnp.inf])
    np.testing.assert_array_equal(at.theta[1:], [[1.0, 0.0]] * 3)
    np.testing.assert_array_equal(at.multiplier[1:], 0.0)
    np.testing.assert_array_equal(at.gaps.capability[1:], 0.0)
    assert agree(float(at.multiplier[0]), 2.0, EXACT)
    # The way to θ_f is longer than the reach; in between a larger ball changes nothing.
    assert jax.grad(lambda radius: c2.solve(quad, radius).multiplier)(2.0) == 0


@pytest.mark.parametrize(
    ("curvature", "length"), [(1e-100, 1e-100), (1e100, 1e100), (1e-120, 1e-50), (1e-160, 1.0), (1e160, 1.0)]
)
def test_units_of_curvature_and_length_do_not_matter(curvature, length):
    quad = quadratic.golden()
    scaled = Quadratic(curvature * quad.H_f, length * quad.theta_f, curvature * quad.H_s, length * quad.theta_s)
    at, golden = c2.path(scaled, [0.25 * length, 0.5 * length]), c2.path(quad, [0.25, 0.5])
    np.testing.assert_allclose(at.multiplier / curvature, golden.multiplier, rtol=EXACT.relative)
    np.testing.assert_allclose(at.displacement / length, golden.displacement, rtol=EXACT.relative)
    np.testing.assert_array_equal(at.result, SOLVED)


def test_a_way_that_costs_no_safety_is_solved_too():
    at = c2.solve(Quadratic(jnp.eye(2), [1.0, 0.0], jnp.diag(jnp.array([0.0, 1.0])), [0.0, 0.0]), 0.5)
    assert at.gaps.safety == 0
    assert at.result == SOLVED


def test_a_task_that_does_not_pull_leaves_everything_as_it_is():
    quad = Quadratic(jnp.zeros((2, 2)), [1.0, 5.0], jnp.eye(2), [0.5, 0.5])
    at = c2.path(quad, [0.1, 10.0])
    np.testing.assert_array_equal(at.theta, [[0.5, 0.5]] * 2)
    np.testing.assert_array_equal(at.multiplier, 0.0)
    np.testing.assert_array_equal(at.residual, 0.0)


def test_a_point_off_the_path_is_told():
    """What is solved is stationary to rounding; twice a step leaves as much force as there was pull, half of that of twice the way."""
    quad = random_pair(5, decades=3.0)
    frame, yes = ball._frame(quad, None), jnp.bool_(True)
    at = ball._point(quad, frame._replace(c=2 * frame.c), jnp.ones(()), jnp.ones(()), yes)
    assert agree(float(at.residual), 0.5, IDENTITY)


def test_a_radius_gives_the_same_bits_alone_and_among_others():
    quad = random_pair(3)
    alone, among = c2.solve(quad, 0.3), c2.path(quad, [0.1, 0.3, 2.0])
    np.testing.assert_allclose(alone.theta, among.theta[1], rtol=EXACT.relative, atol=0)
    assert alone.theta.shape == (5,)
    assert c2.path(quad, jnp.ones((2, 3))).theta.shape == (2, 3, 5)


# --- the soft form, other metrics, derivatives ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_soft_form_and_the_ball_are_each_others_inverse(seed):
    quad = random_pair(seed, flat=seed % 2)
    mu = jnp.geomspace(1e-3, 1e6, 30)
    soft = c2.soft_path(quad, mu)
    np.testing.assert_allclose(c2.path(quad, soft.radius).multiplier, mu, rtol=ROOT.relative, atol=0)
    np.testing.assert_array_equal(soft.result, SOLVED)
    ends = c2.soft_path(quad, [0.0, jnp.inf])
    assert ends.residual[1] == ends.excess[1] == 0
    np.testing.assert_array_equal(ends.theta[1], quad.theta_s)
    # At μ = 0 the whole way has been travelled: a larger ball changes nothing.
    np.testing.assert_allclose(ends.theta[0], c2.solve(quad, 1e9).theta, rtol=EXACT.relative, atol=0)


def test_the_safety_hessian_as_metric_is_case_one():
    quad = quadratic.golden()
    ball = c2.soft_path(quad, [0.1, 1.0, 10.0], metric=quad.H_s)
    penalty = c2.penalised_path(quad, [0.1, 1.0, 10.0])
    np.testing.assert_allclose(ball.theta, penalty.theta, rtol=IDENTITY.relative, atol=IDENTITY.absolute)


def test_an_ellipsoid_is_kept_in_its_own_metric():
    quad, A = random_pair(8, decades=2.0), random_pair(9, decades=2.0).H_s
    at = c2.path(quad, [0.01, 0.1, 0.5], metric=A)
    lengths = jnp.sqrt(jnp.einsum("ri,ij,rj->r", at.displacement, A, at.displacement))
    np.testing.assert_allclose(lengths, at.radius, rtol=IDENTITY.relative, atol=0)
    assert jnp.max(at.residual) <= IDENTITY.relative


def test_the_multiplier_is_the_derivative():
    quad = random_pair(5, decades=3.0)
    for radius in (1e-4, 0.1, 1.0):
        slope = float(jax.grad(lambda e: c2.solve(quad, e).gaps.capability)(radius))
        assert agree(slope, -float(c2.solve(quad, radius).multiplier) * radius, DERIVATIVE)


@pytest.mark.parametrize("flat", [0, 2])
def test_second_derivatives_are_those_of_the_way_back(flat):
    """dμ/dε is one over the derivative of ε(μ), which has no root in it; so is the curvature of the gap along the path."""
    quad = random_pair(5, decades=3.0, flat=flat)
    for radius in (1e-4, 0.1, 1.0):
        mu = c2.solve(quad, radius).multiplier
        rate = 1 / float(jax.grad(lambda m: c2.soft_path(quad, m).radius)(mu))
        assert agree(float(jax.grad(lambda e: c2.solve(quad, e).multiplier)(radius)), rate, DERIVATIVE)
        curvature = float(jax.grad(jax.grad(lambda e: c2.solve(quad, e).gaps.capability))(radius))
        assert agree(curvature, -float(mu) - radius * rate, DERIVATIVE)


# --- Case I of two quadratics -----------------------------------------------------------------------------------


def test_the_ends_of_the_penalty_are_the_two_optima():
    quad = random_pair(6, decades=3.0)
    at = c2.penalised_path(quad, [0.0, jnp.inf])
    np.testing.assert_allclose(at.theta[0], quad.theta_f, rtol=ROOT.relative, atol=ROOT.absolute)
    np.testing.assert_array_equal(at.theta[1], quad.theta_s)
    np.testing.assert_array_equal([at.gaps.capability[0], at.gaps.safety[1]], 0.0)


def test_what_is_flat_for_safety_is_free_at_every_penalty():
    quad = Quadratic(jnp.eye(3), [1.0, 1.0, 1.0], jnp.diag(jnp.array([2.0, 0.0, 0.0])), jnp.zeros(3))
    at = c2.penalised_path(quad, [1.0, jnp.inf])
    np.testing.assert_allclose(at.displacement, [[1 / 3, 1, 1], [0, 1, 1]], rtol=0, atol=IDENTITY.absolute)
    assert at.gaps.safety[1] == 0
    assert c2.price_of_isotropy(quad.H_s, quad.pull).price == jnp.inf


@pytest.mark.parametrize(("task", "safety"), [(1e-12, 1.0), (1.0, 1e-12), (1e12, 1.0)])
def test_the_units_of_the_losses_do_not_matter(task, safety):
    quad = random_pair(6, decades=3.0)
    rescaled = Quadratic(task * quad.H_f, quad.theta_f, safety * quad.H_s, quad.theta_s)
    lams = np.geomspace(1e-3, 1e3, 7)
    plain, at = c2.penalised_path(quad, lams), c2.penalised_path(rescaled, task / safety * lams)
    np.testing.assert_allclose(at.theta, plain.theta, rtol=IDENTITY.relative, atol=IDENTITY.relative)


def test_penalties_match_linear_solves():
    quad = random_pair(7, decades=2.0, flat=1)
    for lam in (1e-3, 1.0, 1e3):
        direct = np.linalg.solve(quad.H_f + lam * quad.H_s, quad.H_f @ quad.displacement)
        np.testing.assert_allclose(
            c2.penalised_path(quad, lam).displacement, direct, rtol=ROOT.relative, atol=ROOT.absolute
        )


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan")])
def test_a_radius_must_be_positive(radius):
    with pytest.raises(ValueError, match=r"radius ε is .* must be a number in \(0, inf\]"):
        c2.solve(quadratic.golden(), radius)
    with pytest.raises(ValueError, match="radius ε is .* at index 1"):
        c2.path(quadratic.golden(), [1.0, radius])


def test_one_radius_at_a_time():
    with pytest.raises(ValueError, match=r"shape \(2,\); give one radius, or use path"):
        c2.solve(quadratic.golden(), [1.0, 2.0])


@pytest.mark.parametrize("function", [c2.soft_path, c2.penalised_path])
def test_a_negative_multiplier_is_refused(function):
    with pytest.raises(ValueError, match=r"is -1\.0 at index 0.*\[0, inf\]"):
        function(quadratic.golden(), [-1.0])


def test_a_metric_must_be_definite():
    with pytest.raises(ValueError, match="positive definite metric: add a small multiple of the identity"):
        c2.solve(quadratic.golden(), 1.0, metric=[[1.0, 0.0], [0.0, 0.0]])


def test_a_price_needs_a_pull():
    with pytest.raises(ValueError, match="not zero"):
        c2.price_of_isotropy(jnp.eye(2), [0.0, 0.0])
