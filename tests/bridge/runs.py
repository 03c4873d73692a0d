"""A recipe of seconds for tiny checkpoints, when two runs of it are one, and a policy written out."""

import numpy as np
import torch

from tradeoff.bridge import FineTuned, Recipe, policy
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.curvature import norms_in_float64
from tradeoff.bridge.local_losses import LocalLosses, Tangents
from tradeoff.worlds import World

SHORT, LONG = 1e-4, 1e-3  # steps of first and of second differences
DIFFERENCE = 1e-4  # of central differences with these steps
TINY = Recipe(penalty=1.0, steps=6, upper_layers=2, rank=4, save_every=2, learning_rate=1e-2)


def same_weights(a, b) -> bool:
    """Equal names, and tensors equal to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_run(a: FineTuned, b: FineTuned) -> bool:
    """Equal to the last bit: weights and history."""
    weights = same_weights(a.adapter, b.adapter) and same_weights(a.last, b.last)
    return weights and bool((a.log_policies == b.log_policies).all()) and bool((a.gradients == b.gradients).all())


def assert_slopes_and_curvatures_are_differences(
    around: Tangents, losses: LocalLosses, models: torch.nn.Module
) -> None:
    """Of the values at weights moved a little, which are computed with norms in float64, as the differences need them."""
    v = losses.basis[0]
    curved = {kind: v @ around.hessian_product(kind, v) for kind in around.kinds}
    with norms_in_float64(models):
        near = [[around.values(t * move) for t in (-SHORT, SHORT)] for move in losses.basis]
        far = [around.values(t * v) for t in (-LONG, 0, LONG)]
    for kind in around.kinds:
        slope = [(high[kind] - low[kind]) / (2 * SHORT) for low, high in near]
        np.testing.assert_allclose(getattr(losses, kind).slope, slope, rtol=DIFFERENCE, atol=DIFFERENCE)
        second = (far[0][kind] - 2 * far[1][kind] + far[2][kind]) / LONG**2
        np.testing.assert_allclose(curved[kind], second, rtol=DIFFERENCE, atol=DIFFERENCE)
    assert not np.allclose(losses.proxy.slope, losses.safety.slope, rtol=DIFFERENCE, atol=0)


def table(checkpoint: Checkpoint, world: World) -> torch.Tensor:
    """The log-policy, differentiable: every sequence by itself through the whole model, its own logits, autograd."""
    encoding = policy.encode(checkpoint, world)
    rows = []
    for prompt in encoding.prompts:
        for response in encoding.responses:
            logits = checkpoint.model(torch.tensor([prompt + response[:-1]])).logits[0, len(prompt) - 1 :].double()
            rows.append(torch.log_softmax(logits, -1).gather(-1, torch.tensor(response)[:, None]).sum())
    return torch.stack(rows).reshape(len(encoding.prompts), -1)
