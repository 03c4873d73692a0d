"""The laws of published methods: each wrong by one slip of the pen is rejected."""

import jax
import jax.numpy as jnp
import pytest

from tests.theorems.mutants import wrong
from tradeoff import citations, theorems
from tradeoff.problems import quadratic
from tradeoff.problems.quadratic import half_square, length
from tradeoff.theorems import methods_averaging as averaging
from tradeoff.theorems import methods_barrier as barriers
from tradeoff.theorems import methods_basin as basin
from tradeoff.theorems import methods_fixed_points as fixed_points
from tradeoff.theorems import methods_front as front
from tradeoff.theorems import methods_guarded as guarded
from tradeoff.theorems import methods_interference as interference
from tradeoff.theorems import methods_layers as layers
from tradeoff.theorems import registry
from tradeoff.theorems._linear import covariance_of, end_of, power, solved
from tradeoff.theorems.methods_instances import at_label, front_displacement
from tradeoff.theorems.registry import found_in

CLAIMS = [claim for module in registry.MODULES if ".methods_" in module.__name__ for claim in found_in(module)]
MUTANTS = {}


def slip(name, what, relation="=="):
    """Register a law written with a mistake in it."""

    def make(sides):
        MUTANTS[f"{name}: {what}"] = lambda: wrong(name, what, sides, relation)
        return sides

    return make


def part(name, which, instance):
    """Both sides of one part of a registered claim."""
    claim = theorems.get(name)
    at = claim.parts.index(which) if which else 0
    return tuple(jnp.atleast_1d(side)[at] for side in claim.sides(instance))


def scaled(name, which, factor, relation=None):
    """Register a claim with one of its bounds or values multiplied by a constant."""
    claim = theorems.get(name)
    own = claim.relations[claim.parts.index(which)] if which else claim.relations[0]

    def sides(instance):
        left, right = part(name, which, instance)
        return left, factor * right

    slip(name, f"{which} x {factor:g} {relation or ''}", relation or own)(sides)


def apart(v, w, unit):
    """One plus a relative distance, against one."""
    return 1 + jnp.sqrt(jnp.sum((v - w) ** 2)) / unit, jnp.ones(())


# --- constants a little off, relations flipped ------------------------------------------------------------------

scaled("front", "no point is better", 1.1)
scaled("filters-null", "not past the optimum", 1.1)
scaled("square-root", "on the front", 0.99)
scaled("dare-variance", "never better", 1.0, "<=")
scaled("slerp-lerp", "", 2.0)
scaled("sap", "never against safety", 1.0, "<=")
scaled("curvature-step", "spends the budget", 2.0)
scaled("curvature-step", "no direction does more", 1.01)
scaled("quartic-onset", "", 2.0)
scaled("quartic-turning", "exact", 0.5)
scaled("ema-flow", "onset", 2.0)
scaled("ema-jensen", "Jensen", 1.0, ">=")
scaled("noise-law", "accumulation", 0.5)
scaled("ema-noise", "quieter", 0.9)
scaled("lb-sgd-halving", "first constraint", 1.05)
scaled("lb-sgd-halving", "barrier falls", 2.1)
scaled("lb-sgd-barrier", "gap", 0.5)
scaled("star-dss-kl", "lifted at least to", 1.01)
scaled("star-dss-k2", "meets the mixture", 1.1)
scaled("dpo-margin", "weight at the reference", 2.0)
scaled("constrained-sft", "rate", 0.5)
scaled("constrained-sft", "ceiling", 0.9)
scaled("constrained-sft-growth", "time", 2.0)
scaled("constrained-sft-growth", "at most", 0.9)
scaled("lookahead", "its length", 0.5)
scaled("safe-lora", "cosine", 1.0, "<=")
scaled("basin", "certificate", 1.05)
scaled("basin", "Lipschitz", 0.5)


# --- factors and powers dropped, roles exchanged, signs turned --------------------------------------------------


