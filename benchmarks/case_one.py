"""Case I by its closed forms: both gaps and the value at many penalties, against NumPy, CVXPY and the logarithms alone."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from benchmarks.protocol import Benchmark, Contender, peer
from tradeoff import loss_constraint, worlds
from tradeoff.worlds import World

GATE = 1e-10
"""The largest relative error of a gap or a value, over penalties at which a gap may be 1e-13."""
LOGS, SERIES = "its logarithms alone", "numpy with a series"
DRAWN = 24
"""So many answers are compared with mpmath, drawn over all penalties and worlds."""
DIGITS = 40
NEAR = 0.02
"""Where NumPy takes the series: what it leaves out and what cancels beyond it are both far below the gate."""
WORLDS = 250
"""Worlds that ours handles at a time."""
BLOCK = 1 << 14
"""Numbers that NumPy handles at a time: some arrays of so many fit in the cache."""


class Answer(NamedTuple):
    """Both gaps and the value, nats, one for every world and penalty in that order."""

    safety: Any
    capability: Any
    value: Any


class Laws(NamedTuple):
    """The laws of worlds, with worlds along a first axis: contexts, shape (W, X), and responses, shape (W, X, Y)."""

    p_s: NDArray[np.float64]
    P_s: NDArray[np.float64]
    p_f: NDArray[np.float64]
    P_f: NDArray[np.float64]


class Setting(NamedTuple):
    """What is swept: so many worlds of one shape, each at all penalties."""

    count: int
    contexts: int
    responses: int
    lams: NDArray[np.float64]

    @property
    def logarithms(self) -> int:
        """How many the formula needs: one for every response in either gap."""
        return 2 * self.count * len(self.lams) * self.contexts * self.responses


ONE_WORLD = Setting(1, 32, 16, np.geomspace(1e-6, 1e6, 10_000))
MANY_WORLDS = Setting(10_000, 4, 3, np.geomspace(1e-6, 1e6, 100))
FEW_PENALTIES = Setting(1, 32, 16, np.geomspace(0.1, 10, 5))


@cache
def drawn_worlds(count: int, contexts: int, responses: int) -> World:
    """Random worlds with an exact proxy, half of whose contexts are shared, along a leading axis."""

    def one(key: jax.Array) -> World:
        return worlds.random(key, contexts, responses, overlap=0.5).with_exact_proxy()

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), count))


def laws(setting: Setting) -> Laws:
    """The same worlds for NumPy."""
    all_of_them = drawn_worlds(*setting[:3])
    safety, capability = all_of_them.safety, all_of_them.capability
    return Laws(*(np.asarray(leaf) for leaf in (safety.p, safety.P, capability.p, capability.P)))


@cache
def reference(count: int, contexts: int, responses: int, lams: tuple[float, ...]) -> tuple[NDArray[np.int64], Answer]:
    """The places of some answers, and these from the definitions in mpmath with laws that sum to one in its digits."""
    places = np.random.default_rng(0).choice(count * len(lams), min(DRAWN, count * len(lams)), replace=False)
    given = laws(Setting(count, contexts, responses, np.array(lams)))
    with mpmath.workdps(DIGITS):
        found = [
            _exact(Laws(*(leaf[place // len(lams)] for leaf in given)), lams[place % len(lams)])
            for place in map(int, places)
        ]
    return places, Answer(*np.array(found).T)


def _exact(world: Laws, lam: float) -> tuple[float, float, float]:
    def law(values: Any) -> list[Any]:
        exact = [mpmath.mpf(float(value)) for value in values]
        return [value / mpmath.fsum(exact) for value in exact]

    safety = capability = mpmath.mpf(0)
    for s, f, row_s, row_f in zip(law(world.p_s), law(world.p_f), world.P_s, world.P_f, strict=True):
        if s == 0 or f == 0:
            continue  # a context of one side alone costs nothing
        task = f / (f + lam * s)
        for a, b in zip(law(row_s), law(row_f), strict=True):
            mixture = task * b + (1 - task) * a
            safety += s * a * mpmath.log(a / mixture)
            capability += f * b * mpmath.log(b / mixture)
    return float(safety), float(capability), float(capability + lam * safety)


def _error(setting: Setting) -> Callable[[Answer], float]:
    def error(found: Answer) -> float:
        places, exact = reference(*setting[:3], tuple(setting.lams.tolist()))
        pairs = zip(found, exact, strict=True)
        return float(max(np.max(np.abs(np.asarray(ours).ravel()[places] / theirs - 1)) for ours, theirs in pairs))

    return error


def _ours(setting: Setting) -> Callable[[], Answer]:
    all_of_them, lams = drawn_worlds(*setting[:3]), jnp.asarray(setting.lams)
    one = jax.tree.map(lambda leaf: leaf[0], all_of_them)

    # A program of one's own asks for the widest vectors itself. Its results are one array: glibc keeps the pages of so large
    # a block for the next, where it gives those of three smaller ones back, which then cost a quarter of the sweep to get anew.
    @partial(jax.jit, compiler_options={"xla_cpu_prefer_vector_width": 512})
    def many(all_of_them: World, lams: jax.Array) -> jax.Array:
        # Some worlds at a time, whose numbers stay in the cache: faster than `vmap` over all of them.
        at = jax.lax.map(lambda world: loss_constraint.gaps(world, lams), all_of_them, batch_size=WORLDS)
        # With the exact proxy the value is the sum of what the gaps cost.
        return jnp.stack([at.safety, at.capability, at.capability + lams * at.safety])

    def run() -> Answer:
        if setting.count > 1:
            return Answer(*np.asarray(many(all_of_them, lams)))
        at = loss_constraint.gaps(one, lams)
        safety, capability = np.asarray(at.safety), np.asarray(at.capability)
        return Answer(safety, capability, capability + setting.lams * safety)

    return run


def _in_numpy(setting: Setting, gap: Callable[..., NDArray[np.float64]]) -> Callable[[], Answer]:
    """Both gaps from NumPy, in blocks that stay in the cache."""
    given = laws(setting)
    size = max(1, BLOCK // (setting.contexts * setting.responses))
    penalties = min(size, len(setting.lams))
    several = max(1, size // penalties)

    def run() -> Answer:
        shape = (setting.count, len(setting.lams))
        safety, capability = np.empty(shape), np.empty(shape)
        for w in range(0, setting.count, several):
            p_s, P_s, p_f, P_f = (leaf[w : w + several, None] for leaf in given)
            for at in range(0, len(setting.lams), penalties):
                lam = setting.lams[at : at + penalties, None]
                mass = p_f + lam * p_s
                task, rest = (p_f / mass)[..., None], (lam * p_s / mass)[..., None]
                mixture, where = task * P_f + rest * P_s, np.s_[w : w + several, at : at + penalties]
                safety[where] = np.sum(p_s * gap(P_s, mixture, task * (P_f - P_s)), axis=-1)
                capability[where] = np.sum(p_f * gap(P_f, mixture, rest * (P_s - P_f)), axis=-1)
        return Answer(safety, capability, capability + setting.lams * safety)

    return run


def _plain(P: Any, mixture: Any, _: Any) -> NDArray[np.float64]:
    """KL as anybody writes it."""
    return rel_entr(P, mixture).sum(axis=-1)


def _careful(P: Any, _: Any, difference: Any) -> NDArray[np.float64]:
    """KL without cancellation: x - log(1 + x) of the relative difference x, near zero by its series to the eighth order."""
    x = difference / P
    series = 1 / 8 * np.ones_like(x)
    for k in range(7, 1, -1):
        series *= -x
        series += 1 / k
    return np.sum(P * np.where(np.abs(x) < NEAR, x * x * series, x - np.log1p(x)), axis=-1)


def _logarithms(setting: Setting) -> Callable[[], Any]:
    """As many logarithms as the formula needs, in float64, read from memory once and summed where they are made."""
    numbers = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2, (setting.logarithms // 1024, 1024)))
    summed = jax.jit(lambda x: jnp.sum(jnp.log(x), axis=-1))
    return lambda: jax.block_until_ready(summed(numbers))


def _sweep(setting: Setting) -> Callable[[], Sequence[Contender]]:
    return lambda: [
        Contender("tradeoff", _ours(setting)),
        Contender("numpy rel_entr", _in_numpy(setting, _plain), repeats=1),
        Contender(SERIES, _in_numpy(setting, _careful), repeats=1),
        Contender(LOGS, _logarithms(setting), error=lambda found: 0.0 if np.all(np.isfinite(found)) else np.inf),
    ]


def _few() -> Sequence[Contender]:
    found = [Contender("tradeoff", _ours(FEW_PENALTIES), repeats=50)]
    found.append(Contender(SERIES, _in_numpy(FEW_PENALTIES, _careful), repeats=50))
    if cvxpy := peer("cvxpy"):
        found.append(Contender("cvxpy", _in_cvxpy(cvxpy), repeats=2))
    return found


def _in_cvxpy(cvxpy: Any) -> Callable[[], Answer]:
    """The penalised problem as a convex program with the penalty as a parameter, by its default solver."""
    p_s, P_s, p_f, P_f = (leaf[0] for leaf in laws(FEW_PENALTIES))
    of_safety, of_task = p_s[:, None] * P_s, p_f[:, None] * P_f
    policy, lam = cvxpy.Variable(P_s.shape), cvxpy.Parameter(nonneg=True)
    loss = -cvxpy.sum(cvxpy.multiply(of_task + lam * of_safety, cvxpy.log(policy)))
    problem = cvxpy.Problem(cvxpy.Minimize(loss), [cvxpy.sum(policy, axis=1) == 1])

    def run() -> Answer:
        safety, capability = [], []
        for lam.value in FEW_PENALTIES.lams:
            problem.solve()
            safety.append(p_s @ rel_entr(P_s, policy.value).sum(axis=-1))
            capability.append(p_f @ rel_entr(P_f, policy.value).sum(axis=-1))
        found = np.array(safety), np.array(capability)
        return Answer(*found, found[1] + FEW_PENALTIES.lams * found[0])

    return run


BENCHMARKS = (
    Benchmark(
        name="case_one_penalties",
        title="Case I at 10,000 penalties over twelve decades, one world of 32 x 16: both gaps and the value",
        contenders=_sweep(ONE_WORLD),
        error=_error(ONE_WORLD),
        tolerance=GATE,
        bars={"numpy rel_entr": 8.0, SERIES: 8.0, LOGS: 0.5},
        repeats=5,
    ),
    Benchmark(
        name="case_one_worlds",
        title="Case I in 10,000 worlds of 4 x 3, 100 penalties over twelve decades each: both gaps and the value",
        contenders=_sweep(MANY_WORLDS),
        error=_error(MANY_WORLDS),
        tolerance=GATE,
        bars={"numpy rel_entr": 8.0, SERIES: 8.0, LOGS: 0.5},
        repeats=3,
    ),
    Benchmark(
        name="case_one_few",
        title="Case I at 5 penalties over two decades, one world of 32 x 16, against a convex solver at the same 5",
        contenders=_few,
        error=_error(FEW_PENALTIES),
        tolerance=GATE,
        bars={"cvxpy": 100.0},
    ),
)
