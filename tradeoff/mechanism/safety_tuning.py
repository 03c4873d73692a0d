r"""Training from scratch, and safety fine-tuning by three protocols.

The model is pre-trained to do whatever the operators ask, safe or not. Safety fine-tuning then shows it both ways to go on:
with $\ell_+$ the loss of what a safe model says (the answer to a safe prompt, the refusal of an unsafe one) and $\ell_-$ the
loss of the other, both summed over the answer's tokens and divided by the window,

* `SSFT` lowers the cross-entropy of the wanted tokens, with safe prompts in 0.8 of the steps;
* `UNLEARNING` lowers $1.0\,\ell_+-0.1\,\ell_-$;
* `DPO` lowers $-\log\sigma\big(0.1(\ell_+^{ref}-\ell_+)-0.01(\ell_-^{ref}-\ell_-)\big)$, unlike DPO proper in that its losses
  are normalised and its weights unequal.

At the reference the gradient of the third is a twentieth of that of the second.

Source: [makesandbreaks2024]; methods.md 9.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tradeoff.mechanism.pcfg import Examples, Generator
from tradeoff.mechanism.transformer import Transformer, token_losses

import torch  # isort: skip  (after transformer, which says what to do where it is missing)
from torch import nn  # isort: skip
from torch.nn import functional  # isort: skip


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the source's safety fine-tuning, "medium".

    Args:
        steps: how many.
        learning_rate: at its highest; 1e-5 is "weak".
        warmup: the share of the steps in which the rate rises to it.
        decayed: the share of the steps after which the rate, falling along a cosine, is at its least.
        least: the least rate.
        batch: prompts in a step.
        betas: of AdamW.
        weight_decay: of AdamW.
        clip: the largest norm of a gradient.

    Unknown: the least rate of pre-training; the shape of the decay.
    """

    steps: int = 10_000
    learning_rate: float = 1e-4
    warmup: float = 0.2
    decayed: float = 0.8
    least: float = 1e-6
    batch: int = 512
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 0 <= self.warmup <= self.decayed <= 1:
            raise ValueError(
                f"Recipe was given {self}; steps and batch must be at least 1, and 0 <= warmup <= decayed <= 1."
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        rise, fall = self.warmup * self.steps, self.decayed * self.steps
        if step < rise:
            return self.learning_rate * (step + 1) / math.ceil(rise)
        along = min(1.0, (step - rise) / max(fall - rise, 1.0))
        return self.least + (self.learning_rate - self.least) * (1 + math.cos(math.pi * along)) / 2


PRETRAINING = Recipe(steps=100_000, learning_rate=1e-3)
"""The source's pre-training."""


class Pair:
    """A batch as a protocol sees it: losses of wanted and unwanted answers, computed when asked for.

    Args:
        model: in training.
        reference: the model before.
        generator: what made the examples.
        examples: the batch.
    """

    def __init__(self, model: Transformer, reference: Transformer, generator: Generator, examples: Examples) -> None:
        self.model, self.reference, self.generator, self.examples = model, reference, generator, examples

    def cross_entropy(self) -> torch.Tensor:
        """The mean over all tokens of the wanted answers, nats."""
        counted = torch.from_numpy(self.generator.answered(self.examples, self.examples.wanted)[:, 1:])
        return token_losses(self.model, self.examples.wanted)[counted].mean()

    def wanted(self, reference: bool = False) -> torch.Tensor:
        """By prompt, the loss of the wanted answer: the sum over its tokens over the window, nats."""
        return self._normalised(self.examples.wanted, reference)

    def unwanted(self, reference: bool = False) -> torch.Tensor:
        """The same of the unwanted answer."""
        return self._normalised(self.examples.unwanted, reference)

    def _normalised(self, sequences: np.ndarray, reference: bool) -> torch.Tensor:
        with torch.set_grad_enabled(not reference):
            losses = token_losses(self.reference if reference else self.model, sequences)
        counted = torch.from_numpy(self.generator.answered(self.examples, sequences)[:, 1:])
        return (losses * counted).sum(-1) / losses.shape[1]


@dataclass(frozen=True)
class Protocol:
    """A way of safety fine-tuning.

    Args:
        safe_share: the probability that a step shows safe prompts; otherwise all of its prompts are unsafe.
        objective: from a batch to what is lowered.
    """

    safe_share: float
    objective: Callable[[Pair], torch.Tensor]


def _unlearning(pair: Pair) -> torch.Tensor:
    return (1.0 * pair.wanted() - 0.1 * pair.unwanted()).mean()


def _dpo(pair: Pair) -> torch.Tensor:
    margin = 0.1 * (pair.wanted(reference=True) - pair.wanted())
    return -functional.logsigmoid(margin - 0.01 * (pair.unwanted(reference=True) - pair.unwanted())).mean()


SSFT = Protocol(0.8, Pair.cross_entropy)
UNLEARNING = Protocol(0.5, _unlearning)
DPO = Protocol(0.5, _dpo)
PROTOCOLS: Mapping[str, Protocol] = {"ssft": SSFT, "unlearning": UNLEARNING, "dpo": DPO}


def pretrain(
    model: Transformer,
    generator: Generator,
    recipe: Recipe = PRETRAINING,
    seed: int = 0,
    text_share: tuple[float, float] = (0.5, 0.1),
) -> np.ndarray:
    """Teach a model, in place, the texts and to do what all operators ask, whether that is safe or not.

    Args:
        model: changed in place.
        generator: of the prompts.
        recipe: how to train.
        seed: of the prompts.
        text_share: the share of a batch in which the text is learned in place of the answer, at the first step and at the
            last: texts come first.

    Returns:
        The loss at each step, nats a token.

    Unknown: how the source's shares move from first to last (a straight line here), and its shares of prompts that answer
    after some of the operators only (none here).

    Source: [makesandbreaks2024]; methods.md 9.
    """

    def loss(step: int, rng: np.random.Generator) -> torch.Tensor:
        examples = generator.draw(rng, recipe.batch)
        share = text_share[0] + (text_share[1] - text_share[0]) * step / max(recipe.steps - 1, 1)
        reads = rng.random(recipe.batch) < share
        answered = generator.answered(examples, examples.complying)
        counted = np.where(reads[:, None], generator.texts(examples), answered)
        return token_losses(model, examples.complying)[torch.from_numpy(counted[:, 1:])].mean()

    return _descend(model, loss, recipe, seed)


def tune(
    model: Transformer, generator: Generator, protocol: Protocol, recipe: Recipe | None = None, seed: int = 0
) -> Transformer:
    """Safety-tune a copy of a model on prompts without duplicate operators.

    Args:
        model: the pre-trained model, which stays as it is and is the reference.
        generator: of the prompts.
        protocol: SSFT, UNLEARNING or DPO.
        recipe: how to train; the source's "medium" unless given.
        seed: of the prompts.

    Returns:
        The tuned model.

    Source: [makesandbreaks2024]; methods.md 9.
    """
    tuned, recipe = copy.deepcopy(model), recipe or Recipe()

    def loss(_: int, rng: np.random.Generator) -> torch.Tensor:
        examples = generator.draw(rng, recipe.batch, bool(rng.random() >= protocol.safe_share), "originals")
        return protocol.objective(Pair(tuned, model, generator, examples))

    _descend(tuned, loss, recipe, seed)
    return tuned


def _descend(
    model: Transformer, loss: Callable[[int, np.random.Generator], torch.Tensor], recipe: Recipe, seed: int
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(model.parameters(), betas=recipe.betas, weight_decay=recipe.weight_decay)
    losses = np.zeros(recipe.steps)
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step)
        optimiser.zero_grad()
        value = loss(step, rng)
        if not torch.isfinite(value):
            raise ValueError(
                f"the loss is {float(value.detach())} at step {step}; training has diverged. Lower the learning rate."
            )
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
        losses[step] = float(value.detach())
    return losses
