"""A tiny model learns to comply, each protocol teaches it to refuse, and what is measured is what is said."""

import copy
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tradeoff.mechanism import nullspace, safety_tuning
from tradeoff.mechanism.pcfg import Generator, Settings
from tradeoff.mechanism.safety_tuning import DPO, PROTOCOLS, SSFT, UNLEARNING, Pair, Recipe, pretrain, tune
from tradeoff.mechanism.small_study import StudySettings, study
from tradeoff.mechanism.transformer import (
    MICRO,
    MINI,
    NANO,
    Shape,
    Transformer,
    accuracy,
    activations,
    interpolated,
    jacobians,
)
from tradeoff.tolerances import MODEL_GRADIENT, SCORE

TINY = Settings.small(letters=6, per_stage=1, window=17, symbols=(4,), branch_rules=4)
SHAPE = Shape(1, 2, 32)
LEARN, REFUSE = Recipe(steps=250, learning_rate=1e-2, batch=32), Recipe(steps=80, learning_rate=5e-3, batch=32)
ANSWERS = (0.0, 0.0)  # no share of the steps for texts


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For the whole module: fixtures of a module come before those of a test, and one of them trains."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def generator():
    return Generator(TINY)


@pytest.fixture(scope="module")
def pretrained(generator):
    model = Transformer(TINY, SHAPE)
    losses = pretrain(model, generator, LEARN, text_share=ANSWERS)
    return model, losses


def prompts(generator, unsafe, kind="originals", count=100):
    return generator.draw(np.random.default_rng(9), count, unsafe, kind)


def test_a_tiny_model_learns_a_tiny_generator(generator, pretrained):
    model, losses = pretrained
    uniform = np.log(TINY.vocabulary)
    np.testing.assert_allclose(losses[0], uniform, rtol=0.05)
    assert losses[-20:].mean() < np.log(TINY.letters) / 2
    examples = prompts(generator, None, "all")
    learned, _ = accuracy(model, generator, examples, examples.complying)
    untrained, _ = accuracy(Transformer(TINY, SHAPE), generator, examples, examples.complying)
    assert learned > 0.7
    assert untrained < 0.4


