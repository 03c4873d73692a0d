"""Vaccine, T-Vaccine, Booster and smoothed weights: closed forms on quadratics, probes on policies."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import once
from tests.strategies import probed, toys
from tradeoff.bridge.training import plain_descent, train
from tradeoff.dynamics import descend
from tradeoff.dynamics.engine import WHOLE, JaxEngine
from tradeoff.problems import quadratic
from tradeoff.strategies import SAFETY, TASK, Booster, Penalty, Smoothed, TVaccine, Vaccine, compose
from tradeoff.tolerances import DERIVATIVE, IDENTITY

QUAD = quadratic.golden()
AT = {WHOLE: jnp.array([0.4, 0.7])}
FAR = 4.0
"""A mean of many draws is this many standard errors off once in 16,000 times."""


def engine():
    return JaxEngine(QUAD, QUAD.theta_s, toys.KEY, toys.STEPS, toys.RATE)


def close(a, b, tolerance=IDENTITY):
    np.testing.assert_allclose(a, b, rtol=tolerance.relative, atol=tolerance.absolute)


def recorded(engine, loss):
    """The gradient of a loss, and where it was asked for."""
    asked = []

    def inner(at):
        asked.append(at)
        return engine.gradient(loss, at)

    return inner, asked


def on_policy(strategy, steps=toys.STEPS, **options):
    problem = probed.policy()
    start = problem.aligned() | {"map": jnp.zeros_like(problem.aligned()["map"])}
    settings = {
        "learning_rate": toys.RATE,
        "steps": steps,
        "every": steps,
        "start": start,
        "key": toys.KEY,
        "loss": SAFETY,
    }
    return descend(problem, strategy, **settings | options)


# Vaccine


def test_vaccine_on_weights_descends_the_loss_and_rho_times_the_length_of_its_gradient():
    """Exactly, on a quadratic; on a policy it does not."""
    rho, theta = 0.3, AT[WHOLE]
    sharp = jax.grad(
        lambda at: QUAD.gaps(at).capability + rho * jnp.linalg.norm(jax.grad(lambda t: QUAD.gaps(t).capability)(at))
    )
    inner, _ = recorded(engine(), TASK)
    close(Vaccine(rho, within="").gradient(inner, {}, AT, 0, engine())[WHOLE], sharp(theta), DERIVATIVE)

    toy = toys.jax_engine()
    inner, _ = recorded(toy, TASK)
    ours = Vaccine(rho, within="").gradient(inner, {}, toy.start, 0, toy)
    length = jax.grad(lambda at: toy.value(TASK, at) + rho * jnp.linalg.norm(toy.gradient(TASK, at)[WHOLE]))(toy.start)
    assert np.max(np.abs(ours[WHOLE] - length[WHOLE])) > 1e3 * IDENTITY.relative


def test_vaccine_perturbs_hidden_states_by_rho_all_probes_together_and_no_weight():
    rho, toy = 0.7, probed.jax_engine(map=jnp.zeros((toys.FEATURES, toys.RESPONSES)).at[0, 0].set(1.0))
    inner, asked = recorded(toy, SAFETY)
    gradient = Vaccine(rho).gradient(inner, {}, toy.start, 0, toy)
    clean, perturbed = asked
    pushed = {name: perturbed[name] - clean[name] for name in clean}
    close(sum(float(jnp.sum(array**2)) for array in pushed.values()) ** 0.5, rho)
    assert all(bool(jnp.any(array != 0)) == name.startswith("probe/") for name, array in pushed.items())
    # Each context by itself, as the published method perturbs each token.
    assert len(np.unique(np.linalg.norm(pushed["probe/map"], axis=1))) == toys.CONTEXTS
    # Along the gradient of the hidden states, not against it.
    assert all(float(jnp.sum(toy.gradient(SAFETY, clean)[name] * array)) >= 0 for name, array in pushed.items())
    assert all(not np.any(gradient[name]) for name in gradient if name.startswith("probe/"))


def test_vaccine_without_perturbation_is_plain_training_of_the_model_without_probes():
    problem = probed.policy().plain
    start = {"map": jnp.zeros((toys.FEATURES, toys.RESPONSES)), "bias": jnp.zeros((1, toys.RESPONSES))}
    weights = start
    for _ in range(3):

        def loss(at):
            policy = jax.nn.log_softmax(problem.features @ at["map"] + at["bias"], axis=-1)
            return SAFETY.value(toys.jax_engine().data, policy)

        weights = jax.tree.map(lambda w, g: w - toys.RATE * g, weights, jax.grad(loss)(weights))
    ours = on_policy(Vaccine(0.0), steps=3).parameters
    for name, array in weights.items():
        close(ours[name], array)
    assert np.max(np.abs(on_policy(Vaccine(0.5), steps=3).parameters["map"] - weights["map"])) > 1e3 * IDENTITY.relative


@pytest.mark.parametrize(
    "strategy",
    [
        Vaccine(0.5),
        TVaccine(0.5, layers=1, redraw=2, remeasure=4),
        TVaccine(0.5, layers=1, redraw=2, remeasure=4, within=""),
    ],
    ids=["vaccine", "t-vaccine", "t-vaccine-weights"],
)
def test_both_engines_perturb_the_same_way_and_train_no_probe(strategy):
    ours = descend(
        probed.policy(), strategy, learning_rate=toys.RATE, steps=toys.STEPS, every=toys.STEPS, key=toys.KEY
    ).parameters
    *_, last = train(probed.torch_engine(), strategy, plain_descent(toys.RATE))
    for name, tensor in last.weights.items():
        np.testing.assert_allclose(tensor.numpy(), ours[name], rtol=0, atol=IDENTITY.relative, err_msg=name)
        assert not name.startswith("probe/") or not np.any(ours[name])


def test_no_probe_is_trained_by_what_is_composed_with_it_either():
    ours = on_policy(compose(Vaccine(0.5), Penalty()), steps=2).parameters
    assert not np.any(ours["probe/map"])
    assert not np.any(ours["probe/bias"])


# T-Vaccine


def lengths_engine(lengths):
    """An engine whose harmful loss has gradients of given lengths in layers of one weight each."""
    names = [f"layer{place}" for place in range(len(lengths))]
    slopes = dict(zip(names, lengths, strict=True))
    start = {name: jnp.zeros(1) for name in names}
    return probed.Given(start, harmful=lambda at: sum(slopes[name] * jnp.sum(at[name]) for name in names))


def drawn(strategy, engine, steps):
    """Which layers are drawn, at many steps."""

    def at(step):
        return strategy.refresh(strategy.init(engine.start, engine), engine.start, step, engine)["drawn"]

    return np.asarray(once(jax.vmap(at))(jnp.arange(steps)))


def chances(weights, layers):
    """The chance of each layer when they are drawn one after the other without replacement, by all orders."""
    total = np.zeros(len(weights))
    for order in permutations(range(len(weights)), layers):
        chance, left = 1.0, 1.0
        for layer in order:
            chance, left = chance * weights[layer] / left, left - weights[layer]
        total[list(order)] += chance
    return total


def test_t_vaccine_draws_layers_as_often_as_their_gradients_are_long():
    lengths, steps, layers = np.array([0.5, 1.0, 3.0, 1.5]), 8000, 2
    often = drawn(TVaccine(layers=layers, redraw=1, remeasure=1, within=""), lengths_engine(lengths), steps)
    assert np.all(often.sum(axis=1) == layers)
    expected = chances(lengths / lengths.sum(), layers)
    error = np.sqrt(expected * (1 - expected) / steps)
    assert np.all(np.abs(often.mean(axis=0) - expected) < FAR * error)
    assert np.any(np.abs(often.mean(axis=0) - layers / len(lengths)) > FAR * error)  # nor is it the same for all
    assert np.any(np.abs(often.mean(axis=0) - layers * lengths / lengths.sum()) > FAR * error)  # nor with replacement


def test_t_vaccine_draws_layers_without_a_gradient_last():
    often = drawn(TVaccine(layers=2, redraw=1, remeasure=1, within=""), lengths_engine([0.0, 1.0, 1.0, 0.0]), 200)
    np.testing.assert_array_equal(often, np.tile([False, True, True, False], (200, 1)))
    none = drawn(TVaccine(layers=2, redraw=1, remeasure=1, within=""), lengths_engine([0.0, 0.0, 0.0]), 200)
    assert np.all(none.sum(axis=1) == 2)
    assert np.all(none.any(axis=0))


def test_t_vaccine_redraws_and_remeasures_when_it_is_time_only():
    strategy, toy = TVaccine(layers=1, redraw=2, remeasure=4, within=""), lengths_engine([1.0, 2.0, 1.5, 1.0])
    steep = probed.Given(toy.start, harmful=lambda at: sum(jnp.sum(jnp.exp(at[name])) for name in at))
    refresh = once(lambda state, weights, step: strategy.refresh(state, weights, step, steep))
    state, seen = strategy.init(toy.start, toy), []
    for step in range(8):
        weights = {name: array + 0.1 * step * (place + 1) for place, (name, array) in enumerate(toy.start.items())}
        state = refresh(state, weights, step)
        seen.append((state["lengths"].tolist(), state["drawn"].tolist()))
    lengths, layers = zip(*seen, strict=True)
    assert [lengths[step] != lengths[step - 1] for step in range(1, 8)] == [step == 4 for step in range(1, 8)]
    assert all(layers[step] == layers[step - 1] for step in (1, 3, 5, 7))
    assert any(layers[step] != layers[step - 1] for step in (2, 4, 6))


def test_t_vaccine_on_all_layers_is_vaccine():
    whole = on_policy(TVaccine(0.5, layers=2), steps=4).parameters
    vaccine = on_policy(Vaccine(0.5), steps=4).parameters
    for name, array in vaccine.items():
        close(whole[name], array)
    part = on_policy(TVaccine(0.5, layers=1), steps=4).parameters
    assert np.max(np.abs(part["map"] - vaccine["map"])) > 1e3 * IDENTITY.relative


def test_t_vaccine_trains_the_layers_that_are_drawn_only_whatever_the_optimiser():
    """The weights of a layer are those of its probe's name; an optimiser with a memory moves them without a gradient too."""
    strategy, toy = TVaccine(0.5, layers=1, redraw=1), probed.jax_engine()
    state, seen = strategy.init(toy.start, toy), set()
    inner, _ = recorded(toy, TASK)
    for step in range(4):
        state = strategy.refresh(state, toy.start, step, toy)
        trained = {name for name, on in zip(("bias", "map"), state["drawn"].tolist(), strict=True) if on}
        gradient = strategy.gradient(inner, state, toy.start, step, toy)
        landed, _ = strategy.land(state, toy.start, {n: array + 1 for n, array in toy.start.items()}, step, toy)
        for name, array in toy.start.items():
            moves = name in trained
            assert bool(np.any(gradient[name] != 0)) == moves
            np.testing.assert_array_equal(landed[name], array + float(moves))
        seen.add(tuple(state["drawn"].tolist()))
    assert len(seen) == 2


