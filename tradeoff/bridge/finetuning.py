r"""Fine-tuning a real checkpoint on the penalised loss of a text world, with the exact gradient and any strategy.

The objective is the one that the theory minimises in closed form (T1),

$$ J_\lambda=\sum_{x,y}\big[p_fP_f+\lambda\hat p_s\hat P_s\big](x,y)\,(-\log\pi(y|x)), $$

and since the world is finite it is summed in full at every step: no sampling noise, and the log-policy that a step
needs is also its measurement. Only upper layers are trained, so what the lower layers compute never changes and is
computed once. With a radius the weights are put back into a ball around the aligned ones after each step (Case II; the
penalty may then be 0). A strategy is run by the loop that runs it on toys (`training.train`); one that moves hidden states
finds probes on them (`probes`), and one that maps examples has the world's data mapped before training (`examples`). A run is
a function of its recipe and strategy: interrupted and resumed, it ends in the same weights.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Float, Int
from tqdm.auto import tqdm

from tradeoff import gaps
from tradeoff.bridge import policy
from tradeoff.bridge.checkpoint_engine import CheckpointEngine
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.corpus import Corpus
from tradeoff.bridge.examples import Shares, training_lines
from tradeoff.bridge.objective import Objective
from tradeoff.bridge.optimisers import check_optimiser, kept, optimiser_of, update_by
from tradeoff.bridge.probes import Probing
from tradeoff.bridge.recipe import FinishedRun, Recipe
from tradeoff.bridge.run_state import (
    FORMAT,
    RunState,
    Store,
    described,
    digest,
    flattened,
    moments_of,
    restore_moments,
    unflattened,
)
from tradeoff.bridge.trainable import Parameters, assign, layer_names, trainable
from tradeoff.bridge.training import Trained, train
from tradeoff.strategies import Plain, Strategy
from tradeoff.strategies._probes import probes
from tradeoff.strategies.losses import Cells
from tradeoff.worlds.world import World


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A finished run: its path through the plane of gaps, where it ended, and what it cost.

    The policies are those of the weights that the strategy would use, decoded as it would decode. Where these are the weights
    of the training, as without a strategy, the gradient's own pass measures them; where they are others (an average of
    weights, say), are decoded, or are trained on mapped examples, measuring costs a forward pass more at every step.

    Attributes:
        recipe: how it was made.
        log_policies: the policy before each step and after the last, float64, shape (steps + 1, X, Y).
        safety_gap: of those policies, nats, shape (steps + 1,).
        capability_gap: of those policies, nats, shape (steps + 1,).
        proxy_gap: of those policies, nats, shape (steps + 1,).
        adapter: the weights at the end that the strategy would use, by name: LoRA factors, or matrices trained in full.
        last: the weights at the end of the training itself.
        gradients: how many each step asked for, shape (steps,); what the strategy prepares at the start is in the first.
        seconds: how long each step took, measuring and saving apart, shape (steps,).
        strategy: what it was made by.
    """

    recipe: Recipe
    log_policies: Float[Array, "S X Y"]
    safety_gap: Float[Array, " S"]
    capability_gap: Float[Array, " S"]
    proxy_gap: Float[Array, " S"]
    adapter: Mapping[str, torch.Tensor]
    last: Mapping[str, torch.Tensor]
    gradients: Int[np.ndarray, " T"]
    seconds: Float[np.ndarray, " T"]
    strategy: Strategy


def finetune(
    checkpoint: Checkpoint,
    world: World,
    recipe: Recipe,
    folder: str | Path | None = None,
    progress: bool = True,
    strategy: Strategy | None = None,
) -> FineTuned:
    """Train upper layers on the objective of a text world, within a ball if the recipe has one, measuring every step.

    A strategy of the stage of alignment belongs with `Recipe(penalty=0, stage="alignment")`; `merged` makes of that run the
    checkpoint that another one then fine-tunes.

    Args:
        checkpoint: where to start; it is left as it was.
        world: a text world; the penalty acts on its proxy, the safety gap is measured on its true safety data.
        recipe: the penalty, the optimiser and what is trained.
        folder: where the state is saved and from where a run that was interrupted goes on; `None` keeps nothing.
        progress: whether to show a progress bar.
        strategy: one of `tradeoff.strategies`, which sees the gradients before the optimiser does; `None` for none.

    Returns:
        The gaps at every step, the policies, the final weights and the cost.

    Raises:
        ValueError: when the rows of the world cannot be packed for this checkpoint, `upper_layers` exceeds its layers,
            the optimiser is not what the strategy demands, the strategy maps no examples that are trained on or such that the
            model cannot read, the folder holds another run or a damaged state, or training diverges.
        TypeError: when the strategy maps words: rows of a text world are ids of tokens.

    Source: T1, T2, T14, T19(a) (framework); LoRA.
    """
    strategy = Plain() if strategy is None else strategy
    check_optimiser(strategy, recipe)
    store = None if folder is None else Store(Path(folder), identity(checkpoint, world, recipe, strategy))
    saved = None if store is None else store.load()
    if saved is None or saved.step < recipe.steps:
        saved = _train(checkpoint, world, recipe, strategy, saved, store, progress)
    return _result(world, recipe, strategy, saved)


