"""Case II on models of any signs: the conditions of a global optimum, the hard case, radii without a solution."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tradeoff import parameter_constraint as c2
from tradeoff.parameter_constraint import _indefinite, _spectral, restrict
from tradeoff.problems.quadratic import LocalModel
from tradeoff.tolerances import DERIVATIVE, EXACT, IDENTITY, ROOT, agree

SIZE = 6
RADII = np.geomspace(1e-4, 1e3, 40)


def model(seed: int, rates=(-1.0, -0.3, 0.0, 0.5, 2.0, 3.0), silent=()) -> LocalModel:
    """A model with the given curvatures, whose pull has no part along some of them."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    pull, S = rng.normal(size=SIZE), rng.normal(size=(SIZE, SIZE))
    pull[list(silent)] = 0
    H = (Q * np.asarray(rates)) @ Q.T
    return LocalModel((H + H.T) / 2, Q @ pull, S @ S.T, rng.normal(size=SIZE))


CASES = {
    "indefinite": model(0),
    "definite": model(1, rates=(0.1, 0.2, 0.5, 1.0, 2.0, 3.0)),
    "downwards": model(2, rates=(-3.0, -2.0, -1.0, -0.5, -0.2, -0.1)),
    "hard": model(3, silent=[0]),
    "hard twice": model(4, rates=(-1.0, -1.0, 0.0, 0.5, 2.0, 3.0), silent=[0, 1]),
    "no pull": model(5, silent=range(SIZE)),
    "flat with pull": model(6, rates=(0.0, 0.0, 0.5, 1.0, 2.0, 3.0)),
    "flat": model(7, rates=(0.0, 0.0, 0.5, 1.0, 2.0, 3.0), silent=[0, 1]),
    "wide": model(8, rates=(-1e-6, 1e-5, 1e-4, 1e-2, 1.0, 1e2)),
}


def conditions(model: LocalModel, delta, mu, radius, A=None) -> float:
    """The largest violation of the conditions that are necessary and sufficient for the global optimum (NumPy)."""
    H, g, A = np.asarray(model.H_f), np.asarray(model.g), np.eye(SIZE) if A is None else np.asarray(A)
    L = np.linalg.inv(np.linalg.cholesky(A))
    size = np.sqrt(delta @ A @ delta)
    force = np.linalg.norm(H @ delta + mu * A @ delta - g) / (np.linalg.norm(g) + mu * np.linalg.norm(A @ delta) or 1)
    slack = abs(size / radius - 1) if mu > 0 else max(size / radius - 1, 0)
    curvature = np.linalg.eigvalsh(L @ H @ L.T)
    return max(force, slack, -mu, -(curvature[0] + mu) / np.abs(curvature).max())


@pytest.mark.parametrize("name", CASES)
def test_every_point_is_the_global_optimum(name):
    at = c2.path(CASES[name], RADII)
    assert not c2.failures(at)
    worst = max(
        conditions(CASES[name], *map(np.asarray, point))
        for point in zip(at.displacement, at.multiplier, RADII, strict=True)
    )
    assert worst <= IDENTITY.relative
    assert jnp.max(at.residual) <= IDENTITY.relative
    assert jnp.max(at.excess) <= EXACT.relative
    assert jnp.min(at.curvature) >= -IDENTITY.absolute
    # A longer radius never hurts, and the multiplier never rises.
    gain, mu = np.asarray(at.gain), np.asarray(at.multiplier)
    assert np.all(np.diff(gain) >= -EXACT.relative * gain[1:])
    assert np.all(np.diff(mu) <= EXACT.relative * mu[1:])
    H, g, delta = (np.asarray(part) for part in (CASES[name].H_f, CASES[name].g, at.displacement))
    direct = delta @ g - (delta @ H * delta).sum(axis=1) / 2
    np.testing.assert_allclose(gain, direct, rtol=IDENTITY.relative, atol=IDENTITY.absolute)
    lost = (delta @ np.asarray(CASES[name].H_s) * delta).sum(axis=1) / 2
    np.testing.assert_allclose(at.safety_gap, lost, rtol=IDENTITY.relative)


def test_the_conditions_reject_what_is_not_the_optimum():
    """The negative control: the other sphere point of the hard case passes, a plain gradient step and a short step do not."""
    hard = CASES["hard"]
    at = c2.path(hard, RADII)
    assert at.hard[-1]
    delta, mu, radius = np.asarray(at.displacement)[-1], float(at.multiplier[-1]), RADII[-1]
    bottom = np.linalg.eigh(np.asarray(hard.H_f))[1][:, 0]
    mirrored = delta - 2 * (delta @ bottom) * bottom
    assert conditions(hard, mirrored, mu, radius) <= IDENTITY.relative
    step = radius * np.asarray(hard.g) / np.linalg.norm(hard.g)
    for wrong in ((step, mu), (delta * (1 - 2 * ROOT.relative), mu), (delta, mu + 1e-3)):
        assert conditions(hard, *wrong, radius) > ROOT.relative / 2


