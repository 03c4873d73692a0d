"""Theorems on random instances: `verify` against NumPy, one instance at a time as a reader would, and all of them at once.

Every contender draws its instances, takes both sides of the claim at each, and tells the instance with the least slack and
the sides there. The gate holds those sides to mpmath. NumPy draws plain random worlds; ours are drawn over more regimes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import mpmath
import numpy as np
from numpy.typing import NDArray
from scipy.special import kl_div, rel_entr

from benchmarks.protocol import Benchmark, Contender
from tradeoff import theorems

FEW, MANY = 5_000, 200_000
"""Instances: `verify` compiles with optimisation for the larger number, and is checked against a loop at the smaller."""
CONTEXTS, RESPONSES = 4, 3
"""Of the random worlds of both."""
BLOCK = 1_000
"""Instances that vectorised NumPy handles at a time; so does `verify`."""
RELATIVE, ABSOLUTE = 1e-10, 1e-13
"""What a side may be wrong by."""
GATE = RELATIVE
DIGITS = 40


class Instance(NamedTuple):
    """A world, a penalty, a policy and weights on shared contexts, one or many along leading axes."""

    p_s: Any
    P_s: Any
    p_f: Any
    P_f: Any
    lam: Any
    policy: Any
    q: Any


class Found(NamedTuple):
    """How many instances violate the claim; the one with the least slack, the part with the least slack, both sides there."""

    violations: int
    worst: Instance
    part: int
    left: float
    right: float


def drawn(draw: np.random.Generator, *count: int) -> Instance:
    """Random instances: laws uniform on their simplices, three contexts of four on either side, penalties over twelve decades."""

    def law(*shape: int) -> NDArray[np.float64]:
        odds = draw.exponential(size=(*count, *shape))
        return odds / odds.sum(axis=-1, keepdims=True)

    def some(p: NDArray[np.float64], without: int) -> NDArray[np.float64]:
        kept = p * (np.arange(CONTEXTS) != without)
        return kept / kept.sum(axis=-1, keepdims=True)

    p_s, p_f, q = some(law(CONTEXTS), 3), some(law(CONTEXTS), 2), law(CONTEXTS)
    shared = q * (p_s > 0) * (p_f > 0)
    lam = np.exp(draw.uniform(-6, 6, count) * np.log(10))
    P_s, P_f, policy = (law(CONTEXTS, RESPONSES) for _ in range(3))
    return Instance(p_s, P_s, p_f, P_f, lam, policy, shared / shared.sum(axis=-1, keepdims=True))


# --- the claims as the paper states them, by NumPy --------------------------------------------------------------


def _mixture(at: Instance) -> NDArray[np.float64]:
    mass = at.p_f + at.lam[..., None] * at.p_s
    w = (at.p_f / mass)[..., None]
    return w * at.P_f + (1 - w) * at.P_s


def _gaps(at: Instance, policy: Any) -> tuple[Any, Any]:
    # scipy's kl_div, x log(x/y) - x + y, cancels less than rel_entr near zero.
    return tuple(np.sum(p * kl_div(P, policy).sum(axis=-1), axis=-1) for p, P in ((at.p_s, at.P_s), (at.p_f, at.P_f)))


def _gaps_are_bounded_by_conflict(at: Instance) -> tuple[Any, Any]:
    G_s, G_f = _gaps(at, _mixture(at))
    lam, shared = at.lam, (at.p_s > 0) & (at.p_f > 0)
    delta = np.abs(at.P_s - at.P_f).sum(axis=-1) / 2 * shared
    p_s, p_f = np.where(shared, at.p_s, 1), np.where(shared, at.p_f, 1)
    Delta_s, Delta_f = (at.p_s * delta).sum(axis=-1), (at.p_f * delta).sum(axis=-1)
    by_s = (p_s * delta * np.log1p(p_f / (lam[..., None] * p_s))).sum(axis=-1)
    by_f = (p_f * delta * np.log1p(lam[..., None] * p_s / p_f)).sum(axis=-1)
    pooled_s = Delta_s * np.log1p(Delta_f / (lam * Delta_s))
    pooled_f = Delta_f * np.log1p(lam * Delta_s / Delta_f)
    left = np.stack([G_s, by_s, pooled_s, G_f, by_f, pooled_f], axis=-1)
    return left, np.stack([by_s, pooled_s, Delta_f / lam, by_f, pooled_f, lam * Delta_s], axis=-1)


def _every_policy_pays(at: Instance) -> tuple[Any, Any]:
    mixture, lam = _mixture(at), at.lam
    (G_s, G_f), (least_s, least_f) = _gaps(at, at.policy), _gaps(at, mixture)
    mass = at.p_f + lam[..., None] * at.p_s
    surplus = np.sum(mass * rel_entr(mixture, at.policy).sum(axis=-1), axis=-1)
    return (G_f + lam * G_s)[..., None], (least_f + lam * least_s + surplus)[..., None]


def _no_policy_is_close_to_both(at: Instance) -> tuple[Any, Any]:
    G_s, G_f = _gaps(at, at.policy)
    angle = np.arccos(np.minimum(np.sqrt(at.P_s * at.P_f).sum(axis=-1), 1))
    c_s, c_f = ((at.q / np.where(at.q > 0, p, 1)).max(axis=-1) for p in (at.p_s, at.p_f))
    least = np.minimum(at.p_s, at.p_f)
    Omega = least.sum(axis=-1)

    def arc(gap: Any) -> Any:
        return np.arccos(np.exp(-gap / 2))

    left = np.stack([arc(c_s * G_s) + arc(c_f * G_f), arc(G_s / Omega) + arc(G_f / Omega)], axis=-1)
    return left, np.stack([(at.q * angle).sum(axis=-1), (least * angle).sum(axis=-1) / Omega], axis=-1)


class Claim(NamedTuple):
    """A claim by NumPy: both sides, whether they are equal, and whether the left side is the larger one."""

    sides: Callable[[Instance], tuple[Any, Any]]
    equality: bool = False
    above: bool = False


CLAIMS = {
    "T4a": Claim(_gaps_are_bounded_by_conflict),
    "T2b": Claim(_every_policy_pays, equality=True),
    "T8a": Claim(_no_policy_is_close_to_both, above=True),
}


# --- the same by mpmath -----------------------------------------------------------------------------------------


def exact_sides(name: str, at: Instance) -> tuple[list[Any], list[Any]]:
    """Both sides of a claim at one instance, whose laws are made to sum to one in mpmath's digits."""
    with mpmath.workdps(DIGITS):
        rows = [_law(p) for p in (at.p_s, at.p_f, at.q)]
        tables = [[_law(row) for row in P] for P in (at.P_s, at.P_f, at.policy)]
        return _EXACT[name](*rows, *tables, mpmath.mpf(float(at.lam)))


