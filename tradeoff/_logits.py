r"""Divergences between laws given by logits of vocabulary size, exact where they are tiny, in float32.

For two models that differ little, log Q - log P of two log-softmaxes is rounding noise. Here the difference of the logits is
taken exactly and the normalisers are corrected by a sum that does not cancel; everything is made in blocks of rows that stay
in the cache. `tradeoff.divergences` gives these functions their public names.
"""

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import Chebyshev, Polynomial

from tradeoff._compiling import WIDE, compiled

Logits = Float[Array, "*batch V"]
"""Unnormalised log-probabilities along the last axis, `-inf` where a token is masked; float32 is enough."""

CORES = os.cpu_count() or 1
AT_A_TIME = 2**17 * min(CORES, 4)
"""Entries in one block of rows, shared by the cores: what is made of it stays in their caches, and nothing as large as the input exists."""

LN2 = math.log(2)
EXPONENTIAL = tuple(1 / math.factorial(k) for k in range(2, 19))
"""Taylor coefficients of $(e^z-1-z)/z^2$ in z."""
ARTANH = tuple(1 / (2 * k + 1) for k in range(17))
r"""Taylor coefficients of $\mathrm{artanh}(t)/t$ in $t^2$."""
JENSEN_SHANNON = (
    1 / 2,
    -1 / 4,
    1 / 9,
    -17 / 360,
    31 / 1575,
    -691 / 85050,
    10922 / 3274425,
    -929569 / 681080400,
    3202291 / 5746615875,
    -221930581 / 976924698750,
    9444233042 / 102088631019375,
    -56963745931 / 1513313824522500,
)
r"""Taylor coefficients of $(s\tanh s-\log\cosh s)/s^2$ in $s^2$."""


class Divergences(NamedTuple):
    """Four divergences between the laws of two sets of logits, each of shape (...): nats, and total variation."""

    kl: Array
    reverse_kl: Array
    total_variation: Array
    jensen_shannon: Array


def kl_logits(logits_P: Logits, logits_Q: Logits) -> Float[Array, "*batch"]:
    r"""$\mathrm{KL}(P\|Q)$ of $P=\mathrm{softmax}(a)$, $Q=\mathrm{softmax}(b)$, exact relative to its size in float32.

    A sum of $P(e^r-1-r)$, $r=\log(Q/P)$, in blocks of rows. The difference $b-a$ is exact and the normalisers are corrected
    by $\sum_y P(e^r-1)$, whose terms are small where the laws are close, so that a divergence of 1e-9 keeps its digits.

    Args:
        logits_P: a, shape (..., V), `-inf` allowed; a row without a finite entry, or with NaN, gives NaN.
        logits_Q: b, of the same shape and number format.

    Returns:
        Nats, shape (...), never negative; `inf` where only `Q` is impossible.

    Raises:
        ValueError: when shapes or number formats differ, or there is no token.

    Example:
        >>> a, b = jnp.array([0.0, 0.0], jnp.float32), jnp.array([1e-4, 0.0], jnp.float32)
        >>> f"{float(kl_logits(a, b)):.6g}"  # t²/8 for t = 1e-4, which float32 hardly tells from no difference at all
        '1.25e-09'
    """
    return _in_blocks(_kl_rows, *_check_logits(logits_P, logits_Q))


def from_logits(logits_P: Logits, logits_Q: Logits) -> Divergences:
    r"""KL both ways, total variation and Jensen-Shannon of two sets of logits, in one pass, as precise as `kl_logits`.

    Args:
        logits_P: as in `kl_logits`.
        logits_Q: as in `kl_logits`.

    Returns:
        `Divergences`, each of shape (...): total variation at most 1, Jensen-Shannon at most ln 2.

    Raises:
        ValueError: as `kl_logits`.

    Example:
        >>> found = from_logits(jnp.array([0.0, -jnp.inf]), jnp.array([0.0, 0.0]))  # (1, 0) and (½, ½)
        >>> [round(float(each), 6) for each in found]
        [0.693147, inf, 0.5, 0.215762]
    """
    return _in_blocks(_all_rows, *_check_logits(logits_P, logits_Q))


