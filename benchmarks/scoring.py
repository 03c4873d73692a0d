"""Scoring answers and comparing with a teacher, against a language model's bare forward pass."""

import functools
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from benchmarks.protocol import Benchmark, Contender
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.rows import Row, padded, token_log_probabilities
from tradeoff.bridge.teacher import token_divergences

VOCABULARY, LENGTH, ROWS = 50_257, 256, 2
SHAPE: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
MOVED = 1e-4
"""Noise on the student's weights, beside entries of 0.02."""
BARE = "bare forward"
LAYERS = "layers without the head"
AS_TRL, AS_DISTILLED = "all logits, as trl scores", "all logits, as distillation compares"
GATE = 1e-5
MOST_MEGABYTES = 64
"""Beyond the weights, whatever the number of tokens."""


class Words:
    """As much of a tokenizer as is asked for."""

    def get_vocab(self) -> dict[str, int]:
        """Nothing."""
        return {}


@functools.cache
def checkpoints() -> tuple[Checkpoint, Checkpoint]:
    """A Llama of the size of the smallest GPT-2, with random weights, and one beside it."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, initializer_range=0.05, **SHAPE)
    models = [transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for weight in models[1].model.parameters():
        weight.add_(MOVED * torch.randn_like(weight))
    one, other = (Checkpoint(name, model, Words(), {}) for name, model in zip(("one", "other"), models, strict=True))
    return one, other


@functools.cache
def rows() -> list[Row]:
    """Nearly every token is scored: the most that a head can have to do beside its layers."""
    draw = np.random.default_rng(0).integers(VOCABULARY, size=(ROWS, LENGTH + 1))
    return [Row((int(line[0]),), tuple(map(int, line[1:]))) for line in draw]


@torch.inference_mode()
def forward() -> torch.Tensor:
    """All logits of the first model."""
    one = checkpoints()[0]
    return one.model(padded(one, rows()), use_cache=False).logits


@torch.inference_mode()
def hidden(one: Checkpoint) -> torch.Tensor:
    """The last states alone: what memory a forward pass takes before there are logits."""
    return one.model.base_model(padded(one, rows()), use_cache=False)[0]


@torch.inference_mode()
def all_scores() -> NDArray[np.float32]:
    """Log-probabilities as `selective_log_softmax` of trl takes them: from all logits, with a logsumexp for each row."""
    logits = forward()
    targets = torch.tensor([row.answer for row in rows()])
    chosen = torch.gather(logits, -1, targets[..., None])[..., 0]
    return (chosen - torch.stack([torch.logsumexp(each, -1) for each in logits])).numpy()


@torch.inference_mode()
def all_divergences() -> NDArray[np.float32]:
    """KL as losses of distillation take it: `kl_div` of both log-softmaxes, of all logits in float32."""
    P, Q = (torch.log_softmax(each.model(padded(each, rows()), use_cache=False).logits, -1) for each in checkpoints())
    return torch.nn.functional.kl_div(Q, P, reduction="none", log_target=True).sum(-1).numpy()


@functools.cache
def scores() -> NDArray[np.float64]:
    """Log-probabilities in float64 from the logits of the bare forward pass."""
    targets = torch.tensor([row.answer for row in rows()])
    return torch.stack(
        [
            torch.log_softmax(z.double(), -1).gather(-1, t[:, None])[:, 0]
            for z, t in zip(forward(), targets, strict=True)
        ]
    ).numpy()


@functools.cache
def divergences() -> NDArray[np.float64]:
    """KL of the two models at every token, by the plain sum in float64, which keeps ten digits of 1e-4."""
    found = []
    for row in rows():
        with torch.inference_mode():
            logits = [each.model(padded(each, [row]), use_cache=False).logits[0].double() for each in checkpoints()]
        p, q = (torch.log_softmax(each, -1) for each in logits)
        found.append((p.exp() * (p - q)).sum(-1).numpy())
    return np.stack(found)


def _scoring() -> list[Contender]:
    one, some = checkpoints()[0], rows()
    bare = Contender(BARE, forward, error=lambda _: 0.0)
    layers = Contender(LAYERS, lambda: hidden(one), error=lambda _: 0.0)
    naive = Contender(AS_TRL, all_scores)
    return [Contender("tradeoff", lambda: np.stack(token_log_probabilities(one, some))), bare, layers, naive]


def _comparing() -> list[Contender]:
    (one, other), some = checkpoints(), rows()
    bare = Contender(BARE, forward, error=lambda _: 0.0)
    naive = Contender(AS_DISTILLED, all_divergences)
    return [Contender("tradeoff", lambda: np.stack(token_divergences(one, other, some))), bare, naive]


BENCHMARKS = (
    Benchmark(
        "scoring_answers",
        f"log-probabilities of {ROWS * LENGTH} tokens, vocabulary {VOCABULARY}, against the bare forward pass",
        _scoring,
        lambda found: float(np.max(np.abs(found / scores() - 1))),
        GATE,
        {BARE: 0.92},
        repeats=3,
        most_megabytes=MOST_MEGABYTES,
    ),
    Benchmark(
        "comparing_with_a_teacher",
        f"full-vocabulary KL at {ROWS * LENGTH} tokens of two models, against one bare forward pass",
        _comparing,
        lambda found: float(np.max(np.abs(found / divergences() - 1))),
        GATE,
        {BARE: 1 / 2.15},
        repeats=3,
    ),
)
