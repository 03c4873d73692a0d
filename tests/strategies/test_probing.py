"""Safety-aware probing: its closed form on a probed quadratic, and the released code against torch's own AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.strategies import probed, toys
from tradeoff.bridge.training import plain_descent, train
from tradeoff.dynamics import descend
from tradeoff.dynamics.engine import JaxEngine
from tradeoff.problems import Quadratic
from tradeoff.strategies import SAFETY, TASK, registry
from tradeoff.strategies.probing import CONTRAST, DIFFERENCE, SAP, SAPReleased
from tradeoff.tolerances import BOUND, IDENTITY

EPS, BETA, WIDTH, PROBES = 0.3, 0.7, 4, 2


def instance(seed):
    """A probed quadratic and weights somewhere; `A` and `B` are its Hessians."""
    rng = np.random.default_rng(seed)
    A, B = (root @ root.T for root in rng.normal(size=(2, WIDTH, WIDTH)))
    quad = Quadratic(A, rng.normal(size=WIDTH), B, rng.normal(size=WIDTH))
    problem = probed.ProbedQuadratic(quad, jnp.asarray(rng.normal(size=(WIDTH, PROBES))))
    return problem, {"w": jnp.asarray(rng.normal(size=WIDTH)), "probe/v": jnp.zeros(PROBES)}


def asked(strategy, problem, weights):
    """The gradient of the strategy, that of the task, that of the safety loss, and the probe that was in place."""
    engine, seen = JaxEngine(problem, problem.aligned(), toys.KEY, toys.STEPS, toys.RATE), []

    def inner(at):
        seen.append(at)
        return engine.gradient(TASK, at)

    ours = strategy.gradient(inner, {}, weights, 0, engine)
    assert not np.any(ours["probe/v"])
    return ours["w"], engine.gradient(TASK, weights)["w"], engine.gradient(SAFETY, weights)["w"], seen[-1]["probe/v"]


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=IDENTITY.relative, atol=IDENTITY.relative)


def test_the_probe_and_the_gradient_are_the_closed_form_on_a_quadratic():
    problem, weights = instance(0)
    A, C = problem.quad.H_f, problem.C
    ours, task, guard, probe = asked(SAP(EPS, BETA, SAFETY), problem, weights)
    unit = guard / jnp.linalg.norm(guard)
    close(probe, BETA * EPS * C.T @ A @ unit)
    close(ours, task + BETA * EPS * A @ C @ C.T @ A @ unit)


def test_what_it_adds_never_points_against_the_safety_gradient():
    """The task's own gradient does, on some of the same instances."""
    conflicts = 0
    for seed in range(12):
        ours, task, guard, _ = asked(SAP(EPS, BETA, SAFETY), *instance(seed))
        assert float(jnp.dot(ours - task, guard)) >= -BOUND.absolute
        conflicts += float(jnp.dot(task, guard)) < 0
    assert conflicts > 0


def test_it_is_blind_to_safety_outside_the_range_of_the_probes():
    problem, _ = instance(1)
    A, B, C = problem.quad.H_f, problem.quad.H_s, problem.C
    outside = np.linalg.svd(np.asarray(A @ C))[0][:, -1]  # orthogonal to the columns of A C
    for guard, seen in ((outside, False), (outside + np.asarray(A @ C)[:, 0], True)):
        weights = {"w": problem.quad.theta_s + jnp.linalg.solve(B, jnp.asarray(guard)), "probe/v": jnp.zeros(PROBES)}
        ours, task, _, _ = asked(SAP(EPS, BETA, SAFETY), problem, weights)
        assert bool(np.max(np.abs(ours - task)) > IDENTITY.relative) == seen


def test_it_is_plain_without_harmful_step_without_probe_step_and_where_the_safety_gradient_is_none():
    problem, weights = instance(2)
    for strategy in (SAP(0.0, BETA, SAFETY), SAP(EPS, 0.0, SAFETY)):
        ours, task, _, _ = asked(strategy, problem, weights)
        np.testing.assert_array_equal(ours, task)
    ours, task, guard, _ = asked(SAP(EPS, BETA, SAFETY), problem, problem.aligned())
    assert not np.any(guard)
    np.testing.assert_array_equal(ours, task)
    ours, task, _, _ = asked(SAP(EPS, BETA, SAFETY), problem, weights)
    assert np.any(ours != task)


def by_jax(strategy):
    problem = probed.policy()
    return descend(problem, strategy, learning_rate=toys.RATE, steps=toys.STEPS, every=toys.STEPS, key=toys.KEY)


def by_torch(strategy):
    *_, last = train(probed.torch_engine(), strategy, plain_descent(toys.RATE))
    return last.weights


@pytest.mark.parametrize("strategy", [SAP(EPS, BETA), SAPReleased(0.1, 0.2)], ids=["sap", "sap-released"])
def test_both_engines_probe_the_same_way_and_train_no_probe(strategy):
    ours, theirs, off = by_jax(strategy), by_torch(strategy), by_torch(SAP(0.0))
    for name, tensor in theirs.items():
        np.testing.assert_allclose(tensor.numpy(), ours.parameters[name], rtol=0, atol=IDENTITY.relative, err_msg=name)
        np.testing.assert_array_equal(ours.exported[name], ours.parameters[name])
        assert not name.startswith("probe/") or not np.any(ours.parameters[name])
    assert np.max(np.abs(theirs["map"].numpy() - off["map"].numpy())) > 1e3 * IDENTITY.relative


