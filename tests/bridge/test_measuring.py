"""Losses on data and divergences from a teacher are those of one unpadded sequence at a time, by plain formulas."""

import dataclasses
import json
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
import transformers

import tradeoff as to
from tests.bridge.test_data import real_data
from tests.bridge.test_policy import Largest
from tests.bridge.tiny_models import CHAT_TEMPLATE, save_tiny, text_world
from tradeoff.bridge import DataError, MeasureSettings, data_gap, measure, policy, read_data, rows, sample, teacher_gap
from tradeoff.bridge.checkpoints import Checkpoint, load
from tradeoff.bridge.data import Data, Example
from tradeoff.bridge.intervals import jackknife, ratio
from tradeoff.bridge.teacher import kl_logits, token_divergences
from tradeoff.bridge.template import Turn, asked
from tradeoff.tolerances import BATCH, IDENTITY, SCORE
from tradeoff.worlds import World

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
VISIBLE = 1e-2  # a difference that no rounding explains
MEMORY_BAR = 64 * 2**20
ACCURATE = {torch.float64: IDENTITY.relative, torch.float32: 1e-5}  # of a divergence, down to 1e-12 nats


@pytest.fixture(scope="module")
def data() -> Data:
    """Ten rows of unequal length, one of them with a system turn and a turn before."""
    world = text_world()
    talk = (Turn("system", world.responses[0]), *asked(world.contexts[0]), Turn("assistant", world.responses[4]))
    long = Example((*talk, *asked(world.contexts[1])), world.responses[1], "a talk")
    drawn = sample(world, world.safety, 9)
    return dataclasses.replace(drawn, examples=(long, *drawn.examples))


@pytest.fixture
def tiny(tiny_folder: Path) -> Checkpoint:
    return load(tiny_folder, device="cpu", dtype=torch.float64)


def alone(checkpoint: Checkpoint, example: Example) -> tuple[torch.Tensor, list[int]]:
    """By hand: the logits that predict an answer, from one sequence, and the answer's tokens."""
    tokenizer = checkpoint.tokenizer
    said = [{"role": t.role, "content": t.content} for t in example.prompt]
    prompt = tokenizer(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)).input_ids
    answer = [*tokenizer(example.answer).input_ids, tokenizer.convert_tokens_to_ids("<end>")]
    with torch.no_grad():
        logits = checkpoint.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.double(), answer


def with_model(checkpoint: Checkpoint, config: transformers.PretrainedConfig) -> Checkpoint:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    return dataclasses.replace(checkpoint, model=model.requires_grad_(False))


# --- losses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gpt_neox"])
def test_losses_are_those_of_one_sequence_at_a_time(architecture: str, tmp_path: Path, data: Data) -> None:
    window = {"sliding_window": 8} if architecture == "mistral" else {}
    checkpoint = load(save_tiny(tmp_path, architecture, **window), device="cpu", dtype=torch.float64)
    found = rows.token_log_probabilities(checkpoint, rows.encode(checkpoint, data))
    for scores, example in zip(found, data.examples, strict=True):
        logits, answer = alone(checkpoint, example)
        expected = torch.log_softmax(logits, -1)[range(len(answer)), answer]
        assert np.abs(scores - expected.numpy()).max() < IDENTITY.relative
    assert rows.contract(checkpoint).layout == "rows padded on the right"


def test_a_model_that_scales_its_logits_is_not_scored_by_its_head(tiny: Checkpoint, data: Data) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.GraniteConfig(
        vocab_size=len(tiny.tokenizer), num_key_value_heads=2, logits_scaling=4.0, **sizes
    )
    scaled = with_model(tiny, config)
    assert rows.contract(scaled).layout == "one sequence at a time"
    logits, answer = alone(scaled, data.examples[0])
    expected = torch.log_softmax(logits, -1)[range(len(answer)), answer].sum()
    (scores,) = rows.token_log_probabilities(scaled, rows.encode(scaled, data)[:1])
    assert abs(scores.sum() - expected) < IDENTITY.relative


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_batch_length_and_padding_side_change_nothing(batch_tokens: int, tiny_folder: Path, data: Data) -> None:
    checkpoint = load(tiny_folder, device="cpu", dtype=torch.float32)
    encoded = rows.encode(checkpoint, data)
    assert len({len(row.read) for row in encoded}) > 1, "rows of one length would need no padding"
    whole = rows.token_log_probabilities(checkpoint, encoded)
    checkpoint.tokenizer.padding_side = "left"
    again = rows.token_log_probabilities(checkpoint, rows.encode(checkpoint, data), batch_tokens)
    assert max(np.abs(a - b).max() for a, b in zip(whole, again, strict=True)) < SCORE.absolute
    assert max(abs(a.mean() - b.mean()) for a, b in zip(whole, again, strict=True)) < BATCH.absolute


