"""Penalised flows of two quadratics at many penalties and times, against adaptive solvers run penalty by penalty or mapped."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from benchmarks.protocol import Benchmark, Contender, peer
from tradeoff.dynamics import quadratic_flow, quadratic_states
from tradeoff.problems import Quadratic

TIMES = np.linspace(0.0, 10.0, 101)
CURVATURES = 0.05, 1.5
"""Of each loss: with penalties from 0 to 1 the objective's lie between 0.05 and 3."""
LOOSE: dict[str, Any] = {"method": "RK45", "rtol": 1e-6, "atol": 1e-9}
TIGHT: dict[str, Any] = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-14}
GATE = 1e-12
"""The largest error of any number, relative to the largest of its kind."""


@cache
def problem(d: int, count: int) -> tuple[Quadratic, np.ndarray]:
    """Two Hessians in general position, and the penalties."""
    draw = np.random.default_rng(d)

    def hessian() -> np.ndarray:
        Q = np.linalg.qr(draw.normal(size=(d, d)))[0]
        H = (Q * np.linspace(*CURVATURES, d)) @ Q.T
        return (H + H.T) / 2

    return Quadratic(hessian(), draw.normal(size=d), hessian(), np.zeros(d)), np.linspace(0.0, 1.0, count)


@cache
def reference(d: int, count: int) -> np.ndarray:
    """Displacements in the eigenbasis of every H_f + λH_s, by NumPy, shape (L, T, d)."""
    quad, lams = problem(d, count)
    rates, U = np.linalg.eigh(np.asarray(quad.H_f) + lams[:, None, None] * np.asarray(quad.H_s))
    filters = -np.expm1(-TIMES[None, :, None] * rates[:, None, :]) / rates[:, None, :]
    return (filters * (np.asarray(quad.pull) @ U)[:, None, :]) @ U.swapaxes(1, 2)


def gaps_of(quad: Quadratic, states: np.ndarray) -> np.ndarray:
    """Both gaps of displacements, shape (2, L, T)."""
    left = states - np.asarray(quad.displacement)
    pairs = ((states, np.asarray(quad.H_s)), (left, np.asarray(quad.H_f)))
    return np.stack([np.sum(v * (v @ H), axis=-1) / 2 for v, H in pairs])


def _contenders(d: int, count: int, gaps: bool) -> Callable[[], Sequence[Contender]]:
    def build() -> Sequence[Contender]:
        quad, lams = problem(d, count)
        H_f, H_s, pull = (np.asarray(part) for part in (quad.H_f, quad.H_s, quad.pull))

        def ours() -> Any:
            if gaps:
                return jax.block_until_ready(quadratic_flow(quad, lams, TIMES).gaps)
            return jax.block_until_ready(quadratic_states(quad, lams, TIMES))

        def scipy_with(options: dict[str, Any]) -> Callable[[], np.ndarray]:
            def run() -> np.ndarray:
                states = np.empty((count, len(TIMES), d))
                for lane, lam in enumerate(lams):
                    A = H_f + lam * H_s
                    found = solve_ivp(
                        lambda _, y, A=A: pull - A @ y, (0, TIMES[-1]), np.zeros(d), t_eval=TIMES, **options
                    )
                    states[lane] = found.y.T
                return gaps_of(quad, states) if gaps else states

            return run

        several = [
            Contender("tradeoff", ours, repeats=50 if count < 1000 else 15),
            Contender("scipy RK45 loop", scipy_with(LOOSE), repeats=3 if count < 1000 else 1),
        ]
        if count < 1000 and not gaps:
            several.append(Contender("scipy DOP853 loop at 1e-12", scipy_with(TIGHT), repeats=1))
        diffrax = peer("diffrax")
        if diffrax is not None:
            several.append(
                Contender("diffrax Tsit5 vmap", _mapped(diffrax, quad, lams, gaps), repeats=20 if count < 1000 else 7)
            )
        return several

    return build


def _mapped(diffrax: Any, quad: Quadratic, lams: np.ndarray, gaps: bool) -> Callable[[], Any]:
    @jax.jit
    def solve(quad: Quadratic, lams: jax.Array, times: jax.Array) -> Any:
        def one(lam: jax.Array) -> Any:
            A, pull = quad.H_f + lam * quad.H_s, quad.pull
            found = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda _t, y, _args: pull - A @ y),
                diffrax.Tsit5(),
                0.0,
                times[-1],
                None,
                jnp.zeros_like(pull),
                saveat=diffrax.SaveAt(ts=times),
                stepsize_controller=diffrax.PIDController(rtol=LOOSE["rtol"], atol=LOOSE["atol"]),
            )
            return jax.vmap(lambda delta: quad.gaps(quad.theta_s + delta))(found.ys) if gaps else found.ys

        return jax.vmap(one)(lams)

    given = quad, jnp.asarray(lams), jnp.asarray(TIMES)
    return lambda: jax.block_until_ready(solve(*given))


def _error(d: int, count: int, gaps: bool) -> Callable[[Any], float]:
    def error(result: Any) -> float:
        quad, _ = problem(d, count)
        if not gaps:
            return _apart(np.asarray(result), reference(d, count))
        found = (
            np.stack([np.asarray(part) for part in jax.tree.leaves(result)])
            if not isinstance(result, np.ndarray)
            else result
        )
        return max(_apart(*pair) for pair in zip(found, gaps_of(quad, reference(d, count)), strict=True))

    return error


def _apart(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def _benchmark(d: int, count: int, gaps: bool, bars: dict[str, float]) -> Benchmark:
    what = "gaps" if gaps else "states"
    return Benchmark(
        name=f"quadratic_flow_{what}_d{d}_L{count}",
        title=f"flows of two quadratics, {d} parameters, {count} penalties, {len(TIMES)} times: {what}; adaptive peers at rtol 1e-6",
        contenders=_contenders(d, count, gaps),
        error=_error(d, count, gaps),
        tolerance=GATE,
        bars=bars,
    )


BENCHMARKS = (
    _benchmark(10, 64, False, {"scipy RK45 loop": 400}),
    _benchmark(50, 64, False, {"scipy RK45 loop": 100, "diffrax Tsit5 vmap": 10}),
    _benchmark(200, 64, False, {"scipy RK45 loop": 20}),
    _benchmark(50, 1024, False, {"scipy RK45 loop": 45}),
    _benchmark(50, 1024, True, {"scipy RK45 loop": 80}),
)
