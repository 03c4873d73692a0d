"""Safety is a property of operator and text together, known exactly, and the prompt tells nothing of the answer."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from tradeoff.mechanism.grammars import draw_grammar
from tradeoff.mechanism.pcfg import IDENTITY, Generator, Settings

FULL, SMALL = Generator(Settings()), Generator(Settings.small())
BOTH = pytest.mark.parametrize("generator", [FULL, SMALL], ids=["full", "small"])


def rng(seed=0):
    return np.random.default_rng(seed)


@BOTH
def test_operators_are_bijections_and_their_inverses_recover_the_text(generator):
    s = generator.settings
    assert (generator.bijections[IDENTITY] == np.arange(s.letters)).all()
    np.testing.assert_array_equal(generator.bijections[s.originals :], generator.bijections[list(s.duplicates)])
    examples = generator.draw(rng(), 20)
    for operators, sequence, texts, n in zip(
        examples.operators, examples.complying, generator.texts(examples), examples.prompts, strict=True
    ):
        text = sequence[texts]
        state = generator.apply(operators, text)
        last = n + (s.stages - 1) * (len(text) + 1)
        np.testing.assert_array_equal(sequence[last : last + len(text)], state)
        for operator in reversed(operators):
            state = np.argsort(generator.bijections[operator])[state]
        np.testing.assert_array_equal(state, text)


def test_the_default_sizes_are_the_published_ones():
    s = FULL.settings
    assert (s.letters, s.operators, len(s.duplicates), s.per_prompt, s.grammars, s.window) == (30, 16, 6, 4, 4, 160)
    examples = FULL.draw(rng(), 200)
    lengths = FULL.texts(examples).sum(-1)
    assert lengths.min() >= 25
    assert lengths.max() <= 35
    assert len(set(lengths)) > 5
    stops = examples.complying == s.token("stop")
    assert (stops.sum(-1) == 2).all()  # one after the second operator, one after the fourth
    first = examples.prompts + lengths
    assert stops[np.arange(200), first].all()
    for i in range(20):
        half = FULL.apply(examples.operators[i, :2], examples.complying[i][FULL.texts(examples)[i]])
        np.testing.assert_array_equal(examples.complying[i, examples.prompts[i] : first[i]], half)


def test_a_text_parses_to_its_branch_exactly_when_the_grammar_makes_it():
    grammar = draw_grammar(rng(3), letters=3, symbols=(4,), arity=((2, 3), (1, 2)), rules=2, branch_rules=2)
    words, branches = grammar.layers
    language = {
        sum(spelled, ()): branch
        for branch, rules in enumerate(branches)
        for rule in rules
        for spelled in itertools.product(*(words[symbol] for symbol in rule))
    }
    assert len(language) == 2 * (2 + 4)  # one symbol in two spellings, or two, of each branch: no text twice
    for n in range(1, 7):
        for text in itertools.product(range(3), repeat=n):
            assert grammar.parse(text) == language.get(text)


@BOTH
def test_texts_parse_and_corrupted_ones_do_not(generator):
    examples = generator.draw(rng(), 100)
    corrupted = 0
    for sequence, texts, g, branch in zip(
        examples.complying, generator.texts(examples), examples.grammar, examples.branch, strict=True
    ):
        text = sequence[texts]
        assert generator.grammars[g].parse(text) == branch
        corrupted += generator.grammars[g].parse(text[::-1]) is None
        assert generator.grammars[g].parse(text[:-1]) is None  # a rule is left half read
    assert corrupted > 80


@BOTH
def test_the_combination_decides_what_is_safe(generator):
    s = generator.settings
    for g in range(s.grammars):
        always, never = s.always_unsafe[g], (IDENTITY, *s.always_safe[g])
        neutral = [o for o in range(s.originals) if o not in (*always, *never)]
        assert generator.forbidden[g][:, always].all()
        assert not generator.forbidden[g][:, never].any()
        assert neutral
        assert not generator.forbidden[g, 0, neutral].any()
        assert generator.forbidden[g, 1, neutral].all()
        # A duplicate is what it repeats.
        np.testing.assert_array_equal(generator.forbidden[g][:, s.originals :], generator.forbidden[g][:, s.duplicates])
    for unsafe in (True, False):
        for kind in ("originals", "duplicates"):
            examples = generator.draw(rng(), 100, unsafe, kind)
            assert (examples.unsafe == unsafe).all()
            acting = examples.operators[examples.operators != IDENTITY]
            assert ((acting >= s.originals) == (kind == "duplicates")).all()
    mixed = generator.draw(rng(), 100).unsafe
    assert mixed.any()
    assert not mixed.all()


@BOTH
def test_the_prompt_never_leaks_the_target(generator):
    s = generator.settings
    examples = generator.draw(rng(), 200)
    at = np.arange(s.window)
    prompt = at < examples.prompts[:, None]
    # Both ways to go on share it, whatever the label, and it is the function of operators and text alone.
    assert (examples.complying == examples.refusing)[prompt].all()
    texts = generator.texts(examples)
    for i in range(200):
        head = examples.complying[i, : examples.prompts[i]]
        assert (head[1 : 1 + s.per_prompt] == s.letters + examples.operators[i]).all()
        rest = np.delete(head, np.flatnonzero(texts[i]))[[0, -2, -1]]
        assert list(rest) == [s.token("begin"), s.token("text"), s.token("answer")]
    # What counts as answer is what follows it, and no more.
    for sequences in (examples.complying, examples.refusing):
        counted = generator.answered(examples, sequences)
        assert not (counted & prompt).any()
        assert (sequences[~counted & ~prompt] == s.token("pad")).all()
    # Bijections drawn anew change answers and no prompt: no letter of the prompt hangs on them.
    other = Generator(replace(s, seed=s.seed))
    other.bijections = other.bijections[:, ::-1]
    rows = [
        (chosen, int(grammar), int(branch), sequence[texts])
        for chosen, grammar, branch, sequence, texts in zip(
            examples.operators,
            examples.grammar,
            examples.branch,
            examples.complying,
            generator.texts(examples),
            strict=True,
        )
    ]
    again = other.examples(rows)
    assert (again.complying == examples.complying)[prompt].all()
    assert (again.complying != examples.complying).any(-1).mean() > 0.5


@BOTH
def test_a_refusal_is_the_first_letter_and_one_stop(generator):
    s = generator.settings
    examples = generator.draw(rng(), 20)
    for sequence, n, length in zip(examples.refusing, examples.prompts, generator.texts(examples).sum(-1), strict=True):
        expected = [IDENTITY] * length + [s.token("stop")]
        assert list(sequence[n : n + length + 1]) == expected
        assert (sequence[n + length + 1 :] == s.token("pad")).all()
    np.testing.assert_array_equal(examples.wanted[examples.unsafe], examples.refusing[examples.unsafe])
    np.testing.assert_array_equal(examples.unwanted[examples.unsafe], examples.complying[examples.unsafe])
    np.testing.assert_array_equal(examples.wanted[~examples.unsafe], examples.complying[~examples.unsafe])


def test_the_same_seed_draws_the_same_prompts():
    a, b, c = (Generator(Settings.small(seed=seed)).draw(rng(5), 10) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.complying, b.complying)
    assert (a.complying != c.complying).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"identity": 1.0}, "with 1 no prompt does anything"),
        ({"window": 17}, "the longest sequence has 18 tokens"),
        ({"lengths": (0, 6)}, "at least one letter"),
        ({"arity": ((2, 2),)}, "one entry for each layer"),
        ({"symbols": (1,)}, "shared by two branches"),
        ({"duplicates": (5,)}, "below originals=5"),
        ({"always_unsafe": ((1,),)}, "one entry for each grammar"),
        ({"always_unsafe": ((0,), (3,))}, "the identity is safe"),
        ({"letters": 1}, "at least 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Settings.small(**changes)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="one of all, originals, duplicates"):
        SMALL.draw(rng(), 1, operators="both")
    with pytest.raises(ValueError, match="No operator among the duplicates is unsafe"):
        Generator(Settings.small(duplicates=())).draw(rng(), 1, True, "duplicates")
    with pytest.raises(ValueError, match="gave no text of 1 to 2 letters"):
        Generator(Settings.small(lengths=(1, 2))).draw(rng(), 1)
    with pytest.raises(ValueError, match="no other begins with"):
        Generator(Settings.small(letters=2))
