r"""Case II on a checkpoint: after each step of the optimiser, the trained weights go back into a ball.

The rules are those of `parameter_constraint.projection`, the lines that the toys are solved with, on named torch tensors in
place. One ball is in the trained parameters about their start; the other in the products of LoRA's factors, that is in the
weights themselves, whatever the factors.
"""

from collections.abc import Iterable, Mapping

import torch

from tradeoff.parameter_constraint import projection as rules

LEFT, RIGHT = "lora_B", "lora_A"
"""How peft names the factors of an update: the weights move by lora_B @ lora_A, times alpha over rank."""


def start_of(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy of named tensors, to be the centre of the ball.

    Args:
        parameters: the trained parameters before the first step.

    Returns:
        Detached copies by name.
    """
    return {name: p.detach().clone() for name, p in parameters.items()}


def into_ball_(parameters: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor], radius: float) -> float:
    r"""Put parameters back into the ball $\|\theta-\theta_s\|\le\varepsilon$ about their start, in place.

    Args:
        parameters: the trained parameters, changed in place.
        start: what `start_of` returned before the first step.
        radius: ε in (0, inf], over all tensors together.

    Returns:
        The distance from the start before the projection: the ball binds when it is above the radius.

    Raises:
        ValueError: when the names differ, the radius is not positive, or a parameter is not finite.

    Example:
        >>> weights, start = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.zeros(2)}
        >>> into_ball_(weights, start, 1.0), weights["w"]
        (5.0, tensor([0.6000, 0.8000]))

    Source: T14 (framework).
    """
    now = {name: p.detach() for name, p in parameters.items()}
    projected = rules.ball(now, start, radius)
    distance = _checked(rules.length([now[name] - start[name] for name in now]), now)
    _assign(parameters, projected)
    return distance


def into_product_ball_(parameters: Mapping[str, torch.Tensor], radius: float) -> float:
    r"""Put LoRA's update back into the ball $\|BA\|_F\le\varepsilon$ over all layers together, in place.

    Args:
        parameters: the trained factors by the names that peft gives them; the left ones are changed in place.
        radius: ε in (0, inf], of the products BA; where peft scales them by alpha over rank, divide it by that.

    Returns:
        The length of the update before the projection: the ball binds when it is above the radius.

    Raises:
        ValueError: when a tensor is no factor or lacks its partner, the radius is not positive, or a tensor is not finite.

    Example:
        >>> factors = {"q.lora_A.default.weight": torch.tensor([[3.0]]), "q.lora_B.default.weight": torch.tensor([[2.0]])}
        >>> into_product_ball_(factors, 3.0), factors["q.lora_B.default.weight"].item()
        (6.0, 1.0)

    Source: T19(a) (framework).
    """
    now = {name: p.detach() for name, p in parameters.items()}
    factors = lora_factors(now)
    projected = rules.product_ball(now, factors, radius)
    distance = _checked(rules.length([now[left] @ now[right] for left, right in factors]), now)
    _assign(parameters, projected)
    return distance


def lora_factors(names: Iterable[str]) -> list[tuple[str, str]]:
    """The names of the factors (B, A) of every update among the names that peft gives.

    Args:
        names: of all trained parameters.

    Returns:
        Pairs of names, in the order of the left factors.

    Raises:
        ValueError: when a name is no factor, or lacks its partner.

    Example:
        >>> lora_factors(["q.lora_A.default.weight", "q.lora_B.default.weight"])
        [('q.lora_B.default.weight', 'q.lora_A.default.weight')]
    """
    known = list(names)
    pairs = [(name, name.replace(LEFT, RIGHT)) for name in known if LEFT in name]
    alone = set(known) ^ {name for pair in pairs for name in pair}
    if alone:
        raise ValueError(
            f"{sorted(alone)[0]!r} is not one of a pair of LoRA factors; a ball in the product needs '...{LEFT}...' and "
            f"'...{RIGHT}...' of every update and nothing else. For other parameters use into_ball_."
        )
    return pairs


def _checked(distance: torch.Tensor, now: Mapping[str, torch.Tensor]) -> float:
    if not torch.isfinite(distance):
        wrong = next((name for name, p in now.items() if not torch.isfinite(p).all()), None)
        raise ValueError(
            f"the parameters are not finite (first of them: {wrong}); training has diverged. Lower the learning rate."
        )
    return float(distance)


def _assign(parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
