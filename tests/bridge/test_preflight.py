"""Pre-flight: exact where the losses are quadratic, differences of the gaps where they are a model's, an order that training shows."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import spearmanr

from tests.bridge.runs import TINY, assert_slopes_and_curvatures_are_differences, same_weights
from tests.bridge.tiny_models import make_tokenizer
from tradeoff import cli, loss_constraint, parameter_constraint, worlds
from tradeoff.bridge import Recipe, finetune, forecast, merged, preflight
from tradeoff.bridge.checkpoints import Checkpoint, load
from tradeoff.bridge.local_losses import SEEN, expand
from tradeoff.bridge.tangent import tangents
from tradeoff.problems.quadratic import Quadratic
from tradeoff.tolerances import IDENTITY, MODEL_GRADIENT, ROOT
from tradeoff.worlds import DataLaw, World
from tradeoff.worlds.text import from_texts, requests

SAME = {"rtol": ROOT.relative, "atol": ROOT.absolute}
VISIBLE = 1e-2
RANKED = 0.8  # Spearman's, that a forecast must reach over a dozen settings


# --- where the losses are quadratic ------------------------------------------------------------------------------


class Quadratics:
    """A model whose losses are quadratic: what the theory solves in closed form, behind the questions of a checkpoint."""

    kinds = ("capability", "safety")

    def __init__(self, pair: Quadratic, bend: float = 0.0) -> None:
        self.pair, self.bend = pair, bend
        self.parts = {"capability": (pair.H_f, pair.theta_f), "safety": (pair.H_s, pair.theta_s)}

    def values(self, move=None):
        theta = np.asarray(self.pair.theta_s) + (0 if move is None else move)
        found = {
            kind: float((theta - centre) @ np.asarray(H) @ (theta - centre) / 2)
            for kind, (H, centre) in self.parts.items()
        }
        found["safety"] += self.bend * (0 if move is None else float(np.sum(move**4)))
        return found | {"proxy": found["safety"]}

    def gradient(self, kind):
        H, centre = self.parts[kind]
        return np.asarray(H @ (self.pair.theta_s - centre))

    def product(self, kind, v):
        return np.asarray(self.parts[kind][0] @ v)

    hessian_product = product

    def inner(self, v, w):
        return float(v @ w)


@pytest.fixture
def pair() -> Quadratic:
    draw = np.random.default_rng(0)
    H_f, H_s = (half @ half.T + np.eye(4) / 5 for half in draw.normal(size=(2, 4, 4)))
    return Quadratic(H_f, draw.normal(size=4), H_s, draw.normal(size=4))


def test_on_quadratics_both_cases_are_foretold_exactly(pair):
    losses = expand(Quadratics(pair), dimensions=4)
    lam, radii = [0.3, 1.0, 5.0], [0.1, 0.4, 0.8]
    one = forecast.curve(Quadratics(pair), losses, lam, [(each, np.inf) for each in lam])
    two = forecast.curve(Quadratics(pair), losses, radii, [(0.0, each) for each in radii])
    first, second = parameter_constraint.penalised_path(pair, lam), parameter_constraint.path(pair, radii)
    for found, exact in ((one, first.gaps), (two, second.gaps)):
        np.testing.assert_allclose(found.quadratic.safety, exact.safety, **SAME)
        np.testing.assert_allclose(found.quadratic.capability, exact.capability, **SAME)
        np.testing.assert_allclose(found.error.safety, 0, atol=ROOT.absolute)
    np.testing.assert_allclose(two.distance, radii, **SAME)
    # Negative control: a smaller subspace is not exact, and its solutions cannot be better.
    less = expand(Quadratics(pair), dimensions=2)
    poorer = forecast.curve(Quadratics(pair), less, radii, [(0.0, each) for each in radii])
    assert poorer.quadratic.capability[-1] > float(second.gaps.capability[-1]) * (1 + SEEN)


def test_the_line_is_exact_on_quadratics_and_its_correction_finds_what_is_left_of_fourth_order(pair):
    bent = Quadratics(pair, bend=0.3)
    losses = expand(bent, dimensions=2)
    line = forecast.task_line(bent, losses)
    v = losses.basis[0]
    assert np.all(line.forecast.setting > 0)
    truth = [bent.values(r * v) for r in line.forecast.setting]
    safety = np.array([each["safety"] for each in truth])
    np.testing.assert_allclose(line.forecast.corrected.safety, safety, **SAME)
    np.testing.assert_allclose(line.forecast.quadratic.capability, [each["capability"] for each in truth], **SAME)
    assert np.all(line.forecast.lower.safety <= safety) and np.all(safety <= line.forecast.upper.safety)  # noqa: PT018
    assert line.forecast.error.safety[-1] > VISIBLE * safety[-1]


def test_too_small_a_subspace_is_refused(pair):
    with pytest.raises(ValueError, match="the gradients of capability, safety alone need 2"):
        expand(Quadratics(pair), dimensions=1)


# --- where they are a model's ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [4, None])
def test_slopes_and_curvatures_are_differences_of_the_gaps_and_the_weights_come_back(tiny_folder, world, rank):
    checkpoint = load(tiny_folder, device="cpu", dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    with tangents(checkpoint, world, dataclasses.replace(TINY, rank=rank)) as around:
        losses = expand(around, dimensions=3)
        assert_slopes_and_curvatures_are_differences(around, losses, checkpoint.model)
        np.testing.assert_allclose(losses.basis @ losses.basis.T, np.eye(3), atol=IDENTITY.relative)
        if rank is None:
            np.testing.assert_allclose(losses.metric, np.eye(3), atol=IDENTITY.relative)
        # The start's own factors weigh the metric: δW = BA.
        assert (losses.metric[0, 0] < 1 - VISIBLE) == (rank is not None)
    assert same_weights(checkpoint.model.state_dict(), before)
    assert not any(tensor.requires_grad for tensor in checkpoint.model.parameters())


def test_gauss_newton_never_bends_down_where_the_hessian_does(tiny_folder, world):
    checkpoint = load(tiny_folder, device="cpu", dtype=torch.float64)
    with tangents(checkpoint, world, TINY) as around:
        losses = expand(around, dimensions=4)
        curved = [[v @ around.hessian_product("capability", w) for w in losses.basis] for v in losses.basis]
    assert np.linalg.eigvalsh(losses.capability.curvature)[0] >= 0 > np.linalg.eigvalsh(curved)[0] + VISIBLE


def test_context_gradients_add_up_to_the_task_gradient(tiny_folder, world):
    checkpoint = load(tiny_folder, device="cpu", dtype=torch.float64)
    task = world.capability
    with tangents(checkpoint, world, TINY) as around:
        whole = around.gradient("capability")
        parts = [
            float(task.p[x]) * around.context_gradient(x, np.asarray(task.P[x]))
            for x in range(len(task.p))
            if task.p[x] > 0
        ]
    np.testing.assert_allclose(sum(parts), whole, rtol=0, atol=MODEL_GRADIENT.relative * np.abs(whole).max())


# --- against training --------------------------------------------------------------------------------------------

SUMS = ("What is 3 plus 4?", "What is 12 plus 5?")
RUN = Recipe(penalty=0.0, steps=40, rank=8, upper_layers=None, learning_rate=1e-2)


@pytest.fixture(scope="module")
def tasks() -> dict[str, World]:
    """The same safety prompts, and tasks that share none of them: one worded like them, and one of sums."""
    worded = requests(safety_prompts=4, task_prompts=2, overlap=0.0)
    assert worded.contexts is not None and worded.responses is not None  # noqa: PT018
    sums = from_texts([*worded.contexts[:4], *SUMS], worded.responses, worded.safety, worded.capability)
    return {"worded": worded, "sums": sums}


@pytest.fixture(scope="module")
def aligned(tasks: dict[str, World], tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small model that refuses whatever it is asked, as a model does that was aligned on refusals alone."""
    torch.set_num_threads(1)
    every = [*tasks["worded"].contexts, *SUMS]
    law = DataLaw(np.full(8, 1 / 8), np.tile(tasks["worded"].safety.P[0], (8, 1)))
    world = from_texts(every, tasks["worded"].responses, law, law)
    tokenizer = make_tokenizer(world)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        **sizes, initializer_range=0.3, tie_word_embeddings=True, vocab_size=len(tokenizer), eos_token_id=1
    )
    model = transformers.LlamaForCausalLM(config).double().eval().requires_grad_(False)
    raw = Checkpoint("small", model, tokenizer, {})
    recipe = Recipe(penalty=0.0, steps=40, rank=32, upper_layers=None, learning_rate=2e-2)
    return merged(raw, finetune(raw, world, recipe, progress=False))


