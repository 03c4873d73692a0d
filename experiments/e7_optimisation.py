"""E7: the optimisation view: what learning rate, batch and averages do to safety at equal examples, and what the frontier demands.

Two quadratic losses with gradient noise: the law of the weights after any number of steps is known, so no point of this
experiment is sampled. Whatever a run loses splits into what the frontier demands at its capability, what the path adds
without noise, and what the noise adds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from experiments import e3_parameter_constraint as e3
from tradeoff import Gaps, dynamics
from tradeoff.problems import Quadratic
from tradeoff.tolerances import IDENTITY, ROOT

Law = Callable[..., tuple[Gaps, Gaps]]
"""From a learning rate and another number to the expected gaps of a run, and those without noise."""
READINGS = ("tracked", "through", "to the start")


@dataclass(frozen=True)
class Settings:
    """One pair whose Hessians do not commute, and one budget of examples.

    Attributes:
        noise: variance of the gradient noise of one example, over the squared gradient at the start, spread as the task's
            own curvature.
        examples: seen by every run.
        rate: learning rate, over the largest stable one's half, at which averages are swept.
        target: the capability gap at which runs are compared, over that of the start.
    """

    seed: int = 1
    parameters: int = 8
    decades: float = 2.0
    noise: float = 4.0
    examples: int = 4096
    batches: tuple[int, ...] = (1, 4, 16, 64)
    rates: int = 96
    averages: int = 40
    rate: float = 0.1
    target: float = 0.1


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """Expected gaps of every run, what the frontier demands at its capability, and the split of the rest.

    Raises:
        RuntimeError: when a run is safer than the frontier allows, or an average trained through differs from the smaller
            learning rate that it is.
    """
    quad = e3.pair(e3.Settings(settings.seed, settings.parameters, settings.decades))
    gradient = float(jnp.sum(quad.pull**2))
    S = settings.noise * gradient * quad.H_f / jnp.trace(quad.H_f)
    stiff = float(jnp.linalg.norm(quad.H_f, ord=2))
    rates = np.geomspace(1e-4, 0.9, settings.rates)

    def law(rate: Array, batch: Array, average: Array, reading: str = "tracked") -> tuple[Gaps, Gaps]:
        at = dynamics.expected_descent(
            quad, S, rate / stiff, settings.examples // batch, batch=batch, average=average, reading=reading
        )
        return at.gaps, quad.gaps(at.mean)

    batches = jnp.array(settings.batches)
    plain, quiet = _grid(lambda h, n: law(h, n, jnp.float64(0)))(jnp.asarray(rates), batches)
    # How much of the weights a step forgets: from nearly nothing to nearly all; how much it is pulled to the start, likewise.
    small = jnp.geomspace(1e-5, 0.9, settings.averages)
    averages = {name: small if name == "to the start" else 1 - small for name in READINGS}
    swept = {
        name: _grid(lambda h, eta, name=name: law(h, batches[0], eta, name))(jnp.asarray(rates), averages[name])[0]
        for name in READINGS
    }
    averaged = Gaps(*(jnp.stack([getattr(g, axis) for g in swept.values()]) for axis in ("safety", "capability")))
    demanded, demanded_quiet = (least(quad, gaps.capability) for gaps in (plain, quiet))
    _check(plain, demanded, law, rates)
    unit = {"units": "unit of the losses"}
    return xr.Dataset(
        {
            "safety_gap": (("batch", "rate"), np.asarray(plain.safety), unit),
            "capability_gap": (("batch", "rate"), np.asarray(plain.capability), unit),
            "demanded": (("batch", "rate"), np.asarray(demanded), unit | {"long_name": "least safety gap at this capability gap"}),
            "by_path": (("batch", "rate"), np.asarray(quiet.safety - demanded_quiet), unit | {"long_name": "above it without noise"}),
            "averaged_safety_gap": (("reading", "average", "rate"), np.asarray(averaged.safety), unit),
            "averaged_capability_gap": (("reading", "average", "rate"), np.asarray(averaged.capability), unit),
            "coefficient": (("reading", "average"), np.stack([averages[name] for name in READINGS]), {"long_name": "η"}),
            "start": ((), float(quad.gaps(quad.theta_s).capability), unit | {"long_name": "capability gap before training"}),
            "target": ((), settings.target * float(quad.gaps(quad.theta_s).capability), unit),
            "fixed_rate": ((), float(rates[np.argmin(np.abs(rates - settings.rate))]), {"long_name": "at which averages are swept"}),
        },
        coords={"batch": list(settings.batches), "rate": rates, "reading": list(READINGS), "average": np.arange(settings.averages)},
    )  # fmt: skip


def least(quad: Quadratic, capability: Array) -> Array:
    """The least safety gap of any parameters with these capability gaps; 0 where the start has no more."""
    gains = quad.gaps(quad.theta_s).capability - capability
    return jnp.where(gains > 0, e3.safety_at_gain(quad, jnp.maximum(gains, 0)), 0)


def _grid(law: Law) -> Law:
    """A law of a rate and another number as one of arrays of both: shape (others, rates)."""
    return jax.jit(jax.vmap(jax.vmap(law, (0, None)), (None, 0)))


def _check(plain: Gaps, demanded: Array, law: Law, rates: np.ndarray) -> None:
    below = float(jnp.max(demanded - plain.safety))
    if below > ROOT.absolute:
        raise RuntimeError(f"a run is {below:.2e} safer than the frontier allows at its capability.")
    eta, rate = 0.9, rates[len(rates) // 2]
    through, _ = law(jnp.float64(rate), jnp.int64(16), jnp.float64(eta), "through")
    smaller, _ = law(jnp.float64((1 - eta) * rate), jnp.int64(16), jnp.float64(0.0))
    if abs(float(through.safety / smaller.safety) - 1) > IDENTITY.relative:
        raise RuntimeError("an average trained through is not the smaller learning rate that it should be.")
