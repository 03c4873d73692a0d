r"""Tabular softmax flows at many penalties, $z_x'=\hat m_x(\lambda)\,(\hat M_{x\lambda}-\mathrm{softmax}(z_x))$ from the aligned logits.

Contexts decouple, so a sweep is a set of columns, one for every context and penalty. Columns that do not depend on λ are
solved once, those at rest not at all. The others are analytic in log λ: they are solved at Chebyshev nodes and
interpolated, whatever the number of penalties. All columns take the same steps, geometric in time, of an extrapolated
linearly implicit Euler rule; the Jacobian is diagonal plus rank one, so that a stiff column costs what a mild one does.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tradeoff._records import Numbers, record
from tradeoff.dynamics.flow import checked_times
from tradeoff.gaps import Gaps
from tradeoff.loss_constraint import check_scale
from tradeoff.problems import Tabular
from tradeoff.worlds.world import World

STEPS_WITHIN, NODES_WITHIN = 1e-6, 1e-8
"""The estimated errors, nats, up to which steps are refined and nodes added; that of steps is of the order below."""
ORDER = 7
"""Order of a step: it extrapolates from 1, 2, ... , 7 substeps."""
RATIO = 1.25
"""Of successive times, before any refinement."""
FIRST = 0.25
"""The first step, in the time in which the fastest column could move its logits by one."""
REFINEMENTS, MOST_PIECES = 8, 16
"""So often steps are refined, and each into so many, at most."""
TAIL = 4
"""So many last coefficients are the estimate of what is cut off."""
FEW, MANY, STEPS = 64, 256, 32
"""Columns are solved so many at a time, and steps come in multiples: few programs, whose numbers stay in the cache."""


def _extrapolation() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of substeps and their weights, Lagrange's at length zero: with all of them, and without the first."""
    n = np.arange(1.0, ORDER + 1)
    ratios = n[:, None] / np.where(np.eye(ORDER) > 0, 1, n[:, None] - n[None, :])
    ratios[np.eye(ORDER) > 0] = 1
    return n, ratios.prod(axis=1), np.append(0, ratios[1:, 1:].prod(axis=1))


EXTRAPOLATION = _extrapolation()


@record
class TabularFlow:
    """Penalised tabular flows at many penalties and times.

    Args:
        lams: penalties, shape (L,).
        times: times, shape (T,), in the time of the flow.
        gaps: safety and capability gap, nats, shape (L, T).
        log_policies: log-probabilities, shape (L, T, X, Y); `None` unless asked for.
        error: the estimated error of a gap, nats.
    """

    lams: Float[Array, " L"]
    times: Float[Array, " T"]
    gaps: Gaps
    log_policies: Float[Array, "L T X Y"] | None
    error: Float[Array, ""]


class _Columns(NamedTuple):
    """Contexts in columns: where they start and go to, shape (Y, C), how fast, (C,), and the weighted laws of both gaps."""

    start: Any
    target: Any
    speed: Any
    safety: Any
    capability: Any


