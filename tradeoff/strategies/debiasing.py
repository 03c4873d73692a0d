"""Over-refusal taken out at decoding: what safety training adds to every answer alike is subtracted again."""

from collections.abc import Callable, Iterable
from typing import Any

from array_api_compat import array_namespace, device

from tradeoff._records import record
from tradeoff.strategies.strategy import Strategy

Model = Callable[[Any, Any], Any]
"""From a prompt and a response to the logits of the token at each position of it, shape (at least L, V): those of
position i, counted from 0, have seen the prompt and the first i tokens of the response."""


@record
class TSDI(Strategy):
    r"""Token-level safety-debiased inference: the aligned model's logits less their mean excess over the reference's.

    $$ b_i(v)=E_{\tilde x,\tilde y}\big[s_{\text{safe}}(v|\tilde x,\tilde y_{<i})-s_{\text{ref}}(v|\tilde x,\tilde y_{<i})\big], $$

    over random prompts and random beginnings of responses; the first L tokens are decoded from $s_{\text{safe}}-b_i$, and
    nothing is trained. If $z_{\text{safe}}=z_{\text{ref}}+s(x,v)+\beta(v)$ with $E_{\tilde x}s=0$, then $b=\beta$ and what is left is
    exactly $\mathrm{softmax}(z_{\text{ref}}+s)$. Safety that is the same for all prompts is such a β, and is lost.

    Args:
        bias: b by position and token, shape (L, V); see `estimate`.

    Unknown: whether s is a logit, a log-probability or a probability. We take logits; log-probabilities differ by a constant
    per context, which no softmax sees, and probabilities would be another rule. Unknown too: L, how many random prompts
    there are, and how they are built (from MMLU); they are given here.

    Source: [tsdi2025]; methods.md 6.
    """

    bias: Any

    kind = "decoding"
    source = "tsdi2025"
    needs = ("the reference model, before its safety alignment", "random prompts")

    def __post_init__(self) -> None:
        """Check the shape."""
        shape = getattr(self.bias, "shape", None)
        if shape is not None and len(shape) != 2:
            raise ValueError(
                f"TSDI was given a bias of shape {tuple(shape)}; give one row for each position, shape (L, V)."
            )

    def decode(self, logits: Any, position: Any) -> Any:
        """The logits to decode from.

        Args:
            logits: of the aligned model for the token at `position`, shape (..., V).
            position: of that token in the response, from 0: a number, or an array of the shape of the batch.
        """
        xp = array_namespace(logits)
        where = device(logits)
        bias = xp.asarray(self.bias, dtype=logits.dtype, device=where)
        length = bias.shape[0]
        if bias.shape[-1] != logits.shape[-1]:
            raise ValueError(
                f"TSDI was given a bias of {bias.shape[-1]} tokens for logits of {logits.shape[-1]}; estimate it with the model "
                "that it is to debias."
            )
        if length == 0:
            return logits
        position = xp.asarray(position, device=where)
        there = bias[xp.clip(position, 0, length - 1)]
        excess = xp.where((position < length)[..., None], there, xp.zeros_like(there))
        return logits - xp.broadcast_to(excess, logits.shape)


def mean_excess(aligned: Any, reference: Any) -> Any:
    """The mean difference of the logits of two models in the same contexts, shapes (N, L, V): b, shape (L, V).

    Raises:
        ValueError: when the shapes differ or are not of that kind.
    """
    if aligned.shape != reference.shape or len(aligned.shape) != 3 or aligned.shape[0] == 0:
        raise ValueError(
            f"the logits have shapes {tuple(aligned.shape)} and {tuple(reference.shape)}; give both models' in the same contexts, "
            "shape (samples, positions, tokens), at least one sample."
        )
    return array_namespace(aligned).mean(aligned - reference, axis=0)


def estimate(aligned: Model, reference: Model, samples: Iterable[tuple[Any, Any]], length: int) -> TSDI:
    """The debiasing of a model, from one pass of each model over each sample.

    Args:
        aligned: the model that is to be debiased.
        reference: the same before its safety alignment.
        samples: random prompts, each with a random response.
        length: L, how many positions are debiased.

    Raises:
        ValueError: when there is no sample, or a model gives fewer positions than L.
    """
    total, count = 0, 0
    for prompt, response in samples:
        ours, theirs = aligned(prompt, response)[:length], reference(prompt, response)[:length]
        if ours.shape[0] < length:
            raise ValueError(
                f"a sample has {ours.shape[0]} positions and length is {length}; give random responses that are long enough."
            )
        total, count = total + mean_excess(ours[None], theirs[None]), count + 1
    if count == 0:
        raise ValueError("estimate was given no samples; give random prompts, each with a random response.")
    return TSDI(total / count)
