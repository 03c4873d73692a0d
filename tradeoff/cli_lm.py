"""The commands of `tradeoff lm`: `measure`, `preflight` and `finetune` a language model."""

import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from tradeoff._cli_answers import refuse, report

if TYPE_CHECKING:
    from tradeoff.bridge import Checkpoint, FineTuned, Recipe, TunedOnData
    from tradeoff.bridge import Preflight as PreflightFound
    from tradeoff.strategies import Strategy
    from tradeoff.worlds import World


@dataclass(frozen=True)
class Measure:
    """Print the gaps of a language model in a text world, or on data: JSON, JSON Lines, CSV, Parquet or a hub's data set.

    Attributes:
        world: a JSON file of a world with the texts of its contexts and responses.
        checkpoint: SmolLM2-135M-Instruct, a folder in the Hugging Face layout, a .gguf file, or a name on its hub.
        safety: safety data: questions with the answers that are wanted.
        capability: data of the task.
        proxy: the safety data at hand while fine-tuning.
        baseline: the checkpoint whose loss on the same rows the gaps subtract; zero unless told.
        teacher: a checkpoint to compare with at every token.
        prompts: prompts to be answered, and judged for refusals.
        overlap: compare the contexts of safety and capability data.
        limit: examples of each file, drawn by the seed; all unless told.
        seed: of the draws.
        json: print JSON for a machine to read.
    """

    world: tyro.conf.Positional[Path | None] = None
    checkpoint: str = "SmolLM2-135M-Instruct"
    safety: str | None = None
    capability: str | None = None
    proxy: str | None = None
    baseline: str | None = None
    teacher: str | None = None
    prompts: str | None = None
    overlap: bool = False
    limit: int | None = None
    seed: int = 0
    json: bool = False

    def run(self) -> int:
        """Print one line for each number."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("world", "json")}
        data = [name for name in ("safety", "capability", "proxy", "prompts") if given[name] is not None]
        if (self.world is None) == (not data):
            return refuse("give either a world's JSON file, or data: --safety, --capability, --proxy or --prompts.")
        try:
            from tradeoff import bridge

            if self.world is None:
                found = bridge.measure(bridge.MeasureSettings(**given), progress=sys.stderr.isatty())
                print(found.to_json() if self.json else found)
                return 0
            return report(_gaps_in_world(self.world, self.checkpoint), self.json)
        except (ModuleNotFoundError, ValueError, RuntimeError) as error:
            return refuse(str(error))


@dataclass(frozen=True)
class Preflight:
    """Foretell, before any training, what fine-tuning a language model would cost in safety: in a text world, or on data.

    Attributes:
        world: a JSON file of a world with the texts of its contexts and responses.
        checkpoint: SmolLM2-135M-Instruct, a folder in the Hugging Face layout, a .gguf file, or a name on its hub; aligned.
        task: data of the task, in place of a world: JSON, JSON Lines, CSV, Parquet or a hub's data set.
        safety: data of what shall be kept.
        proxy: the safety data that training will see, where they are others.
        limit: examples of each file, drawn by the seed; every product reads them all.
        penalties: λ > 0 of the loss constraint.
        radii: ε > 0 of the parameter constraint; parts of the reach of the task gradient unless told.
        budget: rise of the safety gap that is accepted, nats.
        dimensions: of the subspace in which the strategies are solved; 16 in a text world and 8 on data unless told.
        steps: of the run whose cost is told.
        rank: of the LoRA adapters; None to train matrices in full.
        upper_layers: how many layers, counted from the top, are trained; None for all.
        seed: of the adapters' start.
        json: print JSON for a machine to read.
    """

    world: tyro.conf.Positional[Path | None] = None
    checkpoint: str = "SmolLM2-135M-Instruct"
    task: str | None = None
    safety: str | None = None
    proxy: str | None = None
    limit: int = 16
    penalties: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    radii: tuple[float, ...] = ()
    budget: float = 0.1
    dimensions: int | None = None
    steps: int = 60
    rank: int | None = 32
    upper_layers: int | None = 8
    seed: int = 0
    json: bool = False

    def run(self) -> int:
        """Print the signs, the predicted settings, and the one that is recommended."""
        on_data = self.task is not None and self.safety is not None
        if (self.world is None) != on_data or (self.world is not None and (self.task or self.safety or self.proxy)):
            return refuse("give either a world's JSON file, or data: both --task and --safety.")
        try:
            flight = self._flight()
        except (ModuleNotFoundError, ValueError, RuntimeError) as error:
            return refuse(str(error))
        print(json.dumps(flight.as_dict(), indent=1) if self.json else flight)
        return 0

    def _flight(self) -> "PreflightFound":
        import tradeoff as to
        from tradeoff import bridge

        names = ("steps", "rank", "upper_layers", "seed")
        recipe = bridge.Recipe(penalty=0.0, **{name: getattr(self, name) for name in names})
        asked = {name: getattr(self, name) for name in ("penalties", "budget")}
        asked |= {} if self.dimensions is None else {"dimensions": self.dimensions}
        asked |= {"radii": self.radii or None, "progress": sys.stderr.isatty()}
        if self.world is not None:
            world = to.worlds.read(self.world)
            return bridge.preflight(bridge.load(self.checkpoint), world, recipe, **asked)
        given = {name: getattr(self, name) for name in ("task", "safety", "proxy")}
        data = {
            name: bridge.read_data(source).subset(self.limit, self.seed)
            for name, source in given.items()
            if source is not None
        }
        return bridge.preflight_data(bridge.load(self.checkpoint), recipe=recipe, **data, **asked)


@dataclass(frozen=True)
class Finetune:
    """Fine-tune a language model, in a text world or on data, and print what it cost.

    Attributes:
        world: a JSON file of a world with the texts of its contexts and responses.
        checkpoint: SmolLM2-135M-Instruct, a folder in the Hugging Face layout, a .gguf file, or a name on its hub.
        task: data of the task, in place of a world: JSON, JSON Lines, CSV, Parquet or a hub's data set.
        safety: safety data, where the penalty, the strategy or the stage asks for them.
        harmful: what an attacker would teach, where the strategy asks.
        rows: of the task's data in each step.
        safety_rows: of the safety data in each step.
        strategy: a name of tradeoff.strategies.registry; its settings are those of the registry. One of the stage of
            alignment, such as vaccine or booster, is trained on the safety data alone.
        stage: fine-tuning, or alignment on the safety data alone; as the strategy has it unless told.
        penalty: λ ≥ 0, the weight of the safety loss beside the task's.
        steps: how many.
        learning_rate: at the first step.
        rank: of the LoRA adapters; None to train matrices in full.
        upper_layers: how many layers, counted from the top, are trained; None for all.
        radius: ε of the alignment parameter constraint; None for no ball.
        optimiser: adamw, or sgd for plain descent; a strategy that sets the length of its steps needs sgd with learning rate 1.
        seed: of the adapters' start, of the rows that are drawn and of the strategy's random numbers.
        dtype: number format of the model while it is trained: float32 or bfloat16.
        folder: where the run is saved; killed, it goes on from there.
        out: a new folder for the model that the run ends with.
        json: print JSON for a machine to read.
    """

    world: tyro.conf.Positional[Path | None] = None
    checkpoint: str = "SmolLM2-135M-Instruct"
    task: str | None = None
    safety: str | None = None
    harmful: str | None = None
    rows: int = 8
    safety_rows: int = 8
    strategy: str = "plain"
    stage: str | None = None
    penalty: float = 0.0
    steps: int = 60
    learning_rate: float = 5e-3
    rank: int | None = 32
    upper_layers: int | None = 8
    radius: float | None = None
    optimiser: str = "adamw"
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    folder: Path | None = None
    out: Path | None = None
    json: bool = False

    def run(self) -> int:
        """Print the losses before and after, and the cost."""
        if (self.world is None) == (self.task is None and self.safety is None):
            return refuse("give either a world's JSON file, or data: --task, --safety or both.")
        if self.out is not None and self.out.exists():
            return refuse(f"--out {self.out} is there already; give a new folder.")
        try:
            import torch

            from tradeoff import bridge

            strategy, stage = _strategy(self.strategy)
            names = ("penalty", "steps", "learning_rate", "rank", "upper_layers", "radius", "optimiser", "seed")
            recipe = bridge.Recipe(**{name: getattr(self, name) for name in names}, stage=self.stage or stage)
            checkpoint = bridge.load(self.checkpoint, dtype=getattr(torch, self.dtype))
            run, told = (self._on_data if self.world is None else self._in_world)(checkpoint, recipe, strategy)
            if self.out is not None:
                bridge.save(bridge.merged(checkpoint, run), self.out)
        except (ModuleNotFoundError, KeyError, ValueError, RuntimeError) as error:
            return refuse(str(error.args[0]))
        cost = {"gradients": int(run.gradients.sum()), "seconds": float(run.seconds.sum())}
        return report(told | cost, self.json)

    def _in_world(
        self, checkpoint: "Checkpoint", recipe: "Recipe", strategy: "Strategy"
    ) -> "tuple[FineTuned, dict[str, float]]":
        """A run in a text world, and its gaps, which no model can have below the frontier."""
        import tradeoff as to
        from tradeoff import bridge

        assert self.world is not None
        world = to.worlds.read(self.world)
        tuned = bridge.finetune(checkpoint, world, recipe, self.folder, sys.stderr.isatty(), strategy)
        told: dict[str, float] = {}
        for name in ("safety_gap", "capability_gap", "proxy_gap"):
            told |= {f"{name}_before": float(getattr(tuned, name)[0]), name: float(getattr(tuned, name)[-1])}
        return tuned, told | _certified(world, told["safety_gap"], told["capability_gap"])

    def _on_data(
        self, checkpoint: "Checkpoint", recipe: "Recipe", strategy: "Strategy"
    ) -> "tuple[TunedOnData, dict[str, float]]":
        """A run on data, and its losses per token on all of them."""
        from tradeoff import bridge

        given = {name: getattr(self, name) for name in ("task", "safety", "harmful")}
        data = {name: bridge.read_data(source) for name, source in given.items() if source is not None}
        sampling = bridge.Sampling(self.rows, self.safety_rows)
        options = {
            "measure": data,
            "measure_every": recipe.steps,
            "folder": self.folder,
            "progress": sys.stderr.isatty(),
        }
        tuned = bridge.finetune_data(checkpoint, recipe, **data, sampling=sampling, strategy=strategy, **options)
        told: dict[str, float] = {}
        for name, losses in tuned.losses.items():
            told |= {f"{name}_loss_before": float(losses[0]), f"{name}_loss": float(losses[-1])}
        return tuned, told


def _gaps_in_world(path: Path, checkpoint: str) -> dict[str, float]:
    """The exact gaps of a language model in a text world."""
    import tradeoff as to
    from tradeoff import bridge

    world = to.worlds.read(path)
    scores = bridge.log_policy(bridge.load(checkpoint), world, progress=sys.stderr.isatty())
    found = {"safety_gap": to.safety_gap, "capability_gap": to.capability_gap, "proxy_gap": to.proxy_gap}
    told = {name: float(gap(world, scores)) for name, gap in found.items()}
    return told | _certified(world, told["safety_gap"], told["capability_gap"])


def _certified(world: "World", safety: float, capability: float) -> dict[str, float]:
    """How far the gaps are from what no model can pass."""
    from tradeoff import frontier

    found = frontier.certify(world, [safety, capability])
    return {"distance_to_frontier": float(found.distance), "above_the_limit": float(found.above_limit)}


def _strategy(name: str) -> "tuple[Strategy, str]":
    """A strategy with the registry's settings, unless the registry makes them up as an example, and its stage of training."""
    import torch

    from tradeoff.bridge.run_state import described
    from tradeoff.strategies import registry

    row = registry.get(name)
    one, other = (row.make({"weights": torch.ones(n, n)}) for n in (2, 4))
    if described(one) != described(other):
        raise ValueError(
            f"{name} has settings without defaults, such as other models' weights or a judge's marks; give them in Python: "
            "tradeoff.bridge.finetune(..., strategy=...)."
        )
    return one, "alignment" if row.aligns else "fine-tuning"
