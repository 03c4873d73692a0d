"""Previews: the map of examples, and the copy head that makes its effect on a gradient exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.strategies import toys
from tradeoff import DataLaw, World
from tradeoff.dynamics import descend
from tradeoff.dynamics.engine import WHOLE, JaxEngine
from tradeoff.problems import SoftmaxLinear, Tabular
from tradeoff.strategies import TASK, Example, LookAhead, Plain
from tradeoff.strategies.previews import CONNECTOR, PREFIX, Previewed, relief, with_preview
from tradeoff.tolerances import EXACT, IDENTITY

ROW = Example((1, 2), (3, 4, 5, 6, 7, 8, 9))
IDS = {CONNECTOR: (40, 41), PREFIX: (50, 51, 52)}
REAL, VIRTUAL = (LookAhead(mode).tokenised(IDS.__getitem__) for mode in ("real", "virtual"))


def words_of(text: str, m: int) -> str:
    return " ".join(text.split(" ")[:m])


# --- the map of examples -----------------------------------------------------------------------------------------


def test_a_real_preview_leaves_the_answer_as_it_is():
    seen = REAL.example(ROW)
    assert seen.prompt == (1, 2, 40, 41, 3, 4, 5, 6, 7, 8)
    assert seen.response == ROW.response


def test_a_virtual_preview_begins_prompt_and_answer_alike():
    seen = VIRTUAL.example(ROW)
    assert seen.prompt == (1, 2, 40, 41, 50, 51, 52)
    assert seen.response == (50, 51, 52, *ROW.response)


def test_a_preview_of_words_is_that_of_the_released_code():
    row = Example("What is 2 + 2?", "The sum is 4 .")
    assert LookAhead(tokens=3).example(row, words_of).prompt == "What is 2 + 2? The answer begins with: The sum is"
    virtual = LookAhead("virtual").example(row)
    assert virtual.prompt == "What is 2 + 2? The answer begins with: Let's solve this problem. "
    assert virtual.response == "Let's solve this problem. The sum is 4 ."


@pytest.mark.parametrize("row", [ROW, Example("words", "to say")], ids=["ids", "words"])
@pytest.mark.parametrize("mode", ["real", "virtual"])
def test_without_tokens_prefix_and_connector_it_is_the_identity(row, mode):
    assert LookAhead(mode, tokens=0, prefix="", connector="").example(row) == row
    assert LookAhead(mode, tokens=0, prefix="", connector=row.prompt).example(row) != row


@pytest.mark.parametrize("strategy", [REAL, VIRTUAL], ids=["real", "virtual"])
def test_no_previewed_token_carries_loss(strategy):
    seen = strategy.example(ROW)
    assert seen.labels[: len(seen.prompt)] == (-100,) * len(seen.prompt)
    assert seen.labels[len(seen.prompt) :] == seen.response
    assert len(seen.labels) == len(seen.tokens)


def test_targets_of_another_map_stay_with_their_tokens():
    row = ROW._replace(targets=(9, 9, 9, 9, 9, 9, 9))
    assert REAL.example(row).targets == row.targets
    assert VIRTUAL.example(row).targets == (50, 51, 52, 9, 9, 9, 9, 9, 9, 9)


def test_a_short_answer_is_previewed_whole():
    assert REAL.example(Example((1,), (3, 4))).prompt == (1, 40, 41, 3, 4)
    assert REAL.example(Example((1,), ())).prompt == (1, 40, 41)


def test_the_examples_of_evaluation_stay_byte_for_byte():
    data = (ROW, Example((7,), (8, 9)))
    before = repr(data).encode()
    mapped = tuple(REAL.example(row) for row in data)
    assert repr(data).encode() == before
    assert repr(mapped).encode() != before


def test_what_cannot_be_mapped_is_refused():
    with pytest.raises(TypeError, match="words and ids of tokens do not mix"):
        LookAhead().example(ROW)
    with pytest.raises(TypeError, match="give cut="):
        LookAhead().example(Example("a", "b"))
    with pytest.raises(TypeError, match="tokenise the example first"):
        _ = Example("a", "b").labels
    with pytest.raises(ValueError, match="give as many"):
        _ = Example((1,), (2, 3), (4,)).labels
    with pytest.raises(ValueError, match="'real' or 'virtual'"):
        LookAhead("both")
    with pytest.raises(ValueError, match="at least 0"):
        LookAhead(tokens=-1)
    with pytest.raises(ValueError, match="copying=-1"):
        LookAhead(copying=-1.0)


# --- the copy head ------------------------------------------------------------------------------------------------

Z = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)))
K = jnp.array([[0.5], [2.0], [7.0]])


def test_a_preview_scales_the_gradient_of_the_logits_and_nothing_else():
    """Exactly p' - e_y = F (p - e_y), of L1 norm 2 F (1 - p_y); F taken at the copied policy is another number."""
    log_p = jax.nn.log_softmax(Z)
    F = relief(log_p, K)
    for y in range(4):
        e = jax.nn.one_hot(jnp.full(3, y), 4)
        copied = jax.nn.softmax(Z + K * e)
        np.testing.assert_allclose(copied - e, F[:, y, None] * (jnp.exp(log_p) - e), rtol=0, atol=IDENTITY.absolute)
        pull = jnp.sum(jnp.abs(copied - e), axis=-1)
        np.testing.assert_allclose(pull, 2 * F[:, y] * (1 - jnp.exp(log_p[:, y])), rtol=IDENTITY.relative)
        np.testing.assert_allclose(with_preview(log_p, K)[:, y], jnp.log(copied[:, y]), rtol=IDENTITY.relative)
        wrong = relief(jnp.log(copied), K)[:, y, None] * (jnp.exp(log_p) - e)
        assert jnp.max(jnp.abs(copied - e - wrong)) > 1e-3


