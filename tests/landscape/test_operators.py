"""Products are those of dense matrices made another way; what is no operator is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import tradeoff as to
from tests.problems import WORLDS
from tradeoff.gaps import Gaps
from tradeoff.landscape import HostOperator, dense, fisher, from_matrix, gauss_newton, hessian
from tradeoff.landscape.operators import _rows
from tradeoff.problems import Quadratic, Sequence, SoftmaxLinear, Tabular, quadratic
from tradeoff.tolerances import EXACT, IDENTITY

VISIBLE = 1e-3  # a difference that no rounding explains
SAME = {"rtol": IDENTITY.relative, "atol": IDENTITY.absolute}


def features(world, d=3):
    return np.random.default_rng(0).normal(size=(world.safety.p.shape[0], d))


def problem_of(name):
    world = WORLDS["random"]
    if name == "tabular":
        return Tabular(world)
    if name == "softmax_linear":
        return SoftmaxLinear(world, features(world))
    return Sequence(world, tokens=2)


def point(problem):
    start = problem.zero() if isinstance(problem, SoftmaxLinear) else problem.aligned()
    return jax.random.normal(jax.random.key(3), start.shape)


@pytest.mark.parametrize("of", ["safety", "capability"])
@pytest.mark.parametrize("name", ["tabular", "softmax_linear", "sequence"])
def test_the_hessian_is_the_one_of_reverse_over_reverse(name, of):
    problem = problem_of(name)
    at = point(problem)
    flat, unravel = ravel_pytree(at)
    expected = jax.jacrev(jax.jacrev(lambda z: getattr(problem.gaps(unravel(z)), of)))(flat)
    np.testing.assert_allclose(dense(hessian(problem, at, of)), expected, **SAME)


@pytest.mark.parametrize("name", ["tabular", "softmax_linear", "sequence"])
def test_the_fisher_matrix_is_the_mean_of_outer_products(name):
    problem = problem_of(name)
    at = point(problem)
    flat, unravel = ravel_pytree(at)
    scores = np.asarray(jax.jacrev(lambda z: problem.log_policy(unravel(z)))(flat))
    law = np.exp(np.asarray(problem.log_policy(at)))
    expected = np.einsum("x,xy,xyi,xyj->ij", np.asarray(problem.world.safety.p), law, scores, scores)
    np.testing.assert_allclose(dense(fisher(problem, at)), expected, **SAME)
    np.testing.assert_allclose(dense(gauss_newton(problem, at)), expected, **SAME)


def test_linear_logits_make_all_three_one_and_the_next_token_tree_does_not():
    for name, same in (("tabular", True), ("softmax_linear", True)):
        problem = problem_of(name)
        at = point(problem)
        difference = jnp.max(jnp.abs(dense(hessian(problem, at)) - dense(fisher(problem, at))))
        assert (float(difference) <= IDENTITY.absolute * 10) == same
    # Away from the data's own law a tree's prefixes are weighted by the data in one and by the policy in the other.
    tree = problem_of("sequence")
    at = point(tree)
    assert float(jnp.max(jnp.abs(dense(hessian(tree, at)) - dense(fisher(tree, at))))) > VISIBLE


def test_at_the_minimum_the_hessian_of_any_policy_is_its_fisher_matrix():
    tree = problem_of("sequence")
    np.testing.assert_allclose(dense(hessian(tree, tree.aligned())), dense(fisher(tree, tree.aligned())), **SAME)


def test_a_quadratic_has_its_own_hessians_everywhere():
    quad = quadratic.golden()
    for at in (quad.theta_s, jnp.array([3.0, -2.0])):
        for make in (hessian, gauss_newton):
            np.testing.assert_allclose(dense(make(quad, at, "capability")), quad.H_f, rtol=EXACT.relative, atol=0)
            np.testing.assert_allclose(dense(make(quad, at)), quad.H_s, rtol=EXACT.relative, atol=0)
    assert hessian(quad, quad.theta_s).semidefinite


class Valley:
    """A problem that is no record: two trees of parameters, a loss that is not convex."""

    def gaps(self, parameters):
        x, y = parameters["x"], parameters["y"]
        return Gaps(jnp.sum((y - x**2) ** 2) + jnp.sum((1 - x) ** 2) / 100, jnp.sum(x**2))

    def objective(self, parameters, lam):
        at = self.gaps(parameters)
        return at.capability + lam * at.safety


def test_a_problem_of_ones_own_needs_no_registration():
    at = {"x": jnp.array([0.0]), "y": jnp.array([1.0])}
    operator = hessian(Valley(), at)
    # (y - x²)² + (1 - x)²/100 at (0, 1): ∂xx = -4(y - 3x²) + 1/50, ∂yy = 2, ∂xy = -4x.
    np.testing.assert_allclose(dense(operator), [[-4 + 0.02, 0.0], [0.0, 2.0]], **SAME)
    assert not operator.semidefinite


def test_one_compilation_serves_every_point_and_every_world():
    problem = problem_of("tabular")
    at = point(problem)
    hessian(problem, at).rows(jnp.ones((2, at.size)))
    before = _rows._cache_size()
    other = Tabular(to.worlds.random(jax.random.key(9), contexts=6, responses=4))
    hessian(other, at + 1).rows(jnp.ones((2, at.size)))
    assert _rows._cache_size() == before


def test_data_are_arguments_and_not_constants():
    problem = problem_of("tabular")
    traced = jax.make_jaxpr(lambda operator, v: operator.product(v))(hessian(problem, point(problem)), jnp.ones(24))
    assert all(np.size(constant) <= 1 for constant in traced.consts)


def test_a_host_operator_is_an_operator():
    A = np.diag([1.0, 2.0, 5.0])
    operator = HostOperator(lambda v: A @ v, 3, semidefinite=True)
    np.testing.assert_array_equal(dense(operator), A)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: hessian(quadratic.golden(), jnp.zeros(2), "safty"), "of is 'safty'; it must be one of 'safety'"),
        (lambda: hessian(quadratic.golden(), jnp.array([0.0, jnp.nan])), r"parameter 1 \(counted flat\) is nan"),
        (lambda: hessian(quadratic.golden(), {}), "hold numbers of no kind"),
        (lambda: hessian(quadratic.golden(), jnp.array([1, 2])), r"\['int64'\]; they must be floating-point"),
        (lambda: hessian(quadratic.golden(), jnp.zeros(0)), "hold no number"),
        (lambda: fisher(quadratic.golden(), jnp.zeros(2)), "fisher was given .* which has no policy"),
        (lambda: gauss_newton(Valley(), jnp.zeros(2)), "gauss_newton was given .* which has no policy"),
        (lambda: from_matrix([[1.0, 2.0], [0.0, 1.0]]), r"not symmetric: A\[0, 1\] is 2 and A\[1, 0\] is 0"),
        (lambda: from_matrix([[1.0, jnp.nan], [0.0, 1.0]]), r"A\[0, 1\] is nan"),
        (lambda: from_matrix([[1.0, 2.0]]), r"A has shape \(1, 2\)"),
        (lambda: from_matrix([[1.0]]) @ jnp.ones(2), r"acts on 1 parameters and was given a vector of shape \(2,\)"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_a_quadratic_of_indefinite_curvature_is_not_called_semidefinite():
    assert from_matrix([[1.0, 0.0], [0.0, 0.0]]).semidefinite
    assert not from_matrix([[1.0, 0.0], [0.0, -1e-3]]).semidefinite
    assert isinstance(quadratic.golden(), Quadratic)
