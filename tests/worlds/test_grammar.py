"""Text worlds from a grammar: no prompt is shared, words are as they are asked for, and the two overlaps are apart."""

import itertools
import math
from collections import Counter

import jax
import pytest

from tradeoff import frontier, worlds
from tradeoff.tolerances import EXACT, ROOT, agree
from tradeoff.worlds.grammar import PARTS, words

KEY = jax.random.key(0)
SUBSETS = [chosen for size in range(len(PARTS)) for chosen in itertools.combinations(PARTS, size)]


def counted(world: worlds.World) -> float:
    """Word overlap by counting words one by one."""
    laws = []
    for law in (world.safety, world.capability):
        chances: Counter = Counter()
        for prompt, weight in zip(world.contexts or (), law.p.tolist(), strict=True):
            said = prompt.lower().strip(".?").split()
            chances.update({word: weight * count / len(said) for word, count in Counter(said).items()})
        laws.append(chances)
    return sum((laws[0] & laws[1]).values())


def test_whatever_parts_are_shared_no_prompt_is_and_nothing_must_be_lost():
    for shared in SUBSETS:
        world = worlds.grammar(KEY, 40, 40, shared=shared)
        assert float(world.overlap) == 0
        assert len({words(prompt) for prompt in world.contexts or ()}) == 80
    assert float(frontier.exact(world, [1.0]).capability_at(0.0)) <= ROOT.absolute


def test_more_parts_in_common_are_more_words_in_common_and_none_are_none():
    overlap = {chosen: worlds.word_overlap(worlds.grammar(KEY, 32, 32, shared=chosen)) for chosen in SUBSETS}
    assert overlap[()] == 0
    for fewer, more in itertools.permutations(SUBSETS, 2):
        assert overlap[fewer] < overlap[more] or not set(fewer) < set(more)


def test_word_overlap_counts_words():
    for shared in SUBSETS[:6]:
        for overlap in (0.0, 0.3):
            world = worlds.grammar(KEY, 20, 30, shared=shared, overlap=overlap)
            assert agree(worlds.word_overlap(world), counted(world), EXACT)


def test_literal_overlap_conflict_and_proxy_are_those_of_requests():
    world = worlds.grammar(KEY, 8, 4, shared=["action"], overlap=0.25, conflict=0.6, similarity=0.4)
    other = worlds.requests(8, 4, overlap=0.25, conflict=0.6, similarity=0.4)
    for name, value in other.summary().items():
        assert agree(world.summary()[name], value, EXACT)
    assert worlds.word_overlap(world) > worlds.word_overlap(worlds.grammar(KEY, 8, 4, shared=["action"]))


def test_a_key_draws_one_line_of_worlds():
    few, many = worlds.grammar(KEY, 3, 2), worlds.grammar(KEY, 5, 4, shared=[], overlap=0.5)
    assert (few.contexts or ())[:3] == (many.contexts or ())[:3]
    assert worlds.grammar(jax.random.key(1), 3, 2).contexts != few.contexts
    everything = worlds.grammar(KEY, 1024, 1)
    assert everything.safety.P.shape == (1025, 6)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"shared": ["topic"]}, r"shared=\('topic',\); name some of wording, action, object, category"),
        ({"shared": list(PARTS)}, "prompts that share every part are the same prompts"),
        ({"safety_prompts": 1025}, r"safety_prompts=1025; it makes 1024 prompts"),
        ({"task_prompts": 0}, r"task_prompts=0; .* give a number in \[1, 1024\]"),
        ({"overlap": 1.5}, "overlap=1.5; overlap is a mixing weight"),
        ({"similarity": math.nan}, "similarity=nan; similarity is a mixing weight"),
    ],
)
def test_what_is_no_grammar_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        worlds.grammar(KEY, **given)


def test_words_cannot_be_read_where_there_are_none():
    with pytest.raises(ValueError, match="no names of contexts"):
        worlds.word_overlap(worlds.golden())
