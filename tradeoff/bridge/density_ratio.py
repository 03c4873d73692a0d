"""How far apart two samples are, by a classifier that tells them apart and a kernel that compares them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float
from scipy.spatial.distance import cdist

from tradeoff.bridge.intervals import Estimate, clipped, proportion, sum_of_proportions, two_samples

FOLDS = 5
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Penalties on the classifier's squared weights, for each row; the one that predicts best is taken."""


@dataclass(frozen=True)
class Separation:
    r"""What a classifier finds of two laws P and Q from samples; what it misses makes them look more alike.

    Attributes:
        overlap: of the laws, $\sum\min(P,Q)$, from above: the sum of the classifier's two rates of error.
        total_variation: between them, from below: 1 - `overlap`.
        kl: KL(P‖Q) from below, nats.
    """

    overlap: Estimate
    total_variation: Estimate
    kl: Estimate


def separation(one: Float[np.ndarray, "N H"], other: Float[np.ndarray, "M H"], seed: int = 0) -> Separation:
    r"""Overlap, total variation and KL of two laws from features of samples, by logistic regression on rows left out.

    With the log-odds f on rows that the classifier was not fitted to, $\sum\min(P,Q)\le P(f\le0)+Q(f>0)$ and
    $\mathrm{KL}(P\|Q)\ge E_Pf-\log E_Qe^f$: equal when f is the log-ratio of the laws. On text worlds whose overlap is known
    128 rows of each law give it to 0.06 on average, and total variations of one half to 0.06 too low.

    Args:
        one: features of a sample of P.
        other: of Q.
        seed: of the split into folds.

    Returns:
        The three estimates; their intervals are over rows, for the classifier as it is.

    Raises:
        ValueError: when a sample has fewer rows than folds.

    Source: density ratios by classification; Donsker and Varadhan's bound; T5's Ω (framework).
    """
    if min(len(one), len(other)) < FOLDS:
        raise ValueError(
            f"separation was given {len(one)} and {len(other)} rows; at least {FOLDS} of each are required."
        )
    f, g = _log_odds(one, other, seed)
    missed, mistaken = (proportion(int(each.sum()), len(each)) for each in (f <= 0, g > 0))
    wrong = sum_of_proportions(missed, mistaken)
    apart = Estimate(1 - wrong.value, 1 - wrong.high, 1 - wrong.low, wrong.count, wrong.method)
    # Of samples of n no bound says more than log n: a larger f would only be heard in rows that are too rare to be seen.
    f, g = (np.clip(odds, None, np.log(min(len(f), len(g)))) for odds in (f, g))
    kl = two_samples(lambda p, q: np.mean(p) - np.log(np.mean(np.exp(q))), f, g)
    return Separation(clipped(wrong, 0, 1), clipped(apart, 0, 1), clipped(kl, 0, np.inf))


def kernel_overlap(one: Float[np.ndarray, "N H"], other: Float[np.ndarray, "M H"]) -> Estimate:
    r"""The cosine of two laws' kernel means, $\langle\mu_P,\mu_Q\rangle/\|\mu_P\|\|\mu_Q\|$, by a Gaussian kernel.

    Its width is the median distance of rows that differ. Were it so narrow that it only tells equal from different, this would
    be $\sum PQ/\sqrt{\sum P^2\sum Q^2}$; as it is, contexts that resemble each other overlap as well.

    Args:
        one: features of a sample of P.
        other: of Q.

    Returns:
        The cosine, at most 1; without bias in each of its three parts.

    Raises:
        ValueError: when a sample has fewer than 3 rows.
    """
    _, rows = _standardised(one, other)
    squares = cdist(rows, rows, "sqeuclidean")
    distinct = squares[squares > 1e-12 * squares.max()] if squares.max() > 0 else np.ones(1)
    return _cosine(np.exp(-squares / (2 * np.median(distinct))), len(one))


