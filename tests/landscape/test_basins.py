"""Directions have the scale they say; basins of bowls are in closed form; VISAGE's and P17's own tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.problems import WORLDS
from tradeoff.gaps import Gaps
from tradeoff.landscape import basin, basins, line, plane, scaled, smoothed_floor, visage, visage_score
from tradeoff.problems import Quadratic, Tabular
from tradeoff.tolerances import EXACT, IDENTITY

KEY = jax.random.key(0)
TREE = {"W": jnp.arange(1.0, 13.0).reshape(3, 4), "b": jnp.ones(3), "K": jnp.ones((2, 2, 2))}


def like(tree, seed=0):
    leaves, form = jax.tree.flatten(tree)
    return jax.tree.unflatten(form, [jax.random.normal(jax.random.key(seed), x.shape) for x in leaves])


@pytest.mark.parametrize("scale", ["filter", "tensor", "unit"])
def test_a_direction_forgets_its_own_length(scale):
    way = like(TREE)
    once, longer = scaled(way, TREE, scale), scaled(jax.tree.map(lambda x: 7.5 * x, way), TREE, scale)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(longer), strict=True):
        np.testing.assert_allclose(a, b, rtol=EXACT.relative)


def test_each_filter_each_tensor_or_the_whole_has_its_norm():
    way = like(TREE)
    rows = scaled(way, TREE, "filter")
    np.testing.assert_allclose(
        np.linalg.norm(rows["W"], axis=1), np.linalg.norm(TREE["W"], axis=1), rtol=EXACT.relative
    )
    np.testing.assert_allclose(np.sqrt(np.sum(np.square(rows["K"]), axis=(1, 2))), [2.0, 2.0], rtol=EXACT.relative)
    whole = scaled(way, TREE, "tensor")
    np.testing.assert_allclose(np.linalg.norm(whole["W"]), np.linalg.norm(TREE["W"]), rtol=EXACT.relative)
    assert not np.any(rows["b"])
    assert not np.any(whole["b"])
    unit = scaled(way, TREE, "unit")
    np.testing.assert_allclose(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(unit)), 1, rtol=EXACT.relative)
    assert np.any(unit["b"])
    # With vectors alone each is one filter: a quadratic's parameters are not left out.
    np.testing.assert_allclose(np.linalg.norm(scaled(jnp.ones(4), jnp.full(4, 3.0))), 6.0, rtol=EXACT.relative)


def test_a_line_and_a_plane_are_the_losses_there():
    problem = Tabular(WORLDS["random"])
    at = problem.aligned()
    u, v = (basins.direction(jax.random.key(i), at) for i in (1, 2))
    x, y = [-0.5, 0.0, 1.0], [0.0, 0.3]
    found = plane(problem, at, u, v, x, y)
    assert found.gaps.safety.shape == (2, 3)
    for i, b in enumerate(y):
        for j, a in enumerate(x):
            there = problem.gaps(at + a * u + b * v)
            np.testing.assert_allclose(
                found.gaps.safety[i, j], there.safety, rtol=IDENTITY.relative, atol=IDENTITY.absolute
            )
            np.testing.assert_allclose(found.gaps.capability[i, j], there.capability, rtol=IDENTITY.relative)
    np.testing.assert_allclose(line(problem, at, u, x).gaps.safety, found.gaps.safety[0], rtol=IDENTITY.relative)


# --- basins ------------------------------------------------------------------------------------------------------

BOWL = Quadratic(np.eye(4), np.ones(4), np.diag([4.0, 2.0, 1.0, 0.5]), np.zeros(4))


def test_the_ends_of_a_bowl_are_in_closed_form():
    found = basin(BOWL, BOWL.theta_s, KEY, threshold=0.1, scale="unit", directions=6)
    ways = [basins.direction(k, BOWL.theta_s, "unit") for k in jax.random.split(KEY, 6)]
    expected = [np.sqrt(0.2 / float(u @ BOWL.H_s @ u)) for u in ways]
    np.testing.assert_allclose(found.ends, np.stack([expected, expected], axis=1), rtol=IDENTITY.relative)
    np.testing.assert_allclose(found.radius, np.mean(expected), rtol=IDENTITY.relative)
    assert int(found.open_ends) == 0
    assert found.unit == "parameter norm"


def test_the_interval_of_a_radius_covers():
    rng = np.random.default_rng(0)
    u = rng.normal(size=(200_000, 4))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    true = np.mean(np.sqrt(0.2 / np.sum(u**2 * np.diag(BOWL.H_s), axis=1)))
    seeds = 400
    covered = 0
    for seed in range(seeds):
        ways = rng.normal(size=(16, 4))
        ways /= np.linalg.norm(ways, axis=1, keepdims=True)
        radii = np.sqrt(0.2 / np.sum(ways**2 * np.diag(BOWL.H_s), axis=1))
        half = scipy.stats.t.ppf(0.975, 15) * radii.std(ddof=1) / 4
        covered += abs(radii.mean() - true) <= half
        if seed < 3:  # the package's own interval is this one
            found = basin(BOWL, BOWL.theta_s, jax.random.key(seed), threshold=0.1, scale="unit", directions=16)
            own = np.asarray(found.ends).mean(axis=1)
            expected = own.mean() + scipy.stats.t.ppf(0.975, 15) * own.std(ddof=1) / 4
            np.testing.assert_allclose(found.upper, expected, rtol=IDENTITY.relative)
    assert 0.92 <= covered / seeds <= 0.98


def test_a_flat_direction_has_no_end_and_says_so():
    flat = Quadratic(np.eye(2), np.ones(2), np.zeros((2, 2)), np.zeros(2))
    found = basin(flat, flat.theta_s, KEY, threshold=0.1, scale="unit", directions=3, reach=5.0)
    assert int(found.open_ends) == 6
    assert float(found.radius) == 5.0
    assert float(found.upper) == np.inf


def test_the_first_crossing_counts_and_not_the_last():
    class Ridge:
        """Safe beyond |x| = 0.2 again, but no basin reaches there."""

        def gaps(self, parameters):
            x = parameters[0]
            return Gaps(jnp.sin(10 * x) ** 2, x**2)

        def objective(self, parameters, lam):
            return parameters[0]

    found = basin(Ridge(), jnp.zeros(1), KEY, threshold=0.5, scale="unit", directions=2, reach=2.0, points=200)
    np.testing.assert_allclose(found.ends, np.pi / 40, rtol=IDENTITY.relative)


def test_a_higher_threshold_is_a_larger_basin():
    problem = Tabular(WORLDS["random"])
    sizes = [float(basin(problem, problem.aligned(), KEY, tau, directions=4).radius) for tau in (0.01, 0.1, 0.5)]
    assert sizes[0] < sizes[1] < sizes[2]


# --- VISAGE and P17 ----------------------------------------------------------------------------------------------


def attack_success(problem):
    """Percent of the safety data's weight on which a table does not give its first response."""
    p = problem.world.safety.p

    def rate(logits):
        return 100 * (1 - jnp.sum(p * jnp.exp(problem.log_policy(logits))[:, 0]))

    return rate