@contextmanager
def adapted(checkpoint: Checkpoint, tuned: FinishedRun) -> Iterator[Checkpoint]:
    """The checkpoint with the weights of a finished run, for measuring or generating; as it was again afterwards.

    Args:
        checkpoint: the checkpoint that the run started from.
        tuned: the run.

    Yields:
        A checkpoint that shares the weights of the first.
    """
    with _trained(checkpoint, tuned.recipe) as parameters:
        assign(parameters, tuned.adapter)
        name = f"{checkpoint.name} {_done(tuned.recipe)}"
        yield dataclasses.replace(
            checkpoint, name=name, digests={**checkpoint.digests, "adapter": digest(tuned.adapter)}
        )


def identity(checkpoint: Checkpoint, world: World, recipe: Recipe, strategy: Strategy | None = None) -> dict[str, str]:
    """What makes a run this run and no other: a saved state that differs in any of it is refused.

    Args:
        checkpoint: where the run starts.
        world: the text world.
        recipe: how it is trained (but not how often it is saved).
        strategy: by what; `None` for none.

    Returns:
        The recipe and the strategy's settings as JSON, and digests of the checkpoint and the world.

    Raises:
        ValueError: when a setting of the strategy cannot be told from another.
    """
    laws = hashlib.sha256()
    for law in (world.safety, world.capability, world.training_safety):
        laws.update(np.asarray(law.p).tobytes() + np.asarray(law.P).tobytes())
    laws.update(json.dumps([world.contexts, world.responses]).encode())
    settings = {k: v for k, v in dataclasses.asdict(recipe).items() if k != "save_every" and v is not None}
    if recipe.stage == "fine-tuning":
        del settings["stage"]  # as runs were saved before there was another
    return {
        "format": FORMAT,
        "recipe": json.dumps(settings, sort_keys=True),
        "strategy": json.dumps(described(Plain() if strategy is None else strategy), sort_keys=True),
        "checkpoint": checkpoint.digest,
        "dtype": str(checkpoint.dtype),
        "world": laws.hexdigest(),
    }


# --- training ----------------------------------------------------------------------------------------------------


def _train(
    checkpoint: Checkpoint,
    world: World,
    recipe: Recipe,
    strategy: Strategy,
    saved: RunState | None,
    store: Store | None,
    progress: bool,
) -> RunState:
    encoding = policy.encode(checkpoint, world)
    if obstacle := policy.not_packed_because(checkpoint, encoding):
        raise ValueError(
            f"finetune trains on packed rows, and {obstacle}. Use a checkpoint of a tested architecture, or shorter "
            "texts."
        )
    with _trained(checkpoint, recipe) as parameters:
        engine = _engine(checkpoint, world, recipe, strategy, encoding, parameters)
        optimiser = optimiser_of(parameters, recipe)
        past, resume = _History(), None
        if saved is not None:
            past = _History(list(saved.measured), saved.gradients.tolist(), saved.seconds.tolist())
            restore_moments(optimiser, parameters, saved)
            resume = _resumed(saved, strategy, engine, checkpoint.device)
        began, asked = time.perf_counter(), engine.live.gradients
        shares = _shares(recipe)
        loss = Cells(torch.tensor(_cell_weights(world, shares.safety, shares.task)))
        run = train(
            engine,
            strategy,
            update_by(engine.live, parameters, optimiser, recipe, engine.start),
            loss=loss,
            resume=resume,
        )
        at = next(run) if resume is None else resume
        engine.settle(at.weights)
        title = f"{recipe.stage}, λ = {recipe.penalty:g}"
        with tqdm(total=recipe.steps, initial=at.step, desc=title, disable=not progress) as bar:
            for after in run:
                past.seconds.append(time.perf_counter() - began)
                past.gradients.append(engine.live.gradients - asked)
                past.policies.append(np.asarray(policy.checked(engine.measured(at.exported))))
                at = after
                engine.settle(at.weights)
                bar.set_postfix_str(_now(world, recipe, past.policies[-1]), refresh=False)
                bar.update()
                if store is not None and at.step % recipe.save_every == 0 and at.step < recipe.steps:
                    store.save(past.snapshot(at, moments_of(optimiser, parameters)))
                began, asked = time.perf_counter(), engine.live.gradients
        past.policies.append(np.asarray(policy.checked(engine.measured(at.exported))))
        final = past.snapshot(at, moments_of(optimiser, parameters))
    if store is not None:
        store.save(final)
    return final


