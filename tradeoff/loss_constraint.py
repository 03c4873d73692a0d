r"""Case I, the alignment loss constraint: fine-tune under a penalty λ on the loss over (proxy) safety data.

In the rich class everything is a closed form. With $\hat w_\lambda=p_f/(p_f+\lambda\hat p_s)$ the minimiser of
$L_f+\lambda\hat L_s$ is the mixture $\hat M_\lambda=\hat w_\lambda P_f+(1-\hat w_\lambda)\hat P_s$ (T1), and the gaps at
it are sums of divergences from a law to a mixture that contains it (T2). Both weights come from their odds, neither from
one less the other, so λ may be 0, infinite or anything between 1e-300 and 1e300, and contexts that only one side has are
exact.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tradeoff import divergences as dv
from tradeoff._compiling import LEAN, WIDE, compiled
from tradeoff._records import Numbers, is_concrete
from tradeoff.gaps import Gaps, weighted
from tradeoff.worlds.world import World

_CACHED, _ABREAST = 2**16, 8
"""Entries of a table of contexts, responses and penalties that is handled at a time; numbers that a processor adds at a time."""

LOG_PENALTIES = (-700.0, 700.0)
"""The range of log λ that inverses search: beyond it a penalty is 0 or infinite in float64."""


# --- the minimiser and its gaps ---------------------------------------------------------------------------------


def optimal_policy(world: World, lam: Numbers) -> Float[Array, "X Y"]:
    r"""The minimiser $\hat M_\lambda$ of $L_{D_f}+\lambda L_{\hat D_s}$ over all policies.

    Args:
        world: the world; the proxy is what the penalty sees.
        lam: penalty λ in [0, inf], a scalar. The ends are the limits: λ = 0 gives P_f wherever the task has weight
            and the proxy's rows elsewhere, λ = inf the reverse. Where neither has weight the minimiser is arbitrary,
            and the proxy's row is returned.

    Returns:
        Log-probabilities, shape (X, Y).

    Raises:
        ValueError: when λ is negative or NaN, or not a scalar.

    Example:
        >>> from tradeoff import worlds
        >>> jnp.exp(optimal_policy(worlds.over_penalised(), 1.0)).round(6).tolist()
        [[0.5, 0.5]]

    Source: T1 (framework).
    """
    lam = check_penalty(lam)
    if lam.ndim:
        raise ValueError(f"optimal_policy was given λ of shape {lam.shape}; give one λ, or jax.vmap over an array.")
    return _optimal_policy(world, lam)


def gaps(world: World, lam: Numbers) -> Gaps:
    r"""Safety and capability gap of the minimiser, exactly: $G_s(\lambda)$ (the true one) and $G_f(\lambda)$.

    Args:
        world: the world.
        lam: penalties in [0, inf], a scalar or shape (L,).

    Returns:
        `Gaps` in nats, of the shape of `lam`; `inf` where supports escape (λ at an end, or a proxy that rules out
        what the safety data contain).

    Raises:
        ValueError: when a penalty is negative or NaN (its index is named).

    Example:
        >>> from tradeoff import worlds
        >>> at = gaps(worlds.golden(), [0.1, 1.0, 10.0])
        >>> [round(gap, 13) for gap in at.safety.tolist()]
        [0.3784700509623, 0.0865564926087, 0.0044228528827]

    Source: T2(a) (framework).
    """
    at = _sweep(world, check_penalty(lam))
    return Gaps(at["safety"], at["capability"])


def value(world: World, lam: Numbers) -> Float[Array, "*L"]:
    r"""The least penalised sum of gaps, $\hat V(\lambda)=\min_P[G_f(P)+\lambda\hat G_s(P)]$.

    With the exact proxy this is $V(\lambda)=\sum_x m_\lambda\mathrm{JSD}_{w_\lambda}(P_f,P_s)$, the support function of the
    Pareto frontier; its limit at λ = inf is the capability gap of perfect safety.

    Args:
        world: the world.
        lam: penalties in [0, inf], a scalar or shape (L,).

    Returns:
        Nats, of the shape of `lam`; concave and non-decreasing in λ.

    Example:
        >>> from tradeoff import worlds
        >>> round(float(value(worlds.golden(), 1.0)), 13)
        0.1998357690277

    Source: T2(b) (framework).
    """
    return _sweep(world, check_penalty(lam))["value"]


def proxy_gap(world: World, lam: Numbers) -> Float[Array, "*L"]:
    r"""The proxy gap $\hat G_s(\lambda)$ of the minimiser: what the penalty drives down, always monotonically.

    Example:
        >>> from tradeoff import worlds
        >>> [round(gap, 4) for gap in proxy_gap(worlds.over_penalised(), [1.0, 10.0]).tolist()]
        [0.3681, 0.0212]
    """
    return _sweep(world, check_penalty(lam))["proxy"]


def mixture_weights(world: World, lam: Numbers) -> tuple[Float[Array, "X *L"], Float[Array, "X *L"]]:
    r"""The weights $\hat w_\lambda$ of the task and $1-\hat w_\lambda$ of the proxy in every context, each exact when tiny.

    Args:
        world: the world.
        lam: penalties in [0, inf], a scalar or shape (L,).

    Returns:
        Two arrays of shape (X,) or (X, L).
    """
    lam = jnp.asarray(lam, jnp.float64)
    p_f, p_s = _with_lanes(world.capability.p, lam), _with_lanes(world.training_safety.p, lam)
    f, s = p_f > 0, p_s > 0
    share, rest = _shares(jnp.where(s, p_s, 1) / jnp.where(f, p_f, 1), lam[None])
    return jnp.where(f, jnp.where(s, share, 1), 0), jnp.where(f, jnp.where(s, rest, 0), 1)


# --- inverses, limits and over-penalising -----------------------------------------------------------------------


def penalty_for(world: World, *, safety_gap: Numbers) -> Float[Array, "*N"]:
    r"""The penalty $\lambda(\tau)=-F'(\tau)$ at which the exact frontier has safety gap τ.

    This is the multiplier of the literal constraint $\min G_f$ subject to $G_s\le\tau$ on the true safety data (T7); the
    proxy plays no part. For the constraint that fine-tuning can enforce, pass `world.as_seen_through_proxy()`.

    Args:
        world: the world.
        safety_gap: τ ≥ 0 in nats, a scalar or an array.

    Returns:
        λ in [0, inf], of the shape of τ: 0 where the constraint does not bind, inf at τ = 0.

    Raises:
        ValueError: when a τ is negative or NaN.

    Example:
        >>> from tradeoff import worlds
        >>> round(float(penalty_for(worlds.golden(), safety_gap=0.0865564926087)), 9)
        1.0

    Source: T7 (framework).
    """
    tau = check_scale("safety_gap", safety_gap)
    return _penalty_for(world.with_exact_proxy(), tau)


def first_order_approach(world: World) -> Float[Array, ""]:
    r"""Γ of $G_s(\lambda)=\Phi-\Gamma/\lambda+O(\lambda^{-2})$: positive when raising a large penalty raises the safety gap.

    $\Gamma=\sum_x(p_sp_f/\hat p_s)(E_{P_s}[P_f/\hat P_s]-1)$.

    Example:
        >>> from tradeoff import worlds
        >>> round(float(first_order_approach(worlds.over_penalised())), 9)  # 32/9
        3.555555556

    Source: T6(c), T6(g) (framework).
    """
    safety, task, proxy = world.safety, world.capability, world.training_safety
    # E[P_f/P̂_s] - 1 = Σ (P_s - P̂_s)(P_f - P̂_s)/P̂_s: nothing of order one is subtracted where the three laws are close.
    inside = proxy.P > 0
    spread = (safety.P - proxy.P) * (task.P - proxy.P) / jnp.where(inside, proxy.P, 1)
    ruled_out = jnp.where(safety.P * task.P > 0, jnp.inf, -(safety.P + task.P))
    excess = jnp.sum(jnp.where(inside, spread, ruled_out), axis=-1)
    covered = proxy.p > 0
    scale = jnp.where(covered, safety.p * task.p / jnp.where(covered, proxy.p, 1), 0)
    return weighted(scale, excess)


def best_penalty(world: World) -> float:
    r"""The penalty with the least true safety gap over [0, inf], found globally and certified.

    A bad proxy makes the safety gap rise beyond some λ*, may give it several minima, and may put the least one at 0
    (T6(g)). The gap is a sum of convex functions of the weights $\hat w_x$, each monotone in λ, so tangents bound it from
    below on any interval of penalties; intervals are halved until none can hold a value below the best one found.

    Args:
        world: the world.

    Returns:
        λ* in [0, inf]; where several penalties are equally good (within 1e-13) an end is preferred, 0 before inf.

    Raises:
        ValueError: when the safety gap is infinite at every penalty (the proxy and the task both rule out a response
            that the safety data contain).

    Example:
        >>> from tradeoff import worlds
        >>> round(best_penalty(worlds.over_penalised()), 9), best_penalty(worlds.golden())
        (1.0, inf)

    Source: T6(g) (framework).
    """
    ends = np.asarray(gaps(world, jnp.array([0.0, jnp.inf])).safety)
    shared = np.asarray((world.capability.p > 0) & (world.training_safety.p > 0) & (world.safety.p > 0))
    if not shared.any():
        return _better_end(ends)
    centre = np.log(np.asarray(world.capability.p)[shared]) - np.log(np.asarray(world.training_safety.p)[shared])
    # Beyond 45 units of log-odds a mixture weight is below the rounding of one: the gap has reached its limit.
    edges = np.linspace(centre.min() - 45, centre.max() + 45, _INTERVALS + 1)
    low, high = edges[:-1], edges[1:]
    best_at, best = 0.0, np.inf
    while low.size:
        middle = (low + high) / 2
        at_middle, bound = _bounded_on_intervals(world, low, high)
        if at_middle.min() < best:
            best, best_at = float(at_middle.min()), float(middle[at_middle.argmin()])
        undecided = (bound < best - 1e-13 * max(best, 1e-3)) & (high - low > 1e-7)
        low, high, middle = low[undecided], high[undecided], middle[undecided]
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
    if not np.isfinite(min(best, ends.min())):
        raise ValueError(
            "best_penalty: the safety gap is infinite at every penalty, because in some context the proxy and the task "
            "both give probability 0 to a response of the safety data; smooth the proxy (add-one, T10)."
        )
    if ends.min() <= best * (1 + 1e-13):
        return _better_end(ends)
    return float(jnp.exp(_stationary(world, jnp.float64(best_at))))


def check_penalty(lam: Numbers) -> Array:
    """`lam` as float64, after the check that every penalty lies in [0, inf]."""
    return check_scale("penalty λ", lam)


def check_scale(what: str, values: Numbers) -> Array:
    """`values` as float64, after the check that none is negative or NaN."""
    if is_concrete(values):
        array = np.asarray(values, np.float64)
        wrong = ~(array >= 0)
        if wrong.any():
            index = np.unravel_index(int(np.argmax(wrong)), array.shape)
            where = f" at index {', '.join(map(str, index))}" if array.ndim else ""
            raise ValueError(f"{what} is {array[index]}{where}; it must be a number in [0, inf].")
    return jnp.asarray(values, jnp.float64)


# --- kernels ----------------------------------------------------------------------------------------------------


@jax.custom_jvp
def _shares(ratio: Array, lam: Array) -> tuple[Array, Array]:
    """1 and `ratio` λ as shares of their sum, each exact when tiny, with derivatives that are so at every λ, also 0 and inf."""
    odds = ratio * lam
    return 1 / (1 + odds), 1 / (1 + 1 / odds)


@_shares.defjvp
def _shares_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[tuple, tuple]:
    (ratio, _), (d_ratio, d_lam) = primals, tangents
    share, rest = _shares(*primals)
    moved = share * (rest / ratio * d_ratio + share * ratio * d_lam)
    return (share, rest), (-moved, moved)


def _log(x: Array) -> Array:
    """Log with -inf at 0 and a finite derivative there."""
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1)), -jnp.inf)


@jax.jit
def _optimal_policy(world: World, lam: Array) -> Array:
    task, safety = mixture_weights(world, lam)
    from_task = _log(task)[:, None] + _log(world.capability.P)
    from_safety = _log(safety)[:, None] + _log(world.training_safety.P)
    neither = jnp.isneginf(from_task) & jnp.isneginf(from_safety)
    either = jnp.logaddexp(jnp.where(neither, 0, from_task), jnp.where(neither, 0, from_safety))
    return jnp.where(neither, -jnp.inf, either)


def _gaps_at(world: World, lam: Array) -> dict[str, Array]:
    """Gaps and value at one penalty, or at some along a last axis."""
    task, safety = (w[None, :, None] for w in mixture_weights(world, lam))
    seen = world.training_safety
    laws = [world.capability, world.safety, *([] if world.proxy is None else [seen])]
    tables = world.capability.P[None], seen.P[None], jnp.stack([law.P for law in laws])
    P_f, P_seen, P = (_with_lanes(table, lam) for table in tables)
    # All divergences as one: half the program to compile, and one of the differences is always zero.
    terms = dv.kl_terms(P, task * P_f + safety * P_seen, task * (P_f - P) + safety * (P_seen - P))
    lost = jnp.sum(terms, axis=2)
    capability, true, *rest = (weighted(law.p, each) for law, each in zip(laws, lost, strict=True))
    proxy = rest[0] if rest else true
    # At λ = inf the product λ·gap has the limit 0 whenever the capability gap is finite, and does not matter otherwise.
    inside = (lam > 0) & jnp.isfinite(lam)
    penalised = jnp.where(inside, lam, 0) * jnp.where(inside, proxy, 0)
    return {"safety": true, "capability": capability, "proxy": proxy, "value": capability + penalised}


def _with_lanes(values: Array, lam: Array) -> Array:
    """With an axis of one after the others for each axis of λ."""
    return values[(..., *[None] * lam.ndim)]


@compiled(WIDE | LEAN)
def _sweep(world: World, lam: Array) -> dict[str, Array]:
    """Gaps at every penalty, some at a time, each in a lane of its own: a value does not depend on the grid around it."""
    if lam.ndim == 0:
        return _gaps_at(world, lam)
    flat, lanes = lam.ravel(), _lanes(world, lam.size)
    blocks = jnp.pad(flat, (0, -flat.size % lanes), constant_values=1).reshape(-1, lanes)
    found = jax.lax.map(lambda block: _gaps_at(world, block), blocks)
    return {name: values.ravel()[: flat.size].reshape(lam.shape) for name, values in found.items()}


def _lanes(world: World, penalties: int) -> int:
    """How many penalties at a time: whole vectors of them whose tables stay in the processor's cache, or one."""
    size = world.safety.P.size
    if size > _CACHED // _ABREAST:
        # A vector of lanes from memory is still faster than one after the other; fewer lanes than a vector are slower.
        return _ABREAST if size <= 2 * _CACHED and penalties > _ABREAST // 2 else 1
    return min(2 ** int(np.log2(_CACHED // size)), -(-max(1, penalties) // _ABREAST) * _ABREAST)


@compiled(WIDE | LEAN)
def _penalty_for(world: World, tau: Array) -> Array:
    log_lam = bisect(lambda s: _sweep(world, jnp.exp(s))["safety"] - tau, tau.shape)
    # Where the task rules out what the safety data contain, the gap at 0 is infinite and any penalty at all is needed.
    ruled_out = jnp.any(world.shared[:, None] & (world.safety.P > 0) & (world.capability.P <= 0))
    slack = jnp.isinf(tau) | (~ruled_out & (log_lam <= LOG_PENALTIES[0] + 1))
    return jnp.where(slack, 0, jnp.where(tau == 0, jnp.inf, jnp.exp(log_lam)))


def bisect(decreasing: Callable[[Array], Array], shape: tuple[int, ...] = ()) -> Array:
    """The root of a decreasing function of log λ, to the last bit, by bisection over `LOG_PENALTIES`; of many at once, each its own.

    Where it jumps past zero (an infinite gap, where a mixture underflows) the root is the first number beyond the jump.
    """

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        right = decreasing(middle) > 0
        return jnp.where(right, middle, low), jnp.where(right, high, middle)

    low, high = (jnp.full(shape, s, jnp.float64) for s in LOG_PENALTIES)
    return jax.lax.fori_loop(0, 64, halve, (low, high))[1]


def _terms(world: World, lam: Array) -> tuple[Array, Array, Array]:
    r"""Per context and penalty: the weight $\hat w$, the term $p_s\mathrm{KL}(P_s\|\hat M)$ and its derivative in $\hat w$."""
    task, safety = mixture_weights(world, lam)
    tables = world.safety.P, world.capability.P, world.training_safety.P, world.safety.p
    P_s, P_f, seen, p_s = (_with_lanes(table, lam) for table in tables)
    D = task[:, None] * (P_f - P_s) + safety[:, None] * (seen - P_s)
    mixture = task[:, None] * P_f + safety[:, None] * seen
    term = jnp.where(p_s > 0, p_s * jnp.sum(dv.kl_terms(P_s, mixture, D), axis=1), 0)
    kept = (P_s > 0) & (mixture > 0)
    slope = -jnp.sum(jnp.where(kept, P_s * (P_f - seen) / jnp.where(kept, mixture, 1), 0), axis=1)
    return task, term, p_s * slope


_INTERVALS = 256


def _bounded_on_intervals(world: World, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The safety gap at the middle of each interval of log λ, and a lower bound of it there; in blocks of one size."""
    size = -low.size % _INTERVALS
    blocks = [np.pad(edge, (0, size), mode="edge").reshape(-1, _INTERVALS) for edge in (low, high)]
    results = [_middle_and_bound(world, *block) for block in zip(*blocks, strict=True)]
    at_middle, bound = (np.concatenate([np.asarray(r[i]) for r in results])[: low.size] for i in (0, 1))
    return at_middle, bound


@compiled(WIDE | LEAN)
def _middle_and_bound(world: World, low: Array, high: Array) -> tuple[Array, Array]:
    def some(ends: tuple[Array, Array]) -> tuple[Array, Array]:
        # Weights fall with λ, so w1 <= w0; a convex term lies above its tangents at both.
        (w1, f1, d1), (w0, f0, d0) = (_terms(world, jnp.exp(end)) for end in (ends[1], ends[0]))
        crossing = jnp.where(d0 > d1, (f1 - f0 + d0 * w0 - d1 * w1) / jnp.where(d0 > d1, d0 - d1, 1), w1)
        inside = jnp.minimum(f1 + d1 * (crossing - w1), jnp.minimum(f0, f1))
        bound = jnp.sum(jnp.where(d1 >= 0, f1, jnp.where(d0 <= 0, f0, inside)), axis=0)
        return _gaps_at(world, jnp.exp((ends[0] + ends[1]) / 2))["safety"], bound

    lanes = _lanes(world, low.size)
    at_middle, bound = jax.lax.map(some, (low.reshape(-1, lanes), high.reshape(-1, lanes)))
    return at_middle.ravel(), bound.ravel()


@jax.jit
def _stationary(world: World, log_lam: Array) -> Array:
    """The stationary point of the safety gap next to an interior minimum that is known to about 1e-7 in log λ."""
    slope = jax.grad(lambda s: _gaps_at(world, jnp.exp(s))["safety"])

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        falling = slope(middle) < 0
        return jnp.where(falling, middle, low), jnp.where(falling, high, middle)

    low, high = log_lam - 1e-4, log_lam + 1e-4
    bracketed = (slope(low) < 0) & (slope(high) > 0)
    low, high = jax.lax.fori_loop(0, 50, halve, (low, high))
    return jnp.where(bracketed, (low + high) / 2, log_lam)


def _better_end(ends: np.ndarray) -> float:
    return 0.0 if ends[0] <= ends[1] else float("inf")
