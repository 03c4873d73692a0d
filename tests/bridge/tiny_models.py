"""Tiny checkpoints for tests: random models of real architectures, with a tokenizer made of the world's words."""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tradeoff.worlds import World
from tradeoff.worlds import text as text_worlds

CHAT_TEMPLATE = (
    "{% for message in messages %}<turn> {{ message['role'] }} {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<turn> assistant {% endif %}"
)

# Every architecture for which packed rows are claimed, and two for which they are not.
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# The usual start makes every policy nearly uniform and nearly blind to its context; this one does not.
START = {"initializer_range": 0.3, "tie_word_embeddings": True}
CONFIGS: dict[str, Callable[..., transformers.PretrainedConfig]] = {
    "llama": lambda **ids: transformers.LlamaConfig(**SIZES, **START, **ids),
    "mistral": lambda **ids: transformers.MistralConfig(**SIZES, **START, **ids),
    "qwen2": lambda **ids: transformers.Qwen2Config(**SIZES, **START, **ids),
    "qwen3": lambda **ids: transformers.Qwen3Config(**SIZES, **START, head_dim=8, **ids),
    "olmo2": lambda **ids: transformers.Olmo2Config(**SIZES, **START, **ids),
    "phi3": lambda **ids: transformers.Phi3Config(**SIZES, **START, **ids),
    "gpt2": lambda **ids: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, **ids),
    "gpt_neox": lambda **ids: transformers.GPTNeoXConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3, **ids
    ),
}


def text_world() -> World:
    """A small world of requests: prompts of unequal length, four of them shared by nothing else."""
    return text_worlds.requests(safety_prompts=5, task_prompts=3, overlap=0.4, similarity=0.7)


def make_tokenizer(world: World, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are those of the world's texts."""
    splitter = pre_tokenizers.Whitespace()
    words = ["<unk>", "<end>", "<turn>", "user", "assistant"]
    for text in (*(world.contexts or ()), *(world.responses or ())):
        words += [word for word, _ in splitter.pre_tokenize_str(text)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = splitter
    specials = {
        "unk_token": "<unk>",
        "eos_token": "<end>",
        "pad_token": "<end>",
        "additional_special_tokens": ["<turn>"],
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **specials)
    tokenizer.chat_template = chat_template
    return tokenizer


def save_tiny(
    folder: Path, architecture: str = "llama", chat_template: str | None = CHAT_TEMPLATE, **settings: object
) -> Path:
    """A tiny random checkpoint in the Hugging Face layout."""
    tokenizer = make_tokenizer(text_world(), chat_template)
    torch.manual_seed(0)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 1}
    config = CONFIGS[architecture](**ids)
    for name, value in settings.items():
        setattr(config, name, value)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
