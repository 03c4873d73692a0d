r"""How a finished run drifted: how far its weights went, and what that must or should have cost in safety.

Beside the measured loss stand the local quadratic $L(0)+\delta\cdot g+\tfrac12\delta\cdot H\delta$ along the run's own displacement,
and the basin bound: of a score in [0, 1], smoothed over Gaussian weights, no displacement can take more than its length in
units of the noise allows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from tqdm.auto import tqdm

from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.curvature import moved, parameters
from tradeoff.bridge.data import Data, Prompts
from tradeoff.bridge.data_tangent import data_tangents
from tradeoff.bridge.landscape import displacement
from tradeoff.bridge.recipe import FinishedRun
from tradeoff.bridge.refusals import refusal_log_odds
from tradeoff.landscape.basins import smoothed_floor


@dataclass(frozen=True)
class Drift:
    """A run's displacement and its price, nats per token of the safety data's answers.

    Attributes:
        distance: of the weights, Frobenius norm over all matrices together.
        before: the safety loss where the run started.
        linear: with the slope along the displacement.
        quadratic: with the curvature along it too.
        after: as measured where the run ended.
    """

    distance: float
    before: float
    linear: float
    quadratic: float
    after: float


@dataclass(frozen=True)
class SmoothedSafety:
    r"""The basin bound of a run, on a score of safety that is smoothed over Gaussian weights.

    Attributes:
        sigma: standard deviation of each weight's noise.
        start: $E\,S(\theta_0+\sigma z)$, the mean of the draws.
        start_floor: what it is at least, by Hoeffding's inequality.
        floor: what the smoothed score after the run is at least, in the same confidence.
        end: the mean of the draws there.
    """

    sigma: float
    start: float
    start_floor: float
    floor: float
    end: float


def distance(start: Checkpoint, tuned: FinishedRun) -> float:
    r"""How far a run took the weights, $\|\delta W\|_F$ over all matrices together.

    Args:
        start: the checkpoint that the run started from.
        tuned: the run.
    """
    return _length(displacement(start, tuned))


def drift(start: Checkpoint, tuned: FinishedRun, safety: Data) -> Drift:
    """What the local quadratic says of a run's own displacement, beside what came of it.

    Args:
        start: the checkpoint that the run started from, in float64 or float32.
        tuned: the run.
        safety: the data whose loss is watched.

    Returns:
        A `Drift`.

    Raises:
        ValueError: as `preflight_data`.

    Source: T15 (framework), of which this is the quadratic at a finite step.
    """
    moves = displacement(start, tuned)
    in_full = replace(tuned.recipe, rank=None)
    with data_tangents(start, {"safety": safety}, in_full) as around:
        parts = [np.asarray(moves[name]).ravel() for name in around.flat.names]
        gradient = around.gradient("safety")
        delta = np.concatenate(parts).astype(gradient.dtype)
        slope = float(np.dot(gradient.astype(np.float64), delta))
        curvature = float(np.dot(around.hessian_product("safety", delta).astype(np.float64), delta))
        before, after = around.values()["safety"], around.values(delta)["safety"]
    return Drift(_length(moves), before, before + slope, before + slope + curvature / 2, after)


def refusing(prompts: Prompts) -> Callable[[Checkpoint], float]:
    """A score for `smoothed_safety`: the mean over prompts of the probability of a refusing opening against a complying one."""
    return lambda checkpoint: float(np.mean(1 / (1 + np.exp(-refusal_log_odds(checkpoint, prompts)))))


def smoothed_safety(
    start: Checkpoint,
    tuned: FinishedRun,
    score: Callable[[Checkpoint], float],
    key: Array,
    sigma: float,
    draws: int = 64,
    confidence: float = 0.95,
    progress: bool = False,
) -> SmoothedSafety:
    r"""What a smoothed score of safety must keep after a run: $\Phi(\Phi^{-1}(S)-\|\delta W\|/\sigma)$.

    The noise moves the matrices that were trained, each weight by itself, so its own length is σ times the root of their
    number. Where that ruins the model, or the run went many σ far, the bound says next to nothing.

    Args:
        start: the checkpoint that the run started from.
        tuned: the run.
        score: S, of a checkpoint with its weights moved, in [0, 1]; such as `refusing(prompts)`.
        key: a JAX random key.
        sigma: σ > 0.
        draws: of weights, at either end; each takes one score.
        confidence: of the bound on the smoothed score at the start, in (0, 1).
        progress: whether to show a progress bar.

    Returns:
        A `SmoothedSafety`.

    Raises:
        ValueError: when σ, the draws or the confidence are out of range, or a score is.

    Source: basin-like landscape (arXiv 2505.17646), as `landscape.smoothed_floor`.
    """
    if not (0 < sigma < np.inf and draws >= 1 and 0 < confidence < 1):
        raise ValueError(
            f"smoothed_safety was given sigma={sigma}, draws={draws} and confidence={confidence}; sigma must be positive and "
            "finite, draws at least 1, and the confidence between 0 and 1."
        )
    moves = displacement(start, tuned)
    held = parameters(start, sorted(moves))

    ends: tuple[list[float], list[float]] = [], []
    for each in tqdm(jax.random.split(key, draws), desc="draws of weights", disable=not progress):
        names = jax.random.split(each, len(held))
        noise = {name: jax.random.normal(k, held[name].shape) for k, name in zip(names, held, strict=True)}
        with moved(start, noise, sigma):
            ends[0].append(_within(score(start)))
            with moved(start, moves, 1.0):
                ends[1].append(_within(score(start)))
    first, last = (float(np.mean(scores)) for scores in ends)
    least = max(first - float(np.sqrt(-np.log(1 - confidence) / (2 * draws))), 0.0)
    return SmoothedSafety(sigma, first, least, float(smoothed_floor(least, _length(moves), sigma)), last)


def _within(score: float) -> float:
    if not 0 <= score <= 1:
        raise ValueError(
            f"smoothed_safety was given a score of {score}; the bound is on scores from 0 to 1: scale yours."
        )
    return score


def _length(moves: Mapping[str, Any]) -> float:
    """The Frobenius norm of all matrices together."""
    return float(np.sqrt(sum(np.sum(np.asarray(each, np.float64) ** 2) for each in moves.values())))
