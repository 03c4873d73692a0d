"""Fine-tuning for safety beside or in place of the task: mixed data, the best of several samples, preferences."""

from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Array

from tradeoff._records import record, static
from tradeoff.strategies._named import Weights
from tradeoff.strategies._own_loss import OwnLoss, check_table, table
from tradeoff.strategies._settings import above_zero, within
from tradeoff.strategies.losses import SAFETY, TASK, Cells, Data, Weighted, normalised
from tradeoff.strategies.strategy import Engine, Gradient, State, Strategy


@record
class Mixing(Strategy):
    r"""Safety data mixed into the task's: $(1-\varepsilon)L_f+\varepsilon\hat L_s$.

    SIT and SafeInstr are this rule. It is the penalty $\lambda=\varepsilon/(1-\varepsilon)$, hence a point of the Pareto front.

    Args:
        share: ε in [0, 1), the share of safety examples; 0.03 is what SafeInstr found to suffice.

    Unknown: the share of Safe to Serve.

    Source: [safetoserve2024], [safeinstr2023]; methods.md 8, P7.
    """

    share: float | Array = 0.03

    kind = "loss"
    source = "safetoserve2024"
    needs = ("safety data",)
    owns = "loss"

    def __post_init__(self) -> None:
        """Check the share."""
        within(self, "share", 0, 1, "the share of safety examples")

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """That of the mixed data."""
        return engine.gradient(Weighted(((1 - self.share, TASK), (self.share, SAFETY))), weights)


@record
class RAFT(Strategy):
    r"""Reward-ranked fine-tuning: K answers are sampled, the one of highest reward is imitated, and so on in rounds.

    The law of the best of K answers is exact, so a round is what infinitely many prompts would make of it: with the policy's
    mass a on answers of at most y's reward, b of less,

    $$ P_K(y|x)=\pi(y|x)\frac{a^K-b^K}{a-b}, $$

    answers of equal reward as often as the policy gives them. A group whose best answer is bad is kept. The targets stand
    still during a round. A language model's answers are those that the world lists, each as likely as given that it is one of
    them: on others there is no reward. For a reward of 0 or 1 and targets that are met, $p\leftarrow1-(1-p)^K$.

    Args:
        reward: of every answer, finite: shape (X, Y) (a 1 stands for any X or Y).
        samples: K ≥ 1; 1 imitates the policy itself and stays.
        every: steps of a round.

    Unknown: K, rewards, prompts and rounds of the paper. Here the prompts are those of the safety data.

    Source: [safetoserve2024], [raft2023]; methods.md 8.
    """

    reward: Any
    samples: int = static(default=4)
    every: int = static(default=1)

    kind = "loss"
    source = "safetoserve2024"
    needs = ("safety prompts", "a reward of every answer")
    owns = "loss"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_table(self, "reward", -np.inf, np.inf, "a reward")
        for name, words in (("samples", "the number of answers to choose from"), ("every", "the steps of a round")):
            if getattr(self, name) < 1:
                raise ValueError(f"RAFT was given {name}={getattr(self, name)}; {words} must be at least 1.")

    def init(self, weights: Weights, engine: Engine) -> State:
        """The targets of the first round."""
        return {"targets": self._targets(weights, engine)}

    def refresh(self, state: State, weights: Weights, step: Any, engine: Engine) -> State:
        """New targets when a round begins."""
        begins = step % self.every == 0
        return {"targets": engine.either(begins, lambda: self._targets(weights, engine), lambda: state["targets"])}

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """Cross-entropy on the targets."""
        return engine.gradient(Cells(state["targets"]), weights)

    def _targets(self, weights: Weights, engine: Engine) -> Any:
        safety, log_policy = engine.data.safety, normalised(engine.log_policy(weights))
        prompts = array_namespace(safety).sum(safety, axis=-1, keepdims=True)
        return prompts * best_of(log_policy, self.reward, self.samples)


def best_of(log_policy: Any, reward: Any, samples: int) -> Any:
    r"""The exact law of the best of K answers, ties broken by lot.

    Args:
        log_policy: shape (X, Y).
        reward: a number or shape (X, Y) (a 1 stands for any X or Y).
        samples: K ≥ 1.

    Returns:
        Probabilities, shape (X, Y).
    """
    xp = array_namespace(log_policy)
    policy, scores = xp.exp(log_policy), table(reward, log_policy, log_policy.shape, "the reward")
    scores = xp.zeros_like(policy) + scores
    mine, others = scores[:, :, None], scores[:, None, :]
    up_to = xp.sum(xp.where(others <= mine, policy[:, None, :], xp.zeros_like(others)), axis=-1)
    below = xp.sum(xp.where(others < mine, policy[:, None, :], xp.zeros_like(others)), axis=-1)
    # (a^K - b^K) / (a - b) as a sum of products, which has no difference to lose digits by, nor a 0 below.
    total, power = xp.zeros_like(policy), xp.ones_like(policy)
    for _ in range(samples):
        total, power = power + below * total, power * up_to
    return policy * total


