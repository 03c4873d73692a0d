r"""Case I and Case II on a real checkpoint: LoRA on the penalised loss of a text world, with the exact gradient.

The objective is the one that the theory minimises in closed form (T1),

$$ J_\lambda=\sum_{x,y}\big[p_fP_f+\lambda\hat p_s\hat P_s\big](x,y)\,(-\log\pi(y|x)), $$

and since the world is finite it is summed in full at every step: no sampling noise, and the log-policy that a step
needs is also its measurement. Adapters sit on the upper layers, so what the lower layers compute never changes and is
computed once. With a radius the weights are put back into a ball around the aligned ones after each step (Case II; the
penalty may then be 0). A run is a function of its recipe: interrupted and resumed, it ends in the same weights.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Float
from peft import LoraConfig, LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from tradeoff import gaps
from tradeoff.bridge import policy
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.projection import into_product_ball_
from tradeoff.studies import write_atomically
from tradeoff.worlds.world import World

STATE_FILE = "state.safetensors"
FORMAT = "1"

BETAS = (0.9, 0.95)
"""AdamW's memory: without sampling noise a short one converges in fewer steps (measured on SmolLM2)."""


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is fine-tuned.

    Attributes:
        penalty: λ ≥ 0, the weight of the (proxy) safety loss beside the task's.
        steps: full-batch AdamW steps, without weight decay.
        learning_rate: at the first step; it falls linearly to 0.
        rank: of the LoRA adapters (scaled by alpha = rank, no dropout), on every linear map of the adapted layers.
        upper_layers: how many layers, counted from the top, have adapters; `None` for all.
        seed: of the adapters' start, the only randomness there is.
        save_every: steps between two saves of the state.
        batch_size: prompts in one forward pass; it changes memory and speed, not results.
        radius: ε > 0 of the alignment parameter constraint, on the Frobenius norm of the weights' update over all layers
            together; `None` for no constraint.
    """

    penalty: float
    steps: int = 60
    learning_rate: float = 5e-3
    rank: int = 32
    upper_layers: int | None = 8
    seed: int = 0
    save_every: int = 10
    batch_size: int = 16
    radius: float | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        if not 0 <= self.penalty < np.inf:
            raise ValueError(f"Recipe was given penalty={self.penalty}; the penalty λ must be finite and not negative.")
        if not 0 < self.learning_rate < np.inf:
            raise ValueError(f"Recipe was given learning_rate={self.learning_rate}; it must be finite and positive.")
        if self.radius is not None and not 0 < self.radius < np.inf:
            raise ValueError(
                f"Recipe was given radius={self.radius}; ε must be finite and positive, or None for no ball."
            )
        for name in ("steps", "rank", "save_every", "batch_size", "upper_layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Recipe was given {name}={value}; it must be at least 1.")


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A finished run: its path through the plane of gaps, and where it ended.

    Attributes:
        recipe: how it was made.
        log_policies: the policy before each step and after the last, float64, shape (steps + 1, X, Y).
        safety_gap: of those policies, nats, shape (steps + 1,).
        capability_gap: of those policies, nats, shape (steps + 1,).
        proxy_gap: of those policies, nats, shape (steps + 1,).
        adapter: the LoRA weights at the end, by name.
    """

    recipe: Recipe
    log_policies: Float[Array, "S X Y"]
    safety_gap: Float[Array, " S"]
    capability_gap: Float[Array, " S"]
    proxy_gap: Float[Array, " S"]
    adapter: Mapping[str, torch.Tensor]