@slip("front", "ν upside down", "<=")
def _(i):
    at = i.quad.theta_s + front_displacement(i.quad, 1 / i.lam)
    return i.quad.objective(at, i.lam), i.quad.objective(i.theta, i.lam)


@slip("front-ends", "the pseudo-inverse at the task's end")
def _(i):
    values, U = quadratic.spectrum(i.quad.H_f)
    flat = U * jnp.where(values > 2.0**-42 * values[-1], 0.0, 1.0)[None, :]
    d = i.quad.displacement
    end = front_displacement(i.quad, jnp.float64(1e-9))
    return apart(end, d - flat @ (flat.T @ d), length(d))


def filtered(f):
    """A filter in place of descent's or of L2-SP's."""

    def sides(i):
        values, U = quadratic.spectrum(i.quad.H_f)
        e = -i.quad.displacement
        run, kept = f(i, values, e)
        return apart(run, U @ (kept * (U.T @ e)), length(e))

    return sides


slip("filters", "one step more")(
    filtered(lambda i, a, e: (front.descend(i)[0] - i.quad.theta_f, power(1 - i.step * a, i.steps + 1)))
)
slip("filters", "descent as a flow")(
    filtered(lambda i, a, e: (front.descend(i)[0] - i.quad.theta_f, jnp.exp(-i.step * a * i.steps.astype(jnp.float64))))
)
slip("filters", "half the pull")(
    filtered(lambda i, a, e: (
        solved(i.quad.H_f + i.strength * jnp.eye(3), i.strength * e), i.strength / (2 * a + i.strength)
    ))
)  # fmt: skip


@slip("filter-pareto", "safety curvature dropped")
def _(i):
    A, B, e = front._matrices(i)
    kept = i.strength / (i.alpha + i.strength)
    return apart(solved(A + i.strength * B, i.strength * (B @ e)), i.axes @ (kept * i.along), 1.0)


@slip("l2sp-on-front", "ν times the curvature instead of over it")
def _(i):
    A, B, e = front._matrices(i)
    nu = i.strength * i.beta[0]
    pulled = solved(A + i.strength * jnp.eye(3), i.strength * e)
    return apart(pulled, solved(A + nu * B, nu * (B @ e)), 1.0)


@slip("interpolation-on-front", "λ for 1 - λ")
def _(i):
    d = i.quad.displacement
    nu = i.share / (1 - i.share) * length(i.quad.pull) / length(i.quad.H_s @ d)
    return apart(i.share * d, front_displacement(i.quad, nu), length(d))


@slip("square-root", "without roots")
def _(i):
    d, at = i.quad.displacement, i.quad.gaps(i.quad.theta_s + i.share * i.quad.displacement)
    return at.capability / half_square(i.quad.H_f, d) + at.safety / half_square(i.quad.H_s, d), jnp.ones(())


@slip("dare-variance", "p for p/(1-p)")
def _(i):
    left, right = part("dare-variance", "loss", i)
    plain = part("dare-variance", "never better", i)[1]
    return left, plain + (1 - i.drop) * (right - plain)


@slip("dare-variance", "λ for λ²")
def _(i):
    left, right = part("dare-variance", "loss", i)
    plain = part("dare-variance", "never better", i)[1]
    return left, plain + (right - plain) / i.share


@slip("lisa", "a one-sided pull")
def _(i):
    A, B, d = i.quad.H_f, i.quad.H_s, i.quad.displacement
    stated = solved(A + i.strength * jnp.eye(3), A @ d)
    return apart(fixed_points._lisa(Quadratic(A, d, B), i.strength)[1], stated, length(d))


def Quadratic(H_f, d, H_s):  # noqa: N802 (a pair aligned at zero)
    return quadratic.Quadratic(H_f, d, H_s, jnp.zeros(3))


@slip("booster", "the square of the norm")
def _(i):
    slope = i.H @ i.weights
    bracket = slope - i.H @ (i.weights - i.reach * slope / length(slope))
    stated = i.reach * jax.grad(lambda w: jnp.sum((i.H @ w) ** 2))(i.weights)
    return apart(bracket, stated, length(i.H) * (length(i.weights) + i.reach))


