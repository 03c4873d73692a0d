"""How much two data sets have in common: their contexts, their responses, and both together."""

from dataclasses import dataclass

import numpy as np

from tradeoff.bridge import rows
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.data import Data
from tradeoff.bridge.density_ratio import Separation, fisher_overlap, kernel_overlap, separation
from tradeoff.bridge.features import gradient_sketches, pooled_states
from tradeoff.bridge.intervals import Estimate, clipped, jackknife
from tradeoff.bridge.policy import Contract


@dataclass(frozen=True)
class ContextOverlap:
    """How much the contexts of two data sets have in common; 0 for nothing, 1 for all.

    Attributes:
        data: the two data sets, by name.
        digests: of what they say.
        classifier: by telling their prompts apart; Ω where the contexts can be told apart.
        embedding: of the kernel means of the prompts' pooled states: likeness counts, too.
        gradient: of the Fisher information of the prompts in the last layer: what a step on one can do to the other.
        contract: how the prompts were put.
    """

    data: tuple[str, str]
    digests: tuple[str, str]
    classifier: Separation
    embedding: Estimate
    gradient: Estimate
    contract: Contract


@dataclass(frozen=True)
class ResponseDivergence:
    """How far the responses of two data sets are apart, by two models that were fitted to them.

    Attributes:
        data: the responses that were scored, by name: drawn from the first law.
        digest: of what they say.
        models: the one fitted to the first data set, and the other.
        kl: of the first law to the second, averaged over prompts, nats for an answer.
        total_variation: between them, averaged over prompts.
        contract: how the rows were scored.
    """

    data: str
    digest: str
    models: tuple[str, str]
    kl: Estimate
    total_variation: Estimate
    contract: Contract


def context_overlap(
    checkpoint: Checkpoint, one: Data, other: Data, seed: int = 0, progress: bool = False
) -> ContextOverlap:
    """The overlap of the contexts of two data sets, three ways.

    Args:
        checkpoint: whose states and gradients represent the prompts.
        one: such as the safety data.
        other: such as the task's.
        seed: of the classifier's folds and of the gradients' draws.
        progress: whether to show progress bars.

    Returns:
        The three overlaps with their intervals.

    Raises:
        ValueError: as `rows.encode`; with fewer than 5 examples in either.

    Source: T5, T17 (framework).
    """
    encoded = [rows.encode(checkpoint, data) for data in (one, other)]
    states = [pooled_states(checkpoint, each, answers=False, progress=progress) for each in encoded]
    # Draws of their own for each, or equal rows would share more than their prompts.
    first, second = (gradient_sketches(checkpoint, e, 2 * seed + i, progress) for i, e in enumerate(encoded))
    return ContextOverlap(
        (one.name, other.name),
        (one.digest, other.digest),
        separation(states[0], states[1], seed),
        kernel_overlap(states[0], states[1]),
        fisher_overlap(first, second),
        rows.contract(checkpoint),
    )


def joint_separation(
    checkpoint: Checkpoint, one: Data, other: Data, seed: int = 0, progress: bool = False
) -> Separation:
    """How far two data sets are apart, questions and answers together, by a classifier on the checkpoint's states.

    Args:
        checkpoint: whose states represent the rows.
        one: such as the safety data: the first law of the divergence.
        other: such as the proxy.
        seed: of the classifier's folds.
        progress: whether to show progress bars.

    Returns:
        Overlap, total variation and a lower bound of KL(one‖other).

    Raises:
        ValueError: as `context_overlap`.

    Source: T6, T9 (framework): the similarity of a proxy.
    """
    encoded = [rows.encode(checkpoint, data) for data in (one, other)]
    return separation(
        *(pooled_states(checkpoint, each, answers=True, progress=progress) for each in encoded), seed=seed
    )


def response_divergence(
    fitted: Checkpoint, other: Checkpoint, data: Data, progress: bool = False
) -> ResponseDivergence:
    r"""$\Phi=E_{x,y\sim D}\log\frac{P(y|x)}{\hat P(y|x)}$ and $E_{x,y\sim D}\big(1-\frac{\hat P}{P}\big)_+$, by models of both laws.

    Args:
        fitted: a checkpoint fitted to the law P that the data are from, such as the safety data's.
        other: one fitted to the other law, such as the proxy's.
        data: rows of the first law that neither was fitted on; on those that it was, `fitted` flatters itself.
        progress: whether to show progress bars.

    Returns:
        KL and total variation of responses, averaged over prompts: as right as the models are.

    Raises:
        ValueError: as `rows.encode`; with fewer than 2 examples.

    Source: T6's Φ (framework).
    """
    one, two = (_answer_scores(model, data, progress) for model in (fitted, other))
    kl = jackknife(np.mean, one - two)
    apart = jackknife(lambda ratio: np.mean(-np.expm1(-np.maximum(ratio, 0))), one - two)
    models = (fitted.name, other.name)
    return ResponseDivergence(data.name, data.digest, models, kl, clipped(apart, 0, 1), rows.contract(fitted))


def _answer_scores(model: Checkpoint, data: Data, progress: bool) -> np.ndarray:
    """The log-probability of every answer."""
    found = rows.token_log_probabilities(model, rows.encode(model, data), progress=progress)
    return np.array([each.sum() for each in found])
