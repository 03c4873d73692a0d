"""E3: Case II (ball, soft penalty, early stopping) against the Case I frontier of one pair, and the price of isotropy (T14 to T16)."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from experiments.common import key
from tradeoff import dynamics
from tradeoff import parameter_constraint as case_two
from tradeoff.problems import Quadratic
from tradeoff.tolerances import LIMIT, ROOT

HALVINGS = 100
"""Of an interval of sixty decades; the last ones do nothing."""


@dataclass(frozen=True)
class Settings:
    """One pair of quadratics whose Hessians do not commute."""

    seed: int = 1
    parameters: int = 8
    decades: float = 2.0
    points: int = 121
    least: float = 1e-4


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """Each strategy's curve of both gaps, and what it pays above the frontier at equal gain.

    Raises:
        RuntimeError: when a curve passes below the frontier, hard and soft constraint differ, or the price paid by a small
            ball is not the predicted one.
    """
    quad = pair(settings)
    reach = float(jnp.linalg.norm(quad.displacement))
    radii = np.geomspace(settings.least, 1 - settings.least, settings.points) * reach
    ball = case_two.path(quad, radii)
    soft = case_two.soft_path(quad, ball.multiplier)
    safe_reach = float(jnp.sqrt(quad.displacement @ quad.H_s @ quad.displacement))
    metric = case_two.path(quad, radii / reach * safe_reach, metric=quad.H_s)
    slowest = 1 / float(jnp.linalg.eigvalsh(quad.H_f)[0])
    times = np.geomspace(settings.least / float(jnp.linalg.eigvalsh(quad.H_f)[-1]), 10 * slowest, settings.points)
    stopped = dynamics.quadratic_flow(quad, 0.0, times, states=True)
    stopped_at = stopped.displacements
    assert stopped_at is not None  # asked for
    curves = {
        "ball": (ball.gaps, ball.displacement),
        "soft": (soft.gaps, soft.displacement),
        "early stopping": (stopped.gaps, stopped_at),
        "safety metric": (metric.gaps, metric.displacement),
    }
    gains = {name: jax.vmap(quad.gain)(displacement) for name, (_, displacement) in curves.items()}
    least = safety_at_gain(quad, jnp.stack(list(gains.values())))
    paid = {name: gaps.safety / least[row] for row, (name, (gaps, _)) in enumerate(curves.items())}
    price = case_two.price_of_isotropy(quad.H_s, quad.pull)
    _check(ball, soft, paid, float(price.price))
    lam = np.geomspace(1e-4, 1e6, 201)
    front = case_two.penalised_path(quad, lam)

    def rows(of: dict[str, Array]) -> np.ndarray:
        return np.array([of[name] for name in curves])

    unit = {"units": "unit of the losses"}
    return xr.Dataset(
        {
            "frontier_safety_gap": ("lam", np.asarray(front.gaps.safety), unit),
            "frontier_capability_gap": ("lam", np.asarray(front.gaps.capability), unit),
            "safety_gap": (("strategy", "point"), rows({name: gaps.safety for name, (gaps, _) in curves.items()}), unit),
            "capability_gap": (("strategy", "point"), rows({name: gaps.capability for name, (gaps, _) in curves.items()}), unit),
            "gain": (("strategy", "point"), rows(gains), unit),
            "paid": (("strategy", "point"), rows(paid), {"long_name": "safety gap over the best one at equal gain"}),
            "price": ((), float(price.price), {"long_name": "predicted for a small gain, T15(b)"}),
            "most": ((), float(price.most), {"long_name": "over all directions of the gradient, T15(b)"}),
            "start": ((), float(quad.gaps(quad.theta_s).capability), unit | {"long_name": "capability gap before training"}),
        },
        coords={"strategy": list(curves), "lam": lam, "point": np.arange(settings.points)},
    )  # fmt: skip


def pair(settings: Settings) -> Quadratic:
    """Random axes for both Hessians, curvatures spread evenly over some decades, the two models one apart."""
    axes_f, axes_s, way = jax.random.split(key(settings.seed), 3)
    size = settings.parameters
    spread = jnp.logspace(-settings.decades / 2, settings.decades / 2, size)
    H_f, H_s = (
        (Q * spread[None, :]) @ Q.T
        for Q in (jnp.linalg.qr(jax.random.normal(k, (size, size)))[0] for k in (axes_f, axes_s))
    )
    d = jax.random.normal(way, (size,))
    return Quadratic((H_f + H_f.T) / 2, d / jnp.linalg.norm(d), (H_s + H_s.T) / 2, jnp.zeros(size))


@jax.jit
def safety_at_gain(quad: Quadratic, gains: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """The least safety gap of any parameters with these gains: the penalty of each is found by bisection in log λ."""

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        gained = (
            jnp.vectorize(quad.gain, signature="(d)->()")(case_two.penalised_path(quad, 10**middle).displacement)
            > gains
        )
        return jnp.where(gained, middle, low), jnp.where(gained, high, middle)

    low, _ = jax.lax.fori_loop(0, HALVINGS, halve, (jnp.full(gains.shape, -30.0), jnp.full(gains.shape, 30.0)))
    return case_two.penalised_path(quad, 10**low).gaps.safety


def _check(
    ball: case_two.TrustRegionPoint, soft: case_two.TrustRegionPoint, paid: dict[str, Array], price: float
) -> None:
    apart = float(jnp.max(jnp.abs(ball.gaps.safety - soft.gaps.safety) / ball.gaps.safety))
    if apart > ROOT.relative:
        raise RuntimeError(
            f"hard ball and soft penalty of one multiplier differ by {apart:.2e}; T14(b) says they are one path."
        )
    below = min(float(jnp.min(ratio)) for ratio in paid.values())
    if below < 1 - ROOT.relative:
        raise RuntimeError(
            f"a curve has {below:.9f} of the least safety gap at its gain: it passes below the frontier."
        )
    first = float(paid["ball"][0])
    if abs(first / price - 1) > 100 * LIMIT.relative:
        raise RuntimeError(f"the smallest ball pays {first:.6f} and the price of isotropy is {price:.6f}.")