def test_left_padding_is_the_same_with_positions_and_wrong_without(tmp_path: Path, data: Data) -> None:
    """Another way to the same numbers, and the trap that it has."""
    checkpoint = load(save_tiny(tmp_path, "gpt2"), device="cpu", dtype=torch.float64)
    encoded = rows.encode(checkpoint, data)
    width = max(len(row.read) for row in encoded)
    tokens, seen = torch.zeros(2, len(encoded), width, dtype=torch.long)
    for i, row in enumerate(encoded):
        tokens[i, width - len(row.read) :], seen[i, width - len(row.read) :] = torch.tensor(row.read), 1
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    ours = rows.token_log_probabilities(checkpoint, encoded)
    off = {}
    for name, options in {"with": {"position_ids": positions}, "without": {}}.items():
        with torch.no_grad():
            logits = checkpoint.model(tokens, attention_mask=seen, **options).logits
        theirs = [
            torch.log_softmax(logits[i, -len(row.answer) :], -1)[range(len(row.answer)), list(row.answer)]
            for i, row in enumerate(encoded)
        ]
        off[name] = max(np.abs(a - b.numpy()).max() for a, b in zip(ours, theirs, strict=True))
    assert off["with"] < IDENTITY.relative
    assert off["without"] > VISIBLE


def test_smollm2_losses_do_not_depend_on_the_batch(smollm2: Checkpoint) -> None:
    chosen = read_data(real_data() / "refusals_train.json").subset(4)
    apart, together = (data_gap(smollm2, chosen, batch_tokens=n) for n in (1, 4096))
    assert abs(apart.loss.value - together.loss.value) < BATCH.absolute
    assert 1 < together.loss.value < 4, "nats a token of a small model on English that it was not trained on"


def test_losses_of_all_cells_make_the_gap_of_the_world(tiny: Checkpoint, world: World) -> None:
    r"""$\sum_{x,y}p_sP_s\cdot\text{loss}$ less the entropy of the data is the exact safety gap."""
    law = world.safety
    cells = [Example(asked(x), y, "a cell") for x in world.contexts for y in world.responses]
    encoded = rows.encode(tiny, Data("all cells", "text world", tuple(cells)))
    loss = -np.array([each.sum() for each in rows.token_log_probabilities(tiny, encoded)]).reshape(law.P.shape)
    joint = np.asarray(law.p[:, None] * law.P)
    entropy = -np.sum(joint * np.log(np.asarray(law.P)))
    exact = float(to.safety_gap(world, policy.log_policy(tiny, world)))
    assert abs(np.sum(joint * loss) - entropy - exact) < IDENTITY.relative * exact


# --- gaps and intervals ------------------------------------------------------------------------------------------


