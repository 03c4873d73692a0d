"""Linear layers: safety training is a minimum-norm edit, and what the projection of Safe LoRA does."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.theorems._linear import end_of, length, solved
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.methods_instances import FEATURES, PLAIN, columns, two_directions
from tradeoff.tolerances import IDENTITY

DOUBLINGS = 15
"""Doublings of a descent with directions that it leaves alone: some sixty times the largest condition number drawn."""


class Edit(NamedTuple):
    """A linear layer that is fitted on unsafe activations.

    Args:
        W: the weights at the start.
        P: a basis of the unsafe activations, in columns.
        Q: the activations in that basis, U = PQ.
        R: what the layer is to answer them.
        scale: what the gradient of every input is multiplied by.
        other: any other change of the weights.
    """

    W: Array
    P: Array
    Q: Array
    R: Array
    scale: Array
    other: Array


class Aligned(NamedTuple):
    """The alignment direction of a layer, and an update.

    Args:
        V: aligned minus base weights.
        update: an update of the layer.
    """

    V: Array
    update: Array


# --- assumptions ------------------------------------------------------------------------------------------------

RANK_ONE = Assumption(
    "rank one",
    "aligned and base weights differ by a matrix of rank one",
    lambda i: length(i.V @ i.V.T @ i.V - jnp.sum(i.V**2) * i.V) <= IDENTITY.relative * length(i.V) ** 3,
)


# --- families ---------------------------------------------------------------------------------------------------


def edits() -> Family:
    """Layers with three unsafe activations of rank two, so that not every answer can be fitted."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "basis": two_directions(draws),
            "Q": draws.normal((2,)),
            "W": draws.normal((2, FEATURES)),
            "R": draws.normal((2, 3)) * 10 ** draws.uniform(-1, 1),
            "other": draws.normal((2, FEATURES)) * 10 ** draws.uniform(-4, 1),
        }

    def build(p: dict[str, Any]) -> Edit:
        Q = jnp.concatenate([jnp.eye(2), jnp.tanh(p["Q"])[:, None]], axis=1)
        return Edit(p["W"], columns(p["basis"], 0.3), Q, p["R"], jnp.ones(FEATURES), p["other"])

    return Family(sample, build)


def rank_one() -> Family:
    """Alignment directions of rank one, and updates."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {"v": draws.normal((FEATURES,)), "w": draws.normal((FEATURES,)), "update": draws.normal((FEATURES, 2))}

    def build(p: dict[str, Any]) -> Aligned:
        return Aligned(jnp.outer(p["v"], p["w"]), p["update"])

    return Family(sample, build)


# --- layers -----------------------------------------------------------------------------------------------------


@theorem(
    "minimum-norm-edit",
    title="safety training of a layer is a minimum-norm edit",
    statement=r"\text{descent on }\|WU-R\|^2\text{ from }W_0\text{ ends at }W_0+\Delta W,\ \Delta W=(R-W_0U)U^+:\quad "
    r"\Delta Wx=0\ \forall x\perp\mathrm{span}\,U,\quad\|\Delta W\|_F\text{ least}",
    family=edits(),
    parts=("ends there", "safe inputs", "no better fit", "no smaller edit"),
    relation=("==", "==", "<=", "<="),
    assumptions=(PLAIN,),
    without={"plain gradient": lambda: _edit(scale=(1.0, 4.0, 1.0))},
    tight=Tight(lambda: _edit()),
    makes_precise="safety fine-tuning minimally changes weights so that unsafe inputs are sent elsewhere",
    source="makesandbreaks2024",
    tolerance=IDENTITY,
)
def safety_training_edits_only_what_it_sees(instance: Edit) -> Sides:
    """Fitting unsafe activations by plain descent is the smallest edit that does it, and no other input notices."""
    W, P, Q, R = instance.W, instance.P, instance.Q, instance.R
    U = P @ Q
    residual = R - W @ U
    rate = 1 / jnp.sum(U**2)
    # Transposed: descent on the rows of the change.
    pull = instance.scale[:, None] * (U @ residual.T)
    ended = end_of(jnp.eye(FEATURES) - rate * (instance.scale[:, None] * (U @ U.T)), rate * pull, DOUBLINGS).T
    inner = jax.vmap(lambda v: solved(P.T @ P, v), 1, 1)(P.T)
    stated = residual @ Q.T @ jax.vmap(lambda v: solved(Q @ Q.T, v), 1, 1)(inner)
    size = length(residual) / length(U)
    safe = jnp.cross(P[:, 0], P[:, 1])
    # Any other change fits no better; one that fits as well, since it differs across U only, is no smaller.
    across = instance.other - instance.other @ P @ inner
    rival = W + stated + instance.other
    one = jnp.ones_like(size)
    return (
        jnp.stack([
            1 + length(ended - stated) / size, 1 + length(ended @ safe) / (size * length(safe)),
            length((W + ended) @ U - R), length(ended),
        ]),
        jnp.stack([one, one, length(rival @ U - R), length(stated + across)]),
    )  # fmt: skip


@theorem(
    "safe-lora",
    title="the projection of a rank-one alignment rescales",
    statement=r"C=VV^\top/\|V\|_F:\quad\cos(C\Delta W,\Delta W)\ge0;\qquad\mathrm{rank}\,V=1:\ C^2=\|V\|_FC,\quad "
    r"C\Delta W=\|V\|_F\Delta W\ (\text{range}),\quad=0\ (\text{across})",
    family=rank_one(),
    parts=("a projector up to scale", "rescales", "removes", "cosine"),
    relation=("==", "==", "==", ">="),
    assumptions=(RANK_ONE,),
    without={"rank one": lambda: Aligned(jnp.eye(FEATURES), jnp.ones((FEATURES, 2)))},
    makes_precise="projecting updates on the alignment direction restores safety",
    source="safelora2024",
    tolerance=IDENTITY,
)
def a_projection_that_also_rescales(instance: Aligned) -> Sides:
    """The published projection is one only up to its norm: what it keeps it rescales, what it does not keep it removes."""
    V, update = instance.V, instance.update
    norm = length(V)
    C = V @ V.T / norm
    kept = V @ jnp.eye(FEATURES)[:, :2]
    direction = V[:, 0] / length(V[:, 0])
    removed = update - jnp.outer(direction, direction @ update)
    cosine = jnp.sum((C @ update) * update) / (norm * jnp.sum(update**2))
    missed = [
        length(C @ C - norm * C) / norm**2,
        length(C @ kept - norm * kept) / norm**2,
        length(C @ removed) / (norm * length(update)),
    ]
    one = jnp.ones_like(norm)
    return jnp.stack([*(1 + x for x in missed), cosine]), jnp.stack([one, one, one, 0 * one])


# --- what only these claims need --------------------------------------------------------------------------------


def _edit(scale: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Edit:
    P = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    Q = jnp.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])
    R = jnp.array([[1.0, 2.0, 3.0], [0.0, 1.0, 1.0]])
    return Edit(jnp.zeros((2, FEATURES)), P, Q, R, jnp.array(scale), jnp.zeros((2, FEATURES)))