def test_its_cells_are_the_derivative_of_its_value():
    data = toys.jax_engine().data
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(6, 4)))

    def value(z):
        return Previewed(1.5).value(data, jax.nn.log_softmax(z))

    log_p, pull = jax.vjp(jax.nn.log_softmax, logits)
    by_cells = pull(-Previewed(1.5).cells(data, log_p))[0]
    np.testing.assert_allclose(by_cells, jax.grad(value)(logits), rtol=0, atol=IDENTITY.absolute)
    assert jnp.max(jnp.abs(by_cells - pull(-TASK.cells(data, log_p))[0])) > 1e-3


def test_without_a_copy_head_every_cell_weighs_what_it_did():
    log_p = jax.nn.log_softmax(Z)
    np.testing.assert_array_equal(relief(log_p, 0.0), jnp.ones_like(Z))
    np.testing.assert_array_equal(relief(log_p, jnp.zeros((3, 1))), jnp.ones_like(Z))
    assert jnp.all(relief(log_p, 1e-3) < 1)


def world(p_f, P_f):
    contexts, responses = np.shape(P_f)
    uniform = DataLaw(np.full(contexts, 1 / contexts), np.full((contexts, responses), 1 / responses))
    return World(uniform, DataLaw(p_f, P_f))


def test_it_scales_what_one_step_pushes_into_shared_features_and_not_the_final_drift():
    problem = SoftmaxLinear(world([1, 0], np.eye(3)[[0, 0]]), [[1.0, 0.5], [0.2, 1.0]])
    start = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3)))
    F = relief(problem.log_policy(start), 2.0)[0, 0]

    def drift(strategy):
        return problem.features[1] @ (
            descend(problem, strategy, learning_rate=0.2, steps=30, every=30, start=start).parameters - start
        )

    def first_step(strategy):
        engine = JaxEngine(problem, start, toys.KEY, 1)
        gradient = strategy.gradient(lambda at: engine.gradient(TASK, at), {}, engine.start, 0, engine)
        return problem.features[1] @ gradient[WHOLE]

    np.testing.assert_allclose(first_step(LookAhead()), F * first_step(Plain()), rtol=IDENTITY.relative)
    assert np.max(np.abs(drift(LookAhead()) / drift(Plain()) - F)) > 0.1


def test_in_a_pure_table_it_keeps_everything_because_it_teaches_nothing_there():
    """Contexts of inference first, then one for each of their previews: only those are trained."""
    P_f = np.eye(2)[[0, 1]]
    previewed = world([0, 0, 0.5, 0.5], np.concatenate([P_f, P_f]))
    start = jnp.asarray(np.random.default_rng(4).normal(size=(4, 2)))
    settings = {"learning_rate": 0.5, "steps": 10, "every": 10}
    table = descend(Tabular(previewed), LookAhead(copying=3.0), start=start, **settings).parameters
    np.testing.assert_array_equal(table[:2], start[:2])
    assert np.all(np.abs(table[2:] - start[2:]) > 1e-3)

    features = np.concatenate([np.eye(2), np.eye(2)]) @ np.eye(2, 3)
    features[2:, 2] = 1.0  # what all previews have in common
    shared = SoftmaxLinear(previewed, features)
    moved = descend(shared, LookAhead(copying=3.0), start=start[:3], **settings).parameters
    assert np.all(np.abs(shared.features[:2] @ (moved - start[:3])) > 1e-3)


def test_seen_with_a_preview_its_gain_shrinks_only_where_the_preview_is_likely_to_be_copied():
    """Two answers, harm c and refusal; harm previewed: gain' = gain (1 + E) / ((1 + c E)(1 + d E)), E = e^k - 1."""
    c, d, k = 0.2, 0.6, 3.0  # harm after LookAhead and after plain fine-tuning
    E = np.expm1(k)

    def gain(c, d):
        refusal = 1 - np.exp(with_preview(np.log([[c, 1 - c], [d, 1 - d]]), k)[:, 0])
        return refusal[0] - refusal[1]

    def law(c, d):
        return (d - c) * (1 + E) / ((1 + c * E) * (1 + d * E))

    np.testing.assert_allclose(gain(c, d), law(c, d), rtol=IDENTITY.relative)
    assert gain(c, d) < d - c
    small = 0.01, 0.02
    np.testing.assert_allclose(gain(*small), law(*small), rtol=IDENTITY.relative)
    assert gain(*small) > small[1] - small[0]


def test_at_positions_past_the_preview_nothing_changes():
    engine = toys.jax_engine()
    strengths = np.array([[2.0], [0], [0], [0], [0], [0]])
    log_p = engine.log_policy(engine.start)
    cells = Previewed(strengths).cells(engine.data, log_p)
    np.testing.assert_array_equal(cells[1:], engine.data.task[1:])
    np.testing.assert_allclose(cells[0], (engine.data.task * relief(log_p, 2.0))[0], rtol=EXACT.relative)
    with pytest.raises(ValueError, match="copy head"):
        Previewed(strengths[:2]).cells(engine.data, log_p)