def test_a_step_that_leaves_the_ball_or_is_not_stationary_is_told():
    """What is solved stays inside to rounding, without a force; a step that did not would be seen in the certificate."""
    frame = _indefinite._frame(CASES["definite"], None)
    H, g = (np.asarray(part) for part in (CASES["definite"].H_f, CASES["definite"].g))
    yes, no = jnp.bool_(True), jnp.bool_(False)
    for length in (0.5, 3.0):
        taken = length * jnp.eye(SIZE)[0]
        at = _indefinite._point(CASES["definite"], frame, taken, jnp.ones(()), jnp.ones(()), no, no, yes)
        assert agree(float(at.excess), max(length - 1, 0), EXACT)
        delta = np.asarray(at.displacement)
        force = np.linalg.norm(H @ delta + delta - g) / (np.linalg.norm(g) + length)
        assert agree(float(at.residual), float(force), IDENTITY)
    assert c2.path(CASES["definite"], RADII).excess.max() <= EXACT.relative


def test_a_root_that_is_not_reached_is_told(monkeypatch):
    a, b = jnp.array([0.0, 1.0, 1e3]), jnp.array([1e-3, 1.0, 10.0])
    assert bool(_spectral.secular_root(a, b, jnp.float64(1e-2))[1])
    monkeypatch.setattr(_spectral, "STEPS", 1)
    assert not bool(_spectral.secular_root(a, b, jnp.float64(1e-2))[1])


@pytest.mark.parametrize("name", ["indefinite", "hard", "flat", "flat with pull"])
@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_unit_of_the_loss_does_not_matter(name, scale):
    one = CASES[name]
    plain, at = c2.path(one, RADII), c2.path(LocalModel(scale * one.H_f, scale * one.g, one.H_s, one.theta_s), RADII)
    np.testing.assert_allclose(at.multiplier, scale * plain.multiplier, rtol=IDENTITY.relative)
    np.testing.assert_array_equal(at.hard, plain.hard)
    lengths = np.linalg.norm(plain.displacement, axis=1, keepdims=True)
    np.testing.assert_allclose(at.displacement / lengths, plain.displacement / lengths, atol=IDENTITY.relative)


@pytest.mark.parametrize("name", ["hard", "hard twice", "no pull"])
def test_the_hard_case_has_one_multiplier_and_a_sign_that_is_settled(name):
    at = c2.path(CASES[name], RADII)
    hard = np.asarray(at.hard)
    assert hard[-1]
    assert np.all(np.diff(hard.astype(int)) >= 0)
    least = -np.linalg.eigvalsh(CASES[name].H_f)[0]
    np.testing.assert_allclose(np.asarray(at.multiplier)[hard], least, rtol=IDENTITY.relative)
    # Another basis of the bottom eigenspace, as another machine may return, changes nothing: the largest coordinate is up.
    far = np.asarray(at.displacement)[-1]
    assert far[np.argmax(np.abs(far))] > 0
    assert not np.any(c2.path(CASES["indefinite"], RADII).hard)


def test_nearly_hard_is_solved_to_the_same_precision():
    """The pull along the bottom is lost in rounding when squared, and still tells the sign."""
    easy = model(3)
    bottom = np.linalg.eigh(np.asarray(easy.H_f))[1][:, 0]
    for tiny in (1e-6, 1e-10, -1e-10):
        near = LocalModel(CASES["hard"].H_f, np.asarray(CASES["hard"].g) + tiny * bottom, easy.H_s, easy.theta_s)
        at = c2.path(near, RADII)
        points = zip(at.displacement, at.multiplier, RADII, strict=True)
        assert max(conditions(near, *map(np.asarray, one)) for one in points) <= IDENTITY.relative
        assert np.sign(np.asarray(at.displacement)[-1] @ bottom) == np.sign(tiny)


def test_an_ellipsoid_is_kept_in_its_own_metric():
    A = CASES["definite"].H_f
    for name in ("indefinite", "hard", "no pull"):
        at = c2.path(CASES[name], RADII, metric=A)
        points = zip(at.displacement, at.multiplier, RADII, strict=True)
        assert max(conditions(CASES[name], *map(np.asarray, one), A) for one in points) <= IDENTITY.relative