# Booster


def test_booster_adds_the_gradient_of_the_length_of_the_harmful_gradient():
    """Exactly for a quadratic harmful loss; for a quartic one the step is felt."""
    H, lam, alpha = QUAD.H_s, 5.0, 0.1
    centre = jnp.array([-1.0, 2.0])
    losses = {
        "safety": lambda at: QUAD.gaps(at[WHOLE]).capability,
        "harmful": lambda at: (at[WHOLE] - centre) @ H @ (at[WHOLE] - centre) / 2,
    }

    def gradients(losses):
        toy = probed.Given(AT, **losses)
        ours = Booster(lam, alpha).gradient(lambda at: toy.gradient(SAFETY, at), {}, AT, 0, toy)
        slope = jax.grad(losses["harmful"])
        penalised = jax.grad(lambda at: losses["safety"](at) + lam * alpha * jnp.linalg.norm(slope(at)[WHOLE]))(AT)
        return ours[WHOLE], penalised[WHOLE]

    close(*gradients(losses), DERIVATIVE)
    ours, penalised = gradients(losses | {"harmful": lambda at: losses["harmful"](at) ** 2})
    assert np.max(np.abs(ours - penalised)) > 1e3 * IDENTITY.relative


def test_booster_takes_no_harmful_step_where_there_is_no_harmful_gradient():
    toy = probed.Given(
        AT, safety=lambda at: jnp.sum(at[WHOLE] ** 2), harmful=lambda at: jnp.sum((at[WHOLE] - AT[WHOLE]) ** 2)
    )
    ours = Booster().gradient(lambda at: toy.gradient(SAFETY, at), {}, AT, 0, toy)
    close(ours[WHOLE], 2 * AT[WHOLE])


