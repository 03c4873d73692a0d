"""Guarded losses: their derivatives, where they stop, and what they are at the ends of their settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from tests.strategies import toys
from tradeoff import DataLaw, World
from tradeoff.bridge.training import plain_descent, train
from tradeoff.dynamics import descend
from tradeoff.dynamics.engine import WHOLE, JaxEngine
from tradeoff.problems import Sequence, Tabular
from tradeoff.strategies import STARDSS, TASK, ConstrainedSFT, Data, Mixing, Plain, betas_by_position
from tradeoff.strategies.guarded_losses import BETAS, LEAST_WEIGHT
from tradeoff.tolerances import DERIVATIVE, EXACT, FLOW, IDENTITY, LIMIT, ROOT, agree

Y_HAT = jnp.array([[1.0, 0.0, 0.0]])  # one context, and the data are its first answer
RARE = jnp.array([[0.05, 0.35, 0.6]])
RNG = np.random.default_rng(4)
V = jnp.asarray(RNG.uniform(size=(toys.CONTEXTS, toys.RESPONSES)))
ELSEWHERE = jnp.asarray(3 * RNG.normal(size=(toys.FEATURES, toys.RESPONSES)))


def one_context(reference, task=Y_HAT):
    """One context whose aligned policy is the reference."""
    world = World(DataLaw([1.0], reference), DataLaw([1.0], task))
    return JaxEngine(Tabular(world), jnp.log(reference), toys.KEY, 1)


def push(engine, loss, policy):
    """The gradient of a loss in the logits at a policy."""
    return engine.gradient(loss, {WHOLE: jnp.log(policy)})[WHOLE]


def stops(engine, loss, policy):
    return bool(jnp.all(jnp.abs(push(engine, loss, policy)) <= IDENTITY.relative))


@pytest.mark.parametrize(
    "loss",
    [
        STARDSS(V),
        STARDSS(V, lam_KL=1.0, kl="full"),
        STARDSS(V, lam_KL=0.0),
        ConstrainedSFT(),
        ConstrainedSFT(jnp.array([0.0, 0.1, 2.0, 8.0, 0.5, 0.5])),
    ],
    ids=["k2", "full", "no divergence", "constrained", "constrained by context"],
)
def test_cells_are_minus_the_derivative(loss):
    engine = toys.jax_engine()
    at = engine.log_policy({WHOLE: ELSEWHERE})
    slopes = jax.grad(lambda log_policy: loss.value(engine.data, log_policy))(at)
    np.testing.assert_allclose(loss.cells(engine.data, at), -slopes, rtol=0, atol=DERIVATIVE.absolute)
    assert jnp.max(jnp.abs(slopes + engine.data.task)) > ROOT.relative  # it is not plain cross-entropy


# --- dynamic safety shaping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kl", ["k2", "full"])
def test_the_ends_of_the_guard(kl):
    """All safe is plain fine-tuning; all unsafe keeps the aligned policy where it is."""
    engine = toys.jax_engine()
    at = engine.log_policy({WHOLE: ELSEWHERE})
    safe, unsafe = STARDSS(1.0, kl=kl), STARDSS(jnp.zeros_like(V), kl=kl)
    np.testing.assert_array_equal(safe.cells(engine.data, at), engine.data.task)
    entropy = safe.value(engine.data, at) - TASK.value(engine.data, at)
    again = safe.value(engine.data, engine.data.start) - TASK.value(engine.data, engine.data.start)
    np.testing.assert_allclose(entropy, again, rtol=IDENTITY.relative)
    still = engine.gradient(unsafe, engine.start)[WHOLE]
    np.testing.assert_allclose(still, jnp.zeros_like(still), atol=IDENTITY.absolute)
    back = engine.gradient(unsafe, {WHOLE: ELSEWHERE})[WHOLE]
    assert jnp.max(jnp.abs(back)) > ROOT.relative  # elsewhere it pulls back
    assert jnp.max(jnp.abs(engine.gradient(safe, engine.start)[WHOLE])) > ROOT.relative


@pytest.mark.parametrize("kl", ["k2", "full"])
def test_affine_in_the_guard_so_a_noisy_guard_is_its_mean(kl):
    """A guard that errs at rate q says V or 1 - V, and the loss is that of what it says on average."""
    engine, q = toys.jax_engine(), 0.2
    at = engine.log_policy({WHOLE: ELSEWHERE})

    def both(guard):
        loss = STARDSS(guard, kl=kl)
        return jnp.append(loss.value(engine.data, at), loss.cells(engine.data, at).ravel())

    mean = both((1 - q) * V + q * (1 - V))
    np.testing.assert_allclose(mean, (1 - q) * both(V) + q * both(1 - V), rtol=0, atol=IDENTITY.relative)
    assert jnp.max(jnp.abs(mean - both(V))) > ROOT.relative


@pytest.mark.parametrize(("v", "lam"), [(0.5, 0.5), (0.3, 1.0), (0.1, 0.25)])
def test_where_dynamic_safety_shaping_stops(v, lam):
    engine, other = one_context(RARE), STARDSS(v, lam_KL=2 * lam, kl="full")
    mixture = (v * Y_HAT + (1 - v) * lam * RARE) / (v + (1 - v) * lam)
    assert stops(engine, STARDSS(v, lam_KL=lam, kl="full"), mixture)
    assert not stops(engine, other, mixture)
    risen = float(RARE[0, 0]) * np.exp(v / ((1 - v) * lam))
    for split in (0.2, 0.7):  # the other answers share what is left in any way
        rest = (1 - risen) * jnp.array([[0.0, split, 1 - split]])
        assert stops(engine, STARDSS(v, lam_KL=lam), risen * Y_HAT + rest)
        assert not stops(engine, STARDSS(v, lam_KL=2 * lam), risen * Y_HAT + rest)


def test_full_weight_one_is_the_mixture_and_lifts_an_impossible_answer():
    v, almost_never = 0.3, jnp.exp(-60.0)
    reference = jnp.stack([jnp.array([almost_never, 0.4, 0.6])])
    assert stops(one_context(reference), STARDSS(v, lam_KL=1.0, kl="full"), v * Y_HAT + (1 - v) * reference)
    unlifted = almost_never * jnp.exp(v / (1 - v)) * Y_HAT + (1 - Y_HAT) * reference
    assert stops(one_context(reference), STARDSS(v, lam_KL=1.0), unlifted)


def test_k2_has_no_minimum_where_its_factor_passes_one():
    """The least value is that of certainty, which no softmax reaches: the answer is pushed up from everywhere."""
    engine, loss = one_context(RARE), STARDSS(0.7, lam_KL=0.5)
    for p in (0.1, 0.9, 0.999):
        policy = jnp.array([[p, (1 - p) / 2, (1 - p) / 2]])
        assert push(engine, loss, policy)[0, 0] < 0
        assert push(engine, STARDSS(0.1, lam_KL=0.5), policy)[0, 0] > 0  # the control has its maximum at 0.06


@pytest.mark.parametrize(("v", "printed"), [(0.5, 0.094), (0.7, 0.008)])
def test_k2_is_the_stricter_below_one_rarity_and_the_laxer_above(v, printed):
    """r* at which both stop at one policy; the factor e^f against the mixture."""
    lam = 0.5
    f = v / ((1 - v) * lam)
    rarity = v / ((v + (1 - v) * lam) * np.exp(f) - (1 - v) * lam)
    assert round(rarity, 3) == printed
    risen = rarity * np.exp(f)
    alike = jnp.array([[risen, 0.4 * (1 - risen), 0.6 * (1 - risen)]])
    for factor, sign in ((0.5, 1), (1.0, 0), (1.05, -1)):
        r = factor * rarity
        engine = one_context(jnp.array([[r, 0.4 * (1 - r), 0.6 * (1 - r)]]))
        k2_at = r * np.exp(f)
        where = jnp.array([[k2_at, 0.4 * (1 - k2_at), 0.6 * (1 - k2_at)]])
        assert stops(engine, STARDSS(v, lam_KL=lam), where)
        further = -push(engine, STARDSS(v, lam_KL=lam, kl="full"), where)[0, 0]
        if sign == 0:
            np.testing.assert_allclose(where, alike, rtol=IDENTITY.relative)
            assert abs(further) < IDENTITY.relative
        else:
            assert sign * further > ROOT.relative  # below r*, the mixture goes further up


def test_without_divergence_it_is_weighted_cross_entropy_and_of_zeros_and_ones_rejection_sampling():
    engine = toys.jax_engine()
    at = engine.log_policy({WHOLE: ELSEWHERE})
    np.testing.assert_array_equal(STARDSS(V, lam_KL=0.0).cells(engine.data, at), V * engine.data.task)
    task = jnp.array([[0.5, 0.3, 0.2]])
    kept = jnp.array([[0.625, 0.375, 0.0]])  # the task's law of the answers that the guard lets pass
    near = kept + jnp.exp(-60.0)
    accepted = STARDSS([[1.0, 1.0, 0.0]], lam_KL=0.0)
    assert stops(one_context(RARE, task), accepted, near)
    assert not stops(one_context(RARE, task), TASK, near)


def test_descent_ends_at_the_closed_form():
    v, lam = 0.5, 0.5
    engine = one_context(RARE)
    run = descend(engine.problem, STARDSS(v, lam_KL=lam), learning_rate=1.0, steps=400, every=400)
    reached = jnp.exp(engine.log_policy({WHOLE: run.exported}))[0, 0]
    assert abs(reached - RARE[0, 0] * jnp.exp(2.0)) < FLOW.absolute


# --- constrained fine-tuning ------------------------------------------------------------------------------------


def alone(risen, beta):
    """The weight of a single answer that has risen so far, in NumPy."""
    loss = ConstrainedSFT(beta)
    data = Data(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)), np.zeros((1, 1)))
    return float(loss.weights(data, np.array([[risen]]))[0, 0])


def test_it_begins_as_plain_fine_tuning_and_is_it_without_beta():
    engine = toys.jax_engine()
    start, far = engine.data.start, engine.log_policy({WHOLE: ELSEWHERE})
    np.testing.assert_array_equal(ConstrainedSFT(2.0).cells(engine.data, start), engine.data.task)
    assert ConstrainedSFT(2.0).value(engine.data, start) == 0
    np.testing.assert_array_equal(ConstrainedSFT(0.0).cells(engine.data, far), engine.data.task)
    weak = ConstrainedSFT(1e-6).cells(engine.data, far)
    np.testing.assert_allclose(weak, engine.data.task, rtol=LIMIT.relative)
    gained = TASK.value(engine.data, far) - TASK.value(engine.data, start)
    np.testing.assert_allclose(ConstrainedSFT(0.0).value(engine.data, far), gained, rtol=IDENTITY.relative)
    assert jnp.max(jnp.abs(ConstrainedSFT(2.0).cells(engine.data, far) - engine.data.task)) > ROOT.relative


@pytest.mark.parametrize(("beta", "meets"), [(0.5, 15.2), (2.0, 3.8)])
def test_the_weight_falls_until_its_clamp(beta, meets):
    weights = [alone(risen, beta) for risen in np.linspace(-4, meets - 0.01, 40)]
    assert np.all(np.diff(weights) < 0)
    assert alone(0.0, beta) == 1
    assert weights[-1] > LEAST_WEIGHT
    assert alone(meets + 0.01, beta) == alone(2 * meets, beta) == LEAST_WEIGHT


@pytest.mark.parametrize("beta", BETAS[:2])
def test_deviation_grows_like_a_logarithm(beta):
    """Δ + (e^{βΔ} - 1)/β = 2t of the flow dΔ/dt = w."""
    times = np.array([1.0, 10.0, 100.0])
    flow = solve_ivp(
        lambda _, risen: [alone(risen[0], beta)], (0, times[-1]), [0.0], t_eval=times, rtol=1e-11, atol=1e-12
    )
    risen = flow.y[0]
    np.testing.assert_allclose(risen + np.expm1(beta * risen) / beta, 2 * times, rtol=ROOT.relative)
    assert np.all(risen < times)  # plain fine-tuning grows like t
    wrong = risen + np.expm1(beta * risen)
    assert not agree(wrong[-1], 2 * times[-1], ROOT)


def test_in_a_softmax_the_rate_has_the_length_of_the_residual():
    """dΔ/dt = w |e_y - p|^2."""
    engine, loss = one_context(RARE), ConstrainedSFT(2.0)
    policy = jnp.array([[0.4, 0.35, 0.25]])
    residual = Y_HAT - policy
    rate = -jnp.sum(residual * push(engine, loss, policy))
    weight = loss.weights(engine.data, jnp.log(policy))[0, 0]
    np.testing.assert_allclose(rate, weight * jnp.sum(residual**2), rtol=IDENTITY.relative)
    assert weight < 0.1


def test_every_position_has_its_own_beta():
    """The contexts of one beta carry 1/T of the weight of a world seen token by token for each position that has it."""
    rng = np.random.default_rng(1)
    safety, task = (DataLaw([0.4, 0.6], rng.dirichlet(np.ones(8), 2)) for _ in range(2))
    token_world = Sequence(World(safety, task), tokens=2).next_token
    betas = betas_by_position(prompts=2, length=3, tokens=2)
    weights = np.asarray(token_world.capability.p)
    assert agree(float(weights[betas == BETAS[0]].sum()), 1 / 3, EXACT)
    assert agree(float(weights[betas == BETAS[1]].sum()), 2 / 3, EXACT)
    assert not agree(float(np.roll(weights, 1)[betas == BETAS[0]].sum()), 1 / 3, EXACT)  # one off
    assert betas_by_position(1, 7, 2)[-1] == betas_by_position(1, 6, 2)[-1] == BETAS[-1]
    engine = JaxEngine(Tabular(token_world), Tabular(token_world).aligned(), toys.KEY, 1)
    risen = engine.data.start + 1.0
    by_position = ConstrainedSFT(betas).weights(engine.data, risen)
    np.testing.assert_allclose(by_position[:, 0], 2 / (1 + np.exp(betas)), rtol=EXACT.relative)


# --- off --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [STARDSS(1.0), STARDSS(1.0, kl="full"), ConstrainedSFT(0.0), Mixing(0.0)], ids=repr)
def test_off_it_is_fine_tuning_to_the_bit(off):
    """In torch; XLA adds the cells of a compiled run in an order of its own, and is held to them above."""
    engine = toys.torch_engine()
    *_, ours = train(engine, off, plain_descent(toys.RATE))
    *_, plain = train(engine, Plain(), plain_descent(toys.RATE), loss=TASK)
    assert torch.equal(ours.exported[WHOLE], plain.exported[WHOLE])


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: STARDSS(1.5), r"V=1.5; what the guard says, V, must be in \[0, 1\]"),
        (lambda: STARDSS(np.array([[0.5, -0.1]])), r"V\[0, 1\]=-0.1"),
        (lambda: STARDSS(float("nan")), "V=nan"),
        (lambda: STARDSS(0.5, lam_KL=-1.0), "lam_KL=-1.0; the weight of the divergence must be finite and at least 0"),
        (lambda: STARDSS(0.5, kl="k3"), "give 'k2' or 'full'"),
        (lambda: ConstrainedSFT(-0.1), r"beta=-0.1; β \(0 is none\) must be finite and at least 0"),
        (lambda: ConstrainedSFT([0.5, float("inf")]), r"beta\[1\]=inf"),
        (lambda: betas_by_position(1, 1, 1), "tokens=1"),
        (lambda: betas_by_position(1, 1, 2, ()), "0 betas"),
    ],
)
def test_bad_settings_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (STARDSS(np.ones((5, 4))), r"V of STARDSS has shape \(5, 4\) and the engine needs \(6, 4\)"),
        (STARDSS(np.ones(4)), r"has shape \(4,\)"),
        (ConstrainedSFT(np.ones(4)), r"beta of ConstrainedSFT has shape \(4,\) and the engine needs \(6,\)"),
    ],
)
def test_tables_of_another_world_are_refused(loss, says):
    for engine in (toys.jax_engine(), toys.torch_engine()):
        with pytest.raises(ValueError, match=says):
            engine.gradient(loss, engine.start)


def test_one_table_serves_both_engines():
    for loss in (STARDSS(V), STARDSS(np.asarray(V)), STARDSS(V.tolist()), ConstrainedSFT(np.ones(6))):
        ours = loss.cells(toys.jax_engine().data, toys.jax_engine().data.start)
        data = toys.torch_engine().data
        np.testing.assert_allclose(loss.cells(data, data.start).numpy(), ours, rtol=0, atol=IDENTITY.absolute)
