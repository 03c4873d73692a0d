"""Fine-tuning by LoRA against peft, bare and under the trainer of transformers, and kept lower layers against computing them."""

import copy
import functools
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.protocol import Benchmark, Contender
from tradeoff.bridge import LowerStates, Recipe, Sampling, finetune_data
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.data import Data, Example
from tradeoff.bridge.data_engine import drawn
from tradeoff.bridge.optimisers import BETAS
from tradeoff.bridge.rows import Row, encode
from tradeoff.bridge.template import asked

WORDS, HIDDEN, WIDE, HEADS = 2048, 192, 512, 4
ROWS, PROMPT, ANSWER = 8, 16, 16
"""Rows, all of them in every step, and the words of a question and of an answer."""
SHALLOW, DEEP = 8, 30
"""Layers where all are trained, and where the upper ones are: as many as SmolLM2-135M has."""
MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALL = Recipe(penalty=0.0, steps=12, learning_rate=1e-3, rank=16, upper_layers=None)
UPPER = Recipe(penalty=0.0, steps=36, learning_rate=0.1, rank=16, upper_layers=3, optimiser="sgd")
SAMPLING = Sampling(rows=ROWS)
ALONE = "tradeoff, lower states of this run alone"
TRAINER, LOOP, EVERY = "transformers Trainer + peft", "torch loop + peft", "every layer in every step"

Factors = Mapping[str, torch.Tensor]
"""Adapters by layer, map and factor, whatever their owner calls them."""


@functools.cache
def checkpoint(layers: int) -> Checkpoint:
    """A Llama of some layers with random weights, and a tokenizer of so many words."""
    vocabulary = {"<unk>": 0, "<end>": 1, **{f"w{i}": i for i in range(2, WORDS)}}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<end>")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=HIDDEN,
        intermediate_size=WIDE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        initializer_range=0.05,
        tie_word_embeddings=True,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    return Checkpoint(f"{layers} layers", model, tokenizer, {})


@functools.cache
def data() -> Data:
    """Questions and answers of random words."""
    draw = np.random.default_rng(0)

    def said(count: int) -> str:
        return " ".join(f"w{i}" for i in draw.integers(2, WORDS, count))

    return Data("random", "question and answer", tuple(Example(asked(said(PROMPT)), said(ANSWER)) for _ in range(ROWS)))


def batches(rows: tuple[Row, ...], recipe: Recipe) -> list[list[Row]]:
    """The rows of every step, in the order in which ours draws them."""
    key = jax.random.key(recipe.seed)
    return [[rows[i] for i in drawn(key, "task", step, ROWS, ROWS)] for step in range(recipe.steps)]


