"""Pre-flight on instruction data: what fine-tuning will cost in safety, foretold before any training, without a world."""

from collections.abc import Sequence

from tqdm.auto import tqdm

from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.data import Data
from tradeoff.bridge.data_engine import Sampling
from tradeoff.bridge.data_tangent import data_tangents
from tradeoff.bridge.lower import LowerStates
from tradeoff.bridge.preflight import PENALTIES, Preflight, check, foretold
from tradeoff.bridge.recipe import Recipe


def preflight_data(
    checkpoint: Checkpoint,
    task: Data,
    safety: Data,
    recipe: Recipe,
    proxy: Data | None = None,
    penalties: Sequence[float] = PENALTIES,
    radii: Sequence[float] | None = None,
    budget: float = 0.1,
    dimensions: int = 8,
    lower: LowerStates | None = None,
    progress: bool = False,
) -> Preflight:
    """Foretell the curves of `preflight` on instruction data: mean losses per token of the answers stand for the gaps.

    Every row is read at each product, so a few dozen rows of each are enough; what is foretold is foretold of these rows.

    Args:
        checkpoint: the aligned language model, in float64 or float32; it is left as it was.
        task: what will be learned.
        safety: what shall be kept.
        recipe: what is trained (rank, upper layers, seed), and how long.
        proxy: the safety data that training will see, where they are others.
        penalties: as in `preflight`.
        radii: as in `preflight`.
        budget: rise of the safety loss that is accepted, nats per token, ≥ 0.
        dimensions: of the subspace, at least 2, with a proxy 3.
        lower: as in `finetune_data`.
        progress: whether to show a progress bar.

    Returns:
        A `Preflight` of no world.

    Raises:
        ValueError: as `preflight` and `finetune_data`.

    Source: T14, T15, T19(b) (framework).
    """
    check(penalties, radii, budget)
    data = {"capability": task, "safety": safety} | ({} if proxy is None else {"proxy": proxy})
    with (
        tqdm(total=(dimensions + 1) * len(data), desc="curvature products", disable=not progress) as bar,
        data_tangents(checkpoint, data, recipe, bar.update, lower) as around,
    ):
        found = foretold(around, recipe, penalties, radii, budget, dimensions)
        return Preflight(
            world=None,
            recipe=recipe,
            **found,
            feature_overlap=None,
            proxy_limit=None,
            budget=budget,
            seconds_per_gradient=around.seconds(Sampling().rows),
            gradients=around.gradients,
            products=around.products,
        )