def finetune(
    checkpoint: Checkpoint, world: World, recipe: Recipe, folder: str | Path | None = None, progress: bool = True
) -> FineTuned:
    """Train LoRA adapters on the objective of a text world, within a ball if the recipe has one, measuring every step.

    Args:
        checkpoint: where to start; it is left as it was.
        world: a text world; the penalty acts on its proxy, the safety gap is measured on its true safety data.
        recipe: the penalty, the optimiser and the adapters.
        folder: where the state is saved and from where a run that was interrupted goes on; `None` keeps nothing.
        progress: whether to show a progress bar.

    Returns:
        The gaps at every step, the policies and the final adapter.

    Raises:
        ValueError: when the rows of the world cannot be packed for this checkpoint, `upper_layers` exceeds its layers,
            the folder holds another run or a damaged state, or training diverges.

    Source: T1, T2, T14, T19(a) (framework); LoRA.
    """
    store = None if folder is None else _Store(Path(folder), identity(checkpoint, world, recipe))
    saved = None if store is None else store.load()
    if saved is None or saved.step < recipe.steps:
        saved = _train(checkpoint, world, recipe, saved, store, progress)
    return _result(world, recipe, saved)


@contextmanager
def adapted(checkpoint: Checkpoint, tuned: FineTuned) -> Iterator[Checkpoint]:
    """The checkpoint with the adapters of a finished run, for measuring or generating; taken off again afterwards.

    Args:
        checkpoint: the checkpoint that the run started from.
        tuned: the run.

    Yields:
        A checkpoint that shares the weights of the first.
    """
    with _with_adapters(checkpoint, tuned.recipe) as parameters:
        _assign(parameters, tuned.adapter)
        name = f"{checkpoint.name} fine-tuned at λ = {tuned.recipe.penalty:g}"
        yield dataclasses.replace(
            checkpoint, name=name, digests={**checkpoint.digests, "adapter": _digest(tuned.adapter)}
        )


def identity(checkpoint: Checkpoint, world: World, recipe: Recipe) -> dict[str, str]:
    """What makes a run this run and no other: a saved state that differs in any of it is refused.

    Args:
        checkpoint: where the run starts.
        world: the text world.
        recipe: how it is trained (but not how often it is saved).

    Returns:
        The recipe as JSON, and digests of the checkpoint and the world.
    """
    laws = hashlib.sha256()
    for law in (world.safety, world.capability, world.training_safety):
        laws.update(np.asarray(law.p).tobytes() + np.asarray(law.P).tobytes())
    laws.update(json.dumps([world.contexts, world.responses]).encode())
    settings = {k: v for k, v in dataclasses.asdict(recipe).items() if k != "save_every" and v is not None}
    return {
        "format": FORMAT,
        "recipe": json.dumps(settings, sort_keys=True),
        "checkpoint": checkpoint.digest,
        "dtype": str(checkpoint.dtype),
        "world": laws.hexdigest(),
    }


# --- training ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _State:
    """All that a run needs to go on: weights and moments after `step` steps, and the policies before each of them."""

    step: int
    adapter: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    log_policies: np.ndarray


def _train(
    checkpoint: Checkpoint, world: World, recipe: Recipe, saved: _State | None, store: "_Store | None", progress: bool
) -> _State:
    encoding = policy.encode(checkpoint, world)
    if obstacle := policy.not_packed_because(checkpoint, encoding):
        raise ValueError(
            f"finetune trains on packed rows, and {obstacle}. Use a checkpoint of a tested architecture, or shorter "
            "texts."
        )
    weights = _cell_weights(world, recipe.penalty)
    with _with_adapters(checkpoint, recipe) as parameters:
        objective = Objective(checkpoint, encoding, recipe.upper_layers, recipe.batch_size)
        optimiser = torch.optim.AdamW(parameters.values(), lr=recipe.learning_rate, betas=BETAS, weight_decay=0.0)
        policies = []
        start = 0
        if saved is not None:
            start, policies = saved.step, list(saved.log_policies)
            _assign(parameters, saved.adapter)
            _restore_moments(optimiser, parameters, saved)
        bar = tqdm(total=recipe.steps, initial=start, desc=f"fine-tuning, λ = {recipe.penalty:g}", disable=not progress)
        with bar:
            for step in range(start, recipe.steps):
                optimiser.zero_grad(set_to_none=True)
                policies.append(np.asarray(policy.checked(objective.pull(weights))))
                for group in optimiser.param_groups:
                    group["lr"] = recipe.learning_rate * (1 - step / recipe.steps)
                optimiser.step()
                if recipe.radius is not None:
                    into_product_ball_(parameters, recipe.radius)
                bar.update()
                bar.set_postfix_str(
                    f"G_f + λ G_s = {gaps.weighted_sum(world, policies[-1], recipe.penalty):.3f} nats", refresh=False
                )
                if store is not None and (step + 1) % recipe.save_every == 0 and step + 1 < recipe.steps:
                    store.save(_snapshot(step + 1, parameters, optimiser, policies))
        policies.append(np.asarray(policy.checked(objective.scores())))
        final = _snapshot(recipe.steps, parameters, optimiser, policies)
    if store is not None:
        store.save(final)
    return final


