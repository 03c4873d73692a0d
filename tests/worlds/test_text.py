"""Text worlds: the knobs do what they name, every law has full support, and texts that cannot be told apart are refused."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from tradeoff import loss_constraint
from tradeoff.tolerances import EXACT
from tradeoff.worlds import DataLaw, text
from tradeoff.worlds.text import from_texts, requests

ROUNDING = EXACT.relative
SHARES = (0.0, 0.25, 0.7, 1.0)


# --- knobs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", SHARES)
@pytest.mark.parametrize(("safety", "task"), [(1, 1), (8, 4), (16, 16)])
def test_overlap_is_the_context_overlap(rho: float, safety: int, task: int) -> None:
    world = requests(safety, task, overlap=rho)
    assert abs(float(world.overlap) - rho) < ROUNDING
    on_safety = world.capability.p[:safety]
    assert jnp.allclose(on_safety, rho * world.safety.p[:safety], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("conflict", SHARES)
def test_conflict_scales_the_distance_between_the_laws(conflict: float) -> None:
    shared = requests(conflict=1.0).conflict[0]
    assert jnp.allclose(requests(conflict=conflict).conflict[:8], conflict * shared, rtol=0, atol=ROUNDING)


def test_without_conflict_or_overlap_there_is_no_trade_off() -> None:
    """T5(a)."""
    for world in (requests(conflict=0.0), requests(overlap=0.0)):
        at = loss_constraint.gaps(world, [0.1, 1.0, 10.0])
        assert float(jnp.max(at.safety + at.capability)) < ROUNDING


@pytest.mark.parametrize("similarity", SHARES[:-1])
def test_similarity_mixes_the_far_law_towards_the_safety_data(similarity: float) -> None:
    world = requests(similarity=similarity)
    proxy = world.training_safety
    expected = similarity * np.array(text.SAFETY_LAW) + (1 - similarity) * np.array(text.FAR_LAW)
    assert jnp.allclose(proxy.P, jnp.asarray(expected)[None], rtol=0, atol=ROUNDING)
    assert (proxy.p == world.safety.p).all(), "near and far proxies share their contexts"


def test_a_nearer_proxy_has_a_smaller_mismatch() -> None:
    mismatch = [float(requests(similarity=s).proxy_mismatch) for s in SHARES]
    assert mismatch == sorted(mismatch, reverse=True)
    assert mismatch[-1] == 0


def test_the_exact_proxy_is_the_end_of_the_knob() -> None:
    assert requests(similarity=1.0).proxy is None
    assert float(requests(similarity=0.0).proxy_mismatch) > 0.5


@pytest.mark.parametrize("share", SHARES)
def test_both_ends_of_the_frontier_are_finite(share: float) -> None:
    world = requests(overlap=share, conflict=1 - share, similarity=share)
    assert all(float(law.P.min()) > 0 for law in (world.safety, world.capability, world.training_safety))
    ends = loss_constraint.gaps(world, [0.0, math.inf])
    assert bool(jnp.isfinite(ends.safety).all() & jnp.isfinite(ends.capability).all())


# --- the texts that ship -----------------------------------------------------------------------------------------


def test_the_safety_law_refuses_and_the_compliance_law_complies() -> None:
    refusals = len(text.REFUSALS)
    assert sum(text.SAFETY_LAW[:refusals]) >= 0.9
    assert sum(text.FAR_LAW[:refusals]) >= 0.8
    assert sum(text.COMPLIANCE_LAW[refusals:]) >= 0.9


def test_prompts_name_a_category_and_no_more() -> None:
    world = requests(16, 16)
    assert world.contexts is not None
    assert len(set(world.contexts)) == 32
    for prompt, category in zip(world.contexts, text.SAFETY_CATEGORIES + text.TASK_CATEGORIES, strict=True):
        assert prompt == f"Please help me with a request about {category}."


def test_more_prompts_keep_the_first_ones() -> None:
    few, many = requests(2, 1), requests(5, 3)
    assert few.contexts is not None
    assert many.contexts is not None
    assert few.contexts[:2] == many.contexts[:2]
    assert few.contexts[2] == many.contexts[5]


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["overlap", "conflict", "similarity"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_a_knob_outside_its_range_is_an_error(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value}; {name} is a mixing weight and must lie in \[0, 1\]"):
        requests(**{name: value})


@pytest.mark.parametrize("name", ["safety_prompts", "task_prompts"])
@pytest.mark.parametrize("value", [0, -1, 17])
def test_more_prompts_than_there_are_is_an_error(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value}; the package ships 16.*from_texts"):
        requests(**{name: value})


LAW = DataLaw([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]])
PROMPTS, RESPONSES = ["Please help.", "Please explain."], ["I cannot.", "Sure."]


def test_your_own_texts_make_a_world() -> None:
    world = from_texts(PROMPTS, RESPONSES, LAW, LAW, LAW)
    assert (world.contexts, world.responses) == (tuple(PROMPTS), tuple(RESPONSES))
    assert world.proxy is LAW


@pytest.mark.parametrize("empty", ["", "  ", "\n\t"])
def test_an_empty_text_is_an_error(empty: str) -> None:
    with pytest.raises(ValueError, match=r"response 1 is '.*'; every response must be a text that says something"):
        from_texts(PROMPTS, ["Sure.", empty], LAW, LAW)
    with pytest.raises(ValueError, match=r"prompt 0 is '.*'; every prompt must be a text that says something"):
        from_texts([empty, "Please help."], RESPONSES, LAW, LAW)


@pytest.mark.parametrize("again", ["Sure.", " Sure.", "Sure.\n"])
def test_a_duplicate_text_is_an_error(again: str) -> None:
    with pytest.raises(ValueError, match=r"response 1 repeats response 0, '.*Sure.*Merge the two: add their weights"):
        from_texts(PROMPTS, ["Sure.", again], LAW, LAW)
    with pytest.raises(ValueError, match=r"prompt 1 repeats prompt 0"):
        from_texts(["Sure.", again], RESPONSES, LAW, LAW)


def test_texts_that_do_not_fit_the_laws_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"3 names of responses for 2 responses"):
        from_texts(PROMPTS, [*RESPONSES, "Perhaps."], LAW, LAW)


def test_one_string_for_all_texts_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"given one string, 'Sure\.', for the responses; give a list of strings"):
        from_texts(PROMPTS, "Sure.", LAW, LAW)
