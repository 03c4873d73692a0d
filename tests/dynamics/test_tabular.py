"""Tabular sweeps: the general solver and SciPy agree, penalties are interpolated within the stated error, ends are closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import tradeoff as to
from tests.problems import WORLDS
from tradeoff.dynamics import tabular, tabular_flow
from tradeoff.gaps import both
from tradeoff.problems import Tabular
from tradeoff.tolerances import FLOW, IDENTITY, ROOT

TIMES = np.array([0.0, 0.5, 20.0, 1e3])


def by_scipy(world: to.World, lam: float) -> np.ndarray:
    """Both gaps at `TIMES`, by SciPy's LSODA on all logits."""
    p_f, seen = np.asarray(world.capability.p), world.training_safety
    pull = lam * np.asarray(seen.p)
    speed = (p_f + pull)[:, None]
    goal = p_f[:, None] * np.asarray(world.capability.P) + pull[:, None] * np.asarray(seen.P)
    problem = Tabular(world)
    start = np.asarray(problem.aligned())

    def field(_: float, z: np.ndarray) -> np.ndarray:
        z = z.reshape(start.shape)
        odds = np.exp(z - z.max(axis=1, keepdims=True))
        return (goal - speed * odds / odds.sum(axis=1, keepdims=True)).ravel()

    found = solve_ivp(field, (0.0, TIMES[-1]), start.ravel(), method="LSODA", t_eval=TIMES, rtol=1e-11, atol=1e-12)
    gaps = [problem.gaps(jnp.asarray(z.reshape(start.shape))) for z in found.y.T]
    return np.array([[float(gap.safety), float(gap.capability)] for gap in gaps]).T


@pytest.mark.parametrize("name", ["random_proxy", "one_hot", "proxy_off_context", "disjoint_contexts"])
def test_scipy_takes_the_same_path(name):
    """Proxies that are not exact, and responses that the data rule out."""
    world = WORLDS[name]
    flow = tabular_flow(world, [0.0, 0.3, 100.0], TIMES)
    assert flow.error > 0
    for lane, lam in enumerate(flow.lams.tolist()):
        safety, capability = by_scipy(world, lam)
        np.testing.assert_allclose(flow.gaps.safety[lane], safety, rtol=0, atol=ROOT.relative)
        np.testing.assert_allclose(flow.gaps.capability[lane], capability, rtol=0, atol=ROOT.relative)


def test_many_penalties_are_interpolated_within_the_stated_error():
    world = WORLDS["random_proxy"]
    lams = np.append(0.0, np.geomspace(1e-3, 1e3, 400))
    sweep = tabular_flow(world, lams, TIMES)
    some = [0, 1, 57, 200, 400]
    alone = tabular_flow(world, lams[some], TIMES)
    assert float(sweep.error) < FLOW.absolute
    for swept, solved in ((sweep.gaps.safety, alone.gaps.safety), (sweep.gaps.capability, alone.gaps.capability)):
        np.testing.assert_allclose(swept[np.array(some)], solved, rtol=0, atol=ROOT.relative)


def test_a_sweep_is_solved_at_its_nodes_alone(monkeypatch):
    solved, own = [], tabular._solve

    def counted(world, lams, times, states):
        solved.extend(lams.tolist())
        return own(world, lams, times, states)

    monkeypatch.setattr(tabular, "_solve", counted)
    lams = np.append(0.0, np.geomspace(1e-3, 1e3, 400))
    tabular_flow(WORLDS["random_proxy"], lams, TIMES)
    # Chebyshev's points in log λ, both ends among them, and λ = 0 once.
    halfway = np.log10(solved[:-1]) / 3
    np.testing.assert_allclose(halfway, np.cos(np.linspace(0, np.pi, len(halfway))), atol=ROOT.absolute)
    assert len(halfway) == tabular._nodes_for(np.log(lams[1:])) + 1
    assert solved[-1] == 0