# Smoothed weights


def test_smoothing_adds_the_curvature_to_the_loss_of_a_quadratic_and_nothing_to_its_gradient():
    sigma, draws, toy = 0.5, 4000, engine()
    inner, _ = recorded(toy, TASK)
    slopes = jax.vmap(lambda step: Smoothed(sigma).gradient(inner, {}, AT, step, toy)[WHOLE])(jnp.arange(draws))
    error = np.std(slopes, axis=0) / np.sqrt(draws)
    assert np.all(np.abs(np.mean(slopes, axis=0) - toy.gradient(TASK, AT)[WHOLE]) < FAR * error)

    z = jax.vmap(lambda step: toy.normal("smoothed 0", step, AT)[WHOLE])(jnp.arange(draws))
    rise = jax.vmap(lambda noise: QUAD.gaps(AT[WHOLE] + sigma * noise).capability)(z) - QUAD.gaps(AT[WHOLE]).capability
    expected, error = sigma**2 * jnp.trace(QUAD.H_f) / 2, np.std(rise) / np.sqrt(draws)
    assert abs(np.mean(rise) - expected) < FAR * error
    assert abs(np.mean(rise)) > FAR * error


def test_smoothing_bends_the_gradient_where_curvature_varies():
    """A quartic of one weight: the smoothed gradient is x³ + 3σ²x, here 4 and not 1."""
    at, draws = {WHOLE: jnp.array(1.0)}, 4000
    toy = probed.Given(at, task=lambda at: at[WHOLE] ** 4 / 4)
    inner, _ = recorded(toy, TASK)
    slopes = jax.vmap(lambda step: Smoothed(1.0).gradient(inner, {}, at, step, toy)[WHOLE])(jnp.arange(draws))
    assert abs(np.mean(slopes) - 4) < FAR * np.std(slopes) / np.sqrt(draws)


