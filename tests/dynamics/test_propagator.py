"""The shared polynomial: it agrees with the eigenbasis to rounding, and is taken where it is cheaper and where it is right."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from tradeoff.dynamics import propagator, quadratic_flow, quadratic_states
from tradeoff.dynamics.coordinates import Diagonal, Given, both_diagonal
from tradeoff.problems import Quadratic
from tradeoff.tolerances import EXACT, IDENTITY, ROOT

LOOSE = 1.07  # the most by which the interval may pass the spectrum
LAMS, TIMES = np.linspace(0.0, 1.0, 151), np.linspace(0.0, 10.0, 150)


def pair(d: int = 12, safety: float = 1.5) -> Quadratic:
    """Two Hessians in general position, the second singular."""
    draw = np.random.default_rng(0)
    turns = [np.linalg.qr(draw.normal(size=(d, d)))[0] for _ in range(2)]
    H_f, H_s = (
        (Q * np.linspace(low, high, d)) @ Q.T for Q, low, high in zip(turns, (0.05, 0.0), (1.5, safety), strict=True)
    )
    return Quadratic((H_f + H_f.T) / 2, draw.normal(size=d), (H_s + H_s.T) / 2, draw.normal(size=d))


def by_eigenbasis(quad: Quadratic, lams: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Displacements by SciPy's eigendecomposition of every H_f + λH_s."""
    found = []
    for lam in lams:
        rates, U = scipy.linalg.eigh(np.asarray(quad.H_f + lam * quad.H_s))
        found.append(-np.expm1(-np.outer(times, rates)) / rates * (U.T @ np.asarray(quad.pull)) @ U.T)
    return np.array(found)


def test_the_polynomial_agrees_with_the_eigenbasis_to_rounding():
    quad = pair(40)
    assert propagator.degree_for(quad, LAMS, TIMES) is not None
    assert len(LAMS) > propagator._most_lanes(40)  # more than one batch, and one number that does not divide evenly
    assert len(TIMES) > propagator.INSTANTS
    flow, expected = quadratic_flow(quad, LAMS, TIMES, states=True), by_eigenbasis(quad, LAMS, TIMES)
    assert flow.displacements is not None
    size = np.abs(expected).max()
    np.testing.assert_allclose(flow.displacements, expected, rtol=0, atol=EXACT.relative * size)
    left = expected - np.asarray(quad.displacement)
    for gap, v, H in ((flow.gaps.safety, expected, quad.H_s), (flow.gaps.capability, left, quad.H_f)):
        np.testing.assert_allclose(
            gap, np.einsum("lti,ij,ltj->lt", v, H, v) / 2, rtol=EXACT.relative, atol=EXACT.relative * size**2
        )
    start = quad.gaps(quad.theta_s).capability
    # To have come back from coordinates in which both Hessians are diagonal costs a few units of rounding.
    assert abs(flow.gaps.capability[0, 0] - start) <= 8 * np.finfo(float).eps * start


def test_few_penalties_of_many_parameters_are_taken_as_given():
    """Both ways say the same; which is taken is known from the sizes."""
    quad, lams, times = pair(60), LAMS[:8], TIMES[:80:10]
    size = propagator.degree_for(quad, lams, times)
    assert size is not None
    assert isinstance(propagator.coordinates_for(quad, 8, 8, size[0], states=False), Given)
    assert isinstance(propagator.coordinates_for(quad, 150, 150, size[0], states=False), Diagonal)
    flow, many = quadratic_flow(quad, lams, times), quadratic_flow(quad, LAMS, TIMES)
    for few, all_of_them in zip(jax.tree.leaves(flow.gaps), jax.tree.leaves(many.gaps), strict=True):
        np.testing.assert_allclose(few, all_of_them[:8, :80:10], rtol=0, atol=EXACT.relative * all_of_them.max())


