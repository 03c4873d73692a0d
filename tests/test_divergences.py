"""Divergences: exact where they are tiny, right at every edge, never negative."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import acos, log, mpf, sqrt, workdps
from mpmath import exp as mp_exp

from tests.oracle import Oracle, kl, law, relative_error
from tradeoff import _logits
from tradeoff import divergences as dv
from tradeoff.tolerances import EXACT, IDENTITY

LOGITS = 1e-5  # relative, of any divergence between float32 logits: what the rounding of softmax leaves


@st.composite
def laws(draw, count=2, size=5):
    """Laws with zeros, subnormal-sized and dominant entries."""
    weights = hnp.arrays(
        np.float64, (count, size), elements=st.sampled_from([0.0, 1e-300, 1e-30, 1e-9, 0.1, 0.5, 1.0, 3.0])
    )
    raw = draw(weights) + np.eye(count, size)
    return jnp.asarray(raw / raw.sum(axis=1, keepdims=True))


@given(laws())
@settings(deadline=None, max_examples=200)
def test_every_divergence_is_in_its_range(pair):
    P, Q = pair
    tv, js, bc = dv.total_variation(P, Q), dv.jensen_shannon(P, Q), dv.bhattacharyya(P, Q)
    divergence = dv.kl(P, Q)
    assert divergence >= 0
    assert 0 <= tv <= 1
    assert 0 <= js <= jnp.log(2.0)
    assert 0 <= bc <= 1
    assert 0 <= dv.bhattacharyya_angle(P, Q) <= jnp.pi / 2
    assert divergence >= 2 * tv**2 - IDENTITY.absolute  # Pinsker
    assert dv.chi_squared(P, Q) >= divergence - IDENTITY.absolute
    if tv < 1:
        assert divergence >= -jnp.log1p(-(tv**2)) - IDENTITY.absolute  # Bretagnolle and Huber


@given(laws())
@settings(deadline=None, max_examples=100)
def test_the_two_forms_of_kl_agree_with_the_definition(pair):
    P, Q = pair
    exact = kl(law(P), law(Q))
    with np.errstate(divide="ignore"):
        log_Q = jnp.asarray(np.log(np.asarray(Q)))
    for value in (dv.kl(P, Q), dv.kl_log(P, log_Q)):
        if exact > IDENTITY.absolute:
            assert relative_error(value, exact) < IDENTITY.relative


@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-5])
def test_a_small_divergence_from_logs_is_that_of_the_logs(size):
    """Logs are rounded at 1e-16, which moves a divergence of size² by size times that: 1e-11 of it at 1e-5."""
    P = np.array([0.1, 0.2, 0.3, 0.4])
    log_Q = jnp.log(jnp.asarray(P)) + size * jnp.array([1.0, -1.0, 0.5, -0.4])
    log_Q = log_Q - jnp.log(jnp.sum(jnp.exp(log_Q)))
    with workdps(40):
        exact = sum(mpf(p) * (log(mpf(p)) - mpf(float(q))) for p, q in zip(P, log_Q, strict=True))
        exact += sum(mp_exp(mpf(float(q))) for q in log_Q) - sum(mpf(p) for p in P)
    assert relative_error(dv.kl_log(jnp.asarray(P), log_Q), exact) < IDENTITY.relative


@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-5, 1e-7])
def test_small_divergences_keep_their_relative_precision(size):
    P = np.array([0.1, 0.2, 0.3, 0.4])
    Q = P + size * np.array([0.03, -0.05, 0.04, -0.02])
    exact = kl(law(P), law(Q))  # down to 1e-17, where the usual sum is noise of either sign
    # Q - P is formed from rounded entries: its relative error is eps/size, and that is all the error there is.
    assert relative_error(dv.kl(jnp.asarray(P), jnp.asarray(Q)), exact) < 20 * np.finfo(float).eps / size


DEFINED = {
    "total variation": (dv.total_variation, lambda p, q: sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2),
    "Jensen-Shannon": (dv.jensen_shannon, lambda p, q: mixed(p, q, mpf("0.5"))),
    "weighted": (lambda P, Q: dv.jensen_shannon(P, Q, 0.125), lambda p, q: mixed(p, q, mpf("0.125"))),
    "overlap": (dv.bhattacharyya, lambda p, q: sum(sqrt(a * b) for a, b in zip(p, q, strict=True))),
    "angle": (dv.bhattacharyya_angle, lambda p, q: acos(sum(sqrt(a * b) for a, b in zip(p, q, strict=True)))),
    "chi-squared": (dv.chi_squared, lambda p, q: sum((a - b) ** 2 / b for a, b in zip(p, q, strict=True) if b)),
    "of two": (lambda P, Q: dv.binary_kl(P[0], Q[0]), lambda p, q: kl([p[0], 1 - p[0]], [q[0], 1 - q[0]])),
    "entropy of two": (
        lambda P, Q: dv.binary_entropy(Q[1]),
        lambda p, q: -q[1] * log(q[1]) - (1 - q[1]) * log(1 - q[1]),
    ),
    "KL from logs": (lambda P, Q: dv.kl_log(P, jnp.where(Q > 0, jnp.log(Q), -jnp.inf)), kl),
}


def mixed(p, q, w):
    """The weighted Jensen-Shannon divergence by its definition."""
    mixture = [w * a + (1 - w) * b for a, b in zip(p, q, strict=True)]
    return w * kl(p, mixture) + (1 - w) * kl(q, mixture)


@pytest.mark.parametrize("name", DEFINED)
@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4])
def test_every_divergence_is_its_definition(name, size):
    """At 50 digits, with a response that one or both rule out, where laws differ by a lot and where they hardly do."""
    ours, definition = DEFINED[name]
    P = np.array([0.1, 0.2, 0.0, 0.7, 0.0])
    Q = P + size * np.array([0.3, -0.1, 0.0, -0.3, 0.1])
    with workdps(50):
        exact = definition(law(P), law(Q))
        assert relative_error(ours(jnp.asarray(P), jnp.asarray(Q)), exact) < 100 * np.finfo(float).eps / size**2


@pytest.mark.parametrize("w", [1.0, 0.5, 1e-3, 1e-9, 1e-30, 1e-150])
def test_divergence_to_a_mixture_is_exact_at_every_weight(w):
    from mpmath import mpf

    P, Q = np.array([0.7, 0.2, 0.1, 0.0]), np.array([0.1, 0.6, 0.2, 0.1])
    p, q, exact_w = law(P), law(Q), mpf(w)
    exact = kl(p, [(1 - exact_w) * a + exact_w * b for a, b in zip(p, q, strict=True)])
    from mpmath import mp

    if w < 1e-20:
        mp.dps = 400
        exact = kl(p, [(1 - exact_w) * a + exact_w * b for a, b in zip(p, q, strict=True)])
        mp.dps = 50
    assert relative_error(dv.kl_to_mixture(jnp.asarray(P), jnp.asarray(Q), jnp.asarray(w)), exact) < EXACT.relative


def test_lost_mass_counts_and_rounding_does_not():
    P = jnp.array([0.25, 0.75])
    assert 0 <= float(dv.kl(P, P * (1 + 1e-15))) < 1e-29
    halved = dv.kl(P, P / 2)
    assert abs(float(halved) - float(jnp.log(2.0))) < EXACT.relative


def test_impossible_responses_are_infinite_and_their_gradient_is_not_nan():
    P = jnp.array([0.5, 0.5, 0.0])
    assert jnp.isinf(dv.kl(P, jnp.array([1.0, 0.0, 0.0])))
    assert jnp.isinf(dv.kl_log(P, jnp.array([0.0, -jnp.inf, -jnp.inf])))
    for function in (dv.kl, dv.jensen_shannon, dv.bhattacharyya, dv.bhattacharyya_angle, dv.total_variation):
        gradient = jax.grad(function, argnums=(0, 1))(P, jnp.array([0.2, 0.3, 0.5]))
        assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradient)
    gradient = jax.grad(dv.kl_log, argnums=(0, 1))(P, jnp.log(jnp.array([0.25, 0.75, 0.0])))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradient)
    assert [float(jax.grad(dv.binary_entropy)(w)) for w in (0.0, 1.0)] == [0, 0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_x_minus_log1p_is_exact_at_every_size(dtype):
    """Against 400 digits, on both sides of every change of the way it is computed, in units of the last place."""
    near = [
        sign * x
        for x in (1e-150, 1e-20, 1e-8, 1e-3, 0.05, 0.17, 0.2928, 0.2929, 0.35, 0.4142, 0.4143)
        for sign in (1, -1)
    ]
    given = np.array([*near, -0.999, -0.9, -0.6, -0.5, 0.45, 0.99, 1.0, 1.01, 3.0, 7.9, 1e5, 1e30], dtype)
    given = given[(np.abs(given) > 1e-19) | (given.dtype == np.float64)]  # whose square float32 holds
    with workdps(400):
        exact = [mpf(float(x)) - log(1 + mpf(float(x))) for x in given]
        errors = [relative_error(h, e) for h, e in zip(dv.x_minus_log1p(jnp.asarray(given)), exact, strict=True)]
    assert max(errors) < 32 * np.finfo(dtype).eps


def test_x_minus_log1p_ends_where_the_logarithm_does():
    assert jnp.isposinf(dv.x_minus_log1p(jnp.float64(-1)))
    assert dv.x_minus_log1p(jnp.float64(0)) == 0
    assert jnp.isnan(dv.x_minus_log1p(jnp.array([-1.5, jnp.nan]))).all()


@pytest.mark.parametrize("function", [dv.x_minus_log1p, dv.expm1_minus_x])
def test_derivatives_are_those_of_the_definition_on_both_branches(function):
    for x in (-0.9, -0.2, 0.0, 0.2, 3.0):
        slope = {dv.x_minus_log1p: x / (1 + x), dv.expm1_minus_x: np.expm1(x)}[function]
        assert abs(float(jax.grad(function)(x)) - slope) <= EXACT.relative * abs(slope)


@pytest.mark.parametrize("to", [1e-300, 1e-3, 0.3, 0.49, 0.5 + 1e-9, 0.51, 0.7, 1.0])
def test_a_term_and_its_slopes_are_those_of_the_definition_near_and_far(to):
    """The slope in P is log(P/Q), in Q it is (Q-P)/Q, each small where the laws are close."""
    P, Q = jnp.float64(0.5), jnp.float64(to)
    term, slopes = jax.value_and_grad(lambda P, Q: dv.kl_terms(P, Q, Q - P), argnums=(0, 1))(P, Q)
    p, q = mpmath.mpf(float(P)), mpmath.mpf(float(Q))
    with mpmath.workdps(350):
        exact = p * mpmath.log(p / q) - p + q, mpmath.log(p / q), (q - p) / q
    assert all(relative_error(*each) < EXACT.relative for each in zip((term, *slopes), exact, strict=True))


@pytest.mark.parametrize("w", [1e-12, 1e-6, 1e-2, 0.3, 1 - 1e-12])
@pytest.mark.parametrize(("p", "q"), [(0.5, 0.1), (0.9, 1.0), (1e-3, 0.7), (0.3, 1e-14)])
def test_the_slope_towards_a_mixture_is_as_exact_as_the_term(p, q, w):
    """Where the mixture is near, the slope in P is of second order in w: what the slopes in both laws leave of each other."""

    def term(P):
        D = w * (q - P)
        return dv.kl_terms(P, (1 - w) * P + w * q, D)

    slope = jax.grad(term)(jnp.float64(p))
    P, Q, share = (mpmath.mpf(x) for x in (p, q, w))
    with mpmath.workdps(50):
        mixture = (1 - share) * P + share * Q
        exact = mpmath.log(P / mixture) + (1 - share) * (1 - P / mixture)
    assert relative_error(slope, exact) < IDENTITY.relative


def test_a_term_that_only_the_second_law_rules_out_is_infinite_and_moves_nothing():
    """So that it spoils no other derivative of a sum."""
    at = jnp.array([0.3]), jnp.array([0.0]), jnp.array([-0.3])
    terms, moved = jax.jvp(dv.kl_terms, at, tuple(jnp.ones(1) for _ in at))
    assert jnp.isposinf(terms).all()
    assert (moved == 0).all()


def test_a_mistake_in_a_law_does_not_read_as_a_number():
    assert jnp.isnan(dv.kl(jnp.array([jnp.nan, 0.5]), jnp.array([0.5, 0.5])))
    assert jnp.isnan(dv.kl_to_mixture(jnp.array([0.5, 0.5]), jnp.array([jnp.nan, 0.5]), jnp.array(0.5)))


def test_divergences_to_mixtures_of_several_laws_are_those_of_each():
    P, Q = jax.random.dirichlet(jax.random.key(0), jnp.ones(3), (2, 2))
    w = jnp.array([1e-3, 0.6])
    both = dv.kl_to_mixture(P, Q, w)
    assert both.shape == (2,)
    for i in range(2):
        assert abs(float(both[i] / dv.kl(P[i], (1 - w[i]) * P[i] + w[i] * Q[i])) - 1) < IDENTITY.relative


def test_the_gradient_of_cross_entropy_in_logits_is_softmax_minus_target():
    P, z = jnp.array([0.6, 0.4, 0.0]), jnp.array([0.3, -1.0, 2.0])
    gradient = jax.grad(lambda z: dv.kl_log(P, jax.nn.log_softmax(z)))(z)
    np.testing.assert_allclose(gradient, jax.nn.softmax(z) - P, rtol=0, atol=IDENTITY.absolute)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_dtype_of_the_input_is_kept(dtype):
    P, Q = jnp.array([0.5, 0.5], dtype), jnp.array([0.4, 0.6], dtype)
    assert dv.kl(P, Q).dtype == dtype
    assert dv.jensen_shannon(P, Q).dtype == dtype


def test_the_usual_formula_would_fail_here():
    """A negative control: the naive sum is negative or far off where ours is right."""
    P = np.array([0.1, 0.2, 0.3, 0.4])
    Q = P + 1e-9 * np.array([0.03, -0.05, 0.04, -0.02])
    exact = kl(law(P), law(Q))
    naive = np.sum(P * (np.log(P) - np.log(Q)))
    assert relative_error(naive, exact) >= 1
    assert relative_error(dv.kl(jnp.asarray(P), jnp.asarray(Q)), exact) < 1e-6


def test_oracle_is_the_definition():
    from tests.problems import WORLDS

    safety, capability, value = Oracle(WORLDS["disjoint_responses"]).gaps(1)
    assert abs(safety - law([1])[0] * 0.6931471805599453) < 1e-15
    assert abs(value - safety - capability) == 0


def test_a_root_keeps_what_is_undefined():
    assert jnp.isnan(dv.root(jnp.float64(jnp.nan)))
    assert dv.root(jnp.float64(-1e-18)) == 0
    assert jax.grad(dv.root)(0.0) == 0


# --- from logits ------------------------------------------------------------------------------------------------


def logits(size, seed=0, rows=11, tokens=40):
    """Pairs of float32 rows whose difference is of a given size, a constant apart as two models' logits may be."""
    rng = np.random.default_rng(seed)
    a = 3 * rng.normal(size=(rows, tokens))
    b = a.astype(np.float32) + size * rng.normal(size=a.shape) + 7
    return a.astype(np.float32), b.astype(np.float32)