def test_one_seed_is_one_run(generator):
    short = replace(LEARN, steps=3)
    runs = [pretrain(Transformer(TINY, SHAPE, seed), generator, short, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


def test_the_safety_protocols_raise_refusals_of_unsafe_prompts(generator, pretrained):
    model, _ = pretrained
    unsafe, safe = prompts(generator, True), prompts(generator, False)
    before = accuracy(model, generator, unsafe, unsafe.refusing)[0]
    weights = copy.deepcopy(model.state_dict())
    tuned = {name: tune(model, generator, protocol, REFUSE) for name, protocol in PROTOCOLS.items()}
    for found in tuned.values():
        assert accuracy(found, generator, unsafe, unsafe.refusing)[0] > before + 0.2
        assert accuracy(found, generator, unsafe, unsafe.complying)[0] < 0.8
    assert accuracy(tuned["ssft"], generator, safe, safe.complying)[0] > 0.7  # it still does what is safe
    assert all(torch.equal(weights[name], w) for name, w in model.state_dict().items())
    # Training as long on safe prompts alone teaches no refusal.
    control = tune(model, generator, replace(SSFT, safe_share=1.0), REFUSE)
    assert accuracy(control, generator, unsafe, unsafe.refusing)[0] < before + 0.1


def test_the_tuned_model_is_on_the_line_that_interpolation_draws(generator, pretrained):
    model, _ = pretrained
    tuned = tune(model, generator, SSFT, replace(REFUSE, steps=3))
    for s in (0.0, 1.0, 1.5):
        for ours, a, b in zip(*(m.parameters() for m in (interpolated(model, tuned, s), model, tuned)), strict=True):
            torch.testing.assert_close(ours, a + s * (b - a))


def test_the_losses_are_what_they_are_called(generator, pretrained):
    """Each term written out for one prompt at a time; at the reference DPO pulls like a twentieth of unlearning."""
    model, _ = pretrained
    examples = prompts(generator, None, count=12)
    pair = Pair(model, model, generator, examples)
    window = TINY.window - 1
    for i in range(12):
        for sequences, found in ((examples.wanted, pair.wanted()), (examples.unwanted, pair.unwanted())):
            end = int((sequences[i] != TINY.token("pad")).sum())
            tokens = torch.from_numpy(sequences[i, :end])
            scores = torch.log_softmax(model(tokens[None])[0], -1).detach()
            first = int(examples.prompts[i])
            total = sum(float(scores[t - 1, tokens[t]]) for t in range(first, end))
            np.testing.assert_allclose(-total / window, float(found[i].detach()), atol=SCORE.absolute)
    weights = list(model.parameters())
    pulls = [
        torch.cat([g.flatten() for g in torch.autograd.grad(p.objective(pair), weights)]) for p in (DPO, UNLEARNING)
    ]
    scale = float(pulls[1].abs().max())
    assert float((20 * pulls[0] - pulls[1]).abs().max()) <= 20 * MODEL_GRADIENT.relative * scale
    np.testing.assert_allclose(float(DPO.objective(pair).detach()), np.log(2), rtol=MODEL_GRADIENT.relative)
    # Away from it they part ways.
    away = Pair(interpolated(model, Transformer(TINY, SHAPE, seed=3), 0.5), model, generator, examples)
    assert abs(float(DPO.objective(away).detach()) - np.log(2)) > 1e-3


def test_tuning_shows_no_duplicate_operators_and_the_shares_of_the_source(generator, monkeypatch):
    shown = []
    whole = Generator.draw

    def watched(self, *arguments):
        shown.append(whole(self, *arguments))
        return shown[-1]

    monkeypatch.setattr(Generator, "draw", watched)
    for protocol, share in ((SSFT, 0.8), (UNLEARNING, 0.5)):
        shown.clear()
        still = replace(protocol, objective=lambda pair: sum(p.sum() for p in pair.model.parameters()))
        tune(Transformer(TINY, SHAPE), generator, still, Recipe(steps=200, batch=2))
        assert all(e.unsafe.all() or not e.unsafe.any() for e in shown)
        assert abs(np.mean([not e.unsafe.any() for e in shown]) - share) < 0.1
        assert max(e.operators.max() for e in shown) < TINY.originals


def test_the_model_sees_no_token_before_its_turn(generator, pretrained):
    model, _ = pretrained
    examples = prompts(generator, None, count=4)
    n = int(examples.prompts.min())
    a, b = (model(torch.from_numpy(s[:, :-1])) for s in (examples.complying, examples.refusing))
    torch.testing.assert_close(a[:, :n], b[:, :n])
    assert not torch.allclose(a[:, n:], b[:, n:])


def test_activations_and_jacobians_are_those_of_the_first_answer_token(generator, pretrained):
    model, _ = pretrained
    examples = prompts(generator, None, count=3)
    seen = activations(model, examples)
    assert len(seen) == SHAPE.layers
    found = jacobians(model, examples)
    for i, end in enumerate(examples.prompts):
        tokens = torch.from_numpy(examples.complying[i : i + 1, :end])
        embedded = model.tokens(tokens).detach()
        block, stream = model.blocks[0], embedded + model.positions.weight[:end]
        # The block without its perceptron is what the perceptron's norm reads.
        silent = copy.deepcopy(block)
        torch.nn.init.zeros_(silent.mlp_out.weight), torch.nn.init.zeros_(silent.mlp_out.bias)
        read = block.before_mlp(silent(stream))[0, -1].detach().numpy()
        np.testing.assert_allclose(seen[0][i], read, atol=SCORE.absolute)
        direction = torch.from_numpy(np.random.default_rng(0).normal(size=embedded.shape)).float()
        step = 1e-2
        moved = [model.from_embeddings(embedded + s * step * direction)[0, -1] for s in (1, -1)]
        slope = ((moved[0] - moved[1]) / (2 * step)).detach().numpy()
        flat = np.zeros((TINY.window, SHAPE.width))
        flat[:end] = direction[0].numpy()
        np.testing.assert_allclose(found[i] @ flat.ravel(), slope, atol=2e-2 * np.abs(slope).max())
        assert np.linalg.norm(slope) <= nullspace.local_lipschitz(found[i : i + 1])[0] * np.linalg.norm(flat) * 1.01


def test_the_learning_rate_rises_falls_and_rests():
    recipe = Recipe()
    assert recipe.rate(1999) == 1e-4
    assert recipe.rate(0) == 1e-4 / 2000
    np.testing.assert_allclose(recipe.rate(5000), (1e-4 + 1e-6) / 2)
    assert recipe.rate(8000) == recipe.rate(9999) == 1e-6


def test_the_sizes_of_the_source():
    assert (MINI, MICRO, NANO) == ((6, 6, 192), (4, 4, 128), (3, 3, 48))
    model = Transformer(Settings(), NANO)
    assert [w.shape for w in model.mlp(2)] == [(192, 48), (48, 192)]


def test_the_study_returns_every_measurement():
    settings = StudySettings(
        generator=TINY,
        shape=SHAPE,
        pretraining=replace(LEARN, steps=5),
        tuning=replace(REFUSE, steps=5),
        samples=40,
        lipschitz_samples=2,
    )
    found = study(settings)
    assert list(found["models"]) == ["pre-trained", "ssft", "unlearning", "dpo"]
    shapes = {
        "losses": (5,),
        "complies_safe": (4, 2),
        "refuses_duplicates": (4, 2),
        "separation_l2": (4, 1),
        "duplicates_l2": (4, 1),
        "lipschitz_unsafe": (4, 2),
        "sines": (3, 1, 32),
        "row_unsafe": (3, 1, 32),
        "null_fraction": (3, 1),
        "along_refuses": (3, 4),
    }
    for name, shape in shapes.items():
        assert found[name].shape == shape, name
    assert all(np.isfinite(value).all() for name, value in found.items() if name not in ("models", "sines"))
    np.testing.assert_array_equal(found["along_refuses"][:, 0], found["refuses_unsafe"][0, 0])  # s = 0 is the original
    np.testing.assert_allclose(found["along_refuses"][:, 2], found["refuses_unsafe"][1:, 0])  # s = 1 the tuned one
    assert (found["null_chance"] >= 0.75).all()  # the layer after is four times narrower


def test_bad_settings_are_refused(generator):
    with pytest.raises(ValueError, match="heads must divide the width"):
        Transformer(TINY, Shape(1, 3, 32))
    with pytest.raises(ValueError, match="steps and batch must be at least 1"):
        Recipe(steps=0)
    broken = replace(SSFT, objective=lambda pair: torch.tensor(float("nan")))
    with pytest.raises(ValueError, match="training has diverged"):
        tune(Transformer(TINY, SHAPE), generator, broken, REFUSE)


def test_torch_is_loaded_on_first_use_and_missed_in_words():
    code = """
import sys
import tradeoff as to
to.mechanism.pcfg, to.mechanism.nullspace
assert "torch" not in sys.modules
sys.modules["torch"] = None
try:
    to.mechanism.study
except ModuleNotFoundError as error:
    print(error, error.name)
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "pip install 'tradeoff[lm]'" in said
    assert said.strip().endswith("torch")
    assert safety_tuning.PROTOCOLS is PROTOCOLS