def tabular_flow(world: World, lams: Numbers, times: Numbers, states: bool = False) -> TabularFlow:
    r"""The gradient flow of $G_f+\lambda\hat G_s$ over free logits from the aligned policy, at every penalty and every time.

    Args:
        world: the world.
        lams: finite penalties λ ≥ 0, a scalar or shape (L,).
        times: finite times ≥ 0, increasing, a scalar or shape (T,).
        states: whether to return the policies too.

    Returns:
        A `TabularFlow`, whose gaps are exact to well within its `error`.

    Raises:
        ValueError: when a penalty is negative, NaN or infinite, or times are not increasing and non-negative.
        RuntimeError: when refinement does not bring the estimated error of the steps down to 1e-6 nats.

    Example:
        >>> from tradeoff import worlds
        >>> flow = tabular_flow(worlds.golden(), [0.0, 1.0], [0.0, 1e4])
        >>> round(float(flow.gaps.safety[1, 1]), 9)  # the closed form at λ = 1
        0.086556493
    """
    lams, times = _checked(lams, times)
    positive = lams > 0
    log_lams = np.log(lams[positive])
    nodes, at_nodes, error = _nodes_for(log_lams), None, 0.0
    while nodes < len(log_lams):
        low, high = log_lams.min(), log_lams.max()
        angles = np.arange(nodes + 1) * np.pi / nodes
        # Of twice as many nodes half are those before; λ = 0 comes last, once.
        unknown = angles if at_nodes is None else angles[1::2]
        at = np.exp((low + high) / 2 + (high - low) / 2 * np.cos(unknown))
        solved, steps_error = _solve(world, at if at_nodes is not None else np.append(at, 0.0), times, states)
        at_nodes, error = solved if at_nodes is None else _between(at_nodes, solved), max(error, steps_error)
        missed = _cut_off(at_nodes, angles)
        if missed <= NODES_WITHIN:
            places = np.arccos(np.clip((2 * log_lams - low - high) / (high - low), -1, 1))
            return _flow(lams, times, _interpolated(at_nodes, angles, places, positive), error + missed)
        nodes *= 2
    solved, error = _solve(world, lams, times, states)
    return _flow(lams, times, solved, error)


def _checked(lams: Numbers, times: Numbers) -> tuple[np.ndarray, np.ndarray]:
    lams = np.atleast_1d(np.asarray(check_scale("penalty λ", lams)))
    if lams.ndim != 1 or not np.all(np.isfinite(lams)):
        raise ValueError(f"lams are {lams}; a flow needs finite penalties, a scalar or shape (L,).")
    return lams, checked_times(times)


def _flow(lams: np.ndarray, times: np.ndarray, solved: tuple[np.ndarray, ...], error: float) -> TabularFlow:
    safety, capability, *z = solved
    log_policies = jax.nn.log_softmax(z[0], axis=-1) if z else None
    gaps = Gaps(*(jnp.asarray(np.maximum(gap, 0)) for gap in (safety, capability)))
    return TabularFlow(jnp.asarray(lams), jnp.asarray(times), gaps, log_policies, jnp.asarray(error))


# --- in log λ ---------------------------------------------------------------------------------------------------


def _nodes_for(log_lams: np.ndarray) -> int:
    r"""Nodes for an error of `NODES_WITHIN` of a function that is analytic where λ has a positive real part."""
    if len(log_lams) < 2 or log_lams.max() == log_lams.min():
        return len(log_lams)
    slope = np.pi / (log_lams.max() - log_lams.min())
    return 8 * math.ceil((-math.log(NODES_WITHIN) / math.asinh(slope) + 4) / 8)