@pytest.fixture(scope="module")
def flights(aligned, tasks):
    asked = {"penalties": (0.3, 3.0), "radii": (0.15, 0.3, 0.6, 1.2)}
    return {name: preflight(aligned, world, RUN, **asked) for name, world in tasks.items()}


def test_settings_are_ranked_as_training_ranks_them(aligned, tasks, flights):
    foretold, came = [], []
    for name, flight in flights.items():
        for each in flight.settings:
            recipe = dataclasses.replace(RUN, penalty=each.penalty, radius=each.radius)
            found = flight.compare(finetune(aligned, tasks[name], recipe, progress=False))
            foretold.append((each.quadratic_safety_gap, each.quadratic_capability_gap))
            came.append((found.safety_gap, found.capability_gap))
            assert found.foretold.least < found.objective < found.foretold.reached
            assert not found.ended_too_soon
    assert len(foretold) >= 12
    for one, other in zip(np.transpose(foretold), np.transpose(came), strict=True):
        assert spearmanr(one, other).statistic >= RANKED
    # The task that is worded like the safety prompts is the dangerous one, and both signs say so beforehand.
    worded, sums = flights["worded"], flights["sums"]
    assert worded.plain.curvature["safety"] > 2 * sums.plain.curvature["safety"]
    assert worded.feature_overlap > 2 * sums.feature_overlap


