r"""Descent of any problem by any rule of gradients: what training does, step by step, and what each step costs in safety."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from tradeoff._records import is_concrete, record
from tradeoff.gaps import Gaps
from tradeoff.problems import Problem


@runtime_checkable
class Strategy(Protocol):
    """How gradients become updates: any `optax.GradientTransformation` is one."""

    @property
    def init(self) -> Callable[[Any], Any]:
        """The state before the first step, from the parameters."""
        ...

    @property
    def update(self) -> Callable[..., tuple[Any, Any]]:
        """The update and the next state, from gradients, state and parameters."""
        ...


@record
class Descent:
    """A run of descent.

    Args:
        steps: the numbers of steps at which gaps were taken, from 0, shape (R,).
        gaps: safety and capability gap there (of the averaged weights, if averaged), nats, shape (R,).
        parameters: the last parameters.
        averaged: their average; the last parameters themselves without one.
        diverged: the first step after which a number was not finite, -1 if none.
    """

    steps: Int[Array, " R"]
    gaps: Gaps
    parameters: Any
    averaged: Any
    diverged: Int[Array, ""]


def descend(
    problem: Problem,
    strategy: Strategy,
    *,
    steps: int,
    key: Array | None = None,
    start: Any = None,
    lam: float = 0.0,
    every: int = 1,
    average: float = 0.0,
    project: Callable[[Any], Any] | None = None,
    noise: Callable[[Array, Any], Any] | None = None,
) -> Descent:
    r"""Descend $G_f+\lambda\hat G_s$ by a rule.

    Args:
        problem: any problem.
        strategy: the rule, for instance `optax.sgd(0.1)` or `optax.adam(1e-3)`.
        steps: how many steps.
        key: for the noise.
        start: the first parameters; the aligned ones, `problem.aligned()`, unless given.
        lam: a finite penalty λ ≥ 0.
        every: gaps are taken at the start and after every so many steps; it must divide `steps`.
        average: η in [0, 1) of a tracked average $m\leftarrow\eta m+(1-\eta)\theta$ of the weights; 0 is no average.
        project: parameters to parameters, applied after each step: the constraint of Case II.
        noise: from a key and the parameters, what is added to their gradient; see `minibatch_noise`.

    Returns:
        A `Descent`.

    Raises:
        ValueError: when an argument is out of range, or the noise has no key.
        FloatingPointError: when the run diverges, with the step; under a transformation `diverged` says so instead.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> run = descend(quadratic.golden(), optax.sgd(0.1), steps=100, every=50)
        >>> run.steps.tolist(), run.gaps.capability.round(9).tolist()
        ([0, 50, 100], [2.0, 1.3281e-05, 0.0])
    """
    if steps < 1 or every < 1 or steps % every:
        raise ValueError(f"steps is {steps} and every is {every}; both must be positive and every must divide steps.")
    if not 0 <= average < 1:
        raise ValueError(f"average is {average}; its coefficient η must be in [0, 1): 0 for no average.")
    if is_concrete(lam) and not 0 <= float(lam) < np.inf:
        raise ValueError(f"lam is {lam}; descent needs one finite penalty λ ≥ 0.")
    if noise is not None and key is None:
        raise ValueError("descend was given noise and no key; give key=jax.random.key(...).")
    if start is None:
        if not hasattr(problem, "aligned"):
            raise ValueError(f"{type(problem).__name__} has no aligned parameters to start from; give start.")
        start = problem.aligned()  # pyright: ignore[reportAttributeAccessIssue]
    run = _descend(problem, strategy, project, noise, start, key, jnp.asarray(lam, jnp.float64), average, steps, every)
    if is_concrete(run.diverged) and int(run.diverged) >= 0:
        raise FloatingPointError(
            f"descent was no longer finite after step {int(run.diverged)} of {steps}; give a smaller learning rate (plain "
            "descent of a quadratic needs one below two over its largest curvature)."
        )
    return run


@eqx.filter_jit
def _descend(
    problem: Problem,
    strategy: Strategy,
    project: Callable[[Any], Any] | None,
    noise: Callable[[Array, Any], Any] | None,
    start: Any,
    key: Array | None,
    lam: Array,
    average: float,
    steps: int,
    every: int,
) -> Descent:
    def step(at: tuple[Any, Any, Any, Array], number: Array) -> tuple[tuple[Any, Any, Any, Array], None]:
        parameters, state, averaged, diverged = at
        gradient = jax.grad(problem.objective)(parameters, lam)
        if noise is not None and key is not None:
            drawn = noise(jax.random.fold_in(key, number), parameters)
            gradient = jax.tree.map(jnp.add, gradient, drawn)
        updates, state = strategy.update(gradient, state, parameters)
        parameters: Any = optax.apply_updates(parameters, updates)
        if project is not None:
            parameters = project(parameters)
        averaged = jax.tree.map(lambda m, new: average * m + (1 - average) * new, averaged, parameters)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(parameters)]))
        return (parameters, state, averaged, jnp.where((diverged < 0) & ~finite, number + 1, diverged)), None

    def stretch(at: Any, first: Array) -> tuple[Any, Gaps]:
        at, _ = jax.lax.scan(step, at, first + jnp.arange(every))
        return at, problem.gaps(at[2])

    begin = start, strategy.init(start), start, jnp.array(-1)
    (parameters, _, averaged, diverged), gaps = jax.lax.scan(stretch, begin, jnp.arange(0, steps, every))
    gaps = jax.tree.map(jnp.append, problem.gaps(start), gaps)
    return Descent(jnp.arange(0, steps + 1, every), gaps, parameters, averaged, diverged)
