"""Toys for strategies that perturb: models with probes on their hidden states, in both engines, and an engine of given losses."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from tests.strategies import toys
from tradeoff import gaps
from tradeoff._records import record
from tradeoff.bridge.training import TorchEngine
from tradeoff.dynamics.engine import JaxEngine, random_key
from tradeoff.gaps import Gaps
from tradeoff.problems import Quadratic, SoftmaxLinear
from tradeoff.problems.quadratic import half_square
from tradeoff.strategies import Engine


@record
class ProbedQuadratic:
    r"""$L_f=\tfrac12\|w+Cv-\theta_f\|^2_{H_f}$ with a probe v, and a safety loss that does not see it."""

    quad: Quadratic
    C: jax.Array

    def gaps(self, parameters) -> Gaps:
        w = parameters["w"]
        hidden = w + self.C @ parameters["probe/v"]
        return Gaps(
            half_square(self.quad.H_s, w - self.quad.theta_s), half_square(self.quad.H_f, hidden - self.quad.theta_f)
        )

    def objective(self, parameters, lam):
        at = self.gaps(parameters)
        return at.capability + lam * at.safety

    def aligned(self):
        return {"w": self.quad.theta_s, "probe/v": jnp.zeros(self.C.shape[1])}


@record
class ProbedPolicy:
    """Two layers, a linear map and a bias, and a probe for each context on what goes into each."""

    plain: SoftmaxLinear

    @property
    def world(self):
        return self.plain.world

    def log_policy(self, parameters):
        return jax.nn.log_softmax(logits(self.plain.features, parameters), axis=-1)

    def gaps(self, parameters) -> Gaps:
        return gaps.both(self.world, self.log_policy(parameters))

    def objective(self, parameters, lam):
        return gaps.weighted_sum(self.world, self.log_policy(parameters), lam)

    def aligned(self):
        _, matrix = toys.problem()
        shapes = {"map": matrix.shape, "bias": (1, toys.RESPONSES)}
        inside = {"probe/map": (toys.CONTEXTS, toys.FEATURES), "probe/bias": (1, toys.RESPONSES)}
        return {name: jnp.zeros(shape) for name, shape in (shapes | inside).items()} | {"map": matrix}


def logits(features, weights):
    return (features + weights["probe/map"]) @ weights["map"] + weights["bias"] + weights["probe/bias"]


def policy() -> ProbedPolicy:
    return ProbedPolicy(toys.problem()[0])


def jax_engine(**start) -> JaxEngine:
    return JaxEngine(policy(), policy().aligned() | start, toys.KEY, toys.STEPS, toys.RATE)


def torch_engine() -> TorchEngine:
    features = torch.from_numpy(np.array(policy().plain.features))
    start = {name: torch.from_numpy(np.array(array)) for name, array in policy().aligned().items()}
    return TorchEngine(
        lambda weights: torch.log_softmax(logits(features, weights), dim=-1),
        policy().world,
        start,
        toys.KEY,
        toys.STEPS,
        toys.RATE,
    )


class Given(Engine):
    """An engine of losses that are given as functions of the weights, in JAX."""

    def __init__(self, start, steps=toys.STEPS, **losses) -> None:
        self.steps, self.learning_rate, self._start, self._losses = steps, toys.RATE, start, losses

    @property
    def start(self):
        return self._start

    @property
    def data(self):
        raise AssertionError("no strategy here needs data")

    def value(self, loss, weights):
        return self._losses[getattr(loss, "law", "")](weights)

    def gradient(self, loss, weights):
        return jax.grad(lambda at: self.value(loss, at))(dict(weights))

    def log_policy(self, weights):
        raise AssertionError("no strategy here needs a policy")

    def normal(self, label, step, like):
        keys = jax.random.split(random_key(toys.KEY, label, step), len(like))
        return {name: jax.random.normal(key, like[name].shape) for name, key in zip(sorted(like), keys, strict=True)}

    def uniform(self, label, step, shape):
        return jax.random.uniform(random_key(toys.KEY, label, step), shape)

    def either(self, condition, then, otherwise):
        return jax.lax.cond(condition, then, otherwise)