def test_smoothing_averages_its_draws():
    toy = engine()
    inner, asked = recorded(toy, TASK)
    ours = Smoothed(0.5, samples=3).gradient(inner, {}, AT, 2, toy)[WHOLE]
    noise = jnp.stack([at[WHOLE] - AT[WHOLE] for at in asked])
    assert len(np.unique(noise[:, 0])) == 3
    close(ours, toy.gradient(TASK, AT)[WHOLE] + QUAD.H_f @ jnp.mean(noise, axis=0))


# Bad settings


def test_a_model_without_what_is_to_be_perturbed_is_refused():
    toy = engine()
    with pytest.raises(
        ValueError, match="Vaccine perturbs the arrays whose names begin with 'probe/', and the model has none"
    ):
        Vaccine().init(AT, toy)
    with pytest.raises(ValueError, match="layers=8 and the model has 1 to draw from"):
        TVaccine(within="").init(AT, toy)
    only_probes = {"probe/x": jnp.zeros(1)}
    with pytest.raises(ValueError, match="begin with ''"):
        Vaccine(within="").init(only_probes, toy)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Vaccine(-1.0), "rho=-1.0; the length of the perturbation must be finite"),
        (lambda: TVaccine(float("nan")), "rho=nan"),
        (lambda: TVaccine(layers=0), "layers=0, redraw=20, remeasure=200; each must be at least 1"),
        (lambda: TVaccine(redraw=0), "redraw=0"),
        (lambda: Booster(lam=-1.0), "lam=-1.0"),
        (lambda: Booster(alpha=float("inf")), "alpha=inf"),
        (lambda: Smoothed(-0.1), "sigma=-0.1"),
        (lambda: Smoothed(samples=0), "samples=0; give at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
