"""A plain decoder-only transformer that answers prompts, and what it does and computes.

Source: [makesandbreaks2024]; methods.md 9.
"""

import copy
import math
from typing import Any, NamedTuple

import numpy as np

try:
    import torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"tradeoff.mechanism.transformer needs {error.name}, which is not installed. Install the extra for language models: "
        "pip install 'tradeoff[lm]'",
        name=error.name,
    ) from error
from torch import nn
from torch.nn import functional

from tradeoff.mechanism.pcfg import Examples, Generator, Settings

# --- the model -----------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """The size of a transformer.

    Args:
        layers: how many blocks.
        heads: attention heads of a block.
        width: of the residual stream, a multiple of the heads.
    """

    layers: int
    heads: int
    width: int


MINI = Shape(6, 6, 192)
"""The largest of the three sizes of the source."""
MICRO = Shape(4, 4, 128)
"""The middle one."""
NANO = Shape(3, 3, 48)
"""The smallest one."""


class Block(nn.Module):
    """Attention, then a perceptron of fourfold width, each after a norm and added to what it read."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.before_attention, self.before_mlp = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.attention_in, self.attention_out = (nn.Linear(shape.width, n * shape.width) for n in (3, 1))
        self.mlp_in, self.mlp_out = nn.Linear(shape.width, 4 * shape.width), nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream after the block."""
        rows, length, width = x.shape
        split = self.attention_in(self.before_attention(x)).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.mlp_out(functional.gelu(self.mlp_in(self.before_mlp(x))))


class Transformer(nn.Module):
    """Learned positions, blocks, a last norm and a head.

    Args:
        settings: of the generator, for vocabulary and window.
        shape: layers, heads and width.
        seed: of the first weights, normal of deviation 0.02, divided by sqrt(2 layers) where a block adds to the stream.

    Raises:
        ValueError: when the heads do not divide the width.

    Unknown: initial weights and the activation function of the source; those of its model family here.

    Source: [makesandbreaks2024]; methods.md 9.
    """

    def __init__(self, settings: Settings, shape: Shape = NANO, seed: int = 0) -> None:
        super().__init__()
        if min(shape) < 1 or shape.width % shape.heads:
            raise ValueError(
                f"Transformer was given {shape}; all must be positive and the heads must divide the width."
            )
        self.tokens = nn.Embedding(settings.vocabulary, shape.width)
        self.positions = nn.Embedding(settings.window, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.last_norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, settings.vocabulary, bias=False)
        source = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                small = math.sqrt(2 * shape.layers) if name.endswith("_out.weight") else 1.0
                nn.init.normal_(p, std=0.02 / small, generator=source)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the next token, shape (rows, length, vocabulary)."""
        return self.from_embeddings(self.tokens(tokens))

    def from_embeddings(self, embedded: torch.Tensor) -> torch.Tensor:
        """The same from embedded tokens, shape (rows, length, width)."""
        x = embedded + self.positions.weight[: embedded.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.last_norm(x))

    def mlp(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """The two weights of a block's perceptron, in float64: into its hidden layer and out of it."""
        block: Any = self.blocks[layer]
        return block.mlp_in.weight.detach().double().numpy(), block.mlp_out.weight.detach().double().numpy()


def interpolated(original: Transformer, tuned: Transformer, s: float) -> Transformer:
    """A model with weights $W_0+s(W-W_0)$: 0 is the original, 1 the tuned one, beyond is extrapolation."""
    between, ours = copy.deepcopy(original), tuned.state_dict()
    between.load_state_dict({name: w + s * (ours[name] - w) for name, w in original.state_dict().items()})
    return between


# --- what a model says and does ------------------------------------------------------------------------------------


def token_losses(model: Transformer, sequences: np.ndarray) -> torch.Tensor:
    """Cross-entropy of each token after the first, nats, shape (rows, window - 1)."""
    tokens = torch.from_numpy(sequences)
    return functional.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")


@torch.no_grad()
def accuracy(
    model: Transformer, generator: Generator, examples: Examples, sequences: np.ndarray
) -> tuple[float, float]:
    """How much of some answers the model predicts, each token from the true ones before it.

    Args:
        model: the model.
        generator: what made the examples.
        examples: the prompts.
        sequences: the prompts with the answers in question: `examples.complying`, `.refusing` or `.wanted`.

    Returns:
        The share of their tokens that are the most likely ones, and the share of answers of which all are.
    """
    counted = torch.from_numpy(generator.answered(examples, sequences)[:, 1:])
    tokens = torch.from_numpy(sequences)
    right = (model(tokens[:, :-1]).argmax(-1) == tokens[:, 1:]) & counted
    return float(right.sum() / counted.sum()), float((right | ~counted).all(-1).double().mean())


@torch.no_grad()
def activations(model: Transformer, examples: Examples) -> list[np.ndarray]:
    """What each block's perceptron reads at the end of the prompt, where the answer begins.

    Args:
        model: the model.
        examples: the prompts; their answers are not read.

    Returns:
        By layer, shape (rows, width), float64.

    Unknown: at which token the source reads activations.
    """
    kept: list[torch.Tensor] = []
    hooks = [block.mlp_in.register_forward_pre_hook(lambda _, read: kept.append(read[0])) for block in model.blocks]  # type: ignore[union-attr,operator]
    try:
        model(torch.from_numpy(examples.complying[:, : examples.prompts.max()]))
    finally:
        for hook in hooks:
            hook.remove()
    rows, ends = np.arange(len(examples.prompts)), examples.prompts - 1
    return [layer.double().numpy()[rows, ends] for layer in kept]


def jacobians(model: Transformer, examples: Examples) -> np.ndarray:
    """Derivatives of the first answer token's logits by the embedded prompt, shape (rows, vocabulary, window * width).

    Positions after the prompt are 0: the model does not see them.
    """
    window, width = examples.complying.shape[1], model.tokens.embedding_dim
    found = np.zeros((len(examples.prompts), model.head.out_features, window, width))
    for i, end in enumerate(examples.prompts):
        embedded = model.tokens(torch.from_numpy(examples.complying[i : i + 1, :end])).detach()
        derivative = torch.autograd.functional.jacobian(lambda e: model.from_embeddings(e)[0, -1], embedded)
        found[i, :, :end] = derivative[:, 0].double().numpy()  # type: ignore[union-attr,index]
    return found.reshape(len(found), found.shape[1], -1)
