r"""Divergences between laws on a finite set, exact where they are tiny.

The theory lives where a Kullback-Leibler divergence is 1e-9, and there the usual sum of `P (log P - log Q)` is
rounding noise of either sign. Every divergence here is a sum of terms that are non-negative one by one,

$$ P\log\tfrac PQ - P + Q = P\,h\!\left(\tfrac{Q-P}{P}\right), \qquad h(x) = x - \log(1+x) \ge 0, $$

so that small values keep their relative precision and no value is ever negative. Laws lie along the last axis; logs
are natural and divergences are in nats. All functions broadcast over leading axes, and are differentiable wherever
the divergence is, including where entries of a law are zero.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float
from jaxtyping import ArrayLike as ArrayLike

from tradeoff._compiling import WIDE, compiled
from tradeoff._logits import Divergences as Divergences
from tradeoff._logits import from_logits as from_logits
from tradeoff._logits import kl_logits as kl_logits

Law = Float[Array, "*batch Y"]
"""Probabilities, or log-probabilities, along the last axis."""

NORMALISED_TO = 2.0**12
"""A row whose mass is one to within this many units of rounding is read as a probability law."""
_TERMS = 10
"""Of the series of artanh: of s² up to 3 - 2√2 squared, what they leave out is below rounding."""


# --- functions that cancel near zero, computed without cancelling ------------------------------------------------


@jax.custom_jvp
@jax.jit
def x_minus_log1p(x: Array) -> Array:
    r"""$h(x) = x - \log(1+x)$ for $x\ge-1$, to full relative precision (it is $x^2/2$ near zero)."""
    return jnp.where(x == -1, jnp.inf, jnp.where(x < -1, jnp.nan, _less_log(x, 1 + x)))


def _less_log(x: Array, ratio: Array) -> Array:
    r"""$x - \log(1+x)$ given $1+x>0$ too, as accurately as the caller knows both.

    The ratio is $2^k(1+f)$ with $f$ between $\sqrt{1/2}-1$ and $\sqrt2-1$, and $\log(1+f) = 2\,\mathrm{artanh}(s)$ with
    $s = f/(2+f)$. Where $k=0$, $f$ is $x$, and $x - 2s = x\,s$ is what keeps the precision. One short series serves near
    and far, without the branches of a library's logarithm, and a loop over it stays one loop, sum and all.
    """
    info = jnp.finfo(x.dtype)
    integer = jnp.dtype(f"int{info.bits}")
    bits = lax.bitcast_convert_type(ratio, integer)
    k = (bits - lax.bitcast_convert_type(jnp.asarray(0.5**0.5, x.dtype), integer)) >> info.nmant
    mantissa = lax.bitcast_convert_type(bits - (k << info.nmant), x.dtype)
    same = k == 0
    f = jnp.where(same, x, mantissa - 1)
    s = f * (1 / (2 + f))
    s2 = s * s
    tail = jnp.zeros_like(s)
    for n in range(_TERMS, 0, -1):
        tail = s2 * (1 / (2 * n + 1) + tail)
    return jnp.where(same, x * s, x - k.astype(x.dtype) * math.log(2) - 2 * s) - 2 * s * tail


@x_minus_log1p.defjvp
def _x_minus_log1p_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return x_minus_log1p(x), x / (1 + x) * dx


@jax.custom_jvp
@jax.jit
def expm1_minus_x(x: Array) -> Array:
    r"""$e^x - 1 - x$, to full relative precision (it is $x^2/2$ near zero)."""
    near = jnp.abs(x) < 0.5
    z = jnp.where(near, x, 0)
    tail = jnp.zeros_like(z)
    for k in range(16, 2, -1):
        tail = z / k * (1 + tail)
    return jnp.where(near, z * z / 2 * (1 + tail), jnp.expm1(x) - x)


@expm1_minus_x.defjvp
def _expm1_minus_x_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return expm1_minus_x(x), jnp.expm1(x) * dx


# --- Kullback-Leibler -------------------------------------------------------------------------------------------


@jax.custom_jvp
@jax.jit
def kl_terms(P: Array, Q: Array, D: Array) -> Array:
    r"""$P\log(P/Q) - P + Q$, entry by entry, given $D = Q - P$ as accurately as the caller knows it.

    An entry is never negative; it is `Q` where `P = 0` and `inf` where only `Q = 0`. Handing `D` over is what keeps
    the divergence from a law to a nearby mixture exact: there `D` is a small multiple of a known difference.
    """
    # The only division is one that many mixtures of P share.
    inverse, largest = 1 / jnp.maximum(P, jnp.finfo(P.dtype).tiny), jnp.finfo(P.dtype).max
    inside = P * _less_log(D * inverse, jnp.minimum(Q * inverse, largest))
    return jnp.where(P <= 0, Q, jnp.where(Q <= 0, jnp.inf, inside))


@kl_terms.defjvp
def _kl_terms_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """From D's tangent where the laws are near and that is the accurate one, from Q's where D is nearly -P."""
    (P, Q, D), (dP, dQ, dD) = primals, tangents
    terms = kl_terms(P, Q, D)
    both, near = (P > 0) & (Q > 0), jnp.abs(D) <= 0.1 * P
    by_Q = D / jnp.where(both, Q, 1)
    by_P = (jnp.where(both, terms, 0) - D * jnp.where(near, by_Q, 1)) / jnp.where(both, P, 1)
    inside = by_P * dP + by_Q * jnp.where(near, dD, dQ)
    return terms, jnp.where(both, inside, jnp.where(P > 0, 0, dQ))


def missing_mass(mass: Array) -> Array:
    """The mass that a law on the listed responses puts elsewhere; 0 when it is one to within rounding."""
    missing = 1 - mass
    return jnp.where(jnp.abs(missing) <= NORMALISED_TO * jnp.finfo(mass.dtype).eps, 0, missing)


@compiled(WIDE)
def kl(P: Law, Q: Law) -> Float[Array, "*batch"]:
    r"""Kullback-Leibler divergence $\sum_y P\log(P/Q)$.

    Args:
        P: a probability law, shape (..., Y).
        Q: a probability or sub-probability law, shape (..., Y); mass that `Q` puts elsewhere counts as lost.

    Returns:
        Nats, shape (...); `inf` where `P` puts mass that `Q` does not.

    Example:
        >>> P, Q = jnp.array([0.5, 0.5]), jnp.array([0.9, 0.1])
        >>> round(float(kl(P, Q)), 10)
        0.5108256238
        >>> bool(kl(P, P + jnp.array([1e-9, -1e-9])) > 0)  # 2e-18: far below the rounding of the usual sum
        True
    """
    return jnp.sum(kl_terms(P, Q, Q - P), axis=-1) + missing_mass(jnp.sum(Q, axis=-1))


def kl_log(P: Law, log_Q: Law) -> Float[Array, "*batch"]:
    r"""Kullback-Leibler divergence $\sum_y P\,(\log P - \log Q)$ to a law given by its log-probabilities.

    Args:
        P: a probability law, shape (..., Y).
        log_Q: log-probabilities, shape (..., Y), `-inf` allowed; a row may sum to less than one (a language model
            scored on a list of responses), and the mass elsewhere then counts as lost.

    Returns:
        Nats, shape (...).

    Example:
        >>> round(float(kl_log(jnp.array([1.0, 0.0]), jnp.log(jnp.array([0.25, 0.25])))), 10)  # half the mass is lost
        1.3862943611
    """
    Q = jnp.exp(log_Q)
    inside = P > 0
    impossible = inside & jnp.isneginf(log_Q)
    log_ratio = jnp.where(inside & ~impossible, log_Q, 0) - jnp.log(jnp.where(inside & ~impossible, P, 1))
    near = log_ratio <= 1
    close = P * expm1_minus_x(jnp.where(near, log_ratio, 0))
    terms = jnp.where(near, close, Q - P - P * jnp.where(near, 0, log_ratio))
    terms = jnp.where(inside, jnp.where(impossible, jnp.inf, terms), Q)
    return jnp.sum(terms, axis=-1) + missing_mass(jnp.sum(Q, axis=-1))


def kl_to_mixture(P: Law, Q: Law, w: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    r"""$\mathrm{KL}(P\,\|\,(1-w)P + wQ)$, exact relative to its size for every weight `w` in [0, 1].

    Args:
        P: a probability law, shape (..., Y).
        Q: a probability law, shape (..., Y).
        w: the weight of `Q` in the mixture, shape (...).

    Returns:
        Nats, shape (...).

    Example:
        >>> P, Q = jnp.array([0.5, 0.5]), jnp.array([0.9, 0.1])
        >>> bool(abs(kl_to_mixture(P, Q, jnp.array(1e-8)) / (0.5 * 1e-16 * chi_squared(Q, P)) - 1) < 1e-7)
        True
    """
    w = w[..., None]
    return jnp.sum(kl_terms(P, (1 - w) * P + w * Q, w * (Q - P)), axis=-1)


def binary_kl(a: Array, b: Array) -> Array:
    r"""$\mathrm{kl}(a\,\|\,b) = a\log\frac ab + (1-a)\log\frac{1-a}{1-b}$, elementwise, in nats."""
    return kl_terms(a, b, b - a) + kl_terms(1 - a, 1 - b, a - b)


# --- the rest of the family -------------------------------------------------------------------------------------


@compiled(WIDE)
def jensen_shannon(P: Law, Q: Law, w: ArrayLike = 0.5) -> Float[Array, "*batch"]:
    r"""Weighted Jensen-Shannon divergence $w\,\mathrm{KL}(P\|M) + (1-w)\,\mathrm{KL}(Q\|M)$, $M = wP+(1-w)Q$.

    Args:
        P: a probability law, shape (..., Y).
        Q: a probability law, shape (..., Y).
        w: the weight of `P`, shape (...); one half unless told.

    Returns:
        Nats, shape (...), at most the binary entropy of `w` (ln 2 at one half).

    Example:
        >>> float(jensen_shannon(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))) == float(jnp.log(2.0))
        True
    """
    w = jnp.broadcast_to(jnp.asarray(w, P.dtype), jnp.broadcast_shapes(P.shape, Q.shape)[:-1])
    # One mixture for both terms: rebuilt from 1 - w it would lose a tiny w.
    share = w[..., None]
    mixture = share * P + (1 - share) * Q
    to_P = jnp.sum(kl_terms(P, mixture, (1 - share) * (Q - P)), axis=-1)
    to_Q = jnp.sum(kl_terms(Q, mixture, share * (P - Q)), axis=-1)
    return jnp.minimum(w * to_P + (1 - w) * to_Q, binary_entropy(w))


def total_variation(P: Law, Q: Law) -> Float[Array, "*batch"]:
    r"""Total variation $\frac12\sum_y|P-Q|$, at most 1.

    Example:
        >>> float(total_variation(jnp.array([1.0, 0.0]), jnp.array([0.25, 0.75])))
        0.75
    """
    return jnp.minimum(0.5 * jnp.sum(jnp.abs(P - Q), axis=-1), 1)


def bhattacharyya(P: Law, Q: Law) -> Float[Array, "*batch"]:
    r"""Bhattacharyya coefficient $\sum_y\sqrt{PQ}$ in [0, 1].

    Example:
        >>> round(float(bhattacharyya(jnp.array([0.5, 0.5]), jnp.array([0.9, 0.1]))), 10)
        0.894427191
    """
    return jnp.minimum(jnp.sum(root(P * Q), axis=-1), 1)


def bhattacharyya_angle(P: Law, Q: Law) -> Float[Array, "*batch"]:
    r"""The angle $\arccos\sum_y\sqrt{PQ}$ between the unit vectors $\sqrt P$ and $\sqrt Q$, in [0, π/2].

    Computed from the chord $\|\sqrt P-\sqrt Q\|$, so that close laws keep their angle.

    Example:
        >>> round(float(bhattacharyya_angle(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))), 10)  # a right angle
        1.5707963268
    """
    chord = root(jnp.sum((root(P) - root(Q)) ** 2, axis=-1))
    return jnp.minimum(2 * jnp.arcsin(jnp.minimum(chord / 2, 2**-0.5)), jnp.pi / 2)


def chi_squared(P: Law, Q: Law) -> Float[Array, "*batch"]:
    r"""$\chi^2(P\|Q) = \sum_y (P-Q)^2/Q$, `inf` where `P` puts mass that `Q` does not.

    Example:
        >>> round(float(chi_squared(jnp.array([0.5, 0.5]), jnp.array([0.9, 0.1]))), 10)
        1.7777777778
    """
    inside = Q > 0
    terms = (P - Q) ** 2 / jnp.where(inside, Q, 1)
    return jnp.sum(jnp.where(inside, terms, jnp.where(P > 0, jnp.inf, 0)), axis=-1)


def binary_entropy(w: ArrayLike) -> Array:
    r"""$h(w) = -w\log w - (1-w)\log(1-w)$, elementwise, with $h(0)=h(1)=0$.

    Example:
        >>> float(binary_entropy(0.5)) == float(jnp.log(2.0))
        True
    """
    w = jnp.asarray(w)
    inside = (w > 0) & (w < 1)
    u = jnp.where(inside, w, 0.5)
    return jnp.where(inside, -u * jnp.log(u) - (1 - u) * jnp.log1p(-u), 0)


def root(x: Array) -> Array:
    """Square root with derivative 0 at 0, where laws have their zeros; 0 where rounding went below, and NaN stays NaN."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0 * x)