def test_the_soft_form_and_the_ball_are_each_others_inverse():
    saddle = CASES["indefinite"]
    mu = np.append(np.linspace(0.5, 0.99, 10), np.geomspace(1.01, 1e4, 30))
    soft = c2.soft_path(saddle, mu)
    np.testing.assert_array_equal(soft.result != 0, mu < 1)  # below -λ_min nothing bounds the descent
    assert len(c2.failures(soft)) == 10
    bounded = np.where(mu < 1, 1.0, soft.radius)
    np.testing.assert_allclose(c2.path(saddle, bounded).multiplier[10:], mu[10:], rtol=ROOT.relative, atol=0)


@pytest.mark.parametrize("name", ["indefinite", "hard"])
def test_the_multiplier_is_the_derivative(name):
    def total(radii):
        return c2.path(CASES[name], radii).gain.sum()

    slopes = jax.grad(total)(jnp.asarray(RADII))
    at = c2.path(CASES[name], RADII)
    np.testing.assert_allclose(slopes, np.asarray(at.multiplier) * RADII, rtol=DERIVATIVE.relative)


@pytest.mark.parametrize("name", ["indefinite", "definite", "downwards"])
def test_second_derivatives_are_those_of_the_way_back(name):
    """dμ/dε is one over the derivative of ε(μ), which has no root in it; so is the curvature of the gain along the path."""
    saddle, radii = CASES[name], jnp.array([1e-2, 0.3])
    mu = c2.path(saddle, radii).multiplier
    rate = 1 / jax.grad(lambda m: c2.soft_path(saddle, m).radius.sum())(mu)
    curvature = jax.jvp(jax.grad(lambda e: c2.path(saddle, e).gain.sum()), (radii,), (jnp.ones(2),))[1]
    np.testing.assert_allclose(curvature, mu + radii * rate, rtol=DERIVATIVE.relative)


def test_a_subspace_may_hide_a_saddle():
    saddle = CASES["indefinite"]
    rates, U = np.linalg.eigh(saddle.H_f)
    above = restrict(saddle, U[:, rates > 0.1])
    assert above.irreducible is None
    np.testing.assert_allclose(np.linalg.eigvalsh(above.pair.H_f), [0.5, 2, 3], rtol=IDENTITY.relative)


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["indefinite", "hard", "no pull", "flat with pull"])
def test_an_endless_fall_is_named_and_the_other_lanes_finish(name):
    at = c2.path(CASES[name], np.append(RADII[1:], np.inf))
    (failure,) = c2.failures(at)
    assert re.search(r"index 39 \(radius inf\): .*falls without end.*Give a finite radius", failure)
    assert np.all(np.asarray(at.gain)[:-1] > 0)
    for leaf in (at.displacement, at.gain, at.safety_gap, at.multiplier, at.residual):
        assert np.all(np.isfinite(leaf))
    assert not c2.failures(
        c2.path(CASES["flat"], np.append(RADII[1:], np.inf))
    )  # nothing pulls along its flat directions


def test_one_endless_fall_is_an_error():
    with pytest.raises(ValueError, match="no solution: .radius inf.*falls without end.*Give a finite radius"):
        c2.solve(LocalModel([[1.0, 0.0], [0.0, -2.0]], [1.0, 0.0], jnp.eye(2), [0.0, 0.0]), jnp.inf)


def test_a_bad_lane_of_a_batch_is_named():
    """Batches of models are not checked on entry: their lanes carry the verdict."""
    good, bad = CASES["indefinite"], CASES["definite"]
    batch = jax.tree.map(lambda a, b: np.stack([a, np.full_like(b, np.nan)]), good, bad)
    at = jax.vmap(lambda one: c2.path(one, jnp.ones(1)))(batch)
    (failure,) = c2.failures(at)
    assert failure.startswith("index 1, 0 (radius 1): the result is not finite")
    assert np.isfinite(at.gain[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"H_f": [[1.0, 2.0], [0.0, 1.0]]}, r"H_f is not symmetric.*give \(H_f \+ H_f.T\) / 2"),
        ({"H_f": [[jnp.nan, 0.0], [0.0, 1.0]]}, r"H_f\[0, 0\] is nan.*must be finite"),
        ({"H_s": [[1.0, 0.0], [0.0, -1.0]]}, "H_s has eigenvalue -1.*or describe the capability loss by a LocalModel"),
        ({"g": [1.0, jnp.inf]}, "g is .*must be finite"),
        ({"theta_s": [0.0]}, "different numbers of parameters"),
    ],
)
def test_a_model_is_checked(change, message):
    parts = {"H_f": jnp.eye(2), "g": [1.0, 0.0], "H_s": jnp.eye(2), "theta_s": [0.0, 0.0]}
    with pytest.raises(ValueError, match=message):
        LocalModel(**{**parts, **change})
