r"""How far a checkpoint is from a teacher: the exact divergence over the whole vocabulary at every position of the answers.

The theory's local laws live where this divergence is 1e-9, and there the usual difference of two log-softmaxes in float32 is
noise of either sign. Here it is summed from the exact differences of the logits, by terms that do not cancel.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Float

from tradeoff import divergences
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.rows import (
    BATCH_TOKENS,
    Row,
    head_is_whole,
    over_batches,
    predicting_logits,
    predicting_states,
)

LOGIT_BYTES = 104 * 2**20
"""For the logits of both models at one time: heads of 50,000 tokens take a fifth less time on 256 states than on 64."""

BLOCK_ENTRIES = 2**18
"""Logits that are turned into float64 at one time: what is made of them stays in the cache."""


def token_divergences(
    teacher: Checkpoint,
    student: Checkpoint,
    rows: Sequence[Row],
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
) -> tuple[Float[np.ndarray, " T"], ...]:
    r"""$\mathrm{KL}(\pi_T(\cdot|x,y_{<t})\,\|\,\pi(\cdot|x,y_{<t}))$ at every token of every answer.

    Args:
        teacher: π_T; its law is the first argument of the divergence.
        student: π, with the same tokenizer.
        rows: of `rows.encode` for either.
        batch_tokens: tokens in one forward pass; it changes speed and memory, not results.
        progress: whether to show a progress bar.

    Returns:
        For each row, nats, float64, never negative, shape (answer tokens,).

    Raises:
        ValueError: when the two do not share a vocabulary, or one gives NaN.

    Source: T1 (framework): the gap of a policy to the one that made the data.
    """
    _check_vocabularies(teacher, student)
    found: list[np.ndarray] = [np.zeros(0)] * len(rows)
    whole = head_is_whole(teacher) and head_is_whole(student)

    def compare(batch: Sequence[int]) -> None:
        some = [rows[i] for i in batch]
        with torch.inference_mode():
            divergences = _through_heads(teacher, student, some) if whole else _whole_logits(teacher, student, some)
        ends = np.cumsum([len(row.answer) for row in some])[:-1]
        for i, each in zip(batch, np.split(divergences.cpu().numpy(), ends), strict=True):
            found[i] = each

    over_batches(compare, rows, batch_tokens if whole else 1, progress, "comparing with the teacher")
    for i, each in enumerate(found):
        if np.any(np.isnan(each)):
            raise ValueError(
                f"A model gave NaN in row {i + 1}. Load both in float32, or check that training did not diverge."
            )
    return tuple(found)


def kl_logits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    r"""$\mathrm{KL}(\mathrm{softmax}(a)\|\mathrm{softmax}(b))$, exact relative to its size.

    Float32 on the CPU goes through `divergences.kl_logits`, which is several times faster there; all else is widened to
    float64.

    Args:
        a: logits, shape (N, V); `-inf` allowed.
        b: logits, of the same shape.

    Returns:
        Nats, float64, shape (N,), never negative; `inf` where only the second law is impossible.

    Example:
        >>> a = torch.zeros(1, 2)
        >>> f"{kl_logits(a, torch.tensor([[1e-4, 0.0]])).item():.6g}"  # t²/8 for t = 1e-4
        '1.25e-09'
    """
    if a.device.type == "cpu" and a.dtype == torch.float32:
        found = divergences.kl_logits(*(jnp.from_dlpack(_padded(each)) for each in (a, b)))[: len(a)]
        return torch.from_numpy(np.array(found, np.float64))
    block = max(1, BLOCK_ENTRIES // a.shape[-1])
    return torch.cat([_kl_rows(x.double(), y.double()) for x, y in zip(a.split(block), b.split(block), strict=True)])


def _padded(logits: torch.Tensor) -> torch.Tensor:
    """With rows of zeros up to a power of two: a program is compiled for each number of rows."""
    more = (1 << (len(logits) - 1).bit_length()) - len(logits)
    return torch.nn.functional.pad(logits, (0, 0, 0, more)) if more else logits.contiguous()


def _kl_rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    r"""As `kl_logits`, of rows in float64.

    With $r=b-a-E_P[b-a]$, $s=E_P[e^r-1]$ and $u=E_P[e^r-1-r]\ge0$ the divergence is $u-(s-\log(1+s))$, where s is as small as
    the divergence itself: nothing cancels, and there is one exponential for each law.
    """
    P = torch.softmax(a, dim=-1)
    r = b - a
    r -= (P * r).sum(-1, keepdim=True)
    change = torch.expm1(r)
    s, u = (P * change).sum(-1), (P * (change - r)).sum(-1)
    close = u - (s - torch.log1p(s))
    # Far apart, s is exponential in the divergence, and the difference above would cancel; E_P[r] = 0 but for rounding.
    found = torch.where(s < 1, close, torch.log1p(s) - (P * r).sum(-1))
    if not bool(torch.isfinite(found).all()):
        found = torch.where(torch.isfinite(found), found, _kl_extreme(a, b))
    return found.clamp_(min=0)


def _kl_extreme(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of rows with infinite logits, or so far apart that exponentials overflow; there the plain sum is right."""
    log_p, log_q = torch.log_softmax(a, dim=-1), torch.log_softmax(b, dim=-1)
    return torch.where(log_p == -torch.inf, 0, log_p.exp() * (log_p - log_q)).sum(-1)


def _through_heads(teacher: Checkpoint, student: Checkpoint, rows: Sequence[Row]) -> torch.Tensor:
    states = [predicting_states(each, rows) for each in (teacher, student)]
    heads: list[Any] = [each.model.get_output_embeddings() for each in (teacher, student)]
    most = max(1, LOGIT_BYTES // (2 * heads[0].weight.shape[0] * max(4, states[0].element_size())))
    size = 1 << (most.bit_length() - 1)
    parts = zip(states[0].split(size), states[1].split(size), strict=True)
    return torch.cat([kl_logits(*(head(part) for head, part in zip(heads, pair, strict=True))) for pair in parts])


def _whole_logits(teacher: Checkpoint, student: Checkpoint, rows: Sequence[Row]) -> torch.Tensor:
    return kl_logits(predicting_logits(teacher, rows), predicting_logits(student, rows))


def _check_vocabularies(teacher: Checkpoint, student: Checkpoint) -> None:
    one, other = teacher.tokenizer.get_vocab(), student.tokenizer.get_vocab()
    sizes = [each.model.get_output_embeddings().weight.shape[0] for each in (teacher, student)]
    if one != other or sizes[0] != sizes[1]:
        raise ValueError(
            f"{teacher.name} has {len(one)} tokens and {sizes[0]} logits, {student.name} {len(other)} and {sizes[1]}, or they "
            "name them differently; a divergence over the vocabulary needs one vocabulary. Compare checkpoints of one family."
        )