def test_too_few_nodes_are_noticed(monkeypatch):
    """The control: started with too few nodes, the sweep sees that they do not do, and takes more."""
    taken = []
    own = tabular._cut_off

    def counted(*arguments):
        taken.append(len(arguments[1]))
        return own(*arguments)

    monkeypatch.setattr(tabular, "_nodes_for", lambda log_lams: 28)
    monkeypatch.setattr(tabular, "_cut_off", counted)
    world, lams = WORLDS["random_proxy"], np.geomspace(1e-3, 1e3, 400)
    sweep = tabular_flow(world, lams, TIMES)
    assert taken[:2] == [29, 57]
    alone = tabular_flow(world, lams[57:58], TIMES)
    np.testing.assert_allclose(sweep.gaps.safety[57], alone.gaps.safety[0], rtol=0, atol=ROOT.relative)


def test_a_flow_comes_to_rest_at_the_closed_form():
    world, lams = WORLDS["random"], [1e-2, 1.0, 1e2]
    flow, exact = tabular_flow(world, lams, 1e6), to.loss_constraint.gaps(world, lams)
    np.testing.assert_allclose(flow.gaps.safety[:, 0], exact.safety, rtol=0, atol=FLOW.absolute)
    np.testing.assert_allclose(flow.gaps.capability[:, 0], exact.capability, rtol=0, atol=FLOW.absolute)


def test_policies_have_the_gaps_of_the_sweep():
    world = WORLDS["random_proxy"]
    flow = tabular_flow(world, [0.0, 0.3, 100.0], TIMES, states=True)
    assert flow.log_policies is not None
    gaps = jax.vmap(jax.vmap(lambda policy: both(world, policy)))(flow.log_policies)
    np.testing.assert_allclose(gaps.safety, flow.gaps.safety, rtol=0, atol=IDENTITY.relative)
    np.testing.assert_allclose(gaps.capability, flow.gaps.capability, rtol=0, atol=IDENTITY.relative)
    np.testing.assert_allclose(gaps.safety[:, 0], 0, atol=IDENTITY.absolute)


def test_policies_at_many_penalties_are_those_at_each():
    """More columns than one block holds."""
    world = WORLDS["random_proxy"]
    lams = np.geomspace(0.1, 10, 1 + tabular.MANY // len(world.safety.p))
    many = tabular_flow(world, lams, TIMES, states=True).log_policies
    last = tabular_flow(world, lams[-1], TIMES, states=True).log_policies
    assert many is not None
    np.testing.assert_allclose(many[-1], last[0], rtol=0, atol=ROOT.relative)


def test_no_penalties_have_no_flows_and_no_time_moves_nothing():
    np.testing.assert_array_equal(tabular_flow(WORLDS["golden"], 1.0, 0.0).gaps.safety, 0.0)
    flow = tabular_flow(WORLDS["golden"], [], TIMES, states=True)
    assert flow.gaps.safety.shape == (0, len(TIMES))
    assert flow.log_policies.shape == (0, len(TIMES), *WORLDS["golden"].safety.P.shape)


def test_without_shared_contexts_training_costs_no_safety():
    flow = tabular_flow(WORLDS["disjoint_contexts"], [0.0, 1.0], [0.0, 1.0, 1e3])
    np.testing.assert_array_equal(flow.gaps.safety, 0.0)
    assert jnp.all(flow.gaps.capability[:, -1] < flow.gaps.capability[:, 0])


@pytest.mark.parametrize(
    ("lams", "times", "says"),
    [
        ([1.0, -1.0], 1.0, r"penalty λ is -1\.0 at index 1"),
        (jnp.inf, 1.0, "finite penalties"),
        (1.0, [0.0, jnp.nan], "finite, non-negative and increasing"),
        (1.0, [1.0, 1.0], "increasing"),
        (1.0, [], "one or more"),
    ],
)
def test_bad_input_is_refused(lams, times, says):
    with pytest.raises(ValueError, match=says):
        tabular_flow(WORLDS["golden"], lams, times)


def test_a_path_that_cannot_be_resolved_is_reported(monkeypatch):
    monkeypatch.setattr(tabular, "REFINEMENTS", 1)
    monkeypatch.setattr(tabular, "RATIO", 4.0)
    with pytest.raises(RuntimeError, match="estimated error is still"):
        tabular_flow(WORLDS["one_hot"], 1.0, 1e3)