def collated(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Rows padded on the right, with the answers as labels, as one gives them to transformers."""
    longest = max(len(row.prompt) + len(row.answer) for row in rows)
    tokens, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), -100)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        begin, end = len(row.prompt), len(row.prompt) + len(row.answer)
        tokens[i, :end], mask[i, :end] = torch.tensor(row.prompt + row.answer), 1
        labels[i, begin:end] = tokens[i, begin:end]
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


class Adapted:
    """A copy of the model with peft's adapters on, set back before every run."""

    def __init__(self, layers: int, recipe: Recipe, dtype: torch.dtype = torch.float32) -> None:
        one = checkpoint(layers)
        self.rows = batches(encode(one, data()), recipe)
        above = None if recipe.upper_layers is None else list(range(layers - recipe.upper_layers, layers))
        rank = recipe.rank or 0  # every recipe here has one
        settings = LoraConfig(
            r=rank,
            lora_alpha=rank,
            lora_dropout=0.0,
            target_modules=list(MAPS),
            layers_to_transform=above,
        )
        self.model = get_peft_model(copy.deepcopy(one.model), settings).to(dtype)
        start = first_factors(layers, recipe)
        self.parameters = {factor(name): p for name, p in self.model.named_parameters() if p.requires_grad}
        self._start = {name: start[name].to(dtype) for name in self.parameters}

    def reset(self) -> None:
        """To where ours begins."""
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(self._start[name])

    def held(self) -> Factors:
        """The adapters as they are now."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def loop(self, recipe: Recipe) -> Factors:
        """The adapters at the end of the usual loop."""
        self.reset()
        chosen = list(self.parameters.values())
        if recipe.optimiser == "sgd":
            optimiser: Any = torch.optim.SGD(chosen, lr=recipe.learning_rate)
        else:
            optimiser = torch.optim.AdamW(chosen, lr=recipe.learning_rate, betas=BETAS, weight_decay=0.0)
        for step, rows in enumerate(self.rows):
            if recipe.optimiser == "adamw":
                optimiser.param_groups[0]["lr"] = recipe.learning_rate * (1 - step / recipe.steps)
            self.cost(rows).backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return self.held()

    @torch.no_grad()
    def loss(self, factors: Factors) -> float:
        """The loss at some adapters."""
        for name, p in self.parameters.items():
            p.copy_(factors[name])
        return float(self.cost(self.rows[0]))

    def cost(self, rows: list[Row]) -> torch.Tensor:
        """The mean loss of the answers' tokens; that of transformers is in float32 whatever the model is in."""
        given = collated(rows)
        labels = given.pop("labels")
        logits = self.model(**given, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def factor(name: str) -> str:
    """Which factor of which map of which layer a parameter is.

    Example:
        >>> factor("model.layers.3.mlp.up_proj.lora_A.default.weight")
        '3.up_proj.A'
    """
    layer, kind, side = re.findall(r"layers\.(\d+)\.\w+\.(\w+)\.lora_([AB])", name)[0]
    return f"{layer}.{kind}.{side}"


@functools.cache
def kept(layers: int, upper_layers: int) -> LowerStates:
    """What the layers below the upper ones make of rows, shared by all runs."""
    return LowerStates(checkpoint(layers), upper_layers)


def ours(layers: int, recipe: Recipe, lower: LowerStates | None = None) -> Factors:
    """The adapters at the end of our own run."""
    run = finetune_data(
        checkpoint(layers), recipe, data(), sampling=SAMPLING, measure_every=recipe.steps, lower=lower, progress=False
    )
    return {factor(name): tensor for name, tensor in run.adapter.items()}


@functools.cache
def first_factors(layers: int, recipe: Recipe) -> Factors:
    """Where ours begins: one step of a length that changes nothing."""
    return ours(layers, replace(recipe, steps=1, optimiser="sgd", learning_rate=1e-30))


@functools.cache
def in_double(layers: int, recipe: Recipe) -> tuple[Adapted, Factors]:
    """The usual loop in float64, but for the norms, which transformers takes in float32; and where it ends."""
    adapted = Adapted(layers, recipe, torch.float64)
    return adapted, adapted.loop(recipe)


def error_of_path(layers: int, recipe: Recipe) -> Callable[[Factors], float]:
    """Of the displacement, which is the sum of all gradients, relative to its length."""

    def error(found: Factors) -> float:
        start, (_, end) = first_factors(layers, recipe), in_double(layers, recipe)
        wrong = sum(float((found[name].double() - end[name]).square().sum()) for name in end)
        moved = sum(float((start[name].double() - end[name]).square().sum()) for name in end)
        return float(np.sqrt(wrong / moved))

    return error


def error_of_loss(layers: int, recipe: Recipe) -> Callable[[Factors], float]:
    """Of the loss at the end, relative to how far the run lowers it."""

    def error(found: Factors) -> float:
        adapted, end = in_double(layers, recipe)
        before, after, theirs = (adapted.loss(each) for each in (first_factors(layers, recipe), end, found))
        return abs(theirs - after) / (before - after)

    return error


def _trainer(adapted: Adapted, recipe: Recipe) -> Factors:
    adapted.reset()
    rows: Any = [row for each in adapted.rows for row in each]
    collator: Any = collated
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=recipe.steps,
            per_device_train_batch_size=ROWS,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="linear",
            weight_decay=0.0,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(adapted.model, settings, data_collator=collator, train_dataset=rows)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return adapted.held()


def _all_layers() -> list[Contender]:
    adapted = Adapted(SHALLOW, ALL)
    return [
        Contender("tradeoff", lambda: ours(SHALLOW, ALL)),
        Contender(TRAINER, lambda: _trainer(adapted, ALL)),
        Contender(LOOP, lambda: adapted.loop(ALL)),
    ]


def _upper_layers() -> list[Contender]:
    adapted = Adapted(DEEP, UPPER)
    return [
        Contender("tradeoff", lambda: ours(DEEP, UPPER, kept(DEEP, UPPER.upper_layers or DEEP))),
        Contender(ALONE, lambda: ours(DEEP, UPPER)),
        Contender(EVERY, lambda: adapted.loop(UPPER)),
    ]


BENCHMARKS = (
    Benchmark(
        "fine_tuning_lora",
        f"{ALL.steps} steps of AdamW on LoRA of rank {ALL.rank}, {SHALLOW} layers, {ROWS} rows in every step: loss at the end",
        _all_layers,
        error_of_loss(SHALLOW, ALL),
        1e-3,
        {TRAINER: 1.0},
        repeats=1,
    ),
    Benchmark(
        "fine_tuning_upper_layers",
        f"{UPPER.steps} steps of descent on LoRA of the {UPPER.upper_layers} upper of {DEEP} layers, {ROWS} rows in every step: "
        "sum of gradients; lower states kept from a run before",
        _upper_layers,
        error_of_path(DEEP, UPPER),
        1e-5,
        {EVERY: 2.5},
        repeats=1,
    ),
)
