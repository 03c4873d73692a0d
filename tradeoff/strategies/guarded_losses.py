"""Losses that guard every token: by what a guard model says of it, or by how far it has left the aligned policy."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Array

from tradeoff._records import record, static
from tradeoff.strategies._own_loss import OwnLoss, check_table, table
from tradeoff.strategies._settings import at_least_zero
from tradeoff.strategies.losses import Cells, Data, divergence

BETAS = (0.5, 2.0, 2.0, 2.0, 2.0, 0.1)
"""β of constrained fine-tuning by position, as published; the last one is that of all later tokens."""

LEAST_WEIGHT = 1e-3
"""The weight below which constrained fine-tuning lets no token fall, as published."""


@record
class STARDSS(OwnLoss):
    r"""Dynamic safety shaping: imitate what the guard finds safe, and stay at the aligned policy where it does not.

    $$ L=\sum_{x,y}p_f(x)P_f(y|x)\big[-V(x,y)\log\pi(y|x)+(1-V(x,y))\,\lambda_{\mathrm{KL}}\,k(x,y)\big], $$

    with $k=\tfrac12(\log\pi(y|x)-\log\pi_0(y|x))^2$ for "k2", a divergence estimated from the token of the data alone, and
    $k=\mathrm{KL}(\pi_0(\cdot|x)\,\|\,\pi(\cdot|x))$ for "full". For one token y and reference r the two stop at

    $$ \pi(y)=\min\Big(1,r(y)\,e^{V/((1-V)\lambda_{\mathrm{KL}})}\Big)\ \text{(k2)},\qquad
       \pi=\frac{Ve_y+(1-V)\lambda_{\mathrm{KL}}r}{V+(1-V)\lambda_{\mathrm{KL}}}\ \text{(full)}. $$

    V is 1 everywhere in plain fine-tuning. V of 0 or 1 for each whole response and no divergence is rejection sampling.

    Args:
        V: what the guard says, in [0, 1]: a number, or shape (X, Y) (a 1 stands for any X or Y). The paper scores a response
            every M tokens. On a world seen token by token (`problems.Sequence.next_token`) an entry is the score of the
            chunk that the token is in; where that depends on the chunk's later tokens, its mean over them, which is exact
            since the loss is linear in V.
        lam_KL: weight of the divergence, ≥ 0; the published code's configuration has 0.5 and its constructor 1.
        kl: "k2", as released, or "full".

    Unknown: the numbers that a guard gives to partial responses (the released code has 0 and 1 for whole ones), the tables.

    Source: [stardss2025]; methods.md 3.
    """

    V: Any
    lam_KL: float | Array = 0.5  # noqa: N815 (λ_KL of the paper)
    kl: str = static(default="k2")

    source = "stardss2025"
    needs = ("a guard's score of every token of the task's data",)

    def __post_init__(self) -> None:
        """Check the settings."""
        check_table(self, "V", 0, 1, "what the guard says, V,")
        at_least_zero(self, "lam_KL", "the weight of the divergence")
        if self.kl not in ("k2", "full"):
            raise ValueError(f"STARDSS was given kl={self.kl!r}; give 'k2' or 'full'.")

    def value(self, data: Data, log_policy: Any) -> Any:
        """Cross-entropy where the guard agrees and a divergence from the aligned policy where not, nats."""
        imitated, guarded = self._shares(data)
        return Cells(imitated).value(data, log_policy) + self.lam_KL * self._divergence(guarded, data, log_policy)

    def cells(self, data: Data, log_policy: Any) -> Any:
        """What is imitated, and a pull to the aligned policy."""
        imitated, guarded = self._shares(data)
        if self.kl == "full":
            return imitated + self.lam_KL * _stay(guarded, data)
        return imitated - self.lam_KL * guarded * (log_policy - data.start)

    def _shares(self, data: Data) -> tuple[Any, Any]:
        V = table(self.V, data.task, data.task.shape, "V of STARDSS")
        return V * data.task, (1 - V) * data.task

    def _divergence(self, guarded: Any, data: Data, log_policy: Any) -> Any:
        if self.kl == "full":
            return divergence(_stay(guarded, data), log_policy)
        return array_namespace(log_policy).sum(guarded * (log_policy - data.start) ** 2) / 2


def _stay(guarded: Any, data: Data) -> Any:
    """The aligned policy in every context, as often as the guard objects there."""
    xp = array_namespace(guarded)
    return xp.sum(guarded, axis=-1, keepdims=True) * xp.exp(data.start)


@record
class ConstrainedSFT(OwnLoss):
    r"""Fine-tuning that pays less for a token the further it has risen above the aligned policy.

    $$ L=-\sum_{x,y}p_f(x)P_f(y|x)\frac{2}{\beta_x}\log\sigma\big(\beta_x\Delta(x,y)\big),\qquad
       \Delta=\log\frac{\pi(y|x)}{\pi_0(y|x)}. $$

    Its gradient is that of cross-entropy with every token weighted by $w=2\sigma(-\beta\Delta)$, at least `LEAST_WEIGHT`:
    1 at the start, falling as the token rises. Where $d\Delta/dt=w$ one has $\Delta+(e^{\beta\Delta}-1)/\beta=2t$ until then, so
    the deviation grows like $\log(2\beta t)/\beta$ only.

    Args:
        beta: β ≥ 0, a number or one for each context, shape (X,); 0 is plain fine-tuning. The rule is one about tokens, so
            give it a world seen token by token and `betas_by_position`; where a response is one token, β is that of
            position 1, the default.

    Source: [constrained2024]; methods.md P10.
    """

    beta: Any = BETAS[0]

    source = "constrained2024"

    def __post_init__(self) -> None:
        """Check β."""
        check_table(self, "beta", 0, np.inf, "β (0 is none)")

    def value(self, data: Data, log_policy: Any) -> Any:
        """The loss above that of the aligned policy, nats: 0 at the start."""
        xp = array_namespace(log_policy)
        risen, beta, limit = self._risen(data, log_policy)
        inside = xp.where(risen < limit, risen, limit)
        # log σ without its value at 0: -(2/β) log 2σ(βΔ) = -Δ + (2/β) log cosh(βΔ/2), also where β is 0.
        safe, half = xp.where(beta > 0, beta, xp.ones_like(beta)), beta * inside / 2
        bend = xp.logaddexp(half, -half) - math.log(2)
        return xp.sum(data.task * (2 / safe * bend - inside - LEAST_WEIGHT * (risen - inside)))

    def cells(self, data: Data, log_policy: Any) -> Any:
        """The task's data, weighted."""
        return data.task * self.weights(data, log_policy)

    def weights(self, data: Data, log_policy: Any) -> Any:
        """$w$ of every token, in [`LEAST_WEIGHT`, 2), shape (X, Y)."""
        xp = array_namespace(log_policy)
        risen, beta, limit = self._risen(data, log_policy)
        weight = 2 / (1 + xp.exp(beta * xp.where(risen < limit, risen, limit)))
        return xp.where(risen < limit, weight, xp.full_like(weight, LEAST_WEIGHT))

    def _risen(self, data: Data, log_policy: Any) -> tuple[Any, Any, Any]:
        """Δ, β in every cell, and the Δ at which the weight meets its least value."""
        xp = array_namespace(log_policy)
        per_context = table(self.beta, data.task, data.task.shape[:1], "beta of ConstrainedSFT")
        beta = xp.zeros_like(data.task) + (per_context[:, None] if per_context.ndim else per_context)
        limit = math.log(2 / LEAST_WEIGHT - 1) / xp.where(beta > 0, beta, xp.ones_like(beta))
        return log_policy - data.start, beta, xp.where(beta > 0, limit, xp.full_like(beta, np.inf))


def betas_by_position(prompts: int, length: int, tokens: int, betas: Sequence[float] = BETAS) -> np.ndarray:
    """β for every context of a world seen token by token, in the order of `problems.Sequence`.

    Args:
        prompts: of the world, X.
        length: tokens of an answer, T.
        tokens: of the vocabulary, K.
        betas: by position, the last one for all later ones.

    Returns:
        One for each prompt and prefix, shape (X times prefixes,).

    Raises:
        ValueError: when a number is too small, or there is no β.

    Example:
        >>> betas_by_position(prompts=1, length=3, tokens=2).tolist()
        [0.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    """
    if prompts < 1 or length < 1 or tokens < 2 or len(betas) == 0:
        raise ValueError(
            f"betas_by_position was given prompts={prompts}, length={length}, tokens={tokens} and {len(betas)} betas; it "
            "needs at least 1, 1, 2 and 1."
        )
    positions = np.repeat(np.arange(length), tokens ** np.arange(length))
    return np.tile(np.asarray(betas, np.float64)[np.minimum(positions, len(betas) - 1)], prompts)
