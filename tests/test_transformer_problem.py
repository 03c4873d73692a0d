"""A transformer of a text world: its policy is teacher forcing, answer by answer, and its gradient that of the gaps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import once
from tradeoff import worlds
from tradeoff.dynamics.engine import JaxEngine, named
from tradeoff.problems import Problem, Shape, Transformer
from tradeoff.strategies import TASK
from tradeoff.tolerances import DERIVATIVE, IDENTITY
from tradeoff.worlds import DataLaw
from tradeoff.worlds.grammar import words

WORLD = worlds.grammar(jax.random.key(0), 3, 2, shared=["wording"], overlap=0.2, similarity=0.5)
PROBLEM = Transformer(WORLD, Shape(2, 2, 4))
START = PROBLEM.initial(jax.random.key(1))


def naive(problem: Transformer, parameters: dict) -> np.ndarray:
    """Every answer by itself, every word by itself, one word and one head after the other."""
    texts = [*(WORLD.contexts or ()), *(WORLD.responses or ())]
    known = list(dict.fromkeys(word for text in texts for word in words(text)))
    longest = max(len(words(prompt)) for prompt in WORLD.contexts or ())
    return np.array([
        [_said(parameters, problem.shape, known, longest, words(x), words(y)) for y in WORLD.responses or ()]
        for x in WORLD.contexts or ()
    ])  # fmt: skip


def _said(parameters, shape, known, longest, prompt, answer):
    p = {name: np.asarray(array) for name, array in parameters.items()}
    size = shape.width // shape.heads

    def norm(h):
        return (h - h.mean()) / np.sqrt(((h - h.mean()) ** 2).mean() + 1e-6)

    read = [known.index(word) for word in prompt + answer]
    stream = [p["words"][w] + p["positions"][longest - len(prompt) + t] for t, w in enumerate(read)]
    for layer in range(shape.layers):
        qkv = [np.split(norm(h) @ p[f"{layer}/attention in"], 3) for h in stream]
        mixed = []
        for t in range(len(stream)):
            out = []
            for head in range(shape.heads):
                part = slice(head * size, (head + 1) * size)
                score = np.exp([qkv[t][0][part] @ qkv[j][1][part] / size**0.5 for j in range(t + 1)])
                out.append(sum(s * qkv[j][2][part] for j, s in enumerate(score)) / score.sum())
            mixed.append(stream[t] + np.concatenate(out) @ p[f"{layer}/attention out"])
        stream = [h + np.maximum(norm(h) @ p[f"{layer}/mlp in"], 0) @ p[f"{layer}/mlp out"] for h in mixed]
    total = 0.0
    for t in range(len(prompt), len(read)):
        logits = norm(stream[t - 1]) @ p["head"]
        total += logits[read[t]] - np.log(np.exp(logits).sum())
    return total


def test_the_policy_is_teacher_forcing_and_a_sub_probability():
    assert isinstance(PROBLEM, Problem)
    policy = once(PROBLEM.log_policy)(START)
    np.testing.assert_allclose(policy, naive(PROBLEM, START), rtol=IDENTITY.relative)
    assert np.all(np.exp(policy).sum(axis=1) < 1)


def test_its_gradient_is_the_derivative_of_its_gap():
    engine = JaxEngine(PROBLEM, START, jax.random.key(0), 1)
    found = once(lambda at: engine.gradient(TASK, named(at)))(START)
    wanted = once(jax.grad(lambda at: PROBLEM.objective(at, 0.0)))(START)
    for name, slope in wanted.items():
        np.testing.assert_allclose(found[name], slope, rtol=DERIVATIVE.relative, atol=DERIVATIVE.absolute)
    assert float(jnp.max(jnp.abs(found["words"]))) > 0.01


@pytest.mark.parametrize("where", ["attention", "mlp"])
def test_probes_change_nothing_until_they_move(where):
    probed = PROBLEM.probed(START, where)
    policy = once(PROBLEM.log_policy)
    np.testing.assert_array_equal(policy(probed), policy(START))
    (name,) = (name for name in probed if name.startswith("probe/0"))
    moved = policy(probed | {name: probed[name].at[0, -1].set(jnp.arange(4.0))})
    changed = np.any(np.asarray(moved != policy(START)), axis=1)
    np.testing.assert_array_equal(changed, [True, False, False, False, False] if where == "attention" else True)
    assert PROBLEM.probed(START, "") == START


def test_problems_of_one_vocabulary_stack():
    other = worlds.grammar(jax.random.key(2), 3, 2, shared=["wording"], overlap=0.2, similarity=0.5)
    known = [word for world in (WORLD, other) for text in (*world.contexts, *world.responses) for word in words(text)]
    each = [Transformer(world, Shape(1, 1, 4), known, longest=12) for world in (WORLD, other)]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    at = each[0].initial(jax.random.key(0))
    together = once(jax.vmap(lambda problem: problem.log_policy(at)))(both)
    np.testing.assert_allclose(together[1], once(each[1].log_policy)(at), rtol=IDENTITY.relative)


LAW = DataLaw([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("prompts", "answers", "options", "says"),
    [
        (["a b", "a c"], ["yes", "yes please"], {}, "'yes please' begins with the answer 'yes'"),
        (["a b", "A, b."], ["yes", "no"], {}, "two prompts are the same words"),
        (["a b", "?!"], ["yes", "no"], {}, r"prompt '\?!' has no words"),
        (["a b", "a c"], ["yes", "no"], {"vocabulary": ["a", "b", "yes", "no"]}, "the vocabulary lacks c"),
        (["a b", "a c"], ["yes", "no"], {"longest": 1}, "longest is 1 and a prompt has 2 words"),
        (["a b", "a c"], ["yes", "no"], {"shape": Shape(1, 3, 4)}, "the heads must divide the width"),
    ],
)
def test_what_it_cannot_read_is_refused(prompts, answers, options, says):
    with pytest.raises(ValueError, match=says):
        Transformer(worlds.from_texts(prompts, answers, LAW, LAW), **options)
    with pytest.raises(ValueError, match="has no texts to read"):
        Transformer(worlds.golden())
