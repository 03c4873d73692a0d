r"""Descent of any problem by any strategy: what training does, step by step, and what each step costs in safety."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from tradeoff._records import is_concrete, record
from tradeoff.dynamics.engine import JaxEngine, named
from tradeoff.gaps import Gaps
from tradeoff.problems import Problem
from tradeoff.strategies import SAFETY, TASK, Loss, Plain, Strategy, Weighted


class Last(NamedTuple):
    """All that a run needs to go on.

    Args:
        weights: by name.
        state: of the strategy.
        optimiser: its state.
        diverged: the first step after which a number was not finite, -1 if none.
    """

    weights: Any
    state: Any
    optimiser: Any
    diverged: Int[Array, "*batch"]


@record
class Descent:
    """A run of descent.

    Args:
        steps: the numbers of steps at which gaps were taken, shape (R,).
        gaps: safety and capability gap there of the weights that the strategy would export, nats, shape (R,).
        parameters: the last parameters, of the training itself.
        exported: the last parameters as the strategy exports them: the average, if it keeps one.
        last: what a resumed run starts from.
    """

    steps: Int[Array, " R"]
    gaps: Gaps
    parameters: Any
    exported: Any
    last: Last

    @property
    def diverged(self) -> Int[Array, "*batch"]:
        """The first step after which a number was not finite, -1 if none."""
        return self.last.diverged


def descend(
    problem: Problem,
    strategy: Strategy | optax.GradientTransformation,
    *,
    steps: int,
    learning_rate: float | Array | None = None,
    optimiser: optax.GradientTransformation | None = None,
    key: Array | None = None,
    start: Any = None,
    lam: float = 0.0,
    loss: Loss | None = None,
    every: int = 1,
    noise: Callable[[Array, Any], Any] | None = None,
    stop: int | None = None,
    resume: Descent | None = None,
) -> Descent:
    r"""Descend $G_f+\lambda\hat G_s$ by a strategy.

    Args:
        problem: any problem; of one with a `world` and a `log_policy` the gaps of that policy are descended.
        strategy: one of `tradeoff.strategies`, or an optimiser, for instance `optax.sgd(0.1)`, to fine-tune plainly with it.
        steps: how many steps.
        learning_rate: of plain descent, h; a strategy that sets the length of its steps needs none.
        optimiser: in place of plain descent, for instance `optax.adam(1e-3)`. Learning rates are told apart by value, but
            optimisers (and noise) by identity: make one once and give it to many runs, else each of them compiles.
        key: of the random numbers of noise and strategy; those of a strategy are `jax.random.key(0)`'s unless given.
        start: the first parameters; the aligned ones, `problem.aligned()`, unless given.
        lam: a finite penalty λ ≥ 0.
        loss: what is descended in place of $G_f+\lambda\hat G_s$; `strategies.SAFETY` is the stage of alignment.
        every: gaps are taken at the start and after every so many steps; it must divide the number of steps.
        noise: from a key and the parameters, what is added to their gradient; see `minibatch_noise`.
        stop: end after so many of the steps, to be resumed.
        resume: a run of the same arguments that was stopped.

    Returns:
        A `Descent`.

    Raises:
        ValueError: when an argument is out of range, there is not one of learning rate and optimiser, the optimiser is not
            what the strategy demands, or noise has no key.
        FloatingPointError: when the run diverges, with the step; under a transformation `diverged` says so instead.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> from tradeoff.strategies import SafeGrad
        >>> quad = quadratic.golden()
        >>> run = descend(quad, optax.sgd(0.1), steps=100, every=50)
        >>> run.steps.tolist(), run.gaps.capability.round(9).tolist()
        ([0, 50, 100], [2.0, 1.3281e-05, 0.0])
        >>> bool(descend(quad, SafeGrad(), learning_rate=0.1, steps=100).gaps.safety[-1] < run.gaps.safety[-1])
        True
    """
    last_step = steps if stop is None else stop
    first_step = 0 if resume is None else int(resume.steps[-1])
    if not 0 <= first_step < last_step <= steps or every < 1 or (last_step - first_step) % every:
        raise ValueError(
            f"steps is {steps}, every is {every} and the run goes from step {first_step} to {last_step}; give positive numbers "
            "of steps, a run that ends after it begins, and an `every` that divides its steps."
        )
    if is_concrete(lam) and not 0 <= float(lam) < np.inf:
        raise ValueError(f"lam is {lam}; descent needs one finite penalty λ ≥ 0.")
    if noise is not None and key is None:
        raise ValueError("descend was given noise and no key; give key=jax.random.key(...).")
    if not isinstance(strategy, Strategy):
        strategy, optimiser = Plain(), strategy
    learning_rate = _rate(strategy, optimiser, learning_rate)
    if start is None:
        if not hasattr(problem, "aligned"):
            raise ValueError(f"{type(problem).__name__} has no aligned parameters to start from; give start.")
        start = problem.aligned()  # pyright: ignore[reportAttributeAccessIssue]
    engine = JaxEngine(problem, start, jax.random.key(0) if key is None else key, steps, learning_rate)
    if resume is None and is_concrete(engine.problem, engine.origin):
        strategy.check(engine)
    numbers = jnp.arange(first_step, last_step, every)
    last = None if resume is None else resume.last
    run = _descend(engine, strategy, optimiser, noise, jnp.asarray(lam, jnp.float64), loss, last, numbers, every)
    if is_concrete(run.diverged) and int(run.diverged) >= 0:
        raise FloatingPointError(
            f"descent was no longer finite after step {int(run.diverged)} of {steps}; give a smaller learning rate (plain "
            "descent of a quadratic needs one below two over its largest curvature)."
        )
    return run


def _rate(
    strategy: Strategy, optimiser: optax.GradientTransformation | None, learning_rate: float | Array | None
) -> float | Array:
    """The learning rate of a run: NaN of an optimiser that is not plain descent."""
    if strategy.owns == "step":
        if optimiser is not None or learning_rate not in (None, 1.0):
            raise ValueError(
                f"{type(strategy).__name__} sets the length of its steps; give it neither an optimiser nor a learning rate."
            )
        return 1.0
    if (optimiser is None) == (learning_rate is None):
        raise ValueError("descend needs a learning rate or an optimiser, one of the two.")
    return math.nan if learning_rate is None else learning_rate


@eqx.filter_jit
def _descend(
    engine: JaxEngine,
    strategy: Strategy,
    optimiser: optax.GradientTransformation | None,
    noise: Callable[[Array, Any], Any] | None,
    lam: Array,
    loss: Loss | None,
    last: Last | None,
    numbers: Array,
    every: int,
) -> Descent:
    engine = engine.prepared()
    objective = Weighted(((1.0, TASK), (lam, SAFETY))) if loss is None else loss
    # Plain descent is made here: optax makes new functions at every call, and a program of new functions is compiled anew.
    rule = optax.sgd(engine.learning_rate) if optimiser is None else optimiser

    def plain(weights: Any) -> Any:
        # Of a policy the gradient is a pull of its cells, several times cheaper than the derivative of its gaps.
        if loss is not None or engine.has_policy:
            return engine.gradient(objective, weights)
        return named(jax.grad(engine.problem.objective)(engine.parameters(weights), lam))

    def step(at: Last, number: Array) -> tuple[Last, None]:
        def noisy(weights: Any) -> Any:
            gradient = plain(weights)
            if noise is None:
                return gradient
            drawn = noise(jax.random.fold_in(engine.key, number), engine.parameters(weights))
            return jax.tree.map(jnp.add, gradient, named(drawn))

        state = strategy.refresh(at.state, at.weights, number, engine)
        gradient = strategy.gradient(noisy, state, at.weights, number, engine)
        updates, memory = rule.update(gradient, at.optimiser, at.weights)
        moved: Any = optax.apply_updates(at.weights, updates)
        weights, state = strategy.land(state, at.weights, moved, number, engine)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(weights)]))
        diverged = jnp.where((at.diverged < 0) & ~finite, number + 1, at.diverged)
        return Last(weights, state, memory, diverged), None

    def exported(at: Last) -> Any:
        return engine.parameters(strategy.export(at.state, at.weights, engine))

    def stretch(at: Last, first: Array) -> tuple[Last, Gaps]:
        at, _ = jax.lax.scan(step, at, first + jnp.arange(every))
        return at, engine.problem.gaps(exported(at))

    if last is None:
        start = engine.start
        last = Last(start, strategy.init(start, engine), rule.init(start), jnp.array(-1))
    end, gaps = jax.lax.scan(stretch, last, numbers)
    gaps = jax.tree.map(jnp.append, engine.problem.gaps(exported(last)), gaps)
    steps = jnp.append(numbers, numbers[-1] + every)
    return Descent(steps, gaps, engine.parameters(end.weights), exported(end), end)