def test_visage_of_a_safe_and_of_a_broken_model():
    assert float(visage(lambda z: 0.0, TREE["W"], KEY).score) == 100.0
    assert float(visage(lambda z: 100.0, TREE["W"], KEY).score) == 0.0


def test_visage_of_a_toy_is_the_mean_of_its_curve():
    problem = Tabular(WORLDS["random"])
    at = problem.aligned()
    found = visage(attack_success(problem), at, KEY)
    way = basins.direction(jax.random.split(KEY, 1)[0], at, "tensor")
    curve = [float(attack_success(problem)(at + t * way)) for t in np.linspace(-0.5, 0.5, 20)]
    np.testing.assert_allclose(found.attack_success[0], curve, rtol=IDENTITY.relative)
    np.testing.assert_allclose(found.score, np.mean(100 - np.array(curve)), rtol=IDENTITY.relative)


def test_visage_looks_between_the_outermost_crossings_only():
    assert float(visage_score([100, 50, 100, 0, 100])) == pytest.approx((50 + 0 + 100) / 3)
    assert float(visage_score([100, 99.995, 0, 100])) == 100.0  # 99.995 is beyond the crossing at 99.99
    assert float(visage_score([0.0, 0.0, 0.0])) == 100.0


def test_the_smoothed_floor_is_attained_by_a_half_space_and_never_broken():
    sigma, drift = 0.7, 0.9
    # S = 1 where x <= 0.3: smoothed over N(0, σ²) it is Φ((0.3 - x)/σ), and the floor is an equality along x.
    start, end = scipy.stats.norm.cdf([0.3 / sigma, (0.3 - drift) / sigma])
    np.testing.assert_allclose(smoothed_floor(start, drift, sigma), end, rtol=IDENTITY.relative)
    # Any other set keeps more: a band, by its closed form.
    band = [scipy.stats.norm.cdf((0.3 - x) / sigma) - scipy.stats.norm.cdf((-2 - x) / sigma) for x in (0.0, drift)]
    assert band[1] > float(smoothed_floor(band[0], drift, sigma))
    # Negative control: with σ taken twice as large the floor would be broken.
    assert end < float(smoothed_floor(start, drift, 2 * sigma))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: scaled(TREE, TREE, "layer"), "scale is 'layer'; it must be one of 'filter', 'tensor', 'unit'"),
        (lambda: scaled(jnp.ones((2, 2)), jnp.zeros((2, 2))), "nothing is left of the direction at scale 'filter'"),
        (lambda: scaled(jnp.ones((2, 2)), jnp.zeros((2, 3))), "the direction has arrays"),
        (lambda: line(BOWL, BOWL.theta_s, BOWL.theta_f, [jnp.nan]), "distances are"),
        (lambda: basin(BOWL, BOWL.theta_s, KEY, threshold=0.0), r"basin was given threshold=0\.0"),
        (lambda: basin(BOWL, BOWL.theta_s, KEY, threshold=1.0, directions=1), "directions=1"),
        (lambda: basin(BOWL, BOWL.theta_s, KEY, threshold=1.0), "use scale='unit'"),  # the bowl's middle is zero
        (lambda: visage(lambda z: 0.0, TREE["W"], KEY, directions=0), "directions is 0"),
        (lambda: visage_score([0.0, 101.0]), r"attack_success holds 101\.0"),
        (lambda: visage_score([0.0, jnp.nan]), "attack_success holds nan"),
        (lambda: smoothed_floor(1.5, 0.0, 1.0), r"smoothed_floor was given score 1\.5"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
