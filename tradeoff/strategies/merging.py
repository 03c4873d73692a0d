r"""Merges of the aligned weights with the trained ones, after training: between them, and along safety's own direction.

What they do to two models is in `merges`; here it is what a run exports. Training is left as it is. Give the merged weights of
a LoRA adapter, not its factors: see `merges`.
"""

from typing import Any

from jaxtyping import Array

from tradeoff._records import is_concrete, record, static
from tradeoff.strategies._named import Weights, less
from tradeoff.strategies._settings import within
from tradeoff.strategies.merges import dare, either, linear, model_stock, safe_lora, slerp, task_arithmetic
from tradeoff.strategies.strategy import Engine, State, Strategy


@record
class Merge(Strategy):
    r"""The aligned and the trained weights merged after training; WiSE-FT is the linear merge under another name.

    $$ (1-\lambda)\theta_0+\lambda\theta\quad\text{or}\quad\frac{\sin((1-\lambda)W)\,\theta_0+\sin(\lambda W)\,\theta}{\sin W}. $$

    On a policy whose logits are linear in the weights, linear merging mixes policies geometrically.

    Args:
        weight: λ in [0, 1], of the trained weights; 1 is no merge. The source chooses among 0.2, 0.4, 0.6 and 0.8 on
            validation data.
        way: "linear" or "slerp", by arrays; see `linear` and `slerp`.

    Unknown: whether the source's angle is of one array or of all weights together (ours: of one array), and the angle below
    which its tool merges linearly (ours: where the two agree to rounding).

    Source: [merging2024], [wiseft2021]; methods.md 7, P12.
    """

    weight: float | Array = 0.5
    way: str = static(default="linear")

    kind = "weights"
    source = "merging2024"

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_weight(self)
        if self.way not in ("linear", "slerp"):
            raise ValueError(f"Merge was given way={self.way!r}; give 'linear' or 'slerp'.")

    def export(self, state: State, weights: Weights, engine: Engine) -> Weights:
        """The merge."""
        return (linear if self.way == "linear" else slerp)(self.weight, engine.start, weights)


@record
class DARE(Strategy):
    r"""The aligned weights plus a part of the task vector from which entries were dropped at random, $\theta_0+\lambda\hat d$.

    In expectation over what is dropped, a quadratic loss with Hessian H is $\frac12\lambda^2\frac p{1-p}\sum_iH_{ii}d_i^2$
    above that of the linear merge. One mask is drawn for a run: every export drops the same entries.

    Args:
        drop: p in [0, 1); 0 is the linear merge.
        weight: λ in [0, 1]; 1 with p = 0 is no merge.

    Unknown: the p that the merging paper uses; 0.5 is ours.

    Source: [dare2023], [merging2024]; methods.md 7.
    """

    drop: float | Array = 0.5
    weight: float | Array = 0.5

    kind = "weights"
    source = "dare2023"

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_drop(self)
        _check_weight(self)

    def export(self, state: State, weights: Weights, engine: Engine) -> Weights:
        """The merge."""
        vector = less(weights, engine.start)
        kept = dare(vector, self.drop, _uniforms("dare", vector, engine))
        merged = task_arithmetic(engine.start, self.weight, kept)
        return either(self.drop == 0, linear(self.weight, engine.start, weights), merged)


@record
class TaskArithmetic(Strategy):
    r"""The safety vector added to the trained weights, $\theta+s(\theta_0-\theta_{unaligned})$: with it, this is RESTA.

    Optionally `dare` is applied to the vector first, the variant of RESTA that drops entries.

    Args:
        unaligned: weights of the aligned model's counterpart without alignment.
        scale: s, any finite number; 0 changes nothing, and -s takes back what s did.
        drop: p in [0, 1) of the vector's entries; 0 is the whole vector.

    Unknown: the paper's s and p, and how its unaligned model is made; s = 1 and p = 0 are ours.

    Source: [resta2024], [taskarithmetic2022]; methods.md P8.
    """

    unaligned: Weights
    scale: float | Array = 1.0
    drop: float | Array = 0.0

    kind = "weights"
    source = "resta2024"
    needs = ("an unaligned model",)

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_drop(self)
        if is_concrete(self.scale) and not abs(float(self.scale)) < float("inf"):
            raise ValueError(f"TaskArithmetic was given scale={self.scale}; give a finite number, 0 for no change.")

    def export(self, state: State, weights: Weights, engine: Engine) -> Weights:
        """The trained weights, moved along the safety vector."""
        vector = less(engine.start, self.unaligned)
        kept = dare(vector, self.drop, _uniforms("safety vector", vector, engine))
        return task_arithmetic(weights, self.scale, kept)