def exact(a, b):
    """KL both ways, total variation and Jensen-Shannon of one pair of rows, in 50 digits."""
    from mpmath import exp, fsum, mpf

    rows = [[exp(mpf(float(x))) for x in row] for row in (a, b)]
    P, Q = ([w / fsum(row) for w in row] for row in rows)
    M = [(p + q) / 2 for p, q in zip(P, Q, strict=True)]
    moved = fsum(abs(p - q) for p, q in zip(P, Q, strict=True)) / 2
    return kl(P, Q), kl(Q, P), moved, (kl(P, M) + kl(Q, M)) / 2


@pytest.mark.parametrize("size", [3e-7, 3e-5, 1e-3, 0.3, 3.0])
def test_divergences_of_float32_logits_keep_their_digits(size, monkeypatch):
    monkeypatch.setattr(
        "tradeoff._logits.AT_A_TIME", 4 * 40
    )  # two blocks of four rows at a time, the last of which begin before the end of those before
    a, b = logits(size)
    found = dv.from_logits(jnp.asarray(a), jnp.asarray(b))
    forward = dv.kl_logits(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(forward, found.kl, rtol=LOGITS)
    for row in range(len(a)):
        for value, true in zip((each[row] for each in found), exact(a[row], b[row]), strict=True):
            assert relative_error(value, true) < LOGITS


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 16, 17, 19, 23])
def test_rows_are_the_same_however_many_there_are(count, monkeypatch):
    """One block, two side by side, and several steps of two, the last of which begins before the end of the one before."""
    monkeypatch.setattr("tradeoff._logits.AT_A_TIME", 4 * 37)
    monkeypatch.setattr("tradeoff._logits.CORES", 2)
    a, b = (jnp.asarray(x) for x in logits(0.3, rows=count, tokens=37))
    together = jax.jit(dv.from_logits)(a, b)
    assert together.kl.shape == (count,)
    for row in range(count):
        alone = dv.from_logits(a[row], b[row])
        for value, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(value[row], expected, rtol=LOGITS)