def _law(values: Any) -> list[Any]:
    exact = [mpmath.mpf(float(value)) for value in values]
    total = mpmath.fsum(exact)
    # A policy may put mass elsewhere, which stays lost.
    return [value / total for value in exact] if abs(total - 1) < RELATIVE else exact


def _kl(P: Any, Q: Any) -> Any:
    return mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(P, Q, strict=True) if a > 0)


def _mean_kl(p: Any, P: Any, Q: Any) -> Any:
    return mpmath.fsum(weight * _kl(a, b) for weight, a, b in zip(p, P, Q, strict=True) if weight > 0)


def _exact_mixture(p_s: Any, p_f: Any, P_s: Any, P_f: Any, lam: Any) -> list[list[Any]]:
    rows = []
    for s, f, a, b in zip(p_s, p_f, P_s, P_f, strict=True):
        w = f / (f + lam * s) if f + lam * s else 1
        rows.append([w * y + (1 - w) * x for x, y in zip(a, b, strict=True)])
    return rows


def _exact_bounds(p_s: Any, p_f: Any, _q: Any, P_s: Any, P_f: Any, _policy: Any, lam: Any) -> tuple[Any, Any]:
    mixture = _exact_mixture(p_s, p_f, P_s, P_f, lam)
    left, right = [], []
    # One side is the other with the two laws exchanged and one over the penalty.
    for p, other, P, price in ((p_s, p_f, P_s, 1 / lam), (p_f, p_s, P_f, lam)):
        delta = [mpmath.fsum(map(abs, map(mpmath.fsub, a, b))) / 2 for a, b in zip(P_s, P_f, strict=True)]
        shared = [(a, b, d) for a, b, d in zip(p, other, delta, strict=True) if a > 0 and b > 0]
        own, far = (mpmath.fsum(row[i] * row[2] for row in shared) for i in (0, 1))
        by_context = mpmath.fsum(a * d * mpmath.log1p(price * b / a) for a, b, d in shared)
        pooled = own * mpmath.log1p(price * far / own) if own else mpmath.mpf(0)
        left += [_mean_kl(p, P, mixture), by_context, pooled]
        right += [by_context, pooled, price * far]
    return left, right


def _exact_price(p_s: Any, p_f: Any, _q: Any, P_s: Any, P_f: Any, policy: Any, lam: Any) -> tuple[Any, Any]:
    mixture = _exact_mixture(p_s, p_f, P_s, P_f, lam)
    paid, least = (_mean_kl(p_f, P_f, at) + lam * _mean_kl(p_s, P_s, at) for at in (policy, mixture))
    mass = [f + lam * s for s, f in zip(p_s, p_f, strict=True)]
    return [paid], [least + _mean_kl(mass, mixture, policy)]


