"""E7, second part: six hypotheses that the toys make about published methods, each with its evidence and a verdict (methods.md)."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from experiments import e3_parameter_constraint as e3
from experiments.common import key
from tradeoff import dynamics, gaps, worlds
from tradeoff.dynamics.engine import WHOLE, JaxEngine, named
from tradeoff.problems import Quadratic, SoftmaxLinear, Tabular
from tradeoff.strategies import STARDSS, LookAhead, Loss, Plain, SafeGrad
from tradeoff.strategies.merges import dare, linear, task_arithmetic
from tradeoff.strategies.strategy import Weights
from tradeoff.worlds import DataLaw, World

HYPOTHESES = {
    "H1": "an average trained through adds nothing beyond a learning rate",
    "H2": "SafeGrad leaks h² with full batches, h with sampled task batches, h⁰ with sampled alignment batches",
    "H3": "whether merging or L2-SP is better depends on how the curvatures of task and safety correlate",
    "H4": "DARE never helps in expectation where the loss is convex",
    "H5": "the shipped k2 is stricter than the mixture below r*, more permissive above",
    "H6": "LookAhead's gain shrinks when the preview is in the context",
}


@dataclass(frozen=True)
class Settings:
    """Sizes of the six small experiments.

    Attributes:
        counts: of steps to one fixed time, for H2.
        noise: of a sampled task gradient, over the exact one at the start.
    """

    seed: int = 0
    repeats: int = 64
    counts: tuple[int, ...] = (512, 1024, 2048, 4096)
    noise: float = 1.0
    masks: int = 256
    shares: int = 41
    prompts: int = 12
    answers: int = 5
    steps: int = 200


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """Evidence for and against each hypothesis, and what it comes to."""
    parts = [one(settings) for one in (through, leakage, spectra, dropped, shaped, previewed)]
    data = xr.merge([part for part, _ in parts])
    verdicts = [found for _, found in parts]
    data["holds"] = ("hypothesis", [held for held, _ in verdicts])
    data["evidence"] = ("hypothesis", [words for _, words in verdicts])
    data["words"] = ("hypothesis", list(HYPOTHESES.values()))
    return data.assign_coords(hypothesis=list(HYPOTHESES))


Found = tuple[xr.Dataset, tuple[bool, str]]
"""Evidence, and whether the hypothesis holds with the words for it."""


def through(settings: Settings) -> Found:
    """H1: noisy descent with an average trained through, beside plain descent with (1-η) of its learning rate."""
    quad = e3.pair(e3.Settings())
    S = jnp.eye(quad.theta_s.size)
    rates, etas = jnp.geomspace(1e-3, 0.1, 7), jnp.array([0.25, 0.5, 0.9, 0.99])

    def both(rate: Array, eta: Array) -> tuple[Array, Array]:
        averaged = dynamics.expected_descent(quad, S, rate, settings.steps, average=eta, reading="through").gaps.safety
        return averaged, dynamics.expected_descent(quad, S, (1 - eta) * rate, settings.steps).gaps.safety

    averaged, smaller = jax.jit(jax.vmap(jax.vmap(both, (None, 0)), (0, None)))(rates, etas)
    apart = float(jnp.max(jnp.abs(averaged / smaller - 1)))
    data = xr.Dataset(
        {"h1_averaged": (("h1_rate", "h1_eta"), np.asarray(averaged)), "h1_smaller": (("h1_rate", "h1_eta"), np.asarray(smaller))},
        coords={"h1_rate": np.asarray(rates), "h1_eta": np.asarray(etas)},
    )  # fmt: skip
    return data, (apart < 1e-9, f"relative difference at most {apart:.0e}")


class _Sampled(JaxEngine):
    """A pair of quadratics whose alignment gradient is that of a sampled Hessian."""

    sampled: Array | None = None

    def gradient(self, loss: Loss, weights: Weights) -> Weights:
        if self.sampled is None or loss.role != "safety":
            return super().gradient(loss, weights)
        return {WHOLE: self.sampled @ (weights[WHOLE] - self.problem.theta_s)}  # pyright: ignore[reportAttributeAccessIssue]


def leakage(settings: Settings) -> Found:
    """H2: the largest safety loss on the way to a fixed time, against the learning rate."""
    turn, way = jax.random.split(key(settings.seed))
    Q = jnp.linalg.qr(jax.random.normal(turn, (6, 6)))[0]
    beta = jnp.array([1.0, 2.0, 4.0, 0.0, 0.0, 0.0])
    H_f = jnp.diag(jnp.array([1.0, 1.5, 2.0, 2.5, 3.0, 4.0]))
    d = jax.random.normal(way, (6,))
    quad = Quadratic(H_f, d / jnp.linalg.norm(d), (Q * beta[None, :]) @ Q.T, jnp.zeros(6))
    size = float(jnp.linalg.norm(quad.pull))

    def most(random: Array, steps: Array, way: str) -> Array:
        rate = 2.0 / steps.astype(jnp.float64)

        def step(number: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            theta, most = at
            k_u, k_a = jax.random.split(jax.random.fold_in(random, number))
            one = jax.random.randint(k_a, (), 0, 3)
            B = 3 * beta[one] * jnp.outer(Q[:, one], Q[:, one]) if way == "alignment sampled" else None
            noise = settings.noise * size * jax.random.normal(k_u, (6,)) if way == "task sampled" else jnp.zeros(6)
            engine = _Sampled(quad, quad.theta_s, random, 1, 1.0, sampled=B)
            strategy = Plain() if way == "plain fine-tuning" else SafeGrad()
            inner = lambda at: {WHOLE: quad.H_f @ (at[WHOLE] - quad.theta_f) + noise}  # noqa: E731
            theta = theta - rate * strategy.gradient(inner, {}, named(theta), number, engine)[WHOLE]
            return theta, jnp.maximum(most, quad.gaps(theta).safety)

        return jax.lax.fori_loop(0, steps, step, (quad.theta_s, jnp.zeros(())))[1]

    ways = ("full batches", "task sampled", "alignment sampled", "plain fine-tuning")
    keys = jax.random.split(key(settings.seed + 1), settings.repeats)
    counts = jnp.array(settings.counts)
    leaks = np.stack([
        jax.jit(jax.vmap(jax.vmap(lambda k, n, w=w: most(k, n, w), (0, None)), (None, 0)))(keys, counts).mean(axis=1) for w in ways
    ])  # fmt: skip
    rates = 2.0 / np.array(settings.counts)
    slopes = np.polyfit(np.log(rates), np.log(leaks).T, 1)[0]
    data = xr.Dataset(
        {"h2_leakage": (("h2_way", "h2_rate"), leaks), "h2_slope": ("h2_way", slopes)}, coords={"h2_way": list(ways), "h2_rate": rates}
    )  # fmt: skip
    held = bool(np.all(np.abs(slopes - [2, 1, 0, 0]) < 0.25))
    return data, (held, "slopes " + ", ".join(f"{slope:.2f}" for slope in slopes[:3]))


def spectra(settings: Settings) -> Found:
    """H3: merging and L2-SP at half the capability gap, over the least safety gap there, for commuting curvatures."""
    mixes = jnp.linspace(-1, 1, 9)

    def one(random: Array, mix: Array) -> tuple[Array, Array]:
        own, other, way = jax.random.split(random, 3)
        a, b = jax.random.normal(own, (8,)), jax.random.normal(other, (8,))
        alpha, beta = jnp.exp(a), jnp.exp(mix * a + jnp.sqrt(1 - mix**2) * b)
        d = jax.random.normal(way, (8,))
        start = jnp.sum(alpha * d**2) / 2

        def safety(left: Array) -> Array:  # what is left of the way along each axis, by the strength of each rule
            return jnp.sum(beta * ((1 - left) * d) ** 2) / 2

        def at_half(filtered: object) -> Array:
            def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
                low, high = ends
                middle = (low + high) / 2
                more = jnp.sum(alpha * (filtered(10**middle) * d) ** 2) / 2 > start / 2  # pyright: ignore[reportCallIssue]
                return jnp.where(more, low, middle), jnp.where(more, middle, high)

            low, _ = jax.lax.fori_loop(0, 60, halve, (jnp.float64(-8), jnp.float64(8)))
            return safety(filtered(10**low))  # pyright: ignore[reportCallIssue]

        best = at_half(lambda nu: nu * beta / (alpha + nu * beta))
        return at_half(lambda nu: nu / (1 + nu) * jnp.ones(8)) / best, at_half(lambda mu: mu / (alpha + mu)) / best

    keys = jax.random.split(key(settings.seed + 2), 8 * settings.repeats)
    merged, decayed = jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))(keys, mixes)
    log_ratio = np.log(np.asarray(merged) / np.asarray(decayed))
    wins = (log_ratio < 0).mean(axis=1)
    data = xr.Dataset(
        {"h3_log_ratio": (("h3_correlation", "h3_draw"), log_ratio), "h3_merging_wins": ("h3_correlation", wins)},
        coords={"h3_correlation": np.asarray(mixes)},
    )
    return data, (
        bool(wins[0] < 0.1 and wins[-1] > 0.9),
        f"merging wins {wins[0]:.0%}, {wins[4]:.0%}, {wins[-1]:.0%} of draws at correlation -1, 0, 1",
    )


def dropped(settings: Settings) -> Found:
    """H4: merging with dropped entries beside merging with all, on a table of logits."""
    problem = Tabular(worlds.random(key(settings.seed + 3), settings.prompts, settings.answers))
    start = named(problem.aligned())
    tuned = named(
        dynamics.descend(problem, Plain(), learning_rate=2.0, steps=settings.steps, every=settings.steps).parameters
    )
    shares = jnp.linspace(0, 1, 11)
    vector = {WHOLE: tuned[WHOLE] - start[WHOLE]}

    def both(weights: Weights) -> Array:
        at = problem.gaps(weights[WHOLE])
        return jnp.stack([at.safety, at.capability])

    def one(share: Array, random: Array) -> Array:
        uniforms = {WHOLE: jax.random.uniform(random, vector[WHOLE].shape)}
        return both(task_arithmetic(start, share, dare(vector, 0.5, uniforms)))

    keys = jax.random.split(key(settings.seed + 4), settings.masks)
    drops = np.asarray(jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(shares, keys))
    whole = np.asarray(jax.vmap(lambda share: both(linear(share, start, tuned)))(shares))
    mean, error = drops.mean(axis=1), drops.std(axis=1, ddof=1) / np.sqrt(settings.masks)
    data = xr.Dataset(
        {name: (("h4_share", "h4_gap"), values) for name, values in (("h4_dropped", mean), ("h4_error", error), ("h4_whole", whole))},
        coords={"h4_share": np.asarray(shares), "h4_gap": ["safety", "capability"]},
    )  # fmt: skip
    least = float(np.min(mean[1:] - whole[1:] + 4 * error[1:]))
    return data, (least > 0, f"worse at every share, by {np.min(mean[1:] - whole[1:]):.2g} nats or more")


def shaped(settings: Settings) -> Found:
    """H5: where the two divergences of dynamic safety shaping let one token rise to, by descent, against the formula's crossing."""
    V, lam = 0.5, 0.5
    f = V / ((1 - V) * lam)
    crossing = V / ((V + (1 - V) * lam) * np.exp(f) - (1 - V) * lam)
    starts = np.geomspace(2e-3, 0.5, settings.shares)

    def rests(start: Array, kl: str) -> Array:
        r = jnp.stack([start, 1 - start])[None, :]
        problem = Tabular(World(DataLaw(jnp.ones(1), r), DataLaw(jnp.ones(1), jnp.array([[1.0, 0.0]]))))
        end = dynamics.descend(
            problem, STARDSS(V, lam_KL=lam, kl=kl), learning_rate=1.0, steps=4000, every=4000
        ).parameters
        return jax.nn.softmax(end)[0, 0]

    k2, full = (
        np.asarray(jax.jit(jax.vmap(lambda s, kl=kl: rests(s, kl)))(jnp.asarray(starts))) for kl in ("k2", "full")
    )
    found = float(np.exp(np.interp(0.0, np.log(k2 / full), np.log(starts))))
    data = xr.Dataset(
        {"h5_k2": ("h5_start", k2), "h5_full": ("h5_start", full), "h5_crossing": ((), crossing)},
        coords={"h5_start": starts},
    )
    held = bool(np.all((k2 < full) == (starts < crossing))) and abs(found / crossing - 1) < 0.01
    return data, (held, f"they cross at {found:.4f}, by the formula {crossing:.4f}")