def test_a_degree_too_low_is_seen():
    """The control: with half of the terms the same comparison fails by many orders."""
    quad, expected = pair(), by_eigenbasis(pair(), LAMS, TIMES)
    size = propagator.degree_for(quad, LAMS, TIMES)
    assert size is not None
    _, states = propagator.propagate(Given(quad), LAMS, TIMES, size[1], terms=size[0] // 2, gaps=False, states=True)
    assert np.abs(np.asarray(states) - expected).max() > IDENTITY.relative


def test_long_flows_at_large_penalties_stay_exact_to_rounding_of_the_start():
    quad, lams = pair(50), np.geomspace(0.1, 100.0, 40)
    size = propagator.degree_for(quad, lams, TIMES)
    assert size is not None
    assert size[0] > 200
    left = by_eigenbasis(quad, lams, TIMES) - np.asarray(quad.displacement)
    exact = np.einsum("lti,ij,ltj->lt", left, quad.H_f, left) / 2
    diagonal = both_diagonal(quad)
    assert diagonal is not None
    for coordinates in (Given(quad), diagonal):
        gaps, _ = propagator.propagate(coordinates, lams, TIMES, size[1], terms=size[0], gaps=True, states=False)
        assert gaps is not None
        assert np.abs(gaps.capability - exact).max() <= 1e-13 * exact.max()


def test_the_first_instants_keep_their_relative_precision():
    quad, soon = pair(), np.geomspace(1e-9, 1e-3, 40)
    gaps = quadratic_flow(quad, LAMS, soon).gaps
    np.testing.assert_allclose(
        gaps.safety[0],
        [quad.gaps(quad.theta_s + v).safety for v in by_eigenbasis(quad, LAMS[:1], soon)[0]],
        rtol=ROOT.relative,
    )


def test_long_flows_and_ends_are_taken_in_the_eigenbasis():
    quad = pair()
    assert propagator.degree_for(quad, LAMS, 1e6 * TIMES) is None
    assert propagator.degree_for(quad, LAMS[:2], TIMES) is None  # few penalties: a decomposition each costs less
    assert propagator.degree_for(quad, LAMS, np.append(TIMES, np.inf)) is None
    assert propagator.degree_for(quad, LAMS, 0 * TIMES) is None


@pytest.mark.parametrize("lam", [0.0, 0.3, 1e4])
@pytest.mark.parametrize("d", [12, propagator.NOT_LARGE + 1])
def test_the_interval_holds_the_spectrum(d, lam):
    quad = pair(d, safety=3.0)
    largest = np.linalg.eigvalsh(np.asarray(quad.H_f + lam * quad.H_s))[-1]
    assert largest <= propagator._reach(quad, lam) <= LOOSE * largest


def test_neither_derivatives_nor_maps_choose_by_values():
    """Under a transformation values are unknown: the eigenbasis is taken, and says the same."""
    quad = pair()
    mapped = jax.vmap(lambda lam: quadratic_states(quad, lam, TIMES[::50]))(jnp.asarray(LAMS[::50]))
    direct = quadratic_states(quad, LAMS, TIMES)[::50, ::50]
    np.testing.assert_allclose(mapped, direct, rtol=0, atol=IDENTITY.relative)


def test_the_memory_of_gaps_does_not_grow_with_the_number_of_times():
    """Ten times as many times need less memory more than the states of one batch of penalties at a tenth of them."""
    quad, lams = pair(), np.linspace(0.0, 1.0, 64)

    def megabytes(count: int, states: bool) -> float:
        times = np.linspace(0.0, 10.0, count)
        work = partial(propagator.propagate, terms=16, gaps=not states, states=states)
        analysis = jax.jit(work).lower(Given(quad), lams, times, 3.0).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes / 2**20

    few, many = 2 * propagator.INSTANTS, 20 * propagator.INSTANTS
    output = 2 * 8 * len(lams) * (many - few) / 2**20
    assert megabytes(many, states=False) - megabytes(few, states=False) <= 2 * output
    assert megabytes(many, states=True) - megabytes(few, states=True) > 4 * output  # the control


def test_no_time_at_all_is_an_empty_flow():
    for lams in (1.0, np.linspace(0.0, 1.0, 64)):
        assert quadratic_flow(pair(), lams, []).gaps.safety.shape == (*np.shape(lams), 0)