def _check_logits(a: Array, b: Array) -> tuple[Array, Array]:
    if a.shape != b.shape or a.dtype != b.dtype or not a.shape or not a.shape[-1]:
        raise ValueError(
            f"the logits have shapes {a.shape} and {b.shape}, formats {a.dtype} and {b.dtype}; they must be the same, with "
            "at least one token along the last axis."
        )
    return a, b


@compiled(WIDE, static_argnums=0)
def _in_blocks(rows: Callable[[Array, Array], Any], a: Array, b: Array) -> Any:
    """A function of rows, applied to blocks of them in turn, two at a time."""
    batch, tokens = a.shape[:-1], a.shape[-1]
    a, b = a.reshape(-1, tokens), b.reshape(-1, tokens)
    count = len(a)
    size = max(1, AT_A_TIME // tokens)
    together = min(size, CORES)  # rows are what cores share
    size -= size % together
    if count <= size:
        return jax.tree.map(lambda x: x.reshape(batch), rows(a, b))
    steps = math.ceil(count / (2 * size))
    step = min(count, 2 * together * math.ceil(count / (2 * together * steps)))
    half = step // 2

    def two_blocks(start: Array) -> Any:
        # A slice that would reach past the end is moved back, so the last step may repeat rows of the one before.
        a_here, b_here = (jax.lax.dynamic_slice_in_dim(x, start, step) for x in (a, b))
        # XLA makes a sum on one core: of two chains that do not wait for each other, either keeps the other core busy.
        first, second = rows(a_here[:half], b_here[:half]), rows(a_here[half:], b_here[half:])
        return jax.tree.map(lambda *x: jnp.concatenate(x), first, second)

    found = jax.lax.map(two_blocks, step * jnp.arange(steps))
    again = steps * step - count
    return jax.tree.map(lambda x: jnp.concatenate([x[:-1].reshape(-1), x[-1, again:]]).reshape(batch), found)


def _kl_rows(a: Array, b: Array) -> Array:
    P, Q, r = _laws(a, b)
    terms, excess = (jnp.sum(each, axis=-1) for each in _held((_kl_entries(P, Q, r), _change(P, Q, r))))
    # With r beside log(Q/P) by ε, the terms sum to KL + (e^ε - 1 - ε) and the changes to e^ε - 1, of the order of rounding.
    return jnp.maximum(terms - excess * excess / 2, 0)


def _all_rows(a: Array, b: Array) -> Divergences:
    P, Q, r = _laws(a, b)
    near, _ = _near(r)
    change, forward = _change(P, Q, r), _kl_entries(P, Q, r)
    # (Q - P) log(Q/P) is both ways together, twice either where the laws are close: their difference is as precise.
    backward = jnp.where(near, change * r - forward, _kl_far(Q, P, -r))
    terms = change, forward, backward, _twice_jensen_shannon_entries(P, Q, r)
    excess, forward, backward, shared = (jnp.sum(each, axis=-1) for each in _held(terms))
    # So is Q too large, by e^ε. Divergences of the second order in Q - P change by ε²; total variation must have it out of every entry.
    moved = change - excess[:, None] * P
    # The sign is chosen, not taken: XLA would put `abs` into the sum, and be slow there.
    moved = jnp.sum(_held(jnp.where(moved < 0, -moved, moved)), axis=-1)
    square = excess * excess
    return Divergences(
        jnp.maximum(forward - square / 2, 0),
        jnp.maximum(backward - square / 2, 0),
        jnp.minimum(moved / 2, 1),
        jnp.clip(shared / 2 - square / 8, 0, _at_most_ln2(a.dtype)),
    )


def _laws(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """P, Q and r of rows of logits: log(Q/P) but for one number in a row, the rounding of the sums that normalise."""
    a, b = _held((a, b))
    top_a, top_b = (jnp.max(x, axis=-1, keepdims=True) for x in (a, b))
    weights_a, weights_b = _held((jnp.exp(a - top_a), jnp.exp(b - top_b)))
    mass_a, mass_b = (jnp.sum(x, axis=-1, keepdims=True) for x in (weights_a, weights_b))
    wide = partial(jnp.asarray, dtype=jnp.float64)
    masses = (jnp.log(wide(mass_b)) - jnp.log(wide(mass_a))).astype(a.dtype)
    # b - a less the same of the normalisers, as if in twice the digits.
    (shift, lost_shift), (gap, lost) = _difference(top_b, top_a), _difference(b, a)
    r = _held(((gap - shift) - (lost_shift + masses)) + lost)
    # One reciprocal for a row, where a division would be made for every entry of every sum.
    return weights_a * (1 / mass_a), weights_b * (1 / mass_b), r


def _difference(b: Array, a: Array) -> tuple[Array, Array]:
    """What b - a is rounded to, and what that takes from it (Knuth's two-sum)."""
    gap = b - a
    back = gap - b
    return gap, jnp.where(jnp.abs(gap) < jnp.inf, (b - (gap - back)) - (a + back), 0)


def _held(values: Any) -> Any:
    # XLA sums what lies in memory an order of magnitude faster than what it computes on the way.
    return jax.lax.optimization_barrier(values)


def _change(P: Array, Q: Array, r: Array) -> Array:
    """Q - P, entry by entry."""
    near, z = _near(r)
    return jnp.where(near, P * (z + _exp_beyond_first(z)), Q - P)


def _kl_entries(P: Array, Q: Array, r: Array) -> Array:
    near, z = _near(r)
    return jnp.where(near, P * _exp_beyond_first(z), _kl_far(P, Q, r))


def _kl_far(P: Array, Q: Array, r: Array) -> Array:
    return Q - P - P * jnp.where(P > 0, r, 0)


def _twice_jensen_shannon_entries(P: Array, Q: Array, r: Array) -> Array:
    r"""$P\log\frac{2P}{P+Q}+Q\log\frac{2Q}{P+Q}$; near, $(P+Q)(s\tanh s-\log\cosh s)$ at s = r/2."""
    near, z = _near(r)
    both, square = P + Q, z * z * 0.25
    close = both * square * _series(JENSEN_SHANNON, square, 0, 1 / 16)
    above, below = jnp.where(P > 0, jnp.maximum(r, 0), 0), jnp.where(Q > 0, jnp.minimum(r, 0), 0)
    # log((P + Q) / max(P, Q)) = 2 artanh(t), t at most 1/3: a logarithm would cost more than all the rest.
    larger = jnp.maximum(P, Q)
    t = jnp.minimum(P, Q) / jnp.where(larger > 0, both + larger, 1)
    log = 2 * t * _series(ARTANH, t * t, 0, 1 / 9) - LN2
    return jnp.where(near, close, Q * (below - log) - P * (above + log))


def _near(r: Array) -> tuple[Array, Array]:
    """Where two probabilities are close, and there r, else 0."""
    near = jnp.abs(r) < 0.5
    return near, jnp.where(near, r, 0)


def _exp_beyond_first(z: Array) -> Array:
    """$e^z - 1 - z$ for |z| < 1/2."""
    return z * z * _series(EXPONENTIAL, z, -1 / 2, 1 / 2)


def _series(coefficients: Sequence[float], z: Array, least: float, most: float) -> Array:
    """A power series for z in [least, most] by Horner's rule: of the polynomials as good as it in the format of z, one of least degree."""
    series = Polynomial(coefficients).convert(kind=Chebyshev, domain=[least, most])
    left_out = np.cumsum(np.abs(series.coef[::-1]))[::-1]
    unit = abs(coefficients[0]) * float(jnp.finfo(z.dtype).eps) / 2
    *lower, last = series.truncate(np.sum(left_out > unit)).convert(kind=Polynomial).coef.tolist()
    total = jnp.full_like(z, last)
    for c in reversed(lower):
        total = c + z * total
    return total


def _at_most_ln2(dtype: Any) -> Array:
    """The largest number of a format that is not above ln 2."""
    nearest = np.asarray(LN2, dtype)
    return jnp.asarray(nearest if float(nearest) <= LN2 else np.nextafter(nearest, np.asarray(0, dtype)))