def test_a_gap_names_its_baseline_and_is_paired_with_it(tiny: Checkpoint, tmp_path: Path, data: Data) -> None:
    other = load(save_tiny(tmp_path, "olmo2"), device="cpu", dtype=torch.float64)
    zero, own, gap = (data_gap(tiny, data, baseline) for baseline in (None, tiny, other))
    assert (zero.baseline, zero.gap) == ("zero", zero.loss)
    assert (own.gap.value, own.gap.low, own.gap.high) == (0, 0, 0)
    assert gap.baseline == other.name
    assert gap.gap.value == pytest.approx(zero.loss.value - data_gap(other, data).loss.value, rel=IDENTITY.relative)
    assert gap.gap_per_answer.value == pytest.approx(gap.gap.value * gap.tokens / gap.examples, rel=IDENTITY.relative)
    assert gap.gap.low < gap.gap.value < gap.gap.high
    with pytest.raises(ValueError, match="An interval was asked for of 1 row; at least 2 are required"):
        data_gap(tiny, data.subset(1))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of a ratio of skewed rows, as losses are; the negative control is an interval of half the width."""
    draw = np.random.default_rng(0)

    def sampled(n: int) -> np.ndarray:
        tokens = np.exp(draw.normal(4, 0.7, n))
        return np.stack([tokens * np.exp(draw.normal(0, 0.3, n)), tokens], axis=1)

    truth, found = ratio(sampled(2_000_000)), [jackknife(ratio, sampled(32)) for _ in range(400)]
    hit = np.mean([each.low <= truth <= each.high for each in found])
    narrow = np.mean([abs(each.value - truth) <= (each.high - each.low) / 4 for each in found])
    noise = 4 * (0.95 * 0.05 / 400) ** 0.5
    assert abs(hit - 0.95) < noise
    assert abs(narrow - 0.95) > noise


# --- a teacher ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-6, 5e-5, 1e-2, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_divergence_of_logits_is_that_of_fifty_digits(size: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a = 3 * torch.randn(1, 500)
    b = a + size * torch.randn(1, 500) + 2
    with mpmath.workdps(50):
        p, q = ([mpmath.mpf(x) for x in each[0].tolist()] for each in (a, b))
        P, mass = [mpmath.exp(x) for x in p], mpmath.fsum(mpmath.exp(x) for x in q)
        total = mpmath.fsum(P)
        exact = mpmath.fsum(w / total * (x - y) for w, x, y in zip(P, p, q, strict=True)) + mpmath.log(mass / total)
        error = abs(float(mpmath.mpf(kl_logits(a.to(dtype), b.to(dtype)).item()) / exact - 1))
    assert error < ACCURATE[dtype]
    usual = (torch.log_softmax(a, -1).exp() * (torch.log_softmax(a, -1) - torch.log_softmax(b, -1))).sum().item()
    assert size > 1e-4 or abs(usual / float(exact) - 1) > ACCURATE[torch.float32], (
        "the usual formula is good enough here"
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_divergence_of_logits_at_the_edge(dtype: torch.dtype) -> None:
    inf = torch.inf
    a = torch.tensor([[0.0, -inf], [0.0, 0.0], [0.0, -inf], [0.0, 0.0], [0.0, 0.0]], dtype=dtype)
    b = torch.tensor([[0.0, 0.0], [0.0, -inf], [0.0, -inf], [0.0, 2000.0], [0.0, 0.0]], dtype=dtype)
    before = a.clone()
    found = kl_logits(a, b)
    assert np.allclose(found, [np.log(2), inf, 0, 1000 - np.log(2), 0], rtol=ACCURATE[dtype], atol=0)
    assert torch.equal(a, before)


def test_a_teacher_is_compared_with_at_every_token(tiny: Checkpoint, tmp_path: Path, data: Data) -> None:
    student = load(save_tiny(tmp_path, "olmo2"), device="cpu", dtype=torch.float64)
    found = token_divergences(tiny, student, rows.encode(tiny, data), batch_tokens=60)
    for divergence, example in zip(found, data.examples, strict=True):
        p, q = (torch.log_softmax(alone(each, example)[0], -1) for each in (tiny, student))
        assert np.abs(divergence - (p.exp() * (p - q)).sum(-1).numpy()).max() < IDENTITY.relative
    gap = teacher_gap(tiny, student, data)
    assert gap.by_position[0] == pytest.approx(np.mean([each[0] for each in found]), rel=IDENTITY.relative)
    assert gap.per_answer.value == pytest.approx(np.mean([each.sum() for each in found]), rel=IDENTITY.relative)


def test_a_checkpoint_is_at_distance_zero_from_itself_and_near_it_the_square_law_holds(
    tiny_folder: Path, data: Data
) -> None:
    """In float32: a step of half the size makes a quarter of the divergence, at 1e-9 nats."""
    checkpoint = load(tiny_folder, device="cpu", dtype=torch.float32)
    encoded = rows.encode(checkpoint, data)
    mean = []
    for step in (0.0, 1e-4, 5e-5):
        moved = load(tiny_folder, device="cpu", dtype=torch.float32)
        head = moved.model.base_model.norm.weight
        head.data += step * torch.sign(torch.arange(len(head)) % 3 - 0.5)
        found = np.concatenate(token_divergences(checkpoint, moved, encoded))
        assert found.min() >= 0
        mean.append(found.mean())
    assert mean[0] == 0
    assert 1e-10 < mean[1] < 1e-6
    assert abs(mean[1] / mean[2] - 4) < VISIBLE


def test_another_vocabulary_is_refused(tiny: Checkpoint, data: Data) -> None:
    tokenizer = type(tiny.tokenizer).from_pretrained(tiny.name)
    tokenizer.add_tokens(["novel"])
    with pytest.raises(ValueError, match="needs one vocabulary. Compare checkpoints of one family"):
        token_divergences(tiny, dataclasses.replace(tiny, tokenizer=tokenizer), rows.encode(tiny, data))


def test_memory_is_fixed_at_a_large_vocabulary(tiny: Checkpoint, data: Data) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    large = with_model(
        tiny, transformers.LlamaConfig(vocab_size=50_000, tie_word_embeddings=True, **sizes)
    ).model.float()
    large = dataclasses.replace(tiny, model=large)
    encoded = rows.encode(large, data) * 8
    assert sum(len(row.answer) for row in encoded) * 50_000 * 4 > 2 * MEMORY_BAR, "all logits at once would not fit"
    with Largest() as largest:
        rows.token_log_probabilities(large, encoded)
        token_divergences(large, large, encoded)
    assert largest.bytes <= MEMORY_BAR


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "answer", "complaint"),
    [
        ("Please help me", "Sure <end> here", r"row 7: the answer contains '<end>'.*Take it out of the text"),
        ("Please <turn> help", "Sure", r"row 7: what the user says contains '<turn>'"),
        ("Please " * 3000, "Sure", r"row 7: question and answer have \d+ tokens, and the model reads 2048 at most"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(prompt: str, answer: str, complaint: str, tiny: Checkpoint) -> None:
    with pytest.raises(ValueError, match=complaint):
        rows.encode(tiny, Data("d", "alpaca", (Example(asked(prompt), answer, "row 7"),)))


@pytest.mark.parametrize(
    ("chat_template", "complaint"),
    [
        (None, r"a talk: the conversation has the roles .* no chat template.*give single questions"),
        (
            NO_SYSTEM + CHAT_TEMPLATE,
            r"a talk: the checkpoint's chat template refuses .*no system",
        ),
    ],
)
def test_a_conversation_that_the_template_cannot_put_is_named(
    chat_template: str | None, complaint: str, tiny: Checkpoint, data: Data
) -> None:
    tokenizer = type(tiny.tokenizer).from_pretrained(tiny.name)
    tokenizer.chat_template = chat_template
    with pytest.raises(ValueError, match=complaint):
        rows.encode(dataclasses.replace(tiny, tokenizer=tokenizer), data)


def test_out_of_memory_is_said_and_the_batch_is_halved(tiny: Checkpoint, data: Data, capsys, monkeypatch) -> None:
    encoded = rows.encode(tiny, data)
    whole = rows.token_log_probabilities(tiny, encoded)
    sound, most = rows.padded, [3]

    def padded(checkpoint: Checkpoint, some: list) -> torch.Tensor:
        if len(some) > most[0]:
            raise torch.OutOfMemoryError("out of memory")
        return sound(checkpoint, some)

    monkeypatch.setattr(rows, "padded", padded)
    again = rows.token_log_probabilities(tiny, encoded)
    assert np.allclose(np.concatenate(whole), np.concatenate(again), rtol=0, atol=IDENTITY.relative)
    assert "out of memory at 10 rows" in capsys.readouterr().out
    most[0] = 0
    with pytest.raises(ValueError, match=r"A row of \d+ tokens does not fit in memory by itself"):
        rows.token_log_probabilities(tiny, encoded)


def test_a_model_that_gives_nan_is_named(tiny: Checkpoint, data: Data) -> None:
    tiny.model.base_model.norm.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"gave row \d+ a token of log-probability nan.*float32"):
        rows.token_log_probabilities(tiny, rows.encode(tiny, data))


# --- all of it ---------------------------------------------------------------------------------------------------


def test_a_measurement_says_what_it_is_of_and_survives_its_file(
    tiny_folder: Path, world: World, tmp_path: Path
) -> None:
    given = {}
    for role, law in {"safety": world.safety, "capability": world.capability}.items():
        lines = [
            json.dumps({"prompt": e.prompt[0].content, "completion": e.answer}) for e in sample(world, law, 12).examples
        ]
        given[role] = str(tmp_path / f"{role}.jsonl")
        Path(given[role]).write_text("\n".join(lines))
    settings = MeasureSettings(
        str(tiny_folder), **given, teacher=str(tiny_folder), prompts=given["safety"], overlap=True, limit=8, longest=4
    )
    found = measure(settings)
    found.write(tmp_path / "found.json")
    read = json.loads((tmp_path / "found.json").read_text())
    assert read["gaps"]["safety"]["examples"] == 8
    assert read["gaps"]["safety"]["digest"] == read_data(given["safety"]).subset(8).digest
    assert read["contract"]["counted"] == policy.COUNTED
    assert read["overlap"]["contract"] == read["refusals"]["contract"] == read["contract"]
    assert read["teacher"]["capability"]["per_token"]["high"] == 0
    assert json.loads(read["made_by"]["settings"])["limit"] == 8
    for part in ("safety gap", "refused, by prefix", "overlap, by gradient", "counted"):
        assert part in str(found)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "Nothing is to be measured"),
        ({"safety": "a.json", "overlap": True}, "give both safety and capability data"),
        ({"safety": "a.json", "limit": 0}, "limit is 0; at least 1 is required"),
    ],
)
def test_settings_that_measure_nothing_are_refused(given: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        MeasureSettings(**given)


def test_a_slip_in_the_data_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json is no file"):
        measure(MeasureSettings("/no/such/checkpoint", safety=str(tmp_path / "absent.json")))
