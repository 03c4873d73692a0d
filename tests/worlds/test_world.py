"""Worlds: their knobs, the quantities that they report, and the input that they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tradeoff as to
from tests.problems import WORLDS
from tradeoff.tolerances import EXACT, IDENTITY

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


def close(a, b):
    return abs(float(a) - float(b)) <= IDENTITY.absolute + IDENTITY.relative * abs(float(b))


@pytest.mark.parametrize("seed", range(3))
def test_overlap_is_what_its_knob_says(seed):
    for overlap in GRID:
        world = to.worlds.random(jax.random.key(seed), overlap=overlap)
        assert close(world.overlap, overlap)
        assert close(world.bhattacharyya_overlap, np.sqrt(overlap))


@pytest.mark.parametrize("seed", range(3))
def test_conflict_scales_with_its_knob(seed):
    full = to.worlds.random(jax.random.key(seed), conflict=1.0)
    for conflict in GRID:
        world = to.worlds.random(jax.random.key(seed), conflict=conflict)
        assert close(world.conflict_safety, conflict * full.conflict_safety)
        assert close(world.conflict_capability, conflict * full.conflict_capability)


@pytest.mark.parametrize("seed", range(3))
def test_mismatch_falls_with_similarity(seed):
    worlds = [to.worlds.random(jax.random.key(seed), similarity=similarity) for similarity in GRID]
    for name in ("proxy_mismatch", "proxy_kl", "proxy_total_variation"):
        values = [float(getattr(world, name)) for world in worlds]
        assert all(a > b for a, b in zip(values, values[1:], strict=False))
        assert values[-1] == 0


def test_the_golden_world_reports_its_printed_quantities():
    summary = to.worlds.golden().summary()
    assert close(summary["conflict_safety"], 0.48)
    assert close(summary["conflict_capability"], 0.30)
    assert close(summary["overlap"], 0.4)


@pytest.mark.parametrize("name", WORLDS)
def test_quantities_satisfy_their_inequalities(name):
    world = WORLDS[name]
    one = 1 + EXACT.relative
    assert 0 <= world.overlap <= world.bhattacharyya_overlap * one
    assert world.bhattacharyya_overlap <= one
    assert jnp.all((world.conflict >= 0) & (world.conflict <= 1))
    assert world.conflict_safety <= one
    assert world.proxy_mismatch <= world.proxy_kl * one
    assert 2 * world.proxy_total_variation**2 <= world.proxy_kl + IDENTITY.absolute


def test_a_sweep_of_worlds_can_be_mapped_and_compiled():
    def gap(similarity, key):
        return to.worlds.random(key, similarity=similarity).proxy_mismatch

    keys = jax.random.split(jax.random.key(0), 4)
    mapped = jax.jit(jax.vmap(gap))(jnp.linspace(0.0, 1.0, 4), keys)
    single = [gap(s, k) for s, k in zip(np.linspace(0, 1, 4), keys, strict=True)]
    np.testing.assert_allclose(mapped, jnp.stack(single), rtol=EXACT.relative, atol=IDENTITY.absolute)


def test_a_world_survives_a_file_to_the_last_bit(tmp_path):
    named = to.World(WORLDS["random_proxy"].safety, WORLDS["random_proxy"].capability, contexts=list("abcdef"))
    for world in (*WORLDS.values(), named):
        to.worlds.write(world, tmp_path / "world.json")
        back = to.worlds.read(tmp_path / "world.json")
        assert back.contexts == world.contexts
        for a, b in zip(jax.tree.leaves(world), jax.tree.leaves(back), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("p", "P", "says"),
    [
        ([0.5, 0.6], [[1.0], [1.0]], r"p, the law over contexts, sums to 1\.1; a law must sum to 1"),
        ([0.5, 0.5], [[1.5, -0.5], [0.5, 0.5]], r"P\[0\].* has -0\.5 at index 1; .* non-negative"),
        ([0.5, 0.5], [[1.0, 0.0], [float("nan"), 1.0]], r"P\[1\].* has nan at index 0; .* finite"),
        ([1.0], [[0.5, 0.5], [0.5, 0.5]], r"p of shape \(1,\) and P of shape \(2, 2\); it needs p of shape \(X,\)"),
        ([0.5, 0.5], [[-0.7, -1.2], [-0.1, -2.3]], r"not logits or log-probabilities"),
        ([], np.zeros((0, 3)), r"at least one context and one response"),
    ],
)
def test_what_is_not_a_law_is_refused(p, P, says):
    with pytest.raises(ValueError, match=says):
        to.DataLaw(p, P)


def test_laws_that_do_not_share_their_lists_are_refused():
    with pytest.raises(ValueError, match=r"capability data over \(1, 3\).* and safety data over \(1, 2\)"):
        to.World(to.DataLaw([1.0], [[0.5, 0.5]]), to.DataLaw([1.0], [[0.2, 0.3, 0.5]]))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["yes"], "1 names of responses for 2"),
        (["yes", "yes"], r"responses\[1\] repeats responses\[0\], 'yes'; .* merge"),
        (["yes", " "], r"responses\[1\] is ' '; every name"),
    ],
)
def test_names_that_do_not_name_are_refused(names, says):
    law = to.DataLaw([1.0], [[0.5, 0.5]])
    with pytest.raises(ValueError, match=says):
        to.World(law, law, responses=names)


@pytest.mark.parametrize("knob", ["overlap", "similarity", "conflict"])
def test_knobs_outside_the_unit_interval_are_refused(knob):
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"{knob}=.*must lie in \[0, 1\]"):
            to.worlds.random(jax.random.key(0), **{knob: value})
    with pytest.raises(ValueError, match="at least 2"):
        to.worlds.random(jax.random.key(0), contexts=1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not json", "is not JSON"),
        ("[1]", "holds a list"),
        ('{"safety": {"p": [1], "P": [[1]]}}', "safety and capability are both required"),
        (
            '{"safety": {"p": [1]}, "capability": {"p": [1], "P": [[1]]}}',
            'safety must be an object with exactly "p" and "P"',
        ),
        (
            '{"safety": {"p": [2], "P": [[1]]}, "capability": {"p": [1], "P": [[1]]}}',
            "safety: p, the law over contexts, sums to 2",
        ),
        ('{"unsafe": 1}', r"unknown fields \['unsafe'\]"),
    ],
)
def test_files_that_hold_no_world_are_refused(tmp_path, text, says):
    path = tmp_path / "world.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        to.worlds.read(path)
    assert str(path) in str(caught.value)
