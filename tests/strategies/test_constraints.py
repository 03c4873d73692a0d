"""The framework's own strategies against its closed forms, and their two older relatives."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.strategies import toys
from tradeoff import frontier, loss_constraint, worlds
from tradeoff.dynamics import descend
from tradeoff.dynamics.engine import WHOLE
from tradeoff.parameter_constraint import penalised_path, soft_path, solve
from tradeoff.problems import Quadratic, Tabular, quadratic
from tradeoff.strategies import EWC, L2SP, Ball, Penalty, SafetyConstraint
from tradeoff.strategies.constraints import fisher
from tradeoff.tolerances import FLOW, IDENTITY, PRINTED, ROOT, agree

DIAGONAL = Quadratic([[3.0, 0.4], [0.4, 1.0]], [1.0, -1.0], [[2.0, 0.0], [0.0, 0.5]], [0.2, 0.1])
"""Task and safety Hessian do not commute, and the safety one is diagonal, as a diagonal Fisher information is."""


def settled(problem, strategy, rate, steps=400):
    return descend(problem, strategy, learning_rate=rate, steps=steps, every=steps)


def opposed(quad, theta):
    """The cosine of the two gradients: -1 on the Pareto front alone."""
    task, safety = quad.H_f @ (theta - quad.theta_f), quad.H_s @ (theta - quad.theta_s)
    return float(task @ safety / jnp.linalg.norm(task) / jnp.linalg.norm(safety))


# --- Case I -----------------------------------------------------------------------------------------------------


def test_a_penalty_ends_at_the_mixture():
    world, lam = worlds.golden(), 0.5
    run, exact = settled(Tabular(world), Penalty(lam), 3.0), loss_constraint.gaps(world, [lam, 1.1 * lam])
    assert abs(run.gaps.safety[-1] - exact.safety[0]) < FLOW.absolute
    assert abs(run.gaps.capability[-1] - exact.capability[0]) < FLOW.absolute
    assert abs(run.gaps.safety[-1] - exact.safety[1]) > 1e3 * FLOW.absolute


def test_a_penalty_ends_on_the_quadratic_front():
    quad, lam = quadratic.golden(), 0.5
    run = settled(quad, Penalty(lam), 0.3)
    optimum = jnp.linalg.solve(quad.H_f + lam * quad.H_s, quad.H_f @ quad.theta_f + lam * quad.H_s @ quad.theta_s)
    np.testing.assert_allclose(run.exported, optimum, rtol=IDENTITY.relative)
    np.testing.assert_allclose(run.gaps.safety[-1], penalised_path(quad, lam).gaps.safety, rtol=IDENTITY.relative)
    assert not agree(float(run.gaps.safety[-1]), float(penalised_path(quad, 2 * lam).gaps.safety), ROOT)


def test_a_constraint_ends_at_the_exact_frontier_with_its_slope_as_multiplier():
    """G_s = τ, G_f = F(τ) and λ = -F'(τ)."""
    world, tau = worlds.golden(), 0.1
    run = settled(Tabular(world), SafetyConstraint(tau), 3.0)
    assert abs(run.gaps.safety[-1] - tau) < FLOW.absolute
    assert abs(run.gaps.capability[-1] - frontier.exact(world, [1.0]).capability_at(tau)) < FLOW.absolute
    multiplier = float(run.last.state["multiplier"])
    assert agree(multiplier, float(loss_constraint.penalty_for(world, safety_gap=tau)), ROOT)
    assert not agree(multiplier, float(loss_constraint.penalty_for(world, safety_gap=1.01 * tau)), ROOT)


def test_a_constraint_that_does_not_bind_has_no_multiplier():
    quad = quadratic.golden()
    unconstrained = quad.gaps(quad.theta_f).safety
    run = settled(quad, SafetyConstraint(2 * float(unconstrained)), 0.3)
    assert run.last.state["multiplier"] == 0
    np.testing.assert_allclose(run.exported, quad.theta_f, rtol=IDENTITY.relative)
    bound = settled(quad, SafetyConstraint(float(unconstrained) / 2, rate=0.1), 0.1, 1000)
    assert bound.last.state["multiplier"] > 0.1
    np.testing.assert_allclose(bound.gaps.safety[-1], unconstrained / 2, rtol=ROOT.relative)
    assert opposed(quad, bound.exported) < -1 + FLOW.absolute


