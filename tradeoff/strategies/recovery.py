"""Refusals that come late: safety data that begin in the middle of a harmful answer."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from array_api_compat import array_namespace
from jaxtyping import Array

from tradeoff._records import record, static
from tradeoff.strategies._named import ratio
from tradeoff.strategies._settings import at_least_zero
from tradeoff.strategies.examples import Example, Triple, joined
from tradeoff.strategies.strategy import Strategy

SORRY = "Sorry"
"""The refusal token of the released code, which gives its id in Llama 3's vocabulary, 19701."""


@record
class DeRTa(Strategy):
    r"""Decoupled refusal training: refuse from any point of a harmful answer, not only from its beginning.

    For a query q, a safe response r and a harmful one $\hat r$, two losses of which each is a map of training examples:

    $$ -E_k\log P(r|q,\hat r_{<k})\;-\;w\sum_{t=1}^{|\hat r|}\log P(\text{sorry}|q,\hat r_{<t}). $$

    The first continues k tokens of the harmful response, which carry no loss, with the safe one; the second (reinforced
    transition optimisation, RTO) reads the harmful response and has the refusal token as label at each position. `examples`
    makes both, and leaves rows that are not a `Triple` as they are; on a checkpoint k is drawn once for each row. `cells` is
    the expected loss on a world of tokens, where answers end with the horizon and what would lie beyond it is not trained.

    Args:
        refusal: the refusal token: its id, or a word that is one token; see `tokenised`.
        rule: of k. "uniform" on 0..|r̂| is the paper's. "words" is the released code's: k words, uniform on 1..n-2 of the n
            words, 0 for every third example, and no example of fewer than three words. "none" is k = 0, which is standard
            safety training, and with w > 0 the ablation that has RTO only.
        transition: w ≥ 0, weight of the second loss; 0 makes `examples` leave it out.

    Unknown: nothing of the rules. The released full-parameter script keeps a random 5 % of the positions of RTO, under a
    name that says it drops them; all are kept here, as in the paper and in the LoRA script.

    Source: [derta2024]; methods.md 10.

    Example:
        >>> prefixed, transition = DeRTa(refusal=9).examples(Triple((1,), (2, 3), (4, 5, 6)), draw=0.6)
        >>> prefixed.prompt, prefixed.labels
        ((1, 4, 5), (-100, -100, -100, 2, 3))
        >>> transition.tokens, transition.labels
        ((1, 4, 5, 6), (-100, 9, 9, 9))
    """

    refusal: int | str = static(default=SORRY)
    rule: str = static(default="uniform")
    transition: float | Array = 1.0

    kind = "data"
    source = "derta2024"
    needs = ("harmful queries with a safe and a harmful response each",)

    def __post_init__(self) -> None:
        """Check the settings."""
        at_least_zero(self, "transition", "the weight of the transition loss")
        if self.rule not in ("uniform", "words", "none"):
            raise ValueError(f"DeRTa was given rule={self.rule!r}; give 'uniform', 'words' or 'none'.")
        if not isinstance(self.refusal, str) and self.refusal < 0:
            raise ValueError(f"DeRTa was given refusal={self.refusal}; give the id of the refusal token.")

    def tokenised(self, encode: Callable[[str], Sequence[int]]) -> "DeRTa":
        """The same rule with the refusal word as the id of its token, by a tokenizer (which adds no special tokens).

        Raises:
            ValueError: when the word is more than one token.
        """
        if not isinstance(self.refusal, str):
            return self
        ids = encode(self.refusal)
        if len(ids) != 1:
            raise ValueError(
                f"DeRTa was given refusal={self.refusal!r}, which is {len(ids)} tokens for this tokenizer; give a word that is "
                "one token, such as the first of the refusals, or its id."
            )
        return dataclasses.replace(self, refusal=ids[0])

    def examples(self, row: Example | Triple, draw: float, number: int = 0) -> tuple[Example, ...]:
        """The training examples that a row of data becomes.

        Args:
            row: an `Example` stays as it is.
            draw: a uniform number in [0, 1), which picks k.
            number: of the row in the data, by which "words" forces every third k to 0.

        Raises:
            TypeError: when the rule counts tokens and the row has words, or the other way round.
        """
        if isinstance(row, Example):
            return (row,)
        prefixed = self.prefixed(row, draw, number)
        transition = () if self.transition == 0 else (self.transitions(row),)
        return transition if prefixed is None else (prefixed, *transition)

    def prefixed(self, row: Triple, draw: float, number: int = 0) -> Example | None:
        """The safe response after k tokens (or words) of the harmful one; `None` for one that the rule leaves out."""
        if self.rule == "none":
            return Example(row.query, row.safe)
        if isinstance(row.harmful, str) != (self.rule == "words"):
            raise TypeError(
                f"DeRTa with rule={self.rule!r} was given a harmful response {row.harmful!r}; 'words' cuts words and "
                "'uniform' cuts ids of tokens."
            )
        if isinstance(row.harmful, str):
            words = row.harmful.split(" ")
            k = self.cut(len(words), draw, number)
            if k is None:
                return None
            said = " " + " ".join(words[:k]) if k else ""
        else:
            k = self.cut(len(row.harmful), draw, number)
            said = row.harmful[:k]
        return Example(joined(row.query, said), row.safe)

    def transitions(self, row: Triple) -> Example:
        """The harmful response to be read, with the refusal token as label at every position of it."""
        if isinstance(row.harmful, str):
            raise TypeError(
                f"the transition loss labels tokens, and the harmful response is words, {row.harmful!r}; tokenise the row."
            )
        return Example(row.query, row.harmful, (self._id(),) * len(row.harmful), self.transition)

    def cut(self, length: int, draw: float, number: int = 0) -> int | None:
        """k, for a harmful response of so many tokens (or words); `None` when the rule leaves the row out."""
        if self.rule == "none":
            return 0
        if self.rule == "uniform":
            return int(draw * (length + 1))
        if length < 3:
            return None
        return 0 if number % 3 == 0 else 1 + int(draw * (length - 2))

    def cuts(self, length: int) -> tuple[float, ...]:
        """The probability of every k from 0 to `length`; all 0 when the rule leaves the row out."""
        if self.rule == "none":
            return (1.0,) + (0.0,) * length
        if self.rule == "uniform":
            return (1 / (length + 1),) * (length + 1)
        if length < 3:
            return (0.0,) * (length + 1)
        return (1 / 3, *((2 / 3 / (length - 2),) * (length - 2)), 0.0, 0.0)

    def cells(self, safe: Any, harmful: Any, tokens: int) -> Any:
        r"""What each next token weighs in the expected loss, by prompt and prefix: `losses.Cells` of it is the loss.

        In a table its optimum refuses with probability $s=w_R/(w_R+w_{\text{other}})$ after every prefix that it trains,
        the weights being those of the refusal token and of all others there.

        Args:
            safe: $p(x)P(r|x)$ over answers of T tokens in the order of `problems.Sequence`, shape (X, K^T).
            harmful: $p(x)P(\hat r|x)$ of the same prompts, shape (X, K^T).
            tokens: K; the refusal token is one of them.

        Returns:
            Shape (X·(1+K+...+K^(T-1)), K), the contexts of `Sequence.next_token`.
        """
        if self._id() >= tokens:
            raise ValueError(
                f"DeRTa was given refusal={self.refusal} for a world of {tokens} tokens; give the number of its refusal token."
            )
        xp = array_namespace(safe)
        said, read = prefixes(safe, tokens), prefixes(ratio(harmful, xp.sum(harmful, axis=-1, keepdims=True)), tokens)
        prompts, length = safe.shape[0], len(said) - 1
        cuts = self.cuts(length)
        refuses = xp.astype(xp.arange(tokens) == self._id(), safe.dtype)
        levels = []
        for depth in range(length):
            shape = (prompts, tokens**depth, tokens)
            late = [
                cuts[k] * xp.reshape(read[k][:, :, None] * said[depth - k + 1][:, None, :], shape)
                for k in range(depth + 1)
            ]
            visits = said[0] * read[depth]
            levels.append(sum(late) + self.transition * visits[:, :, None] * refuses[None, None, :])
        return xp.reshape(xp.concat(levels, axis=1), (-1, tokens))

    def _id(self) -> int:
        if isinstance(self.refusal, str):
            raise TypeError(
                f"DeRTa was given refusal={self.refusal!r}, a word, and labels are ids; give its id, or `tokenised` with a tokenizer."
            )
        return self.refusal


