"""Answers of several tokens: a tree of laws is a law over answers, its gaps split over positions, and it can be trained."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tradeoff as to
from tests.problems import WORLDS
from tradeoff import dynamics
from tradeoff import loss_constraint as c1
from tradeoff.problems import Problem, Sequence
from tradeoff.problems.sequence import answers
from tradeoff.tolerances import EXACT, FLOW, IDENTITY, agree

SIZES = [(2, 1), (2, 5), (3, 4), (5, 2)]


def random_tree(rng, prompts, tokens, length):
    """A law of the next token after every prefix."""
    return rng.dirichlet(np.ones(tokens), size=(prompts, (tokens**length - 1) // (tokens - 1)))


def random_problem(seed, tokens, length, prompts=2, proxy=False):
    rng = np.random.default_rng(seed)
    laws = [
        to.DataLaw(rng.dirichlet(np.ones(prompts)), answers(random_tree(rng, prompts, tokens, length)))
        for _ in range(3 if proxy else 2)
    ]
    return Sequence(to.World(*laws), tokens)


def number_of(prefix, tokens):
    """Where a prefix stands in breadth-first order: shorter ones first, then as one counts."""
    place = 0
    for token in prefix:
        place = tokens * place + 1 + token
    return place


@pytest.mark.parametrize(("tokens", "length"), SIZES)
def test_an_answer_is_as_likely_as_its_tokens_one_after_the_other(tokens, length):
    tree = random_tree(np.random.default_rng(0), 2, tokens, length)
    P = answers(tree)
    assert P.shape == (2, tokens**length)
    for x, (place, answer) in itertools.product(range(2), enumerate(itertools.product(range(tokens), repeat=length))):
        steps = [tree[x, number_of(answer[:t], tokens), answer[t]] for t in range(length)]
        assert agree(float(P[x, place]), float(np.prod(steps)), EXACT)


@pytest.mark.parametrize(("tokens", "length"), SIZES)
def test_token_laws_undo_answers(tokens, length):
    tree = random_tree(np.random.default_rng(1), 2, tokens, length)
    law = to.DataLaw([0.5, 0.5], answers(tree))
    problem = Sequence(to.World(law, law), tokens)
    np.testing.assert_allclose(
        problem.token_laws(law.P), tree.reshape(-1, tokens), rtol=IDENTITY.relative, atol=IDENTITY.absolute
    )
    np.testing.assert_allclose(
        problem.log_policy(jnp.log(tree).reshape(-1, tokens)), jnp.log(law.P), rtol=IDENTITY.relative
    )
    prefixes = problem.prefixes(law.P)
    for prefix in itertools.chain.from_iterable(itertools.product(range(tokens), repeat=t) for t in range(length + 1)):
        begun = [
            P
            for answer, P in zip(itertools.product(range(tokens), repeat=length), law.P[0], strict=True)
            if answer[: len(prefix)] == prefix
        ]
        assert agree(float(prefixes[0, number_of(prefix, tokens)]), float(sum(begun)), EXACT)


def test_after_an_impossible_prefix_the_law_is_uniform_and_counts_nothing():
    sure = to.DataLaw([1.0], answers([[[1.0, 0.0], [0.25, 0.75], [0.1, 0.9]]]))
    problem = Sequence(to.World(sure, sure), 2)
    assert problem.next_token.safety.P.tolist() == [[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]]
    assert problem.next_token.safety.p.tolist() == [0.5, 0.5, 0.0]
    at = problem.gaps_by_position(problem.aligned())
    assert agree(float(jnp.sum(at.safety)), 0.0, IDENTITY)


@pytest.mark.parametrize(("tokens", "length"), SIZES)
def test_gaps_split_over_positions(tokens, length):
    problem = random_problem(2, tokens, length, proxy=True)
    assert isinstance(problem, Problem)
    logits = 3 * jax.random.normal(jax.random.key(0), problem.zero().shape)
    whole, split = problem.gaps(logits), problem.gaps_by_position(logits)
    per_token = to.problems.Tabular(problem.next_token)
    for total, parts, average in (
        (whole.safety, split.safety, per_token.gaps(logits).safety),
        (whole.capability, split.capability, per_token.gaps(logits).capability),
    ):
        assert parts.shape == (length,)
        assert agree(float(jnp.sum(parts)), float(total), IDENTITY)
        assert agree(float(length * average), float(total), IDENTITY)
    lam = 2.5
    assert agree(float(problem.objective(logits, lam)), float(length * per_token.objective(logits, lam)), IDENTITY)
    assert not agree(float(problem.objective(logits, lam)), float(whole.capability + lam * whole.safety), IDENTITY)


def test_the_aligned_policy_loses_no_safety_at_any_position():
    problem = random_problem(3, tokens=3, length=3)
    assert jnp.max(problem.gaps_by_position(problem.aligned()).safety) <= IDENTITY.absolute
    assert problem.gaps(problem.aligned()).capability > 0


def test_a_world_of_single_tokens_is_a_table():
    world = WORLDS["golden"]
    problem, table = Sequence(world, tokens=3), to.problems.Tabular(world)
    logits = jax.random.normal(jax.random.key(0), (4, 3))
    assert problem.length == 1
    assert problem.gaps(logits).safety == table.gaps(logits).safety
    assert problem.objective(logits, 2.0) == table.objective(logits, 2.0)


def test_training_ends_at_the_posterior_mixture():
    """T11 by descent: nothing tells the flow of whole answers or of posterior weights."""
    problem, lam = random_problem(5, tokens=2, length=2, prompts=1, proxy=True), 0.7
    world = problem.world
    flow = dynamics.gradient_flow(problem, problem.zero(), [0.0, 3e3], lam=lam)
    found = jax.nn.softmax(flow.parameters[-1], axis=-1)
    begun = {
        law: [float(jnp.sum(one.P[0, at : at + 2])) for at in (0, 2)]
        for law, one in (("f", world.capability), ("q", world.proxy))
    }
    for place, w in enumerate(
        [1 / (1 + lam), *(f / (f + lam * q) for f, q in zip(begun["f"], begun["q"], strict=True))]
    ):
        data = problem.next_token
        law = w * data.capability.P[place] + (1 - w) * data.training_safety.P[place]
        np.testing.assert_allclose(found[place], law, rtol=0, atol=FLOW.absolute)
    assert agree(float(flow.gaps.safety[-1]), float(c1.gaps(world, lam).safety), FLOW)
    assert not agree(float(flow.gaps.safety[0]), float(c1.gaps(world, lam).safety), FLOW)


def test_derivatives_are_finite_where_supports_escape():
    sure, other = (to.DataLaw([1.0], answers([[first, [1.0, 0.0], [0.5, 0.5]]])) for first in ([1.0, 0.0], [0.0, 1.0]))
    problem = Sequence(to.World(sure, other), 2)
    slope = jax.jit(jax.grad(lambda z: problem.objective(z, 1.0)))(problem.aligned())
    assert jnp.all(jnp.isfinite(slope))
    assert jnp.any(slope != 0)


@pytest.mark.parametrize(("responses", "tokens"), [(6, 2), (8, 3), (4, 1), (4, 0), (2, 4), (1, 2)])
def test_responses_must_be_all_answers(responses, tokens):
    law = to.DataLaw([1.0], [np.full(responses, 1 / responses)])
    with pytest.raises(ValueError, match=f"a world of {responses} responses and tokens={tokens}"):
        Sequence(to.World(law, law), tokens)


def test_it_says_what_it_is():
    assert (
        repr(random_problem(0, 2, 3))
        == "Sequence(World(2 contexts x 8 responses, exact proxy), answers of 3 of 2 tokens)"
    )
