r"""Safe Bayesian optimisation of a strategy's settings: the most capable setting, without trying an unsafe one on the way.

Minimise the capability gap subject to safety gap ≤ τ over a finite list of settings (learning rate, mixing share, average's η,
radius ρ, weight of a merge). What is known of the two gaps are two priors, and what was measured; a setting may be tried only if
the safety gap is at most τ with confidence.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from tradeoff._records import is_concrete, record, static
from tradeoff.gaps import Gaps
from tradeoff.problems.quadratic import Quadratic, half_square
from tradeoff.tuning.gaussian_process import Gaussian, Prior, conditioned

Evaluate = Callable[[Array], Gaps]
"""From a setting, shape (k,), to the gaps of the model that it makes."""


@record
class History:
    """A search, query by query; the first is the start.

    Args:
        index: which of the settings were asked for, shape (T,).
        settings: these settings, shape (T, k).
        gaps: what was measured, each of shape (T,).
        bound: the upper confidence bound of the safety gap before it was measured, shape (T,).
        confident: whether the query was in the confidence-safe set (the start always is), shape (T,).
        limit: τ.
    """

    index: Int[Array, "*batch T"]
    settings: Float[Array, "*batch T k"]
    gaps: Gaps
    bound: Float[Array, "*batch T"]
    confident: Bool[Array, "*batch T"]
    limit: ArrayLike

    @property
    def safe(self) -> Bool[Array, "*batch T"]:
        """Which queries turned out safe."""
        return self.gaps.safety <= jnp.asarray(self.limit)[..., None]

    @property
    def violations(self) -> Int[Array, "*batch"]:
        """How many did not."""
        return jnp.sum(~self.safe, -1)

    @property
    def best(self) -> Int[Array, "*batch"]:
        """The number of the most capable query that was safe."""
        return jnp.argmin(jnp.where(self.safe, self.gaps.capability, jnp.inf), -1)

    @property
    def best_capability(self) -> Float[Array, "*batch T"]:
        """The least capability gap of a safe query up to each, shape (T,)."""
        return jax.lax.cummin(jnp.where(self.safe, self.gaps.capability, jnp.inf), axis=self.safe.ndim - 1)


@record
class SafeSearch:
    r"""Goal-oriented safe exploration (GoOSE) with the lower confidence bound, on a list of settings.

    With means μ and standard deviations σ of the two posteriors and a multiplier c, in the unit of τ:

    * confidence-safe: $\mu_s+c\sigma_s\le1$, and the start; possibly safe: $\mu_s-c\sigma_s+\varepsilon\le1$;
    * the goal is the possibly safe setting of least $\mu_f-c\sigma_f$; it is the query if it is confidence-safe;
    * if not, the query is the nearest to it of the confidence-safe settings with $2c\sigma_s\ge\varepsilon$, which have something
      to teach; if there is none, the confidence-safe setting of least $\mu_f-c\sigma_f$.

    Queries depend on what was measured and on nothing else, so under the right priors the next one is unsafe with probability at
    most 1 - Φ(c); see `confidence_multiplier`.

    Args:
        capability: prior of the capability gap.
        safety: prior of the safety gap.
        limit: τ > 0, nats.
        multiplier: c > 0; 2 in the authors' library.
        resolution: ε > 0, in the unit of τ.
        queries: how many in all, the start included.

    Unknown: which distance and which β the paper's experiments use; here distances are in ranges of the settings, and one c serves
    both bounds, as in the authors' library. A setting asked for again is not run again: training is deterministic.

    Source: [fpacoh2022]; methods.md 11.
    """

    capability: Prior
    safety: Prior
    limit: float
    multiplier: float = 2.0
    resolution: float = 0.1
    queries: int = static(default=20)

    kind = "tuner"
    source = "fpacoh2022"
    needs = ("earlier related tasks",)

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("limit", "multiplier", "resolution", "queries"):
            value = getattr(self, name)
            if is_concrete(value) and not 0 < float(value) < float("inf"):
                raise ValueError(f"SafeSearch was given {name}={value}; it must be positive and finite.")


def confidence_multiplier(delta: float, queries: int) -> float:
    r"""$c=\Phi^{-1}(1-\delta/T)$: with it a whole search violates the constraint with probability at most δ.

    Under the right prior the safety gap of the next query is normal given all that was measured, and the query is chosen by that
    alone; so it violates with probability at most 1 - Φ(c), and T queries together at most T times that.

    Args:
        delta: δ in (0, 1).
        queries: T ≥ 1.

    Returns:
        c, of `SafeSearch`; positive if δ/T < 1/2.

    Example:
        >>> round(confidence_multiplier(0.1, 20), 4)
        2.5758
    """
    if not 0 < delta < 1 or queries < 1 or delta / queries >= 0.5:
        raise ValueError(f"delta is {delta} and queries is {queries}; give δ in (0, 1) and T with δ/T below 1/2.")
    return float(ndtri(1 - delta / queries))


def tune(search: SafeSearch, evaluate: Evaluate, candidates: Float[Array, "n k"], start: int = 0) -> History:
    """Search for the most capable safe setting, running one setting after another.

    Args:
        search: priors, limit and rule.
        evaluate: runs a setting, once each.
        candidates: all settings that may be tried, shape (n, k).
        start: the number of one that is known to be safe, such as a strategy's off setting.

    Returns:
        A `History` of as many queries as the search has.

    Raises:
        ValueError: when the start is no candidate or is not safe, or a gap is not finite.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> from tradeoff.tuning import SquaredExponential
        >>> quad, prior = quadratic.golden(), SquaredExponential(0.5, 4.0)
        >>> search = SafeSearch(prior, prior, limit=0.25, queries=12)
        >>> found = tune(search, merging(quad), jnp.linspace(0.0, 1.0, 41)[:, None])
        >>> int(found.violations), round(float(found.settings[found.best, 0]), 4), largest_safe_weight(quad, 0.25)
        (0, 0.475, 0.5)
    """
    _check_start(start, len(candidates))
    laws = _laws(search, candidates)
    known: dict[int, Gaps] = {}
    chosen: list[tuple[Array, Array, Array]] = []
    T = search.queries
    index, measured = np.zeros(T, int), np.zeros((2, T))
    for t in range(T):
        query, bound, confident = _next(search, laws, candidates, jnp.asarray(index), jnp.asarray(measured), t, start)
        number = int(query)
        if number not in known:
            known[number] = _measured(evaluate, candidates[number])
        gaps = known[number]
        if t == 0:
            _check_safe(float(gaps.safety), search.limit)
        index[t], measured[:, t] = number, (float(gaps.capability), float(gaps.safety))
        chosen.append((query, bound, confident))
    _, bound, confident = (jnp.stack(parts) for parts in zip(*chosen, strict=True))
    capability, safety = jnp.asarray(measured)
    return History(jnp.asarray(index), candidates[index], Gaps(safety, capability), bound, confident, search.limit)


def replay(search: SafeSearch, gaps: Gaps, candidates: Float[Array, "n k"], start: int = 0) -> History:
    """The same search on sweeps that were run and logged before.

    Args:
        search: priors, limit and rule.
        gaps: of every setting, each of shape (n,), or (tasks, n) for one sweep of each of several tasks.
        candidates: the settings, shape (n, k).
        start: the number of one that is known to be safe.

    Returns:
        A `History`, with a leading axis for the tasks if there are several.

    Raises:
        ValueError: as `tune`.
    """
    _check_start(start, len(candidates))
    if is_concrete(gaps):
        if not bool(jnp.all(jnp.isfinite(gaps.safety)) & jnp.all(jnp.isfinite(gaps.capability))):
            raise ValueError(
                "the sweep has a gap that is not finite; leave out the settings at which training diverged."
            )
        _check_safe(float(jnp.max(gaps.safety[..., start])), search.limit)
    return _replay(search, gaps, candidates, start)


def merging(quad: Quadratic) -> Evaluate:
    r"""The gaps of $\theta_s+\lambda(\theta_f-\theta_s)$ by the merge weight λ, the one setting: a task whose boundary is known."""
    return lambda setting: quad.gaps(quad.theta_s + setting[0] * quad.displacement)


def largest_safe_weight(quad: Quadratic, limit: float) -> float:
    r"""$\lambda_{\max}=\sqrt{2\tau/d^\top H_sd}$, the merge weight at which the safety gap is τ; inf if it never is.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> largest_safe_weight(quadratic.golden(), 1.0)
        1.0

    Source: methods.md 11.
    """
    with np.errstate(divide="ignore"):
        return float(np.sqrt(np.float64(limit) / float(half_square(quad.H_s, quad.displacement))))


@jax.jit
def _laws(search: SafeSearch, candidates: Array) -> tuple[Gaussian, Gaussian]:
    return search.capability.law(candidates), search.safety.law(candidates)


@jax.jit
def _next(
    search: SafeSearch,
    laws: tuple[Gaussian, Gaussian],
    candidates: Array,
    index: Array,
    measured: Array,
    t: int | Array,
    start: int | Array,
) -> tuple[Array, Array, Array]:
    """The t-th query, the upper bound of its safety gap, and whether it is confidence-safe."""
    known = jnp.arange(search.queries) < t
    c, limit = search.multiplier, search.limit
    mean_f, std_f = conditioned(laws[0], search.capability.noise, index, measured[0], known)
    mean_s, std_s = conditioned(laws[1], search.safety.noise, index, measured[1], known)
    epsilon = search.resolution * limit
    begun = jnp.arange(len(candidates)) == start
    upper = mean_s + c * std_s
    confident = (upper <= limit) | begun
    possible = (mean_s - c * std_s + epsilon <= limit) | confident
    promise = mean_f - c * std_f
    goal = _least(promise, possible)
    span = jnp.ptp(candidates, 0)
    away = jnp.sum(((candidates - candidates[goal][None, :]) / jnp.where(span > 0, span, 1.0)[None, :]) ** 2, 1)
    teaching = confident & (2 * c * std_s >= epsilon)
    detour = jnp.where(jnp.any(teaching), _least(away, teaching), _least(promise, confident))
    query = jnp.where(t == 0, start, jnp.where(confident[goal], goal, detour))
    return query, upper[query], confident[query]


@jax.jit
def _replay(search: SafeSearch, gaps: Gaps, candidates: Array, start: int | Array) -> History:
    if gaps.safety.ndim > 1:
        # One after another: batches of small factorisations gain nothing, and with several threads jaxlib 0.10.2 may hang.
        return jax.lax.map(lambda one: _replay(search, one, candidates, start), gaps)
    laws = _laws(search, candidates)
    T = search.queries

    def step(at: tuple[Array, Array], t: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        index, measured = at
        query, bound, confident = _next(search, laws, candidates, index, measured, t, start)
        seen = jnp.stack([gaps.capability[query], gaps.safety[query]])
        return (index.at[t].set(query), measured.at[:, t].set(seen)), (query, bound, confident)

    first = (jnp.zeros(T, int), jnp.zeros((2, T)))
    (_, (capability, safety)), (index, bound, confident) = jax.lax.scan(step, first, jnp.arange(T))
    return History(index, candidates[index], Gaps(safety, capability), bound, confident, search.limit)


def _least(score: Array, among: Array) -> Array:
    return jnp.argmin(jnp.where(among, score, jnp.inf))


def _measured(evaluate: Evaluate, setting: Array) -> Gaps:
    gaps = evaluate(setting)
    if not np.isfinite(float(gaps.safety)) or not np.isfinite(float(gaps.capability)):
        raise ValueError(
            f"setting {setting.tolist()} gave {gaps}; both gaps must be finite. Leave settings that diverge out."
        )
    return gaps


def _check_start(start: int, count: int) -> None:
    if is_concrete(start) and not 0 <= int(start) < count:
        raise ValueError(f"start is {start} and there are {count} candidates; give the number of one of them, from 0.")


def _check_safe(safety: float, limit: float) -> None:
    if is_concrete(limit) and safety > limit:
        raise ValueError(
            f"the start has a safety gap of {safety:.6g} and the limit is {limit:.6g}; a safe search needs a start "
            "that is safe, such as the off setting of a strategy that stays at the aligned weights."
        )