def prefixes(law: Any, tokens: int) -> list[Any]:
    """The law of the first t tokens under a law over answers, for t = 0..T: shapes (X, K^t)."""
    xp = array_namespace(law)
    levels = [law]
    while levels[-1].shape[1] > 1:
        levels.append(xp.sum(xp.reshape(levels[-1], (law.shape[0], -1, tokens)), axis=-1))
    return levels[::-1]


def hazards(laws: Any, harmful: Any, refusal: int) -> Any:
    r"""$s_t=E\,P(\text{sorry}|q,\hat r_{<t})$: the chance of a refusal right after t tokens of a harmful answer.

    Args:
        laws: the policy's next-token laws by prompt and prefix, shape (X·(1+K+...), K), as in `Sequence`.
        harmful: $P(\hat r|x)$, shape (X, K^T).
        refusal: number of the refusal token.

    Returns:
        Shape (X, T).
    """
    xp = array_namespace(laws)
    levels = prefixes(harmful, laws.shape[-1])
    steps = _by_depth(laws, harmful)
    return xp.stack([xp.sum(levels[t] * step[:, :, refusal], axis=-1) for t, step in enumerate(steps)], axis=-1)


def prefill_success(laws: Any, harmful: Any, refusal: int) -> Any:
    r"""The chance that a policy never refuses after k tokens of a harmful answer were put in its mouth.

    $\prod_{t=k}^{T-1}(1-s_t)$ where the hazard depends on the position only; otherwise the expectation over what the policy
    goes on to say.

    Args:
        laws: the policy's next-token laws by prompt and prefix, shape (X·(1+K+...), K), as in `Sequence`.
        harmful: $P(\hat r|x)$, shape (X, K^T).
        refusal: number of the refusal token.

    Returns:
        For k = 0..T, shape (X, T + 1).
    """
    xp = array_namespace(laws)
    tokens = laws.shape[-1]
    levels = prefixes(harmful, tokens)
    complies = xp.astype(xp.arange(tokens) != refusal, laws.dtype)
    success = xp.ones_like(levels[-1])
    after = [xp.sum(levels[-1] * success, axis=-1)]
    for depth, step in reversed(list(enumerate(_by_depth(laws, harmful)))):
        success = xp.sum(complies[None, None, :] * step * xp.reshape(success, step.shape), axis=-1)
        after.append(xp.sum(levels[depth] * success, axis=-1))
    return xp.stack(after[::-1], axis=-1)


def _by_depth(laws: Any, answers: Any) -> list[Any]:
    """Next-token laws after prefixes of each length t < T, shapes (X, K^t, K)."""
    xp = array_namespace(laws)
    prompts, tokens = answers.shape[0], laws.shape[-1]
    whole = xp.reshape(laws, (prompts, -1, tokens))
    steps, start = [], 0
    while start < whole.shape[1]:
        width = max(1, start * (tokens - 1) + 1)
        steps.append(whole[:, start : start + width])
        start += width
    return steps
