"""The optimisers that fine-tune checkpoints, and the ball that they may have to stay in."""

from collections.abc import Callable

import torch

from tradeoff.bridge.live import Live
from tradeoff.bridge.projection import into_ball_, into_product_ball_
from tradeoff.bridge.recipe import Recipe
from tradeoff.bridge.trainable import Parameters
from tradeoff.bridge.training import Tensors
from tradeoff.strategies import Strategy
from tradeoff.strategies._probes import is_probe

BETAS = (0.9, 0.95)
"""AdamW's memory: without sampling noise a short one converges in fewer steps (measured on SmolLM2)."""


def check_optimiser(strategy: Strategy, recipe: Recipe) -> None:
    """Refuse a recipe that would change the steps that a strategy takes by itself."""
    if strategy.owns == "step" and (recipe.optimiser != "sgd" or recipe.learning_rate != 1):
        raise ValueError(
            f"{type(strategy).__name__} sets the length of its steps, and the recipe has optimiser={recipe.optimiser!r} with "
            f"learning_rate={recipe.learning_rate:g}, which would change it; give Recipe(optimiser='sgd', learning_rate=1)."
        )


def optimiser_of(parameters: Parameters, recipe: Recipe) -> torch.optim.Optimizer:
    """Plain descent, or AdamW without weight decay."""
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(parameters.values(), lr=recipe.learning_rate)
    return torch.optim.AdamW(parameters.values(), lr=recipe.learning_rate, betas=BETAS, weight_decay=0.0)


def update_by(
    live: Live, parameters: Parameters, optimiser: torch.optim.Optimizer, recipe: Recipe, start: Tensors
) -> Callable[[Tensors, Tensors, int], Tensors]:
    """A step of the optimiser, and back into the ball if there is one, as `update` of `train`.

    Args:
        live: the live parameters.
        parameters: those that the optimiser moves.
        optimiser: of `optimiser_of`.
        recipe: its learning rate, and the ball's radius.
        start: the centre of the ball.
    """

    def update(weights: Tensors, gradient: Tensors, step: int) -> Tensors:
        live.put(weights)
        for name, p in parameters.items():
            p.grad = gradient[name].to(p.dtype)
        if recipe.optimiser == "adamw":
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * (1 - step / recipe.steps)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if recipe.radius is not None and recipe.rank is not None:
            into_product_ball_(parameters, recipe.radius)
        elif recipe.radius is not None:
            into_ball_(parameters, start, recipe.radius)
        return live.taken()

    return update


def kept(weights: Tensors) -> dict[str, torch.Tensor]:
    """Weights on the CPU, without the probes: these are 0, and no part of the model."""
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items() if not is_probe(name)}
