"""A merged checkpoint scores as the adapted one does, stands on its own, and is another checkpoint to all who ask."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.bridge.runs import TINY, same_weights
from tradeoff.bridge import adapted, finetune, log_policy, merged, save
from tradeoff.bridge.checkpoints import load
from tradeoff.tolerances import SCORE

VISIBLE = 1e-2  # nats, that no rounding explains


@pytest.mark.parametrize("rank", [4, None])
def test_a_merged_checkpoint_scores_as_the_adapted_one_and_the_first_is_untouched(tiny_folder, world, rank):
    checkpoint = load(tiny_folder, device="cpu", dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    at_rest = log_policy(checkpoint, world)
    recipe = dataclasses.replace(TINY, rank=rank, learning_rate=1e-2 if rank else 1e-3)
    tuned = finetune(checkpoint, world, recipe, progress=False)
    with adapted(checkpoint, tuned) as one:
        expected = log_policy(one, world)
    found = merged(checkpoint, tuned)
    np.testing.assert_allclose(log_policy(found, world), expected, rtol=0, atol=SCORE.absolute)
    assert float(abs(expected - at_rest).max()) > VISIBLE
    assert same_weights(checkpoint.model.state_dict(), before)
    assert found.model.state_dict().keys() == before.keys()
    assert not any(tensor.requires_grad for tensor in found.model.parameters())
    # Another run starts from it, and leaves it and the first as they were.
    again = finetune(found, world, dataclasses.replace(recipe, steps=1), progress=False)
    np.testing.assert_allclose(again.log_policies[0], expected, rtol=0, atol=SCORE.absolute)
    assert same_weights(checkpoint.model.state_dict(), before)


def test_the_digest_says_what_was_merged_and_into_what(tiny_folder, world):
    checkpoint = load(tiny_folder, device="cpu")
    one, other = (
        finetune(checkpoint, world, dataclasses.replace(TINY, steps=1, penalty=penalty), progress=False)
        for penalty in (1.0, 2.0)
    )
    first, same, second = merged(checkpoint, one), merged(checkpoint, one), merged(checkpoint, other)
    twice = merged(first, one)
    assert first.digest == same.digest
    assert len({checkpoint.digest, first.digest, second.digest, twice.digest}) == 4


def test_what_is_saved_is_loaded_again_and_nothing_is_written_over(tiny_folder, world, tmp_path):
    checkpoint = load(tiny_folder, dtype=torch.float64)
    save(checkpoint, tmp_path / "saved")
    again = load(tmp_path / "saved", dtype=torch.float64)
    np.testing.assert_array_equal(log_policy(again, world), log_policy(checkpoint, world))
    with pytest.raises(ValueError, match="is there already"):
        save(checkpoint, tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