def _between(known: tuple[np.ndarray, ...], new: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Values at all nodes, from those at every other one (and at 0, the last) and at the ones between."""
    places = np.arange(1, len(new[0]) + 1)
    return tuple(np.insert(leaf, places, others, axis=0) for leaf, others in zip(known, new, strict=True))


def _cut_off(at_nodes: tuple[np.ndarray, ...], angles: np.ndarray) -> float:
    """The size of the last coefficients of the gaps."""
    tail = _transform(angles)[-TAIL:]
    return max(float(np.max(np.sum(np.abs(tail @ gap[:-1]), axis=0))) for gap in at_nodes[:2])


def _interpolated(
    at_nodes: tuple[np.ndarray, ...], angles: np.ndarray, places: np.ndarray, positive: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Values at the penalties from those at the nodes (and at 0, the last)."""
    weights = np.zeros((len(positive), len(angles) + 1))
    weights[positive, :-1] = np.cos(np.outer(places, np.arange(len(angles)))) @ _transform(angles)
    weights[~positive, -1] = 1
    return tuple(np.tensordot(weights, leaf, axes=1) for leaf in at_nodes)


def _transform(angles: np.ndarray) -> np.ndarray:
    """From values at Chebyshev's points, both ends among them, to coefficients."""
    transform = np.cos(np.outer(np.arange(len(angles)), angles)) * 2 / (len(angles) - 1)
    transform[:, [0, -1]] /= 2
    transform[[0, -1]] /= 2
    return transform


# --- in time ----------------------------------------------------------------------------------------------------


def _solve(world: World, lams: np.ndarray, times: np.ndarray, states: bool) -> tuple[tuple[np.ndarray, ...], float]:
    """Both gaps, shape (L, T), and if asked for the logits, shape (L, T, X, Y); and the estimated error of a gap."""
    laws = world.safety, world.capability, world.training_safety
    (p_s, P_s), (p_f, P_f), (p_seen, P_seen) = ((np.asarray(law.p), np.asarray(law.P)) for law in laws)
    start = np.asarray(jax.nn.log_softmax(Tabular(world).aligned(), axis=-1))
    # At every penalty those that the penalty moves; once those that only the task sees; the others are at rest.
    coupled = np.flatnonzero((p_seen > 0) & ((p_f > 0) | np.any(P_seen != P_s, axis=-1)))
    alone = np.flatnonzero((p_f > 0) & (p_seen == 0))
    where = np.append(np.tile(coupled, len(lams)), alone)
    pull = np.append(np.repeat(lams, len(coupled)), np.zeros(len(alone))) * p_seen[where]
    speed = p_f[where] + pull
    share = (p_f[where] / np.where(speed > 0, speed, 1))[:, None]
    target = share * P_f[where] + (1 - share) * P_seen[where]
    weighted = ((p[:, None] * P)[where].T for p, P in ((p_s, P_s), (p_f, P_f)))
    (safety, capability, *z), error = _solve_columns(
        _Columns(start[where].T, target.T, speed, *weighted), times, states
    )
    cut = len(lams) * len(coupled)

    def total(leaf: np.ndarray) -> np.ndarray:
        by_lam = leaf[:, :cut].reshape(len(times), len(lams), len(coupled)).sum(axis=-1)
        return (by_lam + leaf[:, cut:].sum(axis=-1)[:, None]).T

    gaps = total(safety), total(capability)
    if not states:
        return gaps, error
    out = np.broadcast_to(start, (len(lams), len(times), *start.shape)).copy()
    moved = np.moveaxis(z[0], 1, -1)  # (T, C, Y)
    out[:, :, coupled] = moved[:, :cut].reshape(len(times), len(lams), *start[coupled].shape).swapaxes(0, 1)
    out[:, :, alone] = moved[None, :, cut:]
    return (*gaps, out), error


def _solve_columns(columns: _Columns, times: np.ndarray, states: bool) -> tuple[tuple[np.ndarray, ...], float]:
    """Both weighted divergences, shape (T, C), and if asked for the logits, shape (T, Y, C); refined until they are exact."""
    count = columns.speed.size
    blocks = _Columns(*(_in_blocks(leaf) for leaf in columns))
    grid = _grid(times, float(columns.speed.max(initial=0)))
    for _ in range(REFINEMENTS):
        steps = np.append(np.diff(grid, prepend=0), np.zeros(-len(grid) % STEPS))
        *values, errors = _run(blocks, steps, states)
        errors = np.max(errors, axis=0)[: len(grid)]
        errors = np.where(np.isfinite(errors), errors, 1.0)  # a step so long that it overflowed
        if errors.sum() <= STEPS_WITHIN:
            break
        # The error of a step goes with its length to the power `ORDER`, and what is allowed is shared by all.
        pieces = np.ceil((len(grid) * errors / STEPS_WITHIN) ** (1 / ORDER)).clip(1, MOST_PIECES).astype(int)
        spans = zip(grid[:-1], grid[1:], pieces[1:], strict=True)
        grid = np.concatenate([grid[:1], *(np.linspace(start, end, n + 1)[1:] for start, end, n in spans)])
    else:
        raise RuntimeError(
            f"the flow to time {times[-1]:g} was refined to {len(grid)} steps and its estimated error is still "
            f"{errors.sum():.1e} nats; ask for an earlier time or smaller penalties, or use gradient_flow."
        )
    kept = np.searchsorted(grid, times)
    # (blocks, steps, ..., C) to (T, ..., all C).
    safety, capability, *z = (np.concatenate(np.asarray(leaf), axis=-1)[kept][..., :count] for leaf in values)
    return (safety - _cross(columns.safety), capability - _cross(columns.capability), *z), float(errors.sum())


def _cross(law: np.ndarray) -> np.ndarray:
    """The cross-entropy of every column's weighted law with itself."""
    total = law.sum(axis=0)
    own = np.divide(law, total, out=np.ones_like(law), where=law > 0)
    return -np.sum(law * np.log(own), axis=0)


def _in_blocks(leaf: np.ndarray) -> np.ndarray:
    """Columns in blocks along a new first axis, the last one filled up with columns at rest."""
    width = FEW if leaf.shape[-1] <= FEW else MANY
    filled = np.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, -leaf.shape[-1] % width)])
    return np.moveaxis(filled.reshape(*leaf.shape[:-1], -1, width), -2, 0)


