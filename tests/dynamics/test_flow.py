"""Gradient flows: they end at the closed form, context by context, and say when they cannot."""

import jax.numpy as jnp
import numpy as np
import pytest

import tradeoff as to
from tests.problems import WORLDS
from tradeoff.dynamics import gradient_flow, relaxation_time
from tradeoff.problems import Tabular
from tradeoff.tolerances import FLOW, IDENTITY, RATE, agree

PARTS = np.array([0.2, 0.4, 0.6, 0.8, 1.0])
"""Five times of every flow: one program for each shape of a world."""


class Opaque:
    """The same problem with its structure hidden, so that the general solver runs."""

    def __init__(self, problem: Tabular) -> None:
        self._problem = problem

    def gaps(self, parameters):
        return self._problem.gaps(parameters)

    def objective(self, parameters, lam):
        return self._problem.objective(parameters, lam)


@pytest.mark.parametrize("name", ["golden", "over_penalised", "random_proxy"])
@pytest.mark.parametrize("lam", [1e-2, 1.0, 1e2])
def test_a_flow_comes_to_rest_at_the_closed_form(name, lam):
    world = WORLDS[name]
    problem = Tabular(world)
    flow = gradient_flow(problem, problem.aligned(), 30 * float(relaxation_time(world, lam)) * PARTS, lam)
    exact = to.loss_constraint.gaps(world, lam)
    assert abs(float(flow.gaps.safety[-1] - exact.safety)) < FLOW.absolute
    assert abs(float(flow.gaps.capability[-1] - exact.capability)) < FLOW.absolute


def test_the_general_solver_takes_the_same_path():
    problem = Tabular(WORLDS["golden"])
    times = [0.0, 0.5, 5.0, 50.0, 500.0]
    own = gradient_flow(problem, problem.aligned(), times, 0.5)
    general = gradient_flow(Opaque(problem), problem.aligned(), times, 0.5)
    np.testing.assert_allclose(own.gaps.safety, general.gaps.safety, rtol=0, atol=FLOW.absolute)
    np.testing.assert_allclose(own.gaps.capability, general.gaps.capability, rtol=0, atol=FLOW.absolute)
    np.testing.assert_allclose(own.parameters[0], problem.aligned(), rtol=0, atol=IDENTITY.absolute)


def test_without_shared_contexts_training_costs_no_safety():
    """The null test: nothing that happens in a table can reach a context that the task does not have."""
    world = WORLDS["disjoint_contexts"]
    problem = Tabular(world)
    flow = gradient_flow(problem, problem.aligned(), 1000 * PARTS)
    assert jnp.max(flow.gaps.safety) < IDENTITY.absolute
    assert flow.gaps.capability[-1] < FLOW.absolute


def test_the_objective_falls_along_a_flow():
    problem = Tabular(WORLDS["random_proxy"])
    flow = gradient_flow(problem, problem.aligned(), [0.0, 1.0, 5.0, 25.0, 100.0], 2.0)
    values = [float(problem.objective(z, 2.0)) for z in flow.parameters]
    assert all(a > b for a, b in zip(values, values[1:], strict=False))


def test_relaxation_time_is_the_slowest_decay():
    world, lam = WORLDS["golden"], 1.0
    problem = Tabular(world)
    time = float(relaxation_time(world, lam))
    unequal = jnp.arange(12.0).reshape(4, 3)  # the aligned start is at rest already in the context that only safety has
    flow = gradient_flow(problem, unequal, [2 * time, 4 * time, 6 * time, 8 * time, 9 * time], lam)
    surplus = [float(to.surplus(world, problem.log_policy(z), lam)) for z in flow.parameters[-2:]]
    assert agree(np.log(surplus[0] / surplus[1]), 2.0, RATE)  # e^(-2 t/time), up to the next order
    assert jnp.isfinite(relaxation_time(world, 0.0))  # what nothing moves does not count


@pytest.mark.parametrize(
    ("times", "lam", "start", "says"),
    [
        ([1.0, 1.0], 1.0, 0.0, "increasing"),
        ([], 1.0, 0.0, "one or more"),
        ([-1.0], 1.0, 0.0, "non-negative"),
        ([1.0], jnp.inf, 0.0, "one finite penalty"),
        ([1.0], -2.0, 0.0, r"penalty λ is -2\.0"),
        ([1.0], 1.0, jnp.nan, "start holds NaN"),
    ],
)
def test_bad_input_is_refused(times, lam, start, says):
    problem = Tabular(WORLDS["golden"])
    with pytest.raises(ValueError, match=says):
        gradient_flow(problem, problem.aligned() + start, times, lam)


def test_an_objective_without_a_floor_is_reported():
    class Unbounded:
        def gaps(self, parameters):
            return to.Gaps(jnp.sum(parameters), jnp.sum(parameters))

        def objective(self, parameters, lam):
            return -jnp.sum(parameters**4)

    with pytest.raises(RuntimeError, match=r"not solved to time 100 .* bounded below"):
        gradient_flow(Unbounded(), jnp.ones(2), [100.0])