@slip("sap", "the task's curvature once")
def _(i):
    unit = i.slope / length(i.slope)
    probe = i.reach * (i.C.T @ (i.A @ unit))
    step = i.A @ (i.way + i.C @ probe)
    stated = i.A @ i.way + i.reach * (i.C @ (i.C.T @ (i.A @ unit)))
    return apart(step, stated, length(step))


@slip("quartic-onset", "the wrong curvature")
def _(i):
    left, right = part("quartic-onset", "", i)
    return left, right * (i.A[1, 1] / i.A[0, 1]) ** 2


@slip("ema-filter", "dropped r")
def _(i):
    r = 1 - i.step * i.alpha
    run, size = averaging._average(r, i.eta, i.steps)
    return run / size, (power(i.eta, i.steps) + (1 - i.eta) * averaging._quotient(r, i.eta, i.steps)) / size


@slip("ema-filter", "dropped 1 - η")
def _(i):
    r = 1 - i.step * i.alpha
    run, size = averaging._average(r, i.eta, i.steps)
    return run / size, (power(i.eta, i.steps) + r * averaging._quotient(r, i.eta, i.steps)) / size


@slip("ema-flow", "swapped rates")
def _(i):
    right = (i.alpha * jnp.exp(-i.alpha * i.time) - i.rate * jnp.exp(-i.rate * i.time)) / (i.alpha - i.rate)
    return averaging._follows(i.alpha, i.rate, i.time), right


@slip("ema-in-loop", "η for 1 - η")
def _(i):
    averaged, _ = averaging._train(i, i.step, i.eta)
    return apart(averaged, averaging._train(i, i.eta * i.step, jnp.zeros(()))[0], length(i.start))


@slip("ema-to-start", "μ = η/h")
def _(i):
    A, d, eta = i.quad.H_f, i.quad.displacement, i.share
    ended = end_of((1 - eta) * (jnp.eye(3) - i.step * A), (1 - eta) * i.step * (A @ d))
    return apart(ended, solved(A + eta / i.step * jnp.eye(3), A @ d), length(d))


@slip("noise-law", "the flow's floor")
def _(i):
    r = 1 - i.step * i.alpha[0]
    floor = covariance_of(r[None, None], i.step**2 * jnp.ones((1, 1)))[0, 0]
    return floor, i.step / (2 * i.alpha[0])


@slip("ema-noise", "independent weights")
def _(i):
    left, _ = part("ema-noise", "average", i)
    return left, part("ema-noise", "weights", i)[1] * (1 - i.eta) / (1 + i.eta)


@slip("lb-sgd-halving", "a step twice as long", ">=")
def _(i):
    step, *_ = barriers.barrier_step(i)
    rise = i.slopes[0] @ (2 * step) + jnp.dot(2 * step, i.Hs[0] @ (2 * step)) / 2
    return (i.slack[0] - rise) / i.slack[0], jnp.float64(0.5)


@slip("lb-sgd-barrier", "2η for 4η")
def _(i):
    alpha = (jnp.sqrt(i.beyond**2 + 2 * i.eta) - i.beyond) / 2
    return i.eta / alpha, i.beyond + alpha


@slip("interference", "divided by the harmful length")
def _(i):
    moved = interference._fine_tune(i, jnp.array([1.0, 0.0]))
    kappa = jnp.dot(i.harmful, i.benign[0]) / jnp.sum(i.harmful**2)
    return apart(i.harmful @ moved, kappa * (i.benign[0] @ moved), length(i.harmful) * length(moved))


@slip("interference", "one context's law for two")
def _(i):
    moved = interference._fine_tune(i, jnp.array([1.0, 1.0]))
    kappa = jnp.dot(i.harmful, i.benign[0]) / jnp.sum(i.benign[0] ** 2)
    return apart(i.harmful @ moved, kappa * (i.benign[0] @ moved), length(i.harmful) * length(moved))