class Objective:
    """The penalised loss of a text world for a model whose lower layers are frozen: their output is computed once."""

    def __init__(
        self, checkpoint: Checkpoint, encoding: policy.Encoding, upper_layers: int | None, batch_size: int
    ) -> None:
        trunk = checkpoint.model.base_model
        self.scorer = policy.Scorer(encoding.responses, checkpoint.model.get_output_embeddings())
        self.norm = trunk.norm
        self.layers = trunk.layers[first_adapted(checkpoint, upper_layers) :]
        self.batches = []
        with torch.no_grad():
            for batch in policy.pack(encoding, checkpoint, batch_size):
                lower = trunk.embed_tokens(batch.tokens)
                rotation = trunk.rotary_emb(lower, position_ids=batch.positions)
                lower = _through(trunk.layers[: len(trunk.layers) - len(self.layers)], lower, batch, rotation)
                self.batches.append((batch, lower, rotation))

    def scores(self) -> np.ndarray:
        """The log-policy as it is now, shape (X, Y)."""
        with torch.no_grad():
            return torch.cat([self.scorer.scores(self._states(*each)) for each in self.batches]).cpu().numpy()

    def pull(self, weights: Float[np.ndarray, "X Y"]) -> np.ndarray:
        r"""The log-policy, shape (X, Y), after adding the gradient of $-\sum c\log\pi$ to the parameters' gradients."""
        scores = []
        for each in self.batches:
            states = self._states(*each)
            rows = torch.tensor(weights[sum(map(len, scores)) :][: len(states)], device=states.device)
            found, gradient = self.scorer.scores_and_pull(states, rows)
            states.backward(gradient)
            scores.append(found)
        return torch.cat(scores).cpu().numpy()

    def _states(self, batch: policy.Batch, lower: torch.Tensor, rotation: Any) -> torch.Tensor:
        # The final norm acts on each position by itself, so only scored positions go through it.
        return self.norm(batch.scored(_through(self.layers, lower, batch, rotation)))


def first_adapted(checkpoint: Checkpoint, upper_layers: int | None) -> int:
    """The index of the lowest layer with adapters, after the check that there are so many layers."""
    layers = checkpoint.model.config.num_hidden_layers
    if upper_layers is not None and upper_layers > layers:
        raise ValueError(
            f"finetune was given upper_layers={upper_layers} for a model of {layers} layers; give at most {layers}, or "
            "None for all."
        )
    return 0 if upper_layers is None else layers - upper_layers


def _through(layers: Any, hidden: torch.Tensor, batch: policy.Batch, rotation: Any) -> torch.Tensor:
    for layer in layers:
        hidden = layer(
            hidden,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            position_embeddings=rotation,
            use_cache=False,
        )
    return hidden


def _cell_weights(world: World, penalty: float) -> np.ndarray:
    r"""$c(x,y)=p_fP_f+\lambda\hat p_s\hat P_s$, shape (X, Y)."""
    seen = world.training_safety
    return np.asarray(world.capability.p[:, None] * world.capability.P + penalty * seen.p[:, None] * seen.P)


def _result(world: World, recipe: Recipe, state: _State) -> FineTuned:
    path = state.log_policies
    by_kind = (
        jnp.stack([gap(world, each) for each in path]) for gap in (gaps.safety_gap, gaps.capability_gap, gaps.proxy_gap)
    )
    return FineTuned(recipe, jnp.asarray(path), *by_kind, adapter=state.adapter)


