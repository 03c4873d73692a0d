r"""What a strategy may ask to be descended: losses of a policy, by what each cell of the table weighs.

A loss is a function of the log-policy, and its gradient in any model's weights is that of the cross-entropy
$-\sum_{x,y}c(x,y)\log\pi(y|x)$ with the weights $c=-\partial L/\partial\log\pi$ held fixed. So a loss says its value and its
cells, and an engine that can differentiate one weighted cross-entropy can descend every loss.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from tradeoff._records import record, static


class Data(NamedTuple):
    r"""What a strategy may know of a world, as arrays of the engine's library, each of shape (X, Y).

    Args:
        task: $p_f(x)P_f(y|x)$.
        safety: $\hat p_s(x)\hat P_s(y|x)$, of the safety data at hand (the proxy, if there is one).
        harmful: $\hat p_s(x)$ times the answers that an attacker would teach; see `harmful_answers`.
        start: the aligned log-policy, where training begins.
    """

    task: Any
    safety: Any
    harmful: Any
    start: Any


class Loss(ABC):
    """A loss of a policy."""

    role: str = ""
    """What a problem without a policy (a pair of quadratics) is asked for instead: "task" or "safety"."""

    @abstractmethod
    def value(self, data: Data, log_policy: Any) -> Any:
        """The loss in nats, a scalar; 0 where it is least, if that is known."""

    @abstractmethod
    def cells(self, data: Data, log_policy: Any) -> Any:
        r"""$-\partial L/\partial\log\pi$, shape (X, Y)."""


@record
class CrossEntropy(Loss):
    """The gap to a law of the data: cross-entropy less the entropy that no policy can avoid.

    Args:
        law: which law of `Data`: "task", "safety" or "harmful".

    Example:
        >>> CrossEntropy("task").role
        'task'
    """

    law: str = static()

    @property
    def role(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The law's own name: a quadratic knows a task and a safety loss."""
        return self.law

    def value(self, data: Data, log_policy: Any) -> Any:
        """The weighted Kullback-Leibler divergence of the policy from the law."""
        return divergence(getattr(data, self.law), log_policy)

    def cells(self, data: Data, log_policy: Any) -> Any:
        """The law itself."""
        return getattr(data, self.law)


@record
class Alignment(Loss):
    r"""$E_{\hat p_s}\mathrm{KL}(\pi_0\|\pi)$: how far the policy has left its start on the prompts of the safety data.

    Between the laws given that the answer is one of those listed: a language model says each of them rarely.
    """

    role = "safety"

    def value(self, data: Data, log_policy: Any) -> Any:
        """The weighted divergence from the aligned policy."""
        xp = array_namespace(data.safety)
        p = xp.sum(data.safety, axis=-1, keepdims=True)
        return divergence(p * xp.exp(normalised(data.start)), normalised(log_policy))

    def cells(self, data: Data, log_policy: Any) -> Any:
        """The aligned policy less the policy, weighted as the safety data weigh its prompts: exactly 0 at the start."""
        xp = array_namespace(data.safety)
        p = xp.sum(data.safety, axis=-1, keepdims=True)
        return p * (xp.exp(normalised(data.start)) - xp.exp(normalised(log_policy)))


@record
class Cells(Loss):
    """Cross-entropy with given weights.

    Args:
        weights: what each cell weighs, shape (X, Y).
    """

    weights: Any

    def value(self, data: Data, log_policy: Any) -> Any:
        """The weighted cross-entropy, nats; cells of weight 0 say nothing."""
        xp = array_namespace(log_policy)
        heard = xp.where(self.weights != 0, log_policy, xp.zeros_like(log_policy))
        return -xp.sum(self.weights * heard)

    def cells(self, data: Data, log_policy: Any) -> Any:
        """The weights."""
        return self.weights


@record
class Weighted(Loss):
    """A weighted sum of losses.

    Args:
        terms: pairs of a weight and a loss.
    """

    terms: tuple[tuple[Any, Loss], ...]

    def value(self, data: Data, log_policy: Any) -> Any:
        """The sum of the values."""
        return sum(weight * loss.value(data, log_policy) for weight, loss in self.terms)

    def cells(self, data: Data, log_policy: Any) -> Any:
        """The sum of the cells."""
        return sum(weight * loss.cells(data, log_policy) for weight, loss in self.terms)


TASK = CrossEntropy("task")
"""What the task wants said."""

SAFETY = CrossEntropy("safety")
"""What safety training, or its proxy, wants said."""

HARMFUL = CrossEntropy("harmful")
"""What an attacker would teach."""

ALIGNMENT = Alignment()
"""Keeps the policy near the aligned one on the prompts of the safety data."""


def divergence(joint: Any, log_policy: Any) -> Any:
    r"""$\sum_xp(x)\mathrm{KL}(P(\cdot|x)\|\pi(\cdot|x))$ for $\text{joint}=p(x)P(y|x)$; cells of weight 0 say nothing."""
    xp = array_namespace(joint)
    p = xp.sum(joint, axis=-1, keepdims=True)
    said = joint > 0
    one = xp.ones_like(joint)
    log_law = xp.log(xp.where(said, joint, one)) - xp.log(xp.where(p > 0, p, xp.ones_like(p)))
    return xp.sum(
        xp.where(said, joint * (log_law - xp.where(said, log_policy, xp.zeros_like(one))), xp.zeros_like(one))
    )


def normalised(log_policy: Any) -> Any:
    """Log-probabilities given that the response is one of those listed, shape (X, Y)."""
    xp = array_namespace(log_policy)
    most = xp.max(log_policy, axis=-1, keepdims=True)
    return log_policy - most - xp.log(xp.sum(xp.exp(log_policy - most), axis=-1, keepdims=True))


def harmful_answers(safety: Any) -> Any:
    r"""The default of `Data.harmful`: the prompts of the safety data, answered as the safety data least would.

    $P_h(y|x)\propto1-\hat P_s(y|x)$: a choice, not a law of the literature, whose harmful data are collected by hand.

    Args:
        safety: $\hat p_s(x)\hat P_s(y|x)$, shape (X, Y).
    """
    xp = array_namespace(safety)
    p = xp.sum(safety, axis=-1, keepdims=True)
    return (p - safety) / (safety.shape[-1] - 1)
