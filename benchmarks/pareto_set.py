"""The Pareto set of two quadratics at 1,000 penalties, against one linear solve for each, batched."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.protocol import Benchmark, Contender
from tradeoff import parameter_constraint
from tradeoff.problems.quadratic import Quadratic

PENALTIES = np.geomspace(1e-3, 1e3, 1000)
SIZE = 200
GATE = 1e-12


class Answer(NamedTuple):
    """Displacements from the aligned parameters, shape (L, d), where they were asked for, and both gaps, shape (L,)."""

    states: Any
    safety: Any
    capability: Any


@cache
def problem() -> Quadratic:
    """Two Hessians with spectra in [0.1, 3] that do not commute."""
    rng = np.random.default_rng(0)

    def hessian() -> np.ndarray:
        Q = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
        H = (Q * rng.uniform(0.1, 3, SIZE)) @ Q.T
        return (H + H.T) / 2

    return Quadratic(hessian(), rng.normal(size=SIZE), hessian(), np.zeros(SIZE))


@cache
def reference() -> Answer:
    """Linear solves refined with residuals in extended precision, and the gaps in that precision."""
    quad = problem()
    H_f, H_s, d = (np.asarray(part, np.longdouble) for part in (quad.H_f, quad.H_s, quad.displacement))
    states = np.zeros((len(PENALTIES), SIZE), np.longdouble)
    for i, lam in enumerate(PENALTIES):
        A = np.asarray(quad.H_f) + lam * np.asarray(quad.H_s)
        for _ in range(3):
            x = states[i]
            left = H_f @ (d - x) - np.longdouble(lam) * (H_s @ x)
            states[i] += np.linalg.solve(A, left.astype(np.float64))
    gaps = [np.einsum("ld,de,le->l", x, H, x) / 2 for x, H in ((states, H_s), (states - d, H_f))]
    return Answer(states, *gaps)


def error(answer: Answer) -> float:
    """The largest relative error of a gap or a state, or KKT residual, over all penalties."""
    exact = reference()
    errors = [np.abs(np.asarray(ours) / theirs - 1).max() for ours, theirs in zip(answer[1:], exact[1:], strict=True)]
    if answer.states is not None:
        quad, states = problem(), np.asarray(answer.states)
        errors.append((np.linalg.norm(states - exact.states, axis=1) / np.linalg.norm(exact.states, axis=1)).max())
        task, safety = (states - np.asarray(quad.displacement)) @ np.asarray(quad.H_f), states @ np.asarray(quad.H_s)
        left = np.linalg.norm(task + PENALTIES[:, None] * safety, axis=1)
        errors.append((left / np.linalg.norm(np.asarray(quad.pull))).max())
    return float(max(errors))


def _contenders(states: bool) -> Callable[[], Sequence[Contender]]:
    def build() -> Sequence[Contender]:
        quad, lams = problem(), jnp.asarray(PENALTIES)
        H_f, H_s, d = (np.asarray(part) for part in (quad.H_f, quad.H_s, quad.displacement))

        def ours() -> Answer:
            if states:
                at = jax.block_until_ready(parameter_constraint.penalised_path(quad, lams))
                return Answer(at.displacement, at.gaps.safety, at.gaps.capability)
            gaps = jax.block_until_ready(parameter_constraint.penalised_gaps(quad, lams))
            return Answer(None, gaps.safety, gaps.capability)

        def numpy_batched() -> Answer:
            A = H_f + PENALTIES[:, None, None] * H_s
            x = np.linalg.solve(A, np.broadcast_to((H_f @ d)[:, None], (len(PENALTIES), SIZE, 1)))[..., 0]
            return Answer(x, ((x @ H_s) * x).sum(1) / 2, (((x - d) @ H_f) * (x - d)).sum(1) / 2)

        @jax.jit
        def solved(H_f: jax.Array, H_s: jax.Array, d: jax.Array, lams: jax.Array) -> Answer:
            A = H_f[None] + lams[:, None, None] * H_s[None]
            x = jax.vmap(jax.scipy.linalg.solve, (0, None))(A, H_f @ d)
            return Answer(x, ((x @ H_s) * x).sum(1) / 2, (((x - d) @ H_f) * (x - d)).sum(1) / 2)

        def jax_batched() -> Answer:
            return jax.block_until_ready(solved(quad.H_f, quad.H_s, quad.displacement, lams))

        return [
            Contender("tradeoff", ours, repeats=20),
            Contender("numpy batched solve", numpy_batched, repeats=2),
            Contender("jax batched solve", jax_batched, repeats=2),
        ]

    return build


BENCHMARKS = tuple(
    Benchmark(
        name=f"pareto_set_{'states' if states else 'gaps'}_d{SIZE}",
        title=f"The Pareto set of two quadratics, {SIZE} parameters, 1,000 penalties, {what}",
        contenders=_contenders(states),
        error=error,
        tolerance=GATE,
        bars={"numpy batched solve": 30.0, "jax batched solve": 30.0},
    )
    for states, what in ((True, "with the parameters"), (False, "gaps alone"))
)