# --- Case II ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.5, 2.0])
def test_a_ball_ends_at_the_trust_region_point(radius):
    """Also where it holds nothing: the task's optimum lies at 1.41."""
    quad = quadratic.golden()
    run, exact = settled(quad, Ball(radius), 0.3), solve(quad, radius)
    np.testing.assert_allclose(run.exported, quad.theta_s + exact.displacement, rtol=ROOT.relative)
    inside = solve(quad, 0.99 * radius)
    if radius == 0.5:  # the golden numbers of T14(a)
        assert agree(float(run.gaps.safety[-1]), 0.178287182158, PRINTED)
        assert agree(float(run.gaps.capability[-1]), 0.759531559938, PRINTED)
    assert agree(float(run.gaps.safety[-1]), float(inside.gaps.safety), ROOT) == (radius == 2.0)


def test_a_pull_to_the_start_ends_at_the_ridge_point():
    """(A + μI)^-1 (A a + μ b), which is the soft path; an endless pull stays."""
    quad, mu = quadratic.golden(), 0.7
    run, eye = settled(quad, L2SP(mu), 0.3), jnp.eye(2)
    ridge = jnp.linalg.solve(quad.H_f + mu * eye, quad.H_f @ quad.theta_f + mu * quad.theta_s)
    np.testing.assert_allclose(run.exported, ridge, rtol=IDENTITY.relative)
    np.testing.assert_allclose(run.exported, quad.theta_s + soft_path(quad, mu).displacement, rtol=IDENTITY.relative)
    strong = settled(quad, L2SP(1e8), 1e-8).exported
    np.testing.assert_allclose(strong, quad.theta_s, atol=ROOT.relative)


def test_elastic_weights_end_where_their_information_says():
    """(A + νF)^-1 (A a + ν b F), and with the exact safety Hessian on the Pareto front."""
    quad, nu = DIAGONAL, 0.7
    for F, on_front in ((jnp.diagonal(quad.H_s), True), (jnp.ones(2), False)):
        run = settled(quad, EWC(nu, {WHOLE: F}), 0.3)
        optimum = jnp.linalg.solve(quad.H_f + nu * jnp.diag(F), quad.H_f @ quad.theta_f + nu * F * quad.theta_s)
        np.testing.assert_allclose(run.exported, optimum, rtol=IDENTITY.relative)
        assert (opposed(quad, run.exported) < -1 + FLOW.absolute) == on_front
        if on_front:
            np.testing.assert_allclose(
                run.gaps.safety[-1], penalised_path(quad, nu).gaps.safety, rtol=IDENTITY.relative
            )


def test_the_information_of_a_softmax_in_closed_form():
    r"""$E_{\hat p_s}\varphi_i^2\pi_k(1-\pi_k)$ in both engines, and it is what importance `None` means."""
    engine, features = toys.jax_engine(), toys.problem()[0].features
    policy, p = jnp.exp(engine.data.start), jnp.sum(engine.data.safety, axis=-1)
    exact = (features**2).T @ (p[:, None] * policy * (1 - policy))
    np.testing.assert_allclose(EWC().init(engine.start, engine)["importance"][WHOLE], exact, rtol=IDENTITY.relative)
    torch_engine = toys.torch_engine()
    np.testing.assert_allclose(fisher(torch_engine, torch_engine.start)[WHOLE].numpy(), exact, rtol=IDENTITY.relative)
    uniform = (features**2).T @ (policy * (1 - policy) / 3)
    assert jnp.max(jnp.abs(uniform - exact)) > ROOT.relative


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Penalty(-1.0), "lam=-1.0; the penalty λ must be finite and at least 0"),
        (lambda: Penalty(float("inf")), "lam=inf"),
        (lambda: SafetyConstraint(0.0), "limit=0.0; the safety gap that is allowed, in nats, must be positive"),
        (lambda: SafetyConstraint(0.1, rate=0.0), "rate=0.0; the rate of the multiplier must be positive"),
        (lambda: Ball(0.0), "radius=0.0; the radius ε must be positive"),
        (lambda: Ball(float("nan")), "radius=nan"),
        (lambda: L2SP(-1.0), "strength=-1.0; μ must be finite and at least 0"),
        (lambda: EWC(-1.0), "strength=-1.0; ν must be finite and at least 0"),
    ],
)
def test_bad_settings_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_information_of_another_model_is_refused():
    with pytest.raises(ValueError, match="parameters has shape"):
        settled(quadratic.golden(), EWC(1.0, {WHOLE: jnp.ones(3)}), 0.3)
    with pytest.raises(ValueError, match="is in one only"):
        settled(quadratic.golden(), EWC(1.0, {"other": jnp.ones(2)}), 0.3)
    with pytest.raises(ValueError, match="give a problem with a policy"):
        settled(quadratic.golden(), EWC(1.0), 0.3)
