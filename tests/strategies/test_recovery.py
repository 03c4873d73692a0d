"""Late refusals: the maps of examples, and their exact expectation on worlds of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tradeoff import DataLaw, World
from tradeoff.problems import Sequence
from tradeoff.problems.sequence import answers
from tradeoff.strategies import DeRTa, Example, Triple
from tradeoff.strategies.recovery import SORRY, hazards, prefill_success, prefixes
from tradeoff.tolerances import EXACT, IDENTITY

TRIPLE = Triple((1, 2), (30, 31), (4, 5, 6, 7))
R, TOKENS, LENGTH = 0, 3, 3  # refusal and two others
RNG = np.random.default_rng(0)
HARMFUL = np.array(answers(RNG.dirichlet(np.ones(2), (1, 13)) @ [[0, 1, 0], [0, 0, 1]]))  # never refuses
SAFE = np.array(answers(np.concatenate([[[[1.0, 0, 0]]], RNG.dirichlet(np.ones(3), (1, 12))], axis=1)))


# --- the maps of examples ------------------------------------------------------------------------------------------


def test_every_supervised_position_of_a_transition_is_a_refusal():
    row = DeRTa(refusal=9).transitions(TRIPLE)
    assert row.tokens == (1, 2, 4, 5, 6, 7)
    assert row.labels == (-100, -100, 9, 9, 9, 9)
    assert row.weight == 1
    assert DeRTa(9, transition=0.3).transitions(TRIPLE).weight == 0.3


def test_the_refusal_token_may_be_a_word_that_is_one_token():
    assert set(DeRTa().tokenised({SORRY: (7,)}.__getitem__).transitions(TRIPLE).labels) == {-100, 7}
    assert DeRTa(9).tokenised({}.__getitem__).refusal == 9
    with pytest.raises(ValueError, match="refusal='Sorry', which is 2 tokens"):
        DeRTa().tokenised(lambda _: (7, 8))
    with pytest.raises(TypeError, match="a word, and labels are ids"):
        DeRTa().transitions(TRIPLE)


def test_benign_rows_are_untouched():
    row = Example((1,), (2, 3))
    assert DeRTa().examples(row, draw=0.9) == (row,)
    assert DeRTa().examples(row, draw=0.9)[0] is row


def test_a_prefixed_example_masks_what_was_harmful():
    row = DeRTa().prefixed(TRIPLE, draw=0.5)
    assert row is not None
    assert row == Example((1, 2, 4, 5), (30, 31))
    assert row.labels == (-100,) * 4 + (30, 31)


def test_no_prefix_is_standard_safety_training():
    standard = Example(TRIPLE.query, TRIPLE.safe)
    assert DeRTa().prefixed(TRIPLE, draw=0.0) == standard
    assert DeRTa(rule="none", transition=0.0).examples(TRIPLE, draw=0.99) == (standard,)
    assert DeRTa(transition=0.0).examples(TRIPLE, draw=0.99) != (standard,)


@pytest.mark.parametrize("length", [1, 4])
def test_the_papers_rule_takes_every_prefix_equally_often(length):
    strategy = DeRTa()
    draws = (np.arange(1000 * (length + 1)) + 0.5) / (1000 * (length + 1))
    ks = np.array([strategy.cut(length, draw) for draw in draws], int)
    assert np.bincount(ks).tolist() == [1000] * (length + 1)
    assert strategy.cuts(length) == (1 / (length + 1),) * (length + 1)


def test_the_codes_rule_is_another_law():
    strategy, length = DeRTa(rule="words"), 6
    draws = (np.arange(400) + 0.5) / 400
    ks = np.array([strategy.cut(length, draw, number) for draw in draws for number in range(3)], int)
    assert np.bincount(ks, minlength=7).tolist() == [400, 200, 200, 200, 200, 0, 0]
    np.testing.assert_allclose(strategy.cuts(length), np.bincount(ks, minlength=7) / 1200, rtol=EXACT.relative)
    assert strategy.cut(2, 0.5) is None
    assert sum(strategy.cuts(2)) == 0


def test_the_codes_rule_cuts_words():
    row = Triple("[INST] how? [/INST]", " Sorry, no.", "first you take a")
    strategy = DeRTa(rule="words", transition=0.0)
    assert strategy.prefixed(row, 0.99, number=1) == Example("[INST] how? [/INST] first you", " Sorry, no.")
    assert strategy.prefixed(row, 0.99, number=3) == Example("[INST] how? [/INST]", " Sorry, no.")
    assert strategy.examples(row._replace(harmful="two words"), 0.5) == ()


def test_bad_settings_and_rows_are_refused():
    with pytest.raises(ValueError, match="'uniform', 'words' or 'none'"):
        DeRTa(rule="all")
    with pytest.raises(ValueError, match="transition=-1"):
        DeRTa(transition=-1.0)
    with pytest.raises(ValueError, match="refusal=-1"):
        DeRTa(refusal=-1)
    with pytest.raises(TypeError, match="'words' cuts words"):
        DeRTa(rule="words").prefixed(TRIPLE, 0.5)
    with pytest.raises(TypeError, match="tokenise the row"):
        DeRTa(9).transitions(Triple("q", "r", "h"))
    with pytest.raises(ValueError, match="world of 3 tokens"):
        DeRTa(9).cells(SAFE, HARMFUL, TOKENS)


# --- the world of tokens -------------------------------------------------------------------------------------------


def by_depth(cells):
    return [cells[0:1], cells[1:4], cells[4:13]]


def test_without_prefixes_its_cells_are_those_of_the_safety_data():
    cells = DeRTa(R, "none", 0.0).cells(SAFE, HARMFUL, TOKENS)
    law = Sequence(World(DataLaw([1.0], SAFE), DataLaw([1.0], HARMFUL)), TOKENS).next_token.safety
    np.testing.assert_allclose(cells, LENGTH * law.p[:, None] * law.P, rtol=0, atol=IDENTITY.absolute)
    assert np.max(np.abs(cells - DeRTa(R, transition=0.0).cells(SAFE, HARMFUL, TOKENS))) > 0.01


@pytest.mark.parametrize("rule", ["uniform", "words", "none"])
def test_its_cells_are_the_mean_over_the_examples_that_it_makes(rule):
    """Every pair of answers, every k: the examples themselves, counted, up to the horizon."""
    strategy = DeRTa(R, rule, 0.7)
    node: dict[tuple[int, ...], int] = {(): 0}
    for prefix in [(a,) for a in range(3)] + [(a, b) for a in range(3) for b in range(3)]:
        node[prefix] = 3 * node[prefix[:-1]] + 1 + prefix[-1]
    whole = [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
    counted = np.zeros((13, 3))
    for i, safe in enumerate(whole):
        for j, harmful in enumerate(whole):
            chance = SAFE[0, i] * HARMFUL[0, j]
            for k, share in enumerate(strategy.cuts(LENGTH)):
                row = Example(harmful[:k], safe)
                for t in range(k, LENGTH):
                    counted[node[row.tokens[:t]], row.labels[t]] += chance * share
            row = strategy.transitions(Triple((), safe, harmful))
            for t in range(LENGTH):
                counted[node[row.tokens[:t]], row.labels[t]] += 0.7 * chance
    np.testing.assert_allclose(strategy.cells(SAFE, HARMFUL, TOKENS), counted, rtol=0, atol=IDENTITY.absolute)


def test_both_libraries_make_the_same_cells():
    ours = DeRTa(R).cells(jnp.asarray(SAFE), jnp.asarray(HARMFUL), TOKENS)
    theirs = DeRTa(R).cells(torch.from_numpy(SAFE), torch.from_numpy(HARMFUL), TOKENS)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=IDENTITY.absolute)


def test_in_a_table_it_refuses_after_every_prefix_with_the_share_of_refusals_there():
    """Beside other data at the same prefixes, s = w_R/(w_R + w_other): there the gradient is 0, and the loss is convex."""
    other = DeRTa(R, "none", 0.0).cells(HARMFUL, HARMFUL, TOKENS)
    cells = DeRTa(R).cells(SAFE, HARMFUL, TOKENS) + other
    shares = cells / cells.sum(axis=-1, keepdims=True)
    loss = jax.grad(lambda z: -jnp.sum(cells * jax.nn.log_softmax(z)))
    assert np.max(np.abs(loss(jnp.log(shares)))) < IDENTITY.absolute
    assert np.max(np.abs(loss(jnp.log(shares).at[0, 0].add(0.1)))) > 1e-3


def test_more_weight_on_transitions_never_lowers_a_hazard():
    other = DeRTa(R, "none", 0.0).cells(HARMFUL, HARMFUL, TOKENS)
    tables = [DeRTa(R, transition=w).cells(SAFE, HARMFUL, TOKENS) + other for w in (0.0, 0.1, 1.0, 10.0)]
    s = np.array([table[:, R] / table.sum(axis=-1) for table in tables])
    assert np.all(np.diff(s, axis=0) >= 0)
    read = np.concatenate([level[0] for level in prefixes(HARMFUL, TOKENS)[:-1]]) > 0
    assert np.all(np.diff(s, axis=0)[:, read] > 0)
    assert np.all(np.diff(s, axis=0)[:, ~read] == 0)  # what no harmful answer begins with is left alone


def policy(hazard):
    """Next-token laws that refuse at each prefix with a given chance and otherwise speak as the harmful answers do."""
    rest = RNG.dirichlet(np.ones(2), 13)
    return np.column_stack([hazard, (1 - np.asarray(hazard))[:, None] * rest])


def test_a_prefill_succeeds_as_the_product_of_what_survives_it():
    s = np.array([0.6, 0.3, 0.1])
    laws = policy(np.repeat(s, [1, 3, 9]))
    np.testing.assert_allclose(hazards(laws, HARMFUL, R)[0], s, rtol=IDENTITY.relative)
    product = np.append(np.cumprod((1 - s)[::-1])[::-1], 1.0)
    np.testing.assert_allclose(prefill_success(laws, HARMFUL, R)[0], product, rtol=IDENTITY.relative)


def test_where_the_hazard_depends_on_what_was_said_it_is_an_expectation_over_paths():
    laws = policy(RNG.uniform(size=13))
    success = prefill_success(laws, HARMFUL, R)[0]
    whole = np.array(answers(laws[None])).reshape(3, 3, 3)
    assert success[0] == pytest.approx(whole[1:, 1:, 1:].sum(), rel=IDENTITY.relative)
    after_two = sum(
        HARMFUL.reshape(3, 3, 3)[a, b].sum() * (1 - laws[4 + 3 * a + b, R]) for a in range(3) for b in range(3)
    )
    assert success[2] == pytest.approx(after_two, rel=IDENTITY.relative)
    s = hazards(laws, HARMFUL, R)[0]
    assert abs(success[0] - np.prod(1 - s)) > 1e-3


def test_standard_training_falls_to_a_prefill_of_one_token_and_transitions_do_not():
    """What standard training never visits stays as it was: it hardly refuses there."""
    before = policy(np.full(13, 0.01))

    def trained(strategy):
        cells = strategy.cells(SAFE, HARMFUL, TOKENS)
        mass = cells.sum(axis=-1, keepdims=True)
        return (before * 1e-3 + cells) / (1e-3 + mass)

    standard = prefill_success(trained(DeRTa(R, "none", 0.0)), HARMFUL, R)[0]
    assert standard[0] < 0.01
    assert standard[1] > 0.97
    late = prefill_success(trained(DeRTa(R, "none", 1.0)), HARMFUL, R)[0]
    assert np.all(late[:LENGTH] < 0.05)
    assert late[0] < late[1] < late[2]