def _exact_angles(p_s: Any, p_f: Any, q: Any, P_s: Any, P_f: Any, policy: Any, _lam: Any) -> tuple[Any, Any]:
    G_s, G_f = _mean_kl(p_s, P_s, policy), _mean_kl(p_f, P_f, policy)
    angle = [
        mpmath.acos(min(mpmath.fsum(mpmath.sqrt(x * y) for x, y in zip(a, b, strict=True)), mpmath.mpf(1)))
        for a, b in zip(P_s, P_f, strict=True)
    ]
    c_s, c_f = (max(a / b for a, b in zip(q, p, strict=True) if b > 0) for p in (p_s, p_f))
    least = list(map(min, p_s, p_f))
    Omega = mpmath.fsum(least)

    def arc(gap: Any) -> Any:
        return mpmath.acos(mpmath.exp(-gap / 2))

    left = [arc(c_s * G_s) + arc(c_f * G_f), arc(G_s / Omega) + arc(G_f / Omega)]
    return left, [mpmath.fdot(q, angle), mpmath.fdot(least, angle) / Omega]


_EXACT: dict[str, Callable[..., tuple[Any, Any]]] = {"T4a": _exact_bounds, "T2b": _exact_price, "T8a": _exact_angles}


# --- contenders -------------------------------------------------------------------------------------------------


def _checked(claim: Claim, at: Instance) -> Found:
    """What the claim shows on many instances: slack is relative to their size, and less than zero where it fails."""
    left, right = claim.sides(at)
    room = _slack(claim, left, right)
    place, part = np.unravel_index(np.argmin(room), room.shape)
    worst = Instance(*(leaf[place] for leaf in at))
    violations = int(np.sum(np.any(room < -RELATIVE, axis=-1)))
    return Found(violations, worst, int(part), float(left[place, part]), float(right[place, part]))


def _slack(claim: Claim, left: Any, right: Any) -> Any:
    room = (left - right if claim.above else right - left) / _size(left, right)
    return -np.abs(room) if claim.equality else room


def _size(left: Any, right: Any) -> Any:
    """The size of two sides; an error of `RELATIVE` of it is one of `ABSOLUTE` where they are small."""
    return np.maximum(np.abs(left), np.abs(right)) + ABSOLUTE / RELATIVE


def _worst(found: Sequence[Found], claim: Claim) -> Found:
    """Of what was found in several batches."""
    least = min(found, key=lambda one: _slack(claim, one.left, one.right))
    return least._replace(violations=sum(one.violations for one in found))


def _ours(name: str, instances: int) -> Callable[[], Found]:
    claim, key = theorems.get(name), jax.random.key(0)

    def run() -> Found:
        verdict = theorems.verify(claim, key, instances)
        at = verdict.worst_instance
        (p_s, P_s), (p_f, P_f) = ((law.p, law.P) for law in (at.world.safety, at.world.capability))
        # What the claim does not speak of is filled with what is at hand.
        policy = np.exp(at.log_policy) if hasattr(at, "log_policy") else P_s
        found = Instance(p_s, P_s, p_f, P_f, getattr(at, "lam", 1.0), policy, getattr(at, "q", p_s))
        part = claim.parts.index(verdict.worst_part) if claim.parts else 0
        return Found(verdict.violations, Instance(*map(np.asarray, found)), part, *verdict.worst_sides)

    return run


def _in_numpy(name: str, instances: int, size: int) -> Callable[[], Found]:
    """So many instances at a time."""
    claim = CLAIMS[name]

    def run() -> Found:
        draw = np.random.default_rng(0)
        return _worst([_checked(claim, drawn(draw, size)) for _ in range(instances // size)], claim)

    return run


def _contenders(name: str, instances: int) -> Callable[[], Sequence[Contender]]:
    def build() -> Sequence[Contender]:
        found = [
            Contender("tradeoff", _ours(name, instances)),
            Contender("numpy vectorised", _in_numpy(name, instances, BLOCK)),
        ]
        if instances == FEW:
            found.append(Contender("numpy loop", _in_numpy(name, instances, 1), repeats=1))
        return found

    return build


def _error(name: str) -> Callable[[Found], float]:
    """The error of the sides at the worst instance, relative to their size; 1 or more when a true claim is called violated."""

    def error(found: Found) -> float:
        left, right = (float(side[found.part]) for side in exact_sides(name, found.worst))
        wrong = max(abs(found.left - left), abs(found.right - right)) / _size(left, right)
        return found.violations + float(wrong)

    return error


BENCHMARKS = tuple(
    Benchmark(
        name=f"verify_{name}_n{instances}",
        title=f"{name} at {instances:,} random instances, drawn and checked",
        contenders=_contenders(name, instances),
        error=_error(name),
        tolerance=GATE,
        bars=bars,
        repeats=repeats,
    )
    for names, instances, repeats, bars in (
        (tuple(CLAIMS), FEW, 5, {"numpy loop": 20.0}),
        (("T4a",), MANY, 1, {}),
    )
    for name in names
)
