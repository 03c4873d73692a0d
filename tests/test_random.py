"""Bits are SplitMix64's as published, and the normals made of them are normal, at every precision and without infinities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tradeoff._random import normals, words

MASK = 2**64 - 1


def test_words_are_those_of_the_published_generator():
    state, expected = (7 << 32) | 9, []
    for _ in range(5):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        expected.append(z ^ (z >> 31))
    key = jax.random.wrap_key_data(jnp.array([7, 9], jnp.uint32))
    assert [int(word) for word in words(key, 5)] == expected


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_normals_are_normal(dtype):
    found = normals(jax.random.key(5), (400, 500), dtype)
    assert found.shape == (400, 500)
    assert found.dtype == dtype
    drawn = np.asarray(found, np.float64)
    # bfloat16 rounds to steps of 2^-8, relative, which moves no value of the distribution function by as much as the bound.
    assert scipy.stats.kstest(drawn.ravel(), "norm").statistic < 1.95 / np.sqrt(drawn.size)
    rows = drawn @ drawn.T / drawn.shape[1]
    assert np.abs(rows[~np.eye(len(rows), dtype=bool)]).max() < 6 / np.sqrt(drawn.shape[1])


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_the_extreme_words_make_finite_normals(dtype, monkeypatch):
    ends = jnp.array([0, 2**63 - 1, 2**63, MASK], jnp.uint64)
    monkeypatch.setattr("tradeoff._random.words", lambda key, count: ends)
    least, below, above, most = np.asarray(normals.__wrapped__(jax.random.key(0), (4,), dtype), np.float64)
    assert -10 < least < -5
    assert most == -least
    assert -1e-6 < below < 0
    assert above == -below