@slip("star-dss-kl", "λ dropped", ">=")
def _(i):
    V, held = i.value, (1 - i.value) * i.strength
    stated = guarded.mixture(i.reference, i.label, V, jnp.ones(()))

    def loss(log_p):
        kept = jnp.where(i.reference > 0, i.reference * log_p, 0)
        return -V * at_label(log_p, i.label) - held * jnp.sum(kept)

    rival = jnp.log(jnp.maximum(guarded.mixture(i.reference, i.label, V, i.strength), 1e-12))
    return loss(rival), loss(jnp.log(jnp.where(stated > 0, stated, 1)))


@slip("star-dss-k2", "the factor e^(2f)", ">=")
def _(i):
    V, held, log_r = i.value, (1 - i.value) * i.strength, jnp.log(at_label(i.reference, i.label))

    def loss(u):
        return -V * u + held * (u - log_r) ** 2 / 2

    f = V / held
    return loss(jnp.minimum(log_r + f, 0)), loss(jnp.minimum(log_r + 2 * f, 0))


@slip("dpo-margin", "β times for over")
def _(i):
    def loss(m):
        return -i.q[0] * jax.nn.log_sigmoid(i.beta * m) - (1 - i.q[0]) * jax.nn.log_sigmoid(-i.beta * m)

    return 1 + jnp.abs(jax.grad(loss)(i.beta * jnp.log(i.q[0] / (1 - i.q[0])))) / i.beta, jnp.ones(())


@slip("constrained-sft", "σ for 2σ")
def _(i):
    log_p, log_ref = (jax.nn.log_softmax(z) for z in (i.logits, i.reference))
    deviation = at_label(log_p - log_ref, i.label)
    slope = jax.grad(lambda x: -2 / i.beta * jax.nn.log_sigmoid(i.beta * x))(deviation)
    return -slope, jax.nn.sigmoid(-i.beta * deviation)


@slip("lookahead", "the copy's sign turned")
def _(i):
    p = at_label(jax.nn.softmax(i.logits), i.label)
    return part("lookahead", "complement", i)[0], (1 - p) / (1 - p + p * jnp.exp(-i.copy))


@slip("seal", "the plain mean")
def _(i):
    slope = jax.grad(lambda w: jnp.sum(jax.nn.softmax(w) * i.losses))(i.omega)
    stated = jax.nn.softmax(i.omega) * (i.losses - jnp.mean(i.losses))
    return apart(slope, stated, length(i.losses - jnp.mean(i.losses)))


@slip("minimum-norm-edit", "Uᵀ for U⁺")
def _(i):
    U = i.P @ i.Q
    residual, rate = i.R - i.W @ U, 1 / jnp.sum(U**2)
    ended = end_of(jnp.eye(3) - rate * U @ U.T, rate * U @ residual.T, layers.DOUBLINGS).T
    return apart(ended, residual @ U.T, length(residual))


@slip("safe-lora", "a projector")
def _(i):
    C = i.V @ i.V.T / length(i.V)
    return apart(C @ C, C, length(C))


@slip("basin", "twice the noise", ">=")
def _(i):
    start, here = (basin._expected(i, moved)[0] for moved in (jnp.zeros(2), i.moved))
    far = jnp.sqrt(jnp.sum(i.moved**2) + i.aside**2)
    return here, jax.scipy.special.ndtr(jax.scipy.special.ndtri(start) - far / 2)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_law_with_one_slip_of_the_pen_is_rejected(mutant):
    assert not theorems.verify(MUTANTS[mutant](), jax.random.key(0), 1_000).holds


def test_every_law_is_tried_with_a_slip():
    no_closed_form = {"accumulation"}  # its wrong version is the instance without its assumption
    assert {one.split(":")[0] for one in MUTANTS} | no_closed_form == {claim.name for claim in CLAIMS}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_every_law_cites_a_reference_that_exists(claim):
    assert claim.source in citations.references()