# --- adapters and optimiser state --------------------------------------------------------------------------------


@contextmanager
def _with_adapters(checkpoint: Checkpoint, recipe: Recipe) -> Iterator[dict[str, torch.nn.Parameter]]:
    """Put fresh adapters on the checkpoint's model and yield them by name; take them off again at the end."""
    model = checkpoint.model
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            f"{checkpoint.name} has adapters on already; only one set fits. Leave the `with adapted(...)` block first."
        )
    lowest = first_adapted(checkpoint, recipe.upper_layers)
    layers = list(model.base_model.layers)[lowest:]
    adapted_modules = {id(m) for layer in layers for m in layer.modules() if isinstance(m, torch.nn.Linear)}
    names = [name for name, module in model.named_modules() if id(module) in adapted_modules]
    settings = LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, lora_dropout=0.0, target_modules=names)
    device = checkpoint.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        wrapped = LoraModel(model, settings, "default")
    try:
        wrapped.eval()
        yield {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    finally:
        wrapped.unload()
        model.requires_grad_(False)


def _assign(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


def _snapshot(
    step: int, parameters: Mapping[str, torch.nn.Parameter], optimiser: torch.optim.AdamW, policies: list
) -> _State:
    adapter = {name: p.detach().cpu().clone() for name, p in parameters.items()}
    moments = {
        f"{moment}/{name}": optimiser.state[p][moment].detach().cpu().clone()
        for name, p in parameters.items()
        for moment in ("exp_avg", "exp_avg_sq")
    }
    return _State(step, adapter, moments, np.stack(policies))


def _restore_moments(optimiser: torch.optim.AdamW, parameters: Mapping[str, torch.nn.Parameter], saved: _State) -> None:
    for name, p in parameters.items():
        moments = {m: saved.moments[f"{m}/{name}"].to(p.device).clone() for m in ("exp_avg", "exp_avg_sq")}
        optimiser.state[p] = {"step": torch.tensor(float(saved.step)), **moments}


# --- the state on disk -------------------------------------------------------------------------------------------


class _Store:
    """One run's state in one safetensors file, replaced whole or not at all, and never taken for another run's."""

    def __init__(self, folder: Path, identity: dict[str, str]) -> None:
        self.path = folder / STATE_FILE
        self.identity = identity

    def save(self, state: _State) -> None:
        tensors = {f"adapter/{name}": value for name, value in state.adapter.items()} | state.moments
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        tensors["log_policies"] = torch.from_numpy(state.log_policies)
        metadata = {**self.identity, "step": str(state.step), "sha256": _digest(tensors)}

        def write(beside: Path) -> None:
            beside.write_bytes(save(tensors, metadata))

        write_atomically(self.path, write)

    def load(self) -> _State | None:
        """The saved state, or `None` when nothing was saved yet."""
        for left_behind in self.path.parent.glob(f".{STATE_FILE}.*"):
            left_behind.unlink()  # by a writer that was killed outright
        if not self.path.exists():
            return None
        remedy = f"Delete it to start the run anew: rm '{self.path}'"
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path} is truncated or damaged ({error}). {remedy}") from error
        different = [key for key, value in self.identity.items() if metadata.get(key) != value]
        if different:
            found = "; ".join(f"{key}: saved {metadata.get(key)}, asked for {self.identity[key]}" for key in different)
            raise ValueError(f"{self.path} belongs to another run ({found}). Give another folder, or delete the file.")
        if metadata.get("sha256") != _digest(tensors):
            raise ValueError(f"{self.path} was altered: its SHA-256 is not the one that it was saved with. {remedy}")
        adapter = {name.removeprefix("adapter/"): t for name, t in tensors.items() if name.startswith("adapter/")}
        moments = {name: t for name, t in tensors.items() if name.startswith("exp_avg")}
        return _State(int(metadata["step"]), adapter, moments, tensors["log_policies"].numpy())


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