@record
class ModelStock(Strategy):
    """The trained weights and those of other seeds, averaged and drawn to the start as far as they disagree.

    See `model_stock`. With cosines below 0, which the geometry of the source does not foresee, the formula leads away from
    the mean, beyond the start; it is used as it stands, and where its denominator is 0 the start is returned.

    Args:
        others: weights fine-tuned on the same task from the same start, of one seed or more; the source uses two.

    Unknown: which one cosine the source takes of more than two models; the mean over pairs is the released tool's, too.

    Source: [modelstock2024], [merging2024]; methods.md 7.
    """

    others: tuple[Weights, ...]

    kind = "weights"
    source = "modelstock2024"
    needs = ("weights fine-tuned with other seeds",)

    def __post_init__(self) -> None:
        """Check that there are others."""
        if len(self.others) == 0:
            raise ValueError("ModelStock was given no others; give the weights of at least one other seed.")

    def export(self, state: State, weights: Weights, engine: Engine) -> Weights:
        """The average."""
        return model_stock(engine.start, (weights, *self.others))


@record
class SafeLoRA(Strategy):
    r"""Updates that leave the directions of the alignment are projected onto them, matrix by matrix.

    See `safe_lora`. It acts on the update of a weight matrix. Of a LoRA adapter's product $BA$ that is $CB$ in place of the
    output factor B, so it wants the merged weights: on the factors as they are it would be another rule.

    Args:
        base: weights before alignment, by name, of the layers that may be projected; the other layers are left as they are.
        threshold: τ in [-1, 1]; -1 changes nothing, 1 projects every layer.
        layers: in place of the threshold, how many layers are projected, at least 1. The released code's own default is 10.
        outputs: the axis of a matrix that its outputs lie on: 0 as in a linear layer of torch, 1 for logits
            $\varphi^\top\theta$ as in `SoftmaxLinear`.

    Unknown: what the rule is where alignment left a layer unchanged, V = 0. The code divides by 0; here C is 0 then, and the
    layer's update is dropped if it is projected.

    Source: [safelora2024]; methods.md P1.
    """

    base: Weights
    threshold: float | Array = 0.5
    layers: int | None = static(default=None)
    outputs: int = static(default=0)

    kind = "weights"
    source = "safelora2024"
    needs = ("the model before alignment",)

    def __post_init__(self) -> None:
        """Check the settings."""
        if is_concrete(self.threshold) and not -1 <= float(self.threshold) <= 1:
            raise ValueError(
                f"SafeLoRA was given threshold={self.threshold}; a cosine must be in [-1, 1], -1 for never."
            )
        if self.layers is not None and self.layers < 1:
            raise ValueError(
                f"SafeLoRA was given layers={self.layers}; give at least 1, or None to go by the threshold."
            )
        if self.outputs not in (0, 1):
            raise ValueError(f"SafeLoRA was given outputs={self.outputs}; give axis 0 or axis 1 of a matrix.")

    def export(self, state: State, weights: Weights, engine: Engine) -> Weights:
        """The trained weights, with some updates projected."""
        return safe_lora(self.base, engine.start, weights, self.threshold, self.layers, self.outputs)


def _uniforms(label: str, like: Weights, engine: Engine) -> Weights:
    """One draw for a run, another for each array."""
    return {name: engine.uniform(f"{label}: {name}", 0, tuple(array.shape)) for name, array in like.items()}


def _check_weight(strategy: Any) -> None:
    if is_concrete(strategy.weight) and not 0 <= float(strategy.weight) <= 1:
        raise ValueError(
            f"{type(strategy).__name__} was given weight={strategy.weight}; the weight λ of the trained model must be in "
            "[0, 1]: 0 is the start, 1 the trained model."
        )


def _check_drop(strategy: Any) -> None:
    within(strategy, "drop", 0, 1, "the probability p of dropping an entry (with p = 1 nothing is kept)")
