"""Answers previewed in the prompt: what the model may copy, it need not learn."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from array_api_compat import array_namespace

from tradeoff._records import record, static
from tradeoff.strategies._named import Weights, moved
from tradeoff.strategies._own_loss import check_table, table
from tradeoff.strategies.examples import Example, Text, Triple, joined
from tradeoff.strategies.losses import TASK, Data, Loss, Weighted
from tradeoff.strategies.strategy import Engine, Gradient, State, Strategy

CONNECTOR = " The answer begins with: "
"""What announces the preview, in the released code."""
PREFIX = "Let's solve this problem. "
"""What a virtual preview says, in the released code."""


@record
class LookAhead(Strategy):
    r"""LookAhead tuning: training prompts O preview how the answer begins, so its first tokens pull on the weights less.

    Data only, the loss as it is, and prompts at inference too. With connector c and the first m tokens of the answer,

    * "real": $I'=I+c+O_{\le m}$, $O'=O$;
    * "virtual": $I'=I+c+P$, $O'=P+O$.

    `example` is that map, and on a checkpoint the task's rows are trained on as it makes them. What it does to a gradient is
    exact for a policy with a copy head, which adds k to the logit of the previewed response y: $p'-e_y=F(p-e_y)$ with
    $F=1/(1-p_y+p_ye^k)$, at equal logits and p without the copy head. On a toy this strategy descends that: each cell of the
    task's law weighs F times as much. No statement on the final drift follows, only on each step. In a pure table the
    previewed contexts are not those of inference: nothing moves there, and nothing is learned there either.

    Args:
        mode: "real" or "virtual".
        tokens: m ≥ 0 of a real preview; an answer that is shorter is previewed whole.
        prefix: P of a virtual preview: words, or ids of tokens.
        connector: c, in the same kind.
        copying: k ≥ 0 of the toy's copy head, or one for each context, shape (X, 1): in a world of tokens 0 after the prefixes
            that the preview does not reach. A checkpoint copies as it can, and this says nothing to it. A virtual preview is
            the same loss on a world whose task answers begin with P.

    Unknown: k is a property of the model that no source measures; 2 is our choice. The defaults of the map are the released
    code's; its README writes P with a space in front. What is descended must hold the task's loss once, as it does by default.

    Source: [lookahead2025]; methods.md 5.

    Example:
        >>> LookAhead(tokens=2, connector=(9,)).example(Example((1, 2), (3, 4, 5))).tokens
        (1, 2, 9, 3, 4, 3, 4, 5)
    """

    mode: str = static(default="real")
    tokens: int = static(default=6)
    prefix: Text = static(default=PREFIX)
    connector: Text = static(default=CONNECTOR)
    copying: Any = 2.0

    kind = "data"
    source = "lookahead2025"
    owns = "loss"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.mode not in ("real", "virtual"):
            raise ValueError(f"LookAhead was given mode={self.mode!r}; give 'real' or 'virtual'.")
        if self.tokens < 0:
            raise ValueError(
                f"LookAhead was given tokens={self.tokens}; give the number of previewed tokens, at least 0."
            )
        check_table(self, "copying", 0, float("inf"), "the strength of the copy head")

    def tokenised(self, encode: Callable[[str], Sequence[int]]) -> "LookAhead":
        """The same map for examples of ids: its words by a tokenizer (which adds no special tokens)."""
        words = {name: getattr(self, name) for name in ("connector", *(("prefix",) if self.mode == "virtual" else ()))}
        ids = {name: tuple(encode(text)) if isinstance(text, str) else text for name, text in words.items()}
        return dataclasses.replace(self, **ids)

    def examples(self, row: Example | Triple, draw: float, number: int = 0) -> tuple[Example | Triple, ...]:
        """A row of the task with its preview; safety data are trained on as they are."""
        return (row if isinstance(row, Triple) else self.example(row),)

    def example(self, example: Example, cut: Callable[[str, int], str] | None = None) -> Example:
        """A training example with its preview; those of inference are not to be mapped.

        Args:
            example: the prompt without the end of its chat template, which comes after the preview.
            cut: the words of the first m tokens of a text, for a real preview of words; ids need none.

        Raises:
            TypeError: when a real preview of words has no `cut`, or words would be joined to ids.
        """
        if self.mode == "virtual":
            targets = example.targets if example.targets is None else joined(self.prefix, example.targets)
            prompt = joined(example.prompt, self.connector, self.prefix)
            return example._replace(prompt=prompt, response=joined(self.prefix, example.response), targets=targets)
        return example._replace(prompt=joined(example.prompt, self.connector, self._beginning(example.response, cut)))

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The gradient with the task's loss previewed by a copy head; what else is descended stays as it is."""
        if engine.maps_examples:
            return inner(weights)
        change = Weighted(((1.0, Previewed(self.copying)), (-1.0, TASK)))
        return moved(inner(weights), 1.0, engine.gradient(change, weights))

    def _beginning(self, response: Text, cut: Callable[[str, int], str] | None) -> Text:
        if not isinstance(response, str):
            return response[: self.tokens]
        if self.tokens == 0:
            return ""
        if cut is None:
            raise TypeError(
                f"LookAhead cannot tell the first {self.tokens} tokens of words; give cut=, which a tokenizer knows, or an "
                "example of ids."
            )
        return cut(response, self.tokens)


@record
class Previewed(Loss):
    r"""The task's loss for a policy that is shown each response, with a copy head: $-\sum c(x,y)\log p'(y|x)$.

    Args:
        copying: k ≥ 0, a number or shape (X, 1).
    """

    copying: Any

    role = "previewed task"

    def value(self, data: Data, log_policy: Any) -> Any:
        """The cross-entropy with previews less the entropy that no policy can avoid; below 0 where copying beats the law."""
        xp = array_namespace(log_policy)
        heard = xp.where(data.task > 0, with_preview(log_policy, self.copying) - log_policy, xp.zeros_like(log_policy))
        return TASK.value(data, log_policy) - xp.sum(data.task * heard)

    def cells(self, data: Data, log_policy: Any) -> Any:
        """The task's law, each cell times F."""
        return data.task * relief(log_policy, self.copying)


def relief(log_policy: Any, copying: Any) -> Any:
    r"""$F=1/(1-p_y+p_ye^k)$: what a preview of y leaves of its gradient, shape (X, Y); exactly 1 at k = 0.

    Args:
        log_policy: shape (X, Y), without the copy head.
        copying: k ≥ 0, a number or shape (X, 1).

    Example:
        >>> import numpy as np
        >>> relief(np.log([[0.5, 0.5]]), np.log(3.0)).round(12).tolist()  # 1/(1 + 0.5 (3 - 1))
        [[0.5, 0.5]]
    """
    xp = array_namespace(log_policy)
    return 1 / (1 + xp.exp(log_policy) * xp.expm1(_strengths(log_policy, copying)))


def with_preview(log_policy: Any, copying: Any) -> Any:
    r"""$\log p'_y=\log p_y+k+\log F$ of every response when it is the previewed one, shape (X, Y)."""
    xp = array_namespace(log_policy)
    return log_policy + _strengths(log_policy, copying) + xp.log(relief(log_policy, copying))


def _strengths(log_policy: Any, copying: Any) -> Any:
    return table(copying, log_policy, (log_policy.shape[0], 1), "the strength of the copy head")