def previewed(settings: Settings) -> Found:
    """H6: the safety gap of plain and of previewed fine-tuning, without and with a harmful preview."""
    k = 2.0

    def one(random: Array) -> Array:
        shape, laws = jax.random.split(random)
        world = worlds.random(laws, settings.prompts, settings.answers, overlap=0.0)
        features = jax.random.normal(shape, (settings.prompts, settings.prompts // 2))
        aligned = jax.random.normal(jax.random.fold_in(shape, 1), (features.shape[1], settings.answers))
        safe = DataLaw(world.safety.p, jax.nn.softmax(features @ aligned))
        problem = SoftmaxLinear(World(safe, world.capability), features)
        harmful = jnp.argmin(safe.P, axis=-1)

        def path(strategy: Plain | LookAhead) -> tuple[Array, Array, Array]:
            def measured(theta: Array) -> tuple[Array, Array, Array]:
                log_policy = problem.log_policy(theta)
                shown = jax.nn.log_softmax(log_policy + k * jax.nn.one_hot(harmful, settings.answers))
                return (
                    gaps.capability_gap(world, log_policy),
                    gaps.safety_gap(problem.world, log_policy),
                    gaps.safety_gap(problem.world, shown),
                )

            def step(theta: Array, number: Array) -> tuple[Array, tuple[Array, Array, Array]]:
                engine = JaxEngine(problem, aligned, random, settings.steps, 0.2)
                inner = lambda at: named(jax.grad(problem.objective)(at[WHOLE], 0.0))  # noqa: E731
                moved = theta - 0.2 * strategy.gradient(inner, {}, named(theta), number, engine)[WHOLE]
                return moved, measured(moved)

            return jax.lax.scan(step, aligned, jnp.arange(settings.steps))[1]

        plain, ahead = path(Plain()), path(LookAhead(copying=k))
        equal = [jnp.interp(-ahead[0][-1], -plain[0], values) for values in plain[1:]]  # on plain training's way
        rows = (
            [[plain[1][-1], ahead[1][-1]], [plain[2][-1], ahead[2][-1]]],
            [[equal[0], ahead[1][-1]], [equal[1], ahead[2][-1]]],
        )
        return jnp.array(rows)

    keys = jax.random.split(key(settings.seed + 5), settings.repeats)
    found = np.asarray(jax.jit(jax.vmap(one))(keys))
    gain = found[..., 0] - found[..., 1]
    mean, error = gain.mean(axis=0), gain.std(axis=0, ddof=1) / np.sqrt(len(gain))
    lost = (gain[:, 0, 0] - gain[:, 0, 1]).mean(), (gain[:, 0, 0] - gain[:, 0, 1]).std(ddof=1) / np.sqrt(len(gain))
    data = xr.Dataset(
        {"h6_safety": (("h6_draw", "h6_at", "h6_context", "h6_training"), found)},
        coords={
            "h6_at": ["equal steps", "equal capability"],
            "h6_context": ["without preview", "with preview"],
            "h6_training": ["plain", "previewed"],
        },
    )
    held = bool(mean[0, 0] - 2 * error[0, 0] > 0 and lost[0] - 2 * lost[1] > 0)
    words = f"gain at equal steps {mean[0, 0]:+.3f} nats, with preview {mean[0, 1]:+.3f}; "
    words += f"at equal capability {mean[1, 0]:+.3f} ± {2 * error[1, 0]:.3f}"
    return data, (held, words)
