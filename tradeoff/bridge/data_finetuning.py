r"""Fine-tuning a checkpoint on samples of instruction data, by any strategy that needs no table of answers.

Each step descends $L_f+\lambda\hat L_s$, the mean losses per token of the answers in this step's rows of the task's and of the
(proxy) safety data. It runs by the loop that runs toys (`training.train`), so what a theorem checks is what trains here.
Losses on data that are kept apart are measured as training goes. A run is a function of its recipe, sampling, strategy and
data: interrupted and resumed, it ends in the same weights.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from tradeoff.bridge import processes
from tradeoff.bridge.answers import Answers
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.data import Data
from tradeoff.bridge.data_engine import DataEngine, Sampling
from tradeoff.bridge.live import Live
from tradeoff.bridge.lower import LowerStates
from tradeoff.bridge.optimisers import check_optimiser, kept, optimiser_of, update_by
from tradeoff.bridge.recipe import Recipe
from tradeoff.bridge.rows import encode
from tradeoff.bridge.run_state import (
    FORMAT,
    RunState,
    Store,
    described,
    flattened,
    moments_of,
    restore_moments,
    unflattened,
)
from tradeoff.bridge.trainable import Parameters, trainable
from tradeoff.bridge.training import Tensors, Trained, train
from tradeoff.strategies import SAFETY, TASK, Plain, Strategy, Weighted

NOTHING: Mapping[str, Data] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class TunedOnData:
    """A finished run on instruction data.

    Attributes:
        recipe: how it was made.
        sampling: which rows its steps saw.
        measured_at: after how many steps losses were measured, shape (M,).
        losses: of the data that were to be measured, by name: nats per token of the answers, shape (M,).
        adapter: the weights at the end that the strategy would use, by name: LoRA factors, or matrices trained in full.
        last: the weights at the end of the training itself.
        gradients: how many each step asked for, shape (steps,).
        seconds: how long each step took, measuring and saving apart, shape (steps,).
        strategy: what it was made by.
    """

    recipe: Recipe
    sampling: Sampling
    measured_at: Int[np.ndarray, " M"]
    losses: Mapping[str, Float[np.ndarray, " M"]]
    adapter: Mapping[str, torch.Tensor]
    last: Mapping[str, torch.Tensor]
    gradients: Int[np.ndarray, " T"]
    seconds: Float[np.ndarray, " T"]
    strategy: Strategy


def finetune_data(
    checkpoint: Checkpoint,
    recipe: Recipe,
    task: Data | None = None,
    safety: Data | None = None,
    harmful: Data | None = None,
    *,
    sampling: Sampling | None = None,
    strategy: Strategy | None = None,
    measure: Mapping[str, Data] = NOTHING,
    measure_every: int = 10,
    lower: LowerStates | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> TunedOnData:
    """Train upper layers, by LoRA or in full, on samples of instruction data.

    Under `accelerate launch` with several processes each takes its share of a step's rows; the first one saves.

    Args:
        checkpoint: where to start; it is left as it was.
        recipe: the penalty, the optimiser and what is trained. Its stage "alignment" descends the safety data's loss alone.
        task: what is learned; needed unless the stage is "alignment".
        safety: the safety data at hand, original or a proxy; needed where the penalty, the stage or the strategy asks for them.
        harmful: what an attacker would teach, for strategies that ask.
        sampling: which rows a step sees; as `Sampling()` unless told.
        strategy: one of `tradeoff.strategies`; `None` for none.
        measure: data whose loss is measured, by name; they should share no row with what is trained on.
        measure_every: steps between two measurements; there is one before the first step and one after the last.
        lower: what the layers below the trained ones make of rows, shared by several runs; it changes speed, not results.
        folder: where the state is saved and from where a run that was interrupted goes on; `None` keeps nothing.
        progress: whether to show a progress bar.

    Returns:
        The losses as training went, the final weights and the cost.

    Raises:
        ValueError: when data are missing that the recipe or strategy asks for, the strategy needs a table of answers, probes or
            mapped examples, a row does not fit the model, the optimiser is not what the strategy demands, the lower states are
            of other layers, the folder holds another run or a damaged state, or training diverges.

    Source: framework (Case I and Case II); [kim2025rethinking].
    """
    sampling = Sampling() if sampling is None else sampling
    strategy = Plain() if strategy is None else strategy
    given = {"task": task, "safety": safety, "harmful": harmful}
    data = {role: each for role, each in given.items() if each is not None}
    _check(recipe, strategy, data, measure_every)
    if lower is not None:
        lower.check(checkpoint, recipe.upper_layers)
    run = _Run(checkpoint, recipe, sampling, strategy, data, dict(measure), measure_every, lower)
    store = None if folder is None else Store(Path(folder), run.identity())
    saved = None if store is None else store.load()
    if saved is None or saved.step < recipe.steps:
        saved = run.train(saved, store, progress and processes.is_first())
    return run.result(saved)


@dataclass(frozen=True)
class _Run:
    """What makes a run this run and no other."""

    checkpoint: Checkpoint
    recipe: Recipe
    sampling: Sampling
    strategy: Strategy
    data: Mapping[str, Data]
    measure: Mapping[str, Data]
    measure_every: int
    lower: LowerStates | None

    def identity(self) -> dict[str, str]:
        settings = {
            k: v for k, v in asdict(self.recipe).items() if k not in ("save_every", "batch_size") and v is not None
        }
        return {
            "format": FORMAT,
            "recipe": json.dumps(settings | asdict(self.sampling), sort_keys=True),
            "strategy": json.dumps(described(self.strategy), sort_keys=True),
            "checkpoint": self.checkpoint.digest,
            "dtype": str(self.checkpoint.dtype),
            "data": json.dumps({role: each.digest for role, each in self.data.items()}, sort_keys=True),
            "measured": json.dumps([self.measure_every, [[n, d.digest] for n, d in self.measure.items()]]),
        }

    def train(self, saved: RunState | None, store: Store | None, progress: bool) -> RunState:
        recipe = self.recipe
        with trainable(self.checkpoint, recipe.rank, recipe.upper_layers, recipe.seed) as parameters:
            live = Live(parameters)
            lower = LowerStates(self.checkpoint, recipe.upper_layers) if self.lower is None else self.lower
            answers, watched = self._answers(self.data, lower), self._answers(self.measure, lower)
            rate = recipe.learning_rate if recipe.optimiser == "sgd" else float("nan")
            engine = DataEngine(answers, live, self.sampling, jax.random.key(recipe.seed), recipe.steps, rate)
            optimiser = optimiser_of(parameters, recipe)
            past = _History() if saved is None else _History.of(saved)
            resume = None if saved is None else self._resumed(saved, engine, optimiser, parameters)
            loss = Weighted(((0.0 if recipe.stage == "alignment" else 1.0, TASK), (self._safety_weight(), SAFETY)))
            update = update_by(live, parameters, optimiser, recipe, engine.start)
            run = train(engine, self.strategy, update, loss=loss, resume=resume)
            at = next(run) if resume is None else resume
            if resume is None:
                past.measure(at.exported, live, watched)
            with tqdm(total=recipe.steps, initial=at.step, desc="training", disable=not progress) as bar:
                while at.step < recipe.steps:
                    live.put(at.weights)
                    engine.step, asked, began = at.step, live.gradients, time.perf_counter()
                    at = next(run)
                    past.seconds.append(time.perf_counter() - began)
                    past.gradients.append(live.gradients - asked)
                    if at.step % self.measure_every == 0 or at.step == recipe.steps:
                        past.measure(at.exported, live, watched)
                        bar.set_postfix_str(past.said(watched), refresh=False)
                    bar.update()
                    if store is not None and (at.step % recipe.save_every == 0 or at.step == recipe.steps):
                        _save(store, past.snapshot(at, moments_of(optimiser, parameters), recipe.steps))
            return past.snapshot(at, moments_of(optimiser, parameters), recipe.steps)

    def result(self, state: RunState) -> TunedOnData:
        steps = self.recipe.steps
        at = [step for step in range(steps + 1) if step % self.measure_every == 0 or step == steps]
        table = state.measured.reshape(len(at), len(self.measure))
        used = state.weights if state.exported is None else state.exported
        losses = {name: table[:, i] for i, name in enumerate(self.measure)}
        cost = state.gradients, state.seconds
        return TunedOnData(self.recipe, self.sampling, np.array(at), losses, used, state.weights, *cost, self.strategy)

    def _answers(self, data: Mapping[str, Data], lower: LowerStates) -> dict[str, Answers]:
        layers, tokens = self.recipe.upper_layers, self.sampling.tokens
        return {
            role: Answers(self.checkpoint, encode(self.checkpoint, each), layers, tokens, lower)
            for role, each in data.items()
        }

    def _safety_weight(self) -> float:
        return 1.0 if self.recipe.stage == "alignment" else self.recipe.penalty

    def _resumed(
        self, saved: RunState, engine: DataEngine, optimiser: torch.optim.Optimizer, parameters: Parameters
    ) -> Trained:
        restore_moments(optimiser, parameters, saved)
        device = self.checkpoint.device
        weights = {name: tensor.to(device) for name, tensor in saved.weights.items()}
        structure, tensors = flattened(saved.strategy)
        state = unflattened(structure, {name: tensor.to(device) for name, tensor in tensors.items()})
        return Trained(saved.step, weights, self.strategy.export(state, weights, engine), state)


@dataclass(frozen=True)
class _History:
    """What was measured and paid so far."""

    losses: list[np.ndarray] = field(default_factory=list)
    gradients: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, saved: RunState) -> "_History":
        return cls(list(saved.measured), saved.gradients.tolist(), saved.seconds.tolist())

    def measure(self, weights: Tensors, live: Live, watched: Mapping[str, Answers]) -> None:
        with live.at(weights):
            means = [-float(each.log_probabilities(each.places).mean()) for each in watched.values()]
        if not np.all(np.isfinite(means)):
            raise ValueError(
                f"training diverged: the measured losses are {dict(zip(watched, means, strict=True))}. Lower the learning rate."
            )
        self.losses.append(np.array(means))

    def said(self, watched: Mapping[str, Answers]) -> str:
        return ", ".join(f"{name} {loss:.3f}" for name, loss in zip(watched, self.losses[-1], strict=True))

    def snapshot(self, at: Trained, moments: Mapping[str, torch.Tensor], steps: int) -> RunState:
        exported = None if at.step < steps or at.exported is at.weights else kept(at.exported)
        cost = np.array(self.gradients), np.array(self.seconds)
        return RunState(at.step, kept(at.weights), moments, at.state, np.stack(self.losses), *cost, exported)


def _save(store: Store, state: RunState) -> None:
    if processes.is_first():
        store.save(state)
    processes.together()


def _check(recipe: Recipe, strategy: Strategy, data: Mapping[str, Data], measure_every: int) -> None:
    check_optimiser(strategy, recipe)
    if measure_every < 1:
        raise ValueError(f"finetune_data was given measure_every={measure_every}; it must be at least 1.")
    needed = {"safety"} if recipe.stage == "alignment" else {"task"} | ({"safety"} if recipe.penalty > 0 else set())
    if missing := needed - set(data):
        raise ValueError(
            f"finetune_data was given no {' and no '.join(sorted(missing))} data, and the recipe (stage {recipe.stage!r}, penalty "
            f"{recipe.penalty:g}) descends their loss; give {', '.join(f'{name}=...' for name in sorted(missing))}."
        )
    if strategy.probes or strategy.maps_examples or strategy.decodes:
        raise ValueError(
            f"{type(strategy).__name__} moves hidden states, maps examples or changes how is decoded, which is wired for text worlds; "
            "train it there (tradeoff.bridge.finetune), or give another strategy."
        )
