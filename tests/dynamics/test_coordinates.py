"""Coordinates in which both Hessians are diagonal: what they are, that flows are the same there, and where they are not taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tradeoff.dynamics import coordinates, quadratic_flow
from tradeoff.dynamics.coordinates import Given, both_diagonal
from tradeoff.problems import Quadratic
from tradeoff.tolerances import EXACT, ROOT

D = 20


def pair(skew: float = 1.0, f: float = 1.0, s: float = 1.0) -> Quadratic:
    """Hessians ZᵀDZ in units f and s, diagonal along directions that are the further from orthogonal the larger `skew`."""
    draw = np.random.default_rng(0)
    left, right = (np.linalg.qr(draw.normal(size=(D, D)))[0] for _ in range(2))
    Z = (left * np.geomspace(1, skew**-0.5, D)) @ right
    H_f, H_s = (unit * Z.T @ np.diag(draw.uniform(0.05, 1, D)) @ Z for unit in (f, s))
    return Quadratic((H_f + H_f.T) / 2, draw.normal(size=D), (H_s + H_s.T) / 2, draw.normal(size=D))


def thin(seed: int, directions: int, ridge: float) -> Quadratic:
    """Losses that curve in so many directions each, and in all others by no more than the ridge."""
    draw = np.random.default_rng(seed)
    H_f, H_s = (x @ x.T / D + ridge * np.eye(D) for x in draw.normal(size=(2, D, directions)))
    return Quadratic(H_f, draw.normal(size=D), H_s, np.zeros(D))


def error(quad: Quadratic) -> float:
    """Of the safety gaps of its flows, relative to the largest."""
    lams, times = np.linspace(0, 1, 100), np.linspace(0, 10, 100)
    rates, U = np.linalg.eigh(np.asarray(quad.H_f) + lams[:, None, None] * np.asarray(quad.H_s))
    filters = -np.expm1(-times[None, :, None] * rates[:, None, :]) / rates[:, None, :]
    states = (filters * (np.asarray(quad.pull) @ U)[:, None, :]) @ U.swapaxes(1, 2)
    exact = np.sum(states * (states @ np.asarray(quad.H_s)), axis=-1) / 2
    return float(np.abs(quadratic_flow(quad, lams, times).gaps.safety - exact).max() / exact.max())


@pytest.mark.parametrize("units", [(1, 1), (1e-150, 1e150), (1e150, 1e-150)])
def test_both_hessians_are_diagonal_along_directions_of_length_one(units):
    quad = pair(100, *units)
    found = both_diagonal(quad)
    assert found is not None
    W = found.basis
    np.testing.assert_allclose(np.linalg.norm(W, axis=0), 1, rtol=EXACT.relative)
    np.testing.assert_allclose(found.metric @ W.T @ W, np.eye(D), atol=ROOT.absolute)
    for diagonal, H in ((found.H_f, quad.H_f), (found.H_s, quad.H_s)):
        np.testing.assert_allclose(W.T @ H @ W, np.diag(diagonal), rtol=0, atol=EXACT.relative * np.abs(H).max())
    for vector, given in ((found.displacement, quad.displacement), (found.pull, quad.pull)):
        np.testing.assert_allclose(W @ vector, given, rtol=0, atol=ROOT.relative * np.abs(given).max())


def test_motion_and_gaps_are_the_same_in_both_coordinates():
    quad, draw = pair(10), np.random.default_rng(1)
    given, diagonal = Given(quad), both_diagonal(quad)
    assert diagonal is not None
    y, lams = jnp.asarray(draw.normal(size=(3, 5, D))), jnp.asarray(draw.uniform(0, 2, 5))
    delta = diagonal.displacements(y)
    moved = diagonal.displacements(diagonal.motion(lams)(y[0])[None])[0]
    expected = given.motion(lams)(given.displacements(delta)[0])
    np.testing.assert_allclose(moved, expected, rtol=0, atol=EXACT.relative * float(jnp.abs(expected).max()))
    for here, there in zip(*(jax.tree.leaves(at) for at in (diagonal.gaps(y), given.gaps(delta))), strict=True):
        np.testing.assert_allclose(here, there, rtol=EXACT.relative)


def test_there_are_none_where_a_direction_is_flat_for_both_losses():
    flat, round_ = np.diag([1.0] * (D - 1) + [0.0]), np.eye(D)
    for H_f, H_s in ((flat, flat), (0 * flat, round_), (round_, 0 * flat)):
        assert both_diagonal(Quadratic(H_f, np.ones(D), H_s, np.zeros(D))) is None
    for H_f, H_s in ((flat, round_), (round_, flat)):
        assert both_diagonal(Quadratic(H_f, np.ones(D), H_s, np.zeros(D))) is not None


def test_skewed_coordinates_are_not_taken():
    assert both_diagonal(pair(300)) is not None
    assert both_diagonal(pair(1e4)) is None


@pytest.mark.parametrize(
    ("limit", "quads"),
    [
        ("FLAT", [thin(seed, D // 2 - 1, 1e-12) for seed in (26, 38, 57)]),  # two directions are flat but for the ridge
        ("SKEW", [thin(seed, D // 2, 1e-9) for seed in (241, 604, 1064)]),
    ],
)
def test_beyond_either_limit_digits_would_be_lost(limit, quads, monkeypatch):
    assert all(both_diagonal(quad) is None for quad in quads)
    few = max(map(error, quads))
    monkeypatch.setattr(coordinates, limit, np.inf)
    assert all(both_diagonal(quad) is not None for quad in quads)
    assert max(map(error, quads)) > 5 * few


def test_a_little_curvature_everywhere_is_enough():
    assert both_diagonal(thin(38, D // 2 - 1, 1e-3)) is not None