def fisher_overlap(one: Float[np.ndarray, "N H"], other: Float[np.ndarray, "M H"]) -> Estimate:
    r"""The cosine of two laws' second moments of gradients, $\mathrm{tr}(F_PF_Q)/\|F_P\|\|F_Q\|$, $F=E[gg^\top]$.

    It is 0 when no step on one data set changes the loss on the other to first order, whatever the sign, and 1 when they pull
    at the same directions.

    Args:
        one: gradients of a sample of P, each of length 1.
        other: of Q.

    Returns:
        The cosine, at most 1.

    Raises:
        ValueError: when a sample has fewer than 3 rows.

    Source: overlap of Fisher matrices [kirkpatrick2017ewc].
    """
    rows = np.concatenate([one, other])
    return _cosine((rows @ rows.T) ** 2, len(one))


def _cosine(kernel: np.ndarray, count: int) -> Estimate:
    """Of the kernel means of the first `count` rows and of the others; pairs of a row with itself are left out."""
    if min(count, len(kernel) - count) < 3:
        raise ValueError(f"The samples have {count} and {len(kernel) - count} rows; at least 3 of each are required.")
    own = kernel - np.diag(np.diag(kernel))

    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        n, m = len(one), len(other)
        within = own[np.ix_(one, one)].sum() / (n * (n - 1)), own[np.ix_(other, other)].sum() / (m * (m - 1))
        across = kernel[np.ix_(one, other)].mean()
        # No pair alike in a sample whose contexts are all different: nothing to compare with, so nothing shared is found.
        return across / np.sqrt(within[0] * within[1]) if min(within) > 0 else 0.0

    found = two_samples(cosine, np.arange(count), np.arange(count, len(kernel)))
    return clipped(found, 0, 1)


def _log_odds(one: np.ndarray, other: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For every row the log of P over Q, by the classifier that was fitted without it."""
    is_one, rows = _standardised(one, other)
    fold = np.zeros(len(rows), int)
    draw = np.random.default_rng(seed)
    for sample in (is_one, ~is_one):
        fold[sample] = draw.permutation(np.arange(sample.sum()) % FOLDS)
    # Each law weighs one half, whatever the sizes of the samples.
    weight = np.where(is_one, 0.5 / is_one.sum(), 0.5 / (~is_one).sum())
    sign = np.where(is_one, 1.0, -1.0)
    best: tuple[float, np.ndarray] = (np.inf, np.zeros(len(rows)))
    for ridge in RIDGES:
        odds = np.zeros(len(rows))
        for left_out in range(FOLDS):
            held = fold != left_out
            odds[~held] = _fitted(rows[held], sign[held], weight[held] / weight[held].sum(), ridge)(rows[~held])
        loss = float(np.sum(weight * np.logaddexp(0, -sign * odds)))
        best = min(best, (loss, odds), key=lambda each: each[0])
    return best[1][is_one], best[1][~is_one]


def _standardised(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are of the first sample, and all rows with mean 0 and total variance 1."""
    rows = np.concatenate([one, other])
    rows = rows - rows.mean(axis=0)
    spread = rows.std(axis=0)
    rows = rows / np.where(spread > 0, spread, 1)
    return np.arange(len(rows)) < len(one), rows / np.sqrt(max(1, np.count_nonzero(spread)))


def _fitted(rows: np.ndarray, sign: np.ndarray, weight: np.ndarray, ridge: float) -> Callable[[np.ndarray], np.ndarray]:
    """Logistic regression, as a function from rows to log-odds."""

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        odds = rows @ w[1:] + w[0]
        pull = -weight * sign * scipy.special.expit(-sign * odds)
        value = np.sum(weight * np.logaddexp(0, -sign * odds)) + ridge / 2 * np.sum(w[1:] ** 2)
        return value, np.concatenate([[pull.sum()], rows.T @ pull + ridge * w[1:]])

    w = scipy.optimize.minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return lambda rows: rows @ w[1:] + w[0]
