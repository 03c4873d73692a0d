r"""Gradient flows, $\dot\theta=-\nabla(G_f+\lambda\hat G_s)(\theta)$, by an adaptive implicit solver.

Losses are flat where a policy is certain, so a flow has time scales many decades apart and an explicit solver spends its
steps on the fast ones. Tabular flows are exact copies of one flow per context, $z'=\hat M-\mathrm{softmax}(z)$, run at
the speed $m_x$: each context is integrated alone, in its own time.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float

from tradeoff import loss_constraint
from tradeoff._records import Numbers, record
from tradeoff.gaps import Gaps
from tradeoff.problems import Problem, Tabular
from tradeoff.worlds.world import World

RELATIVE, ABSOLUTE = 1e-8, 1e-10
"""Local error of the solver, in parameters."""
MAX_STEPS = 16_384


@record
class Flow:
    """A gradient flow at the times asked for.

    Args:
        times: shape (T,), in the time of the flow (one over the unit of the loss, per squared parameter).
        parameters: the parameters at those times, with a leading axis T.
        gaps: safety and capability gap at those times, nats, shape (T,).
    """

    times: Float[Array, " T"]
    parameters: Any
    gaps: Gaps


def gradient_flow(problem: Problem, start: Any, times: Numbers, lam: ArrayLike = 0.0) -> Flow:
    r"""The gradient flow of a problem's penalised objective.

    Args:
        problem: any problem; tabular ones use their structure, others a dense Jacobian (up to about 1,000 parameters).
        start: the parameters at time 0.
        times: increasing times ≥ 0, shape (T,).
        lam: a finite penalty λ ≥ 0; 0 is plain fine-tuning on the capability data.

    Returns:
        A `Flow`; parameters and gaps at every time.

    Raises:
        ValueError: when times are not increasing and non-negative, λ is negative or infinite, or the start is not finite.
        RuntimeError: when the solver needs more than 16,384 steps; the message says what to try.

    Example:
        >>> from tradeoff import worlds
        >>> problem = Tabular(worlds.golden())
        >>> flow = gradient_flow(problem, problem.aligned(), [0.0, 1e4], lam=1.0)
        >>> round(float(flow.gaps.safety[-1]), 9)  # the closed form at λ = 1
        0.086556493
    """
    times = checked_times(times)
    lam = loss_constraint.check_penalty(lam)
    if lam.ndim or not jnp.isfinite(lam):
        raise ValueError(f"lam is {lam}; a flow needs one finite penalty (a large one for the limit λ → ∞).")
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(start)):
        raise ValueError(
            "start holds NaN or infinite parameters; a flow starts at finite ones (for tables, finite logits)."
        )
    if isinstance(problem, Tabular):
        speed, target = _targets(problem.world, lam)
        parameters, solved = _context_flows(jnp.asarray(start), target, speed, jnp.asarray(times))
        gaps = _tabular_gaps(problem, parameters)
    else:
        parameters, solved = _generic_flow(problem, start, jnp.asarray(times), lam)
        gaps = jax.lax.map(problem.gaps, parameters)
    if not bool(jnp.all(solved)):
        raise RuntimeError(
            f"the flow was not solved to time {times[-1]:g} within {MAX_STEPS} steps; ask for an earlier time, or check that "
            "the objective is bounded below and its gradient is continuous."
        )
    return Flow(jnp.asarray(times), parameters, gaps)


def relaxation_time(world: World, lam: ArrayLike) -> Float[Array, ""]:
    r"""The slowest time constant of the tabular flow near its end, $\max_x 1/(\hat m_x\,\sigma_x)$.

    $\sigma_x$ is the least non-zero eigenvalue of the Fisher matrix $\mathrm{diag}(\hat M_x)-\hat M_x\hat M_x^\top$, and
    the maximum runs over contexts that the objective sees. The gaps close as $e^{-2t/\text{time}}$.

    Args:
        world: the world.
        lam: a finite penalty λ ≥ 0.

    Returns:
        Time, in the unit of the flow.

    Example:
        >>> from tradeoff import worlds
        >>> round(float(relaxation_time(worlds.one_conflict(0.5), 0.0)), 6)
        6.25
    """
    return _relaxation_time(world, loss_constraint.check_penalty(lam))


def checked_times(times: Numbers) -> np.ndarray:
    """Times of a solver that steps through them, shape (T,), after the check that they are finite, increasing and not before 0."""
    times = np.atleast_1d(np.asarray(times, np.float64))
    if times.ndim != 1 or not times.size or times[0] < 0 or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise ValueError(
            f"times are {times}; they must be finite, non-negative and increasing, one or more, shape (T,)."
        )
    return times


@jax.jit
def _relaxation_time(world: World, lam: Array) -> Array:
    mass, mixture = _targets(world, lam)
    rate = jax.vmap(_slowest_rate)(mixture)
    moving = (mass > 0) & jnp.isfinite(rate)
    return jnp.max(jnp.where(moving, 1 / jnp.where(moving, mass * rate, 1), 0))


@jax.jit
def _targets(world: World, lam: Array) -> tuple[Array, Array]:
    """The speed of every context and the law that it flows to."""
    return world.capability.p + lam * world.training_safety.p, jnp.exp(loss_constraint.optimal_policy(world, lam))


def _slowest_rate(law: Array) -> Array:
    """The least non-zero eigenvalue of the Fisher matrix of a law; `inf` when the law is certain."""
    support, count = jnp.sum(law > 0), law.size
    # One eigenvalue 0 belongs to the shift of all logits; every response of probability zero adds another.
    spectrum = jnp.linalg.eigvalsh(jnp.diag(law) - jnp.outer(law, law))
    return jnp.where(support > 1, spectrum[jnp.minimum(count - support + 1, count - 1)], jnp.inf)


@jax.jit
def _context_flows(start: Array, target: Array, speed: Array, times: Array) -> tuple[Array, Array]:
    def one_context(z: Array, target: Array, speed: Array) -> tuple[Array, Array]:
        # A context at rest would drive the solver to steps so long that rounding decides. Travel takes at most the
        # distance over the least rate, and 100 time constants more leave e^-100 of what remained.
        shift = z - jnp.where(target > 0, jnp.log(jnp.where(target > 0, target, 1)), z)
        settled = (100 + 2 * (jnp.max(shift) - jnp.min(shift))) / _slowest_rate(target)
        return _integrate(lambda z: target - jax.nn.softmax(z), z, jnp.minimum(speed * times, jnp.maximum(settled, 1)))

    states, solved = jax.vmap(one_context)(start, target, speed)
    return jnp.moveaxis(states, 0, 1), solved


@jax.jit
def _tabular_gaps(problem: Tabular, parameters: Array) -> Gaps:
    return jax.lax.map(problem.gaps, parameters)


@eqx.filter_jit  # what of a problem is no array is a constant of the program
def _generic_flow(problem: Problem, start: Any, times: Array, lam: Array) -> tuple[Any, Array]:
    flat, unravel = ravel_pytree(start)
    states, solved = _integrate(jax.grad(lambda z: -problem.objective(unravel(z), lam)), flat, times)
    return jax.vmap(unravel)(states), solved


def _integrate(field: Callable[[Array], Array], start: Array, times: Array) -> tuple[Array, Array]:
    """The states of an autonomous field at the times, and whether the solver got there."""
    end = jnp.maximum(times[-1], 1e-12)  # a context without weight stands still: its time never passes
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda _t, z, _args: field(z)),
        # A fresh Jacobian at every Newton step: the default chord method is rejected half of the time near equilibrium.
        diffrax.Kvaerno5(root_finder=diffrax.with_stepsize_controller_tols(optimistix.Newton)()),
        t0=0.0,
        t1=end,
        dt0=None,
        y0=start,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=RELATIVE, atol=ABSOLUTE),
        max_steps=MAX_STEPS,
        throw=False,
    )
    assert solution.ys is not None  # SaveAt(ts=...) always saves
    return solution.ys, solution.result == diffrax.RESULTS.successful