@record
class DPO(OwnLoss):
    r"""Direct preference optimisation, its expectation exact over a law of preferences.

    $$ L=-\sum_x\hat p_s(x)\sum_{i,j}c(x,i,j)\log\sigma\big(\beta[h(x,i)-h(x,j)]\big),\qquad
       h=\log\frac{\pi(\cdot|x)}{\pi_0(\cdot|x)}. $$

    At the aligned policy every pair has weight 1/2, times β. Where the pairs compared make a forest, or follow a reward
    (`bradley_terry`), the margin of a pair whose first answer is preferred with probability q ends at
    $h(i)-h(j)=\operatorname{logit}(q)/\beta$; certain preferences (q of 0 or 1) drive it without end, so stop early.

    Args:
        preferences: c, how often the data prefer answer i to answer j: at least 0, shape (X, Y, Y) (a 1 stands for any X).
        beta: β > 0; 0.1 is usual.

    Unknown: β, reference and pairs of Safe to Serve. Here the prompts are those of the safety data.

    Source: [safetoserve2024], [dpo2023]; methods.md 8.
    """

    preferences: Any
    beta: float | Array = 0.1

    source = "safetoserve2024"
    needs = ("safety prompts", "preferences between answers to them")

    def __post_init__(self) -> None:
        """Check preferences and β."""
        check_table(self, "preferences", 0, np.inf, "how often one answer is preferred to another")
        above_zero(self, "beta", "β")

    def value(self, data: Data, log_policy: Any) -> Any:
        """The expected loss of a pair, nats."""
        margins = self.beta * _differences(log_policy - data.start)
        xp = array_namespace(margins)
        return xp.sum(self._pairs(data) * xp.logaddexp(xp.zeros_like(margins), -margins))

    def cells(self, data: Data, log_policy: Any) -> Any:
        """Up for what is preferred, down for what it is preferred to, each as its pair weighs."""
        pulls = self.beta * self._pairs(data) * self.pair_weights(data, log_policy)
        xp = array_namespace(pulls)
        return xp.sum(pulls, axis=2) - xp.sum(pulls, axis=1)

    def pair_weights(self, data: Data, log_policy: Any) -> Any:
        r"""$\sigma(-\beta[h(i)-h(j)])$ of every pair, shape (X, Y, Y)."""
        margins = _differences(log_policy - data.start)
        return 1 / (1 + array_namespace(margins).exp(self.beta * margins))

    def _pairs(self, data: Data) -> Any:
        prompts = array_namespace(data.safety).sum(data.safety, axis=-1)[:, None, None]
        every = (*data.safety.shape, data.safety.shape[-1])
        return prompts * table(self.preferences, data.safety, every, "preferences of DPO")


def _differences(values: Any) -> Any:
    return values[:, :, None] - values[:, None, :]


def bradley_terry(reward: Any) -> np.ndarray:
    r"""Preferences that follow a reward, $q(i,j)=\sigma(r(i)-r(j))$, all pairs of different answers equally often.

    Under them `DPO` ends at $\pi\propto\pi_0e^{r/\beta}$.

    Args:
        reward: shape (X, Y).

    Returns:
        A law over ordered pairs in every context, shape (X, Y, Y).

    Raises:
        ValueError: when the reward is not a finite table of at least two answers.

    Example:
        >>> bradley_terry([[0.0, np.log(3)]]).round(2).tolist()
        [[[0.0, 0.25], [0.75, 0.0]]]
    """
    r = np.asarray(reward, np.float64)
    if r.ndim != 2 or r.shape[-1] < 2 or not np.all(np.isfinite(r)):
        raise ValueError(f"bradley_terry was given {reward!r}; give finite rewards of shape (X, Y) with Y at least 2.")
    wins = 1 / (1 + np.exp(-_differences(r))) * (1 - np.eye(r.shape[-1]))
    return wins / wins.sum(axis=(1, 2), keepdims=True)