def test_the_usual_formula_would_fail_on_logits():
    """A negative control: differences of two log-softmaxes lose a small divergence, and its sign."""
    a, b = logits(3e-5)
    log_P, log_Q = (jax.nn.log_softmax(jnp.asarray(x)) for x in (a, b))
    naive = jnp.sum(jnp.exp(log_P) * (log_P - log_Q), axis=-1)
    assert float(jnp.min(naive)) < 0
    assert bool(jnp.all(dv.kl_logits(jnp.asarray(a), jnp.asarray(b)) > 0))


def test_masked_tokens_count_as_impossible():
    a = jnp.array([[0.0, -jnp.inf, -jnp.inf], [0.0, 0.0, -jnp.inf], [1.0, 2.0, -jnp.inf]])
    b = jnp.array([[0.0, 0.0, -jnp.inf], [0.0, -jnp.inf, -jnp.inf], [1.0, 2.0, -jnp.inf]])
    found = dv.from_logits(a, b)
    ln2 = float(jnp.log(2.0))
    np.testing.assert_allclose(found.kl, [ln2, np.inf, 0], rtol=EXACT.relative, atol=IDENTITY.absolute)
    np.testing.assert_allclose(found.reverse_kl, [np.inf, ln2, 0], rtol=EXACT.relative, atol=IDENTITY.absolute)
    np.testing.assert_allclose(found.total_variation, [0.5, 0.5, 0], rtol=EXACT.relative, atol=IDENTITY.absolute)
    shared = float(dv.jensen_shannon(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])))
    np.testing.assert_allclose(found.jensen_shannon, [shared, shared, 0], rtol=EXACT.relative, atol=IDENTITY.absolute)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_disjoint_laws_reach_the_ends_of_the_range_and_not_beyond(dtype):
    gap = 200.0  # either law has no mass to speak of where the other has all of it
    a = np.array([[gap, gap, 0.0, 0.0], [gap, 0.0, 0.0, 0.0]], dtype)
    found = dv.from_logits(jnp.asarray(a), jnp.asarray(a[:, ::-1].copy()))
    assert np.all(np.asarray(found.total_variation, np.float64) <= 1)
    assert np.all(np.asarray(found.jensen_shannon, np.float64) <= np.log(2.0))
    np.testing.assert_allclose(found.jensen_shannon, np.log(2.0), rtol=LOGITS)
    np.testing.assert_allclose(found.kl, gap, rtol=LOGITS)
    assert found.kl.dtype == dtype


