"""Quadratic flows: golden numbers, matrix exponentials, the adaptive solver, the ends."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from tradeoff.dynamics import gradient_flow
from tradeoff.dynamics.quadratic import quadratic_flow
from tradeoff.parameter_constraint import penalised_path
from tradeoff.problems import quadratic
from tradeoff.problems.quadratic import Quadratic
from tradeoff.tolerances import FLOW, IDENTITY, PRINTED


def test_the_golden_flow():
    flow = quadratic_flow(quadratic.golden(), 0.0, [0.1, 0.5, 1.0])
    np.testing.assert_allclose(
        flow.gaps.safety, [0.059370949575, 0.528098577256, 0.802368251213], rtol=PRINTED.relative, atol=0
    )
    np.testing.assert_allclose(
        flow.gaps.capability, [1.232582830680, 0.258620323138, 0.071385769883], rtol=PRINTED.relative, atol=0
    )
    assert flow.displacements is None


def test_penalised_flows_are_matrix_exponentials():
    quad = quadratic.golden()
    lams, times = [0.0, 0.3, 10.0], [0.0, 0.2, 3.0]
    flow = quadratic_flow(quad, lams, times, states=True)
    assert flow.displacements is not None
    assert flow.displacements.shape == (3, 3, 2)
    for i, lam in enumerate(lams):
        A = np.asarray(quad.H_f + lam * quad.H_s)
        end = np.linalg.solve(A, quad.H_f @ quad.displacement)
        for j, time in enumerate(times):
            expected = end - scipy.linalg.expm(-A * time) @ end
            np.testing.assert_allclose(
                flow.displacements[i, j], expected, rtol=IDENTITY.relative, atol=IDENTITY.absolute
            )
            at = quad.gaps(jnp.asarray(quad.theta_s + expected))
            np.testing.assert_allclose(
                flow.gaps.safety[i, j], at.safety, rtol=IDENTITY.relative, atol=IDENTITY.absolute
            )


@pytest.mark.parametrize(("lams", "times"), [([], [0.0, 1.0]), ([1.0], []), ([], [])])
def test_no_penalties_or_no_times_have_no_flows(lams, times):
    flow = quadratic_flow(quadratic.golden(), lams, times, states=True)
    assert flow.gaps.safety.shape == (len(lams), len(times))
    assert flow.displacements.shape == (len(lams), len(times), 2)


def test_the_adaptive_solver_agrees():
    quad, times = quadratic.golden(), [0.1, 1.0, 10.0]
    exact, solved = quadratic_flow(quad, 0.5, times), gradient_flow(quad, quad.theta_s, times, 0.5)
    np.testing.assert_allclose(exact.gaps.safety, solved.gaps.safety, rtol=0, atol=FLOW.absolute)
    np.testing.assert_allclose(exact.gaps.capability, solved.gaps.capability, rtol=0, atol=FLOW.absolute)


def test_a_flow_ends_at_the_penalised_optimum():
    quad = quadratic.golden()
    end = quadratic_flow(quad, [0.1, 1.0, 10.0], jnp.inf).gaps
    at = penalised_path(quad, [0.1, 1.0, 10.0]).gaps
    np.testing.assert_allclose(end.safety, at.safety, rtol=IDENTITY.relative, atol=0)
    np.testing.assert_allclose(end.capability, at.capability, rtol=IDENTITY.relative, atol=0)


def test_flat_directions_stand_still():
    H = jnp.diag(jnp.array([1.0, 0.0]))
    flow = quadratic_flow(Quadratic(H, [1.0, 1.0], H, [0.0, 0.0]), 1.0, [1.0, jnp.inf], states=True)
    assert flow.displacements is not None
    np.testing.assert_array_equal(flow.displacements[:, 1], 0.0)


@pytest.mark.parametrize(
    ("lams", "times", "says"),
    [
        (-1.0, 1.0, r"penalty λ is -1\.0"),
        (jnp.inf, 1.0, "finite penalties"),
        (1.0, [0.0, -2.0], r"time is -2\.0 at index 1"),
    ],
)
def test_bad_input_is_refused(lams, times, says):
    with pytest.raises(ValueError, match=says):
        quadratic_flow(quadratic.golden(), lams, times)