def _engine(
    checkpoint: Checkpoint,
    world: World,
    recipe: Recipe,
    strategy: Strategy,
    encoding: policy.Encoding,
    parameters: Parameters,
) -> CheckpointEngine:
    """What the strategy asks, with the probes that it moves and the examples that it makes."""
    key = jax.random.key(recipe.seed)
    layers, size = recipe.upper_layers, recipe.batch_size
    probing = Probing(strategy.probes, layer_names(parameters)) if strategy.probes else None
    decode = strategy.decode if strategy.decodes else None
    objective = Objective(checkpoint, encoding, layers, size, probing, decode)
    corpus = None
    if strategy.maps_examples:
        lines = training_lines(checkpoint, world, strategy, _shares(recipe), key)
        corpus = Corpus(checkpoint, lines, layers, size)
    rate = recipe.learning_rate if recipe.optimiser == "sgd" else float("nan")
    return CheckpointEngine(objective, parameters, world, key, recipe.steps, rate, corpus)


@dataclass(frozen=True)
class _History:
    """What was measured at every step so far."""

    policies: list[np.ndarray] = dataclasses.field(default_factory=list)
    gradients: list[int] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)

    def snapshot(self, at: Trained, moments: Mapping[str, torch.Tensor]) -> RunState:
        """The state after a step; of the last one, with the weights that are used, for then no model is needed to say them."""
        path = np.stack(self.policies), np.array(self.gradients), np.array(self.seconds)
        finished = len(self.policies) > at.step
        exported = None if at.exported is at.weights or not finished else kept(at.exported)
        return RunState(at.step, kept(at.weights), moments, at.state, *path, exported)


def _resumed(saved: RunState, strategy: Strategy, engine: CheckpointEngine, device: torch.device) -> Trained:
    weights = {name: tensor.to(device) for name, tensor in saved.weights.items()} | probes(engine.start)
    structure, tensors = flattened(saved.strategy)
    state = unflattened(structure, {name: tensor.to(device) for name, tensor in tensors.items()})
    return Trained(saved.step, weights, strategy.export(state, weights, engine), state)


def _trained(checkpoint: Checkpoint, recipe: Recipe) -> AbstractContextManager[Parameters]:
    return trainable(checkpoint, recipe.rank, recipe.upper_layers, recipe.seed)


def _shares(recipe: Recipe) -> Shares:
    return Shares(0.0, 1.0) if recipe.stage == "alignment" else Shares(1.0, recipe.penalty)


def _cell_weights(world: World, penalty: float, task: float = 1.0) -> np.ndarray:
    r"""$c(x,y)=p_fP_f+\lambda\hat p_s\hat P_s$, shape (X, Y), the first term as often as `task` says."""
    seen = world.training_safety
    return np.asarray(task * world.capability.p[:, None] * world.capability.P + penalty * seen.p[:, None] * seen.P)


def _done(recipe: Recipe) -> str:
    return "aligned" if recipe.stage == "alignment" else f"fine-tuned at λ = {recipe.penalty:g}"


def _now(world: World, recipe: Recipe, log_policy: np.ndarray) -> str:
    if recipe.stage == "alignment":
        return f"G_s = {gaps.proxy_gap(world, log_policy):.3f} nats"
    return f"G_f + λ G_s = {gaps.weighted_sum(world, log_policy, recipe.penalty):.3f} nats"


def _result(world: World, recipe: Recipe, strategy: Strategy, state: RunState) -> FineTuned:
    path = state.measured
    kinds = (gaps.safety_gap, gaps.capability_gap, gaps.proxy_gap)
    safety, capability, proxy = (jnp.stack([gap(world, each) for each in path]) for gap in kinds)
    used = state.weights if state.exported is None else state.exported
    cost = state.gradients, state.seconds
    return FineTuned(recipe, jnp.asarray(path), safety, capability, proxy, used, state.weights, *cost, strategy)
