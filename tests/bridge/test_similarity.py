"""Overlap and similarity, estimated on text worlds whose truth is known."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

from tradeoff.bridge import context_overlap, joint_separation, response_divergence, similarity
from tradeoff.bridge.checkpoints import Checkpoint, load
from tradeoff.bridge.data import Data, sample
from tradeoff.bridge.density_ratio import fisher_overlap, kernel_overlap, separation
from tradeoff.bridge.features import pooled_states
from tradeoff.bridge.rows import encode, token_log_probabilities
from tradeoff.tolerances import IDENTITY
from tradeoff.worlds import World
from tradeoff.worlds.text import requests

ROWS = 128
CLOSE = 0.1  # of an overlap, from so many rows of each law


@pytest.fixture
def tiny(tiny_folder: Path) -> Checkpoint:
    return load(tiny_folder, device="cpu", dtype=torch.float64)


def apart(overlap: float) -> World:
    return requests(safety_prompts=5, task_prompts=3, overlap=overlap)


def drawn(world: World, count: int = ROWS) -> tuple[Data, Data]:
    return sample(world, world.safety, count, seed=1), sample(world, world.capability, count, seed=2)


def test_the_classifier_finds_the_overlap_of_contexts(tiny: Checkpoint) -> None:
    for overlap in (0.0, 0.4, 1.0):
        one, other = (pooled_states(tiny, encode(tiny, data), answers=False) for data in drawn(apart(overlap)))
        found = separation(one, other)
        assert abs(found.overlap.value - overlap) < CLOSE
        assert found.overlap.high >= overlap
        assert found.total_variation.value == pytest.approx(1 - found.overlap.value, abs=IDENTITY.absolute)


def test_embedding_and_gradient_overlap_grow_with_that_of_the_contexts(tiny: Checkpoint) -> None:
    found = [context_overlap(tiny, *drawn(apart(overlap), 32)) for overlap in (0.0, 1.0)]
    for name in ("embedding", "gradient"):
        none, whole = (getattr(each, name) for each in found)
        assert none.high < whole.low
        assert whole.high > 1 - CLOSE
    assert found[0].digests != found[1].digests


def test_a_kernel_that_only_tells_apart_gives_the_cosine_of_the_laws() -> None:
    """Contexts far from each other and a median distance that is small: by hand, the laws are (½, ½, 0) and (¼, ¼, ½)."""
    draw = np.random.default_rng(0)
    places = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    P, Q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    one, other = (places[draw.choice(3, size=150, p=law)] for law in (P, Q))
    truth = P @ Q / np.sqrt(P @ P * (Q @ Q))
    kernel = fisher_overlap(*(np.eye(3)[np.argmin(((x[:, None] - places) ** 2).sum(-1), 1)] for x in (one, other)))
    assert kernel.low <= truth <= kernel.high
    assert abs(kernel.value - truth) < CLOSE
    assert kernel_overlap(one, other).value > kernel.value, "a wide kernel sees likeness, too"


def test_orthogonal_gradients_do_not_overlap() -> None:
    one, other = np.tile(np.eye(4)[:2], (4, 1)), np.tile(np.eye(4)[2:], (4, 1))
    assert fisher_overlap(one, other).value == 0
    assert fisher_overlap(one, -one).value == 1


def test_a_classifier_that_is_told_nothing_finds_nothing() -> None:
    """The negative control: two samples of one law."""
    draw = np.random.default_rng(0)
    found = separation(draw.normal(size=(200, 3)), draw.normal(size=(200, 3)))
    assert found.overlap.value > 1 - CLOSE
    assert found.kl.low == 0
    far = separation(draw.normal(size=(200, 3)), draw.normal(size=(200, 3)) + 2)
    assert far.overlap.low <= 2 * norm.cdf(-(3**0.5)) <= far.overlap.high
    # KL of unit normals 2√3 apart is 6 nats, and a bound from samples of 200 cannot say more than log 200.
    assert 3 < far.kl.value < np.log(200)


def test_questions_and_answers_together_are_told_apart_as_far_as_they_differ(tiny: Checkpoint) -> None:
    found = {}
    for similarity_ in (1.0, 0.0):
        world = requests(safety_prompts=2, task_prompts=1, similarity=similarity_)
        proxy = sample(world, world.training_safety, ROWS, seed=2)
        found[similarity_] = joint_separation(tiny, sample(world, world.safety, ROWS, seed=1), proxy)
        truth = float(world.proxy_total_variation), float(world.proxy_kl)
        assert found[similarity_].total_variation.low <= truth[0]
        assert found[similarity_].kl.low <= truth[1]
    assert found[0.0].kl.low > found[1.0].kl.value
    assert found[0.0].total_variation.low > found[1.0].total_variation.high


def test_models_of_both_laws_give_the_mismatch_of_the_proxy(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    r"""With models that are the laws, the estimates are of Φ and of the mean total variation of responses."""
    world = requests(similarity=0.3)
    data = sample(world, world.safety, 400)
    cells = [tuple(int(n) for n in e.place[6:-1].split(",")) for e in data.examples]
    laws = {"safety": np.log(np.asarray(world.safety.P)), "proxy": np.log(np.asarray(world.proxy.P))}
    monkeypatch.setattr(
        similarity, "_answer_scores", lambda model, _, __: np.array([laws[model.name][cell] for cell in cells])
    )
    models = [dataclasses.replace(tiny, name=name) for name in laws]
    found = response_divergence(*models, data)
    assert found.kl.low <= float(world.proxy_mismatch) <= found.kl.high
    assert found.total_variation.low <= float(world.proxy_total_variation) <= found.total_variation.high
    assert found.total_variation.high - found.total_variation.low < CLOSE
    same = response_divergence(models[0], models[0], data)
    assert (same.kl.value, same.total_variation.value) == (0, 0)


def test_scores_of_answers_are_summed_over_their_tokens(tiny: Checkpoint) -> None:
    data = sample(apart(0.5), apart(0.5).safety, 3)
    expected = [each.sum() for each in token_log_probabilities(tiny, encode(tiny, data))]
    assert similarity._answer_scores(tiny, data, False).tolist() == expected


def test_too_few_rows_are_refused(tiny: Checkpoint) -> None:
    with pytest.raises(ValueError, match="4 and 4 rows; at least 5 of each are required"):
        context_overlap(tiny, *drawn(apart(0.5), 4))
    with pytest.raises(ValueError, match="2 and 2 rows; at least 3 of each"):
        fisher_overlap(np.eye(2), np.eye(2))
