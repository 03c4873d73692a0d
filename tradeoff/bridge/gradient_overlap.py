"""How the gradients of the task and those of safety relate: the signs of danger that cost no curvature."""

import numpy as np

from tradeoff.bridge.local_losses import SEEN, Vector
from tradeoff.bridge.tangent import CheckpointTangents
from tradeoff.worlds.world import World


def cosine(v: Vector, w: Vector) -> float:
    """Of the angle between two gradients; 0 where one of them is zero."""
    one, other = v.astype(np.float64), w.astype(np.float64)
    lengths = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / lengths) if lengths > 0 else 0.0


def feature_overlap(around: CheckpointTangents, world: World, contexts: int) -> float:
    r"""How much of the safety prompts' features lies in the span of the task's, with gradients for features.

    $\sum_xp_s(x)\|\Pi_fh_x\|^2/\|h_x\|^2$: h is the gradient at a safety prompt of saying there what the task says (its responses
    on average), $\Pi_f$ the projection on the span of the task's own gradients, one for each of its prompts.

    Args:
        around: the checkpoint.
        world: a text world.
        contexts: how many count of each law, the weightiest.

    Returns:
        In [0, 1].

    Source: T17 (framework), of which this is the analogue where features are learnt.
    """
    task, safety = world.capability, world.safety
    said = np.asarray(task.p @ task.P)
    span = [around.context_gradient(x, np.asarray(task.P[x])) for x in _weightiest(np.asarray(task.p), contexts)]
    basis = np.linalg.svd(np.stack(span).astype(np.float64), full_matrices=False)
    rows = basis[2][basis[1] > SEEN * basis[1][0]]
    seen = _weightiest(np.asarray(safety.p), contexts)
    shares = [_share(around.context_gradient(x, said), rows) for x in seen]
    return float(np.average(shares, weights=np.asarray(safety.p)[seen]))


def _share(h: Vector, rows: np.ndarray) -> float:
    unit = h.astype(np.float64)
    total = float(unit @ unit)
    return float(np.sum((rows @ unit) ** 2) / total) if total > 0 else 0.0


def _weightiest(p: np.ndarray, count: int) -> list[int]:
    order = np.argsort(-p, kind="stable")[:count]
    return [int(x) for x in order if p[x] > 0]
