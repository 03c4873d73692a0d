"""A recipe of seconds for tiny checkpoints, when two runs of it are one, and a policy written out."""

import torch

from tradeoff.bridge import FineTuned, Recipe, policy
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.worlds import World

TINY = Recipe(penalty=1.0, steps=6, upper_layers=2, rank=4, save_every=2, learning_rate=1e-2)


def same_weights(a, b) -> bool:
    """Equal names, and tensors equal to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_run(a: FineTuned, b: FineTuned) -> bool:
    """Equal to the last bit: weights and history."""
    weights = same_weights(a.adapter, b.adapter) and same_weights(a.last, b.last)
    return weights and bool((a.log_policies == b.log_policies).all()) and bool((a.gradients == b.gradients).all())


def table(checkpoint: Checkpoint, world: World) -> torch.Tensor:
    """The log-policy, differentiable: every sequence by itself through the whole model, its own logits, autograd."""
    encoding = policy.encode(checkpoint, world)
    rows = []
    for prompt in encoding.prompts:
        for response in encoding.responses:
            logits = checkpoint.model(torch.tensor([prompt + response[:-1]])).logits[0, len(prompt) - 1 :].double()
            rows.append(torch.log_softmax(logits, -1).gather(-1, torch.tensor(response)[:, None]).sum())
    return torch.stack(rows).reshape(len(encoding.prompts), -1)
