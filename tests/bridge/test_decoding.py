"""A checkpoint decoded with its over-refusal taken out: measured exactly, and trained as if it were not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bridge.runs import TINY, same_weights
from tradeoff.bridge import policy, response_logits
from tradeoff.bridge.checkpoints import Checkpoint, load
from tradeoff.bridge.finetuning import adapted, finetune
from tradeoff.strategies import TSDI
from tradeoff.strategies.debiasing import estimate
from tradeoff.tolerances import IDENTITY, SCORE
from tradeoff.worlds import World

LENGTH = 3


@pytest.fixture
def tiny(tiny_folder: Path) -> Checkpoint:
    return load(tiny_folder, device="cpu", dtype=torch.float64)


@pytest.fixture
def debiasing(tiny: Checkpoint) -> TSDI:
    rng = np.random.default_rng(0)
    return TSDI(torch.from_numpy(rng.normal(size=(LENGTH, len(tiny.tokenizer)))))


def test_packed_rows_are_decoded_by_the_position_of_each_token(tiny, few, debiasing):
    """Against the logits of each response by themselves, less the rows of the bias."""
    encoding, model = policy.encode(tiny, few), response_logits(tiny)
    expected = np.zeros((len(few.contexts), len(few.responses)))
    for x, context in enumerate(few.contexts):
        for y, (words, response) in enumerate(zip(few.responses, encoding.responses, strict=True)):
            logits = model(context, words).clone()
            assert len(logits) == len(response)
            logits[:LENGTH] -= debiasing.bias
            expected[x, y] = torch.log_softmax(logits, -1).gather(-1, torch.tensor(response)[:, None]).sum()
    for measure in (policy.log_policy, policy.reference_log_policy):
        np.testing.assert_allclose(measure(tiny, few, decode=debiasing.decode), expected, rtol=0, atol=SCORE.absolute)
    assert np.abs(policy.log_policy(tiny, few) - expected).max() > 0.1


def test_a_bias_is_estimated_from_two_checkpoints_and_none_from_one(tiny, few, tiny_folder):
    other = load(tiny_folder, device="cpu", dtype=torch.float64)
    samples = [(few.contexts[0], few.responses[1]), (few.contexts[1], few.responses[0])]
    assert not estimate(response_logits(tiny), response_logits(other), samples, LENGTH).bias.any()
    with torch.no_grad():
        other.model.base_model.norm.weight.mul_(2)  # every logit is twice what it was
    found = estimate(response_logits(other), response_logits(tiny), samples, LENGTH).bias
    mean = sum(response_logits(tiny)(*sample)[:LENGTH] for sample in samples) / len(samples)
    np.testing.assert_allclose(found, mean, rtol=IDENTITY.relative, atol=IDENTITY.relative)


def test_a_run_is_trained_plainly_and_measured_as_it_is_decoded(tiny, world: World, debiasing):
    run = finetune(tiny, world, TINY, progress=False, strategy=debiasing)
    plain = finetune(tiny, world, TINY, progress=False)
    assert same_weights(run.adapter, plain.adapter)
    with adapted(tiny, run) as tuned:
        there = policy.log_policy(tuned, world, decode=debiasing.decode)
    np.testing.assert_allclose(run.log_policies[-1], there, rtol=0, atol=SCORE.absolute)
    assert np.abs(run.log_policies - plain.log_policies).max(axis=(1, 2)).min() > 0.1
    with pytest.raises(ValueError, match="a bias of 2 tokens for logits of"):
        finetune(tiny, world, TINY, progress=False, strategy=TSDI([[0.5, 0.0]]))