@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.3, 3.0])
@pytest.mark.parametrize("apart", [0.0, 100.0, 1e6])
def test_divergences_of_float64_logits_are_exact_however_far_apart_the_models_put_them(size, apart):
    a, b = (np.asarray(x, np.float64) for x in logits(size))
    b = b + apart
    found = dv.from_logits(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found.kl, dv.kl_logits(jnp.asarray(a), jnp.asarray(b)), rtol=EXACT.relative)
    for row in range(len(a)):
        for value, true in zip((each[row] for each in found), exact(a[row], b[row]), strict=True):
            assert relative_error(value, true) < EXACT.relative


@pytest.mark.parametrize(
    ("coefficients", "function", "first", "step"),
    [
        (_logits.EXPONENTIAL, mpmath.exp, 2, 1),
        (_logits.ARTANH, mpmath.atanh, 1, 2),
        (_logits.JENSEN_SHANNON, lambda s: s * mpmath.tanh(s) - mpmath.log(mpmath.cosh(s)), 2, 2),
    ],
)
def test_series_are_those_of_their_functions(coefficients, function, first, step):
    with workdps(60):
        expected = mpmath.taylor(function, 0, first + step * (len(coefficients) - 1))[first::step]
        assert max(relative_error(ours, true) for ours, true in zip(coefficients, expected, strict=True)) < 2**-52


def test_no_rows_have_no_divergences():
    none = jnp.zeros((2, 0, 5))
    assert dv.kl_logits(none, none).shape == dv.from_logits(none, none).jensen_shannon.shape == (2, 0)


def test_logits_that_do_not_fit_are_refused():
    a = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"shapes \(2, 3\) and \(3, 2\)"):
        dv.kl_logits(a, a.T)
    with pytest.raises(ValueError, match="formats float64 and float32"):
        dv.from_logits(a, a.astype(jnp.float32))
    with pytest.raises(ValueError, match="at least one token"):
        dv.kl_logits(a[:, :0], a[:, :0])
