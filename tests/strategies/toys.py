"""The toy that every strategy is tried on: a softmax-linear policy whose aligned start is exact, in both engines."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import torch

from tradeoff import DataLaw, World
from tradeoff.bridge.training import TorchEngine
from tradeoff.dynamics.engine import WHOLE, JaxEngine
from tradeoff.problems import SoftmaxLinear
from tradeoff.strategies.registry import Row

CONTEXTS, RESPONSES, FEATURES = 6, 4, 4
KEY, STEPS, RATE = jax.random.key(3), 12, 0.3


@cache
def problem() -> tuple[SoftmaxLinear, jax.Array]:
    """Contexts that share features, half of them in the task, and the parameters that the safety data come from."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(CONTEXTS, FEATURES))
    aligned = rng.normal(size=(FEATURES, RESPONSES))
    P_s = np.asarray(jax.nn.softmax(features @ aligned))
    P_f = rng.dirichlet(np.ones(RESPONSES), CONTEXTS)
    p_s, p_f = np.repeat(1 / CONTEXTS, CONTEXTS), np.array([0.4, 0.3, 0.3, 0, 0, 0])
    return SoftmaxLinear(World(DataLaw(p_s, P_s), DataLaw(p_f, P_f)), features), jnp.asarray(aligned)


def jax_engine(steps: int = STEPS) -> JaxEngine:
    return JaxEngine(*problem(), KEY, steps, RATE)


def torch_engine(steps: int = STEPS, learning_rate: float = RATE, start: torch.Tensor | None = None) -> TorchEngine:
    toy, aligned = problem()
    features = torch.from_numpy(np.array(toy.features))

    def policy(weights):
        return torch.log_softmax(features @ weights[WHOLE], dim=-1)

    first = torch.from_numpy(np.array(aligned)) if start is None else start
    return TorchEngine(policy, toy.world, {WHOLE: first}, KEY, steps, learning_rate)


def strategy(row: Row):
    return row.make(jax_engine().start)


def in_torch(row: Row):
    return row.make(torch_engine().start)