def _grid(times: np.ndarray, speed: float) -> np.ndarray:
    """Times from 0 through all those given, each at most `RATIO` times the one before; the first so soon that all rest."""
    given = times[times > 0]
    if given.size == 0 or speed == 0:
        return np.append(0.0, given)
    stops = np.append(min(FIRST / speed, given[0] / 2), given)
    counts = np.ceil(np.log(stops[1:] / stops[:-1]) / math.log(RATIO)).astype(int)
    spans = zip(stops[:-1], stops[1:], counts, strict=True)
    return np.concatenate([[0.0], stops[:1], *(np.geomspace(start, end, n + 1)[1:] for start, end, n in spans)])


@partial(jax.jit, static_argnames="states")
def _run(blocks: _Columns, steps: Array, states: bool) -> tuple[Array, ...]:
    """After every step: both weighted cross-entropies, and if asked for the logits; and the error of the step."""

    def block(columns: _Columns) -> tuple[Array, ...]:
        heard = columns.safety + columns.capability

        def advance(z: Array, h: Array) -> tuple[Array, tuple[Array, ...]]:
            z, wrong = _step(z, columns.target, columns.speed * h)
            crosses = (-jnp.sum(law * z, axis=0) for law in (columns.safety, columns.capability))
            error = jnp.max(jnp.sum(jnp.where(heard > 0, heard * jnp.abs(wrong), 0), axis=0))
            return z, (*crosses, *([z] if states else []), error)

        return jax.lax.scan(advance, columns.start, steps)[1]

    return jax.lax.map(block, blocks)


def _step(z: Array, target: Array, h: Array) -> tuple[Array, Array]:
    r"""One extrapolated step of $z'=M-\mathrm{softmax}(z)$ in every column, as log-probabilities, and its estimated error."""
    p = jnp.exp(z)

    def row(sums: tuple[Array, Array], substeps: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        n, best, lower = substeps
        # (I - hJ)⁻¹ with J = ppᵀ - diag(p), frozen: the Sherman-Morrison formula without a difference.
        short = h / n
        damped = 1 / (1 + short[None, :] * p)
        turn, far = p * damped, short[None, :] * damped
        turn_by = short / jnp.sum(turn, axis=0)

        def substep(_: Array, y: Array) -> Array:
            # The logits begin at log-probabilities: what overflows from there has gone too far in one step.
            weights = jnp.exp(y)
            pull = far * (target - weights * (1 / jnp.sum(weights, axis=0))[None, :])
            return y + pull + turn * (turn_by * jnp.sum(p * pull, axis=0))[None, :]

        gone = jax.lax.fori_loop(0, n.astype(int), substep, z) - z
        return (sums[0] + best * gone, sums[1] + lower * gone), None

    (best, lower), _ = jax.lax.scan(
        row, (jnp.zeros_like(z), jnp.zeros_like(z)), jax.tree.map(jnp.asarray, EXTRAPOLATION)
    )
    after = z + best
    return after - jax.nn.logsumexp(after, axis=0, keepdims=True), best - lower