def test_along_the_task_gradient_the_safety_gap_is_as_foretold(aligned, tasks, flights):
    for name, flight in flights.items():
        line = flight.plain.forecast
        with tangents(aligned, tasks[name], RUN) as around:
            truth = np.array([around.values(r * flight.losses.basis[0])["safety"] for r in line.setting])
        near, far = truth <= 0.5, truth <= 1.5
        assert near.sum() > 2
        factor = line.corrected.safety / truth
        assert np.all(np.abs(factor[near] - 1) <= 0.1)
        assert np.all((factor[far] <= 1.5) & (factor[far] >= 1 / 1.5))
        assert np.all((line.lower.safety <= truth + VISIBLE) & (truth <= line.upper.safety + VISIBLE))


def test_what_is_recommended_keeps_within_the_budget_and_no_other_setting_serves_better(flights):
    for flight in flights.values():
        most = flight.losses.safety.value + flight.budget
        chosen = next(
            each
            for each in flight.settings
            if (each.penalty, each.radius) == (flight.recommended.penalty, flight.recommended.radius)
        )
        assert max(chosen.safety_gap, chosen.quadratic_safety_gap) <= most
        for each in flight.settings:
            assert (
                max(each.safety_gap, each.quadratic_safety_gap) > most or each.capability_gap >= chosen.capability_gap
            )
        assert flight.seconds == RUN.steps * flight.seconds_per_gradient > 0


def test_the_limit_of_the_proxy_is_told_and_a_run_from_elsewhere_is_not_compared(aligned, flights, tasks):
    world = tasks["worded"]
    far = World(
        world.safety, world.capability, requests(4, 2, 0.0, similarity=0.0).proxy, world.contexts, world.responses
    )
    flight = preflight(aligned, far, RUN, penalties=(1.0,), radii=(0.2,), dimensions=3, contexts=1)
    np.testing.assert_allclose(flight.proxy_limit, float(loss_constraint.gaps(far, np.inf).safety), **SAME)
    assert flights["worded"].proxy_limit == 0 < flight.proxy_limit
    moved = dataclasses.replace(RUN, steps=2, learning_rate=2e-2)
    other = merged(aligned, finetune(aligned, world, moved, progress=False))
    with pytest.raises(ValueError, match="the run began at a safety gap of"):
        flight.compare(finetune(other, world, dataclasses.replace(RUN, steps=1), progress=False))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"penalties": (0.0,)}, "0.0 among its penalties"),
        ({"radii": (-1.0,)}, "-1.0 among its radii"),
        ({"budget": -1.0}, "budget=-1.0"),
        ({"contexts": 0}, "contexts=0"),
        ({"dimensions": 1}, "dimensions is 1"),
    ],
)
def test_bad_input_is_refused(aligned, tasks, settings, says):
    with pytest.raises(ValueError, match=says):
        preflight(aligned, tasks["sums"], RUN, **settings)


def test_the_command_speaks_to_people_and_to_programs(tasks, aligned, tmp_path, monkeypatch, capsys):
    aligned.model.save_pretrained(tmp_path / "aligned")
    aligned.tokenizer.save_pretrained(tmp_path / "aligned")
    worlds.write(tasks["sums"], tmp_path / "world.json")
    asked = ["lm", "preflight", str(tmp_path / "world.json"), "--checkpoint", str(tmp_path / "aligned")]
    quick = ["--dimensions", "2", "--penalties", "1", "--radii", "0.2", "--rank", "2", "--upper-layers", "1"]

    def run(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tradeoff", *asked, *quick, *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == (2 if "-1" in more else 0)
        return capsys.readouterr()

    told = json.loads(run("--json").out)
    assert [(each["penalty"], each["radius"]) for each in told["settings"]] == [(0.0, None), (0.0, 0.2), (1.0, None)]
    assert told["signs"]["proxy_limit"] == 0 < told["cost"]["seconds"]
    text = run().out
    assert "Recommended for a rise of the safety gap by 0.1 nats at most" in text
    assert f"{told['settings'][1]['capability_gap']:.4f}" in text
    assert "budget=-1.0" in run("--budget", "-1").err