def test_the_rows_are_plain_when_they_are_off():
    """All of them agree with training that leaves the probes out of the weights."""
    plain = toys.problem()[0]
    weights = {name: array for name, array in probed.policy().aligned().items() if not name.startswith("probe/")}
    engine = toys.jax_engine()
    for _ in range(toys.STEPS):
        slope = jax.grad(
            lambda at: TASK.value(engine.data, jax.nn.log_softmax(plain.features @ at["map"] + at["bias"], axis=-1))
        )(weights)
        weights = jax.tree.map(lambda w, g: w - toys.RATE * g, weights, slope)
    for name in ("sap", "sap-released"):
        off = registry.get(name).off
        assert not isinstance(off, str)
        ours = by_torch(off({}))
        for which, array in weights.items():
            close(ours[which].numpy(), array)


def test_the_released_code_steps_with_the_last_probe_and_makes_the_next_by_adamw():
    """Its loop in torch, written as it is there, with torch's optimisers; the probe is ±rate whatever the slope is."""
    eps, rate = 0.1, 0.05
    engine = probed.torch_engine()
    *_, last = train(engine, SAPReleased(eps, rate), plain_descent(toys.RATE))

    weights = {name: tensor.clone().requires_grad_() for name, tensor in engine.start.items()}
    probe = [weights[name] for name in weights if name.startswith("probe/")]
    trained = [weights[name] for name in weights if not name.startswith("probe/")]
    descent, adamw = torch.optim.SGD(trained, lr=toys.RATE), torch.optim.AdamW(probe, lr=rate)

    def log_policy():
        features = torch.from_numpy(np.array(probed.policy().plain.features))
        return torch.log_softmax(probed.logits(features, weights), dim=-1)

    probes = []
    for _ in range(toys.STEPS):
        harm = torch.autograd.grad(CONTRAST.value(engine.data, log_policy()), trained)
        size = sum(float((g**2).sum()) for g in harm) ** 0.5
        length = sum(float((w**2).sum().detach()) for w in trained) ** 0.5
        with torch.no_grad():
            before = [w.clone() for w in trained]
            for w, g in zip(trained, harm, strict=True):
                w += eps * length * g / size
        raised = torch.autograd.grad(-TASK.value(engine.data, log_policy()), probe)
        with torch.no_grad():
            for w, old in zip(trained, before, strict=True):
                w.copy_(old)
        TASK.value(engine.data, log_policy()).backward()
        for v, slope in zip(probe, raised, strict=True):
            assert v.grad is not None
            v.grad += slope
        descent.step()
        with torch.no_grad():
            for v in probe:
                v.zero_()
        adamw.step()
        probes.append(probe[0].detach().clone())
        descent.zero_grad()
        adamw.zero_grad()
    for name, tensor in last.weights.items():
        if not name.startswith("probe/"):
            close(tensor.numpy(), weights[name].detach().numpy())
    for name, tensor in last.state["probe"].items():
        close(tensor.numpy(), weights[name].detach().numpy())
    moved = probes[0].abs()[probes[0].abs() > rate / 2]
    assert len(moved) > 0
    assert float(moved.min()) > 0.9 * rate


def test_the_contrast_is_differentiated_by_its_cells():
    engine = toys.jax_engine()
    tilted = {name: 0.3 * array for name, array in engine.start.items()}
    for loss in (CONTRAST, DIFFERENCE):
        whole = jax.grad(lambda at, loss=loss: loss.value(engine.data, engine.log_policy(at)))(tilted)
        for name, slope in engine.gradient(loss, tilted).items():
            close(slope, whole[name])


def test_the_contrast_of_one_pair_is_the_loss_of_its_ranking():
    """One prompt, two answers, the first always safe: the harmful answer is the other one."""
    data = toys.jax_engine().data._replace(safety=jnp.array([[1.0, 0.0]]), harmful=jnp.array([[0.0, 1.0]]))
    policy = jnp.log(jnp.array([[0.8, 0.2]]))
    close(CONTRAST.value(data, policy), -np.log(0.8))
    close(CONTRAST.cells(data, policy), [[0.2, -0.2]])


@pytest.mark.parametrize("strategy", [SAP(EPS), SAPReleased()], ids=["sap", "sap-released"])
def test_a_model_without_probes_is_refused(strategy):
    engine = toys.jax_engine()
    with pytest.raises(ValueError, match="moves hidden states, and the model exposes none"):
        strategy.init(engine.start, engine)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SAP(-1.0), "SAP was given eps=-1.0"),
        (lambda: SAP(0.1, beta=float("nan")), "beta=nan"),
        (lambda: SAPReleased(eps=-1.0), "SAPReleased was given eps=-1.0"),
        (lambda: SAPReleased(rate=-0.1), "rate=-0.1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
