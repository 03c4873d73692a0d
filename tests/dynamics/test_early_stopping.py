"""Early stopping: golden gaps, the radius of an implicit Case II, and the two onsets."""

import jax.numpy as jnp
import numpy as np
import pytest

from tradeoff.dynamics import early_stopping_path, onset, quadratic_flow
from tradeoff.parameter_constraint import path
from tradeoff.problems import Quadratic, quadratic
from tradeoff.tolerances import EXACT, LIMIT, PRINTED


def test_the_golden_path():
    stopped = early_stopping_path(quadratic.golden(), [0.1, 0.5, 1.0])
    np.testing.assert_allclose(
        stopped.gaps.safety, [0.059370949575, 0.528098577256, 0.802368251213], rtol=PRINTED.relative
    )
    np.testing.assert_allclose(
        stopped.gaps.capability, [1.232582830680, 0.258620323138, 0.071385769883], rtol=PRINTED.relative
    )


def test_it_is_the_plain_flow_from_start_to_end():
    quad, times = quadratic.not_monotone(), [0.0, 1e-6, 0.3, 40.0, jnp.inf]
    stopped, flow = early_stopping_path(quad, times), quadratic_flow(quad, 0.0, times, states=True)
    assert flow.displacements is not None
    np.testing.assert_allclose(stopped.radius, jnp.linalg.norm(flow.displacements, axis=-1), rtol=EXACT.relative)
    np.testing.assert_allclose(stopped.gaps.safety, flow.gaps.safety, rtol=EXACT.relative)
    np.testing.assert_allclose(stopped.gaps.capability, flow.gaps.capability, rtol=EXACT.relative)
    assert jnp.all(jnp.diff(stopped.radius[:-1]) > 0)


def test_stopping_is_a_constraint_that_is_not_quite_the_best():
    """No point within the radius is more capable than the optimum of Case II; for short times stopping comes near it."""
    quad = quadratic.golden()
    stopped = early_stopping_path(quad, [0.1, 0.5, 1.0])
    best = path(quad, stopped.radius).gaps.capability
    assert jnp.all(stopped.gaps.capability > best)
    assert stopped.gaps.capability[0] < 1.001 * best[0]


def test_safety_is_lost_with_the_square_of_time_or_with_its_fourth_power():
    quad, soon = quadratic.golden(), jnp.array([1e-6, 2e-6])
    first = early_stopping_path(quad, soon).gaps.safety / soon**2
    np.testing.assert_allclose(first, onset(quad).quadratic, rtol=LIMIT.relative)
    # The task pulls where safety is flat, and its curvature bends the path.
    H_f = jnp.array([[2.0, 0.5], [0.5, 1.0]])
    bent = Quadratic(H_f, jnp.linalg.solve(H_f, jnp.array([0.0, 1.0])), jnp.diag(jnp.array([1.0, 0.0])), [0.0, 0.0])
    assert onset(bent).quadratic == 0
    soon = jnp.array([1e-5, 2e-5])
    fourth = early_stopping_path(bent, soon).gaps.safety / soon**4
    np.testing.assert_allclose(fourth, onset(bent).quartic, rtol=LIMIT.relative)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"time is -1\.0 at index 1"):
        early_stopping_path(quadratic.golden(), [0.0, -1.0])
