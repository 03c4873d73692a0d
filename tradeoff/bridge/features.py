"""What a checkpoint makes of rows of data: pooled hidden states, and sketches of the gradients that they would give."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.rows import BATCH_TOKENS, Row, over_batches, padded, predicting_logits

BUCKETS = 2**14
"""Length of a sketched gradient: the cosine of two is off by about 1/128, without bias."""


def pooled_states(
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    answers: bool,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
) -> Float[np.ndarray, "N H"]:
    """The mean of the last hidden states over what the model reads.

    Args:
        checkpoint: the language model.
        rows: of `rows.encode`.
        answers: whether the answers are read too, or the prompts alone.
        batch_tokens: tokens in one forward pass; it changes speed and memory, not results.
        progress: whether to show a progress bar.

    Returns:
        One vector for each row, float64.
    """
    read = rows if answers else [Row(row.prompt, row.answer[:1]) for row in rows]
    found = np.zeros((len(read), checkpoint.model.config.hidden_size))

    def pool(batch: Sequence[int]) -> None:
        some = [read[i] for i in batch]
        with torch.inference_mode():
            hidden = checkpoint.model.base_model(padded(checkpoint, some), use_cache=False)[0]
        for i, row, states in zip(batch, some, hidden, strict=True):
            found[i] = states[: len(row.read)].double().mean(0).cpu().numpy()

    over_batches(pool, read, batch_tokens, progress, "embedding")
    return found


def gradient_sketches(
    checkpoint: Checkpoint, rows: Sequence[Row], seed: int = 0, progress: bool = False
) -> Float[np.ndarray, "N B"]:
    r"""For each prompt the gradient of $\log\pi(y|x)$ in the weights of the last layer, sketched, of length 1.

    y is a first token of the answer that the checkpoint itself draws, so that the gradients' second moment is the Fisher
    information of the prompts, whatever answers the data want. A sketch adds every entry, with a random sign, to one of
    `BUCKETS` sums; inner products are kept on average.

    Args:
        checkpoint: the language model.
        rows: of `rows.encode`; their prompts count.
        seed: of the drawn tokens; the sums and signs are always the same.
        progress: whether to show a progress bar.

    Returns:
        One sketch for each row, float64.

    Raises:
        ValueError: when a row's gradient vanishes or is not finite.

    Source: count sketches; Fisher information.
    """
    found = np.zeros((len(rows), BUCKETS))
    draw, places = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    with _last_layer(checkpoint) as parameters:
        sums = [torch.randint(BUCKETS, (p.numel(),), generator=places).to(p.device) for p in parameters]
        signs = [(2 * torch.randint(2, (p.numel(),), generator=places) - 1).to(p.device) for p in parameters]
        for i, row in enumerate(tqdm(rows, desc="gradients", disable=not progress)):
            gradients = torch.autograd.grad(_drawn_score(checkpoint, row, draw), parameters)
            sketch = torch.zeros(BUCKETS, dtype=torch.float64, device=checkpoint.device)
            for gradient, place, sign in zip(gradients, sums, signs, strict=True):
                sketch.index_add_(0, place, gradient.flatten().double() * sign)
            length = float(sketch.norm())
            if not 0 < length < np.inf:
                raise ValueError(f"The gradient of row {i + 1} has length {length}; it must be finite and not 0.")
            found[i] = (sketch / length).cpu().numpy()
    return found


def _drawn_score(checkpoint: Checkpoint, row: Row, draw: torch.Generator) -> torch.Tensor:
    """The log-probability of a token drawn after the prompt."""
    (logits,) = predicting_logits(checkpoint, [Row(row.prompt, row.answer[:1])])
    scores = torch.log_softmax(logits.double(), dim=-1)
    return scores[int(torch.multinomial(scores.detach().exp().cpu(), 1, generator=draw))]


@contextmanager
def _last_layer(checkpoint: Checkpoint) -> Iterator[list[torch.nn.Parameter]]:
    """The weights of the last layer, differentiable for a while."""
    count = checkpoint.model.config.num_hidden_layers
    stacks = [
        m for m in checkpoint.model.base_model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count
    ]
    parameters = [p for p in stacks[0][-1].parameters() if p.is_floating_point()]
    before = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        yield parameters
    finally:
        for p, was in zip(parameters, before, strict=True):
            p.requires_grad_(was)
