"""T17: context overlap inside a parametric model, where features stand in for contexts."""

import jax.numpy as jnp
from jaxtyping import Array

from tradeoff import divergences as dv
from tradeoff import gaps
from tradeoff.problems.quadratic import spectrum
from tradeoff.problems.softmax_linear import SoftmaxLinear
from tradeoff.theorems import feature_instances as draw
from tradeoff.theorems.claim import Sides, Tight, theorem
from tradeoff.theorems.feature_instances import Featured
from tradeoff.tolerances import IDENTITY
from tradeoff.worlds.world import DataLaw, World

SHARED = draw.featured()
APART = draw.featured(apart=True)
ONE_HOT = draw.featured(one_hot=True)

OVERLAP = "more context overlap means less safety after fine-tuning; high representation similarity weakens guardrails"


@theorem(
    "T17",
    title="feature overlap",
    statement=r"G_s(\theta)=E_{p_s}\mathrm{KL}(P_{\theta_s}\|P_\theta)\le\tfrac14\|\theta-\theta_s\|_F^2\,"
    r"\lambda_{\max}(\Pi_fE_{p_s}[\varphi\varphi^\top]\Pi_f)\le\tfrac14\|\theta-\theta_s\|_F^2\,\Omega_\varphi;\qquad "
    r"G_s\le E_{p_s}\min(r^2/8,r)",
    family=SHARED,
    parts=("is a divergence", "by the worst direction", "by overlap", "by range"),
    relation=("==", "<=", "<=", "<="),
    assumptions=(draw.STATIONARY, draw.IN_SPAN),
    without={"stationary start": lambda: _misaligned(), "task features only": lambda: _off_span()},
    tight=Tight(lambda: _one_prompt()),
    makes_precise=OVERLAP,
    tolerance=IDENTITY,
)
def safety_is_lost_only_through_shared_features(instance: Featured) -> Sides:
    """Training on the task can harm safety prompts only as far as their features lie in the span of the task's."""
    problem, step = instance.problem, instance.step
    p_s, phi = problem.world.safety.p, problem.features
    lost = _safety_loss(instance)
    aligned = jnp.exp(problem.log_policy(instance.theta_s))
    moved = gaps.weighted(p_s, dv.kl_log(aligned, problem.log_policy(instance.theta_s + step)))
    projector, square = problem.task_span(), jnp.sum(step**2) / 4
    seen = (phi @ projector) * jnp.sqrt(p_s)[:, None]
    worst = spectrum(seen.T @ seen)[0][-1]
    change = phi @ step
    spread = jnp.max(change, axis=-1) - jnp.min(change, axis=-1)
    by_range = jnp.sum(p_s * jnp.minimum(spread**2 / 8, spread))
    return (
        jnp.stack([lost, moved, square * worst, moved]),
        jnp.stack([moved, square * worst, square * problem.feature_overlap(), by_range]),
    )


@theorem(
    "T17-orthogonal",
    title="orthogonal features, no forgetting",
    statement=r"\varphi(x)\perp\mathrm{span}\{\varphi:p_f>0\}\ \forall x\in\mathrm{supp}\,p_s\ \Longrightarrow\ G_s\equiv0,\quad\Omega_\varphi=0",
    family=APART,
    parts=("nothing is lost", "no overlap"),
    relation="==",
    assumptions=(draw.FEATURES_APART,),
    without={"features apart": lambda: _one_prompt()},
    makes_precise=OVERLAP,
    tolerance=IDENTITY,
)
def orthogonal_features_forget_nothing(instance: Featured) -> Sides:
    """If task prompts and safety prompts have no feature in common, no amount of task training harms safety."""
    lost = _safety_loss(instance)
    zero = jnp.zeros_like(lost)
    return jnp.stack([lost, instance.problem.feature_overlap()]), jnp.stack([zero, zero])


@theorem(
    "T17-one-hot",
    title="one-hot features are literal contexts",
    statement=r"\varphi(x)=e_x\ \Longrightarrow\ \Omega_\varphi=p_s(\mathrm{supp}\,p_f)",
    family=ONE_HOT,
    relation="==",
    assumptions=(draw.ONE_HOT,),
    without={"one-hot features": lambda: _one_prompt()},
    makes_precise=OVERLAP,
    tolerance=IDENTITY,
)
def feature_overlap_generalises_context_overlap(instance: Featured) -> Sides:
    """With a feature for each prompt, feature overlap is the share of safety prompts that the task contains."""
    world = instance.problem.world
    return instance.problem.feature_overlap(), jnp.sum(jnp.where(world.capability.p > 0, world.safety.p, 0))


# --- what only these theorems need ------------------------------------------------------------------------------


def _safety_loss(instance: Featured) -> Array:
    """Safety loss above that of the aligned parameters."""
    problem, theta_s = instance.problem, instance.theta_s
    return problem.gaps(theta_s + instance.step).safety - problem.gaps(theta_s).safety


def _prompts(P_s: list[list[float]], features: list[list[float]], step: list[list[float]]) -> Featured:
    """Two prompts, of which safety data hold both and the task the first; aligned at zero."""
    world = World(DataLaw([0.5, 0.5], P_s), DataLaw([1.0, 0.0], [[0.1, 0.9]] * 2))
    problem = SoftmaxLinear(world, features)
    return Featured(problem, problem.zero(), jnp.asarray(step))


def _one_prompt() -> Featured:
    """Both prompts have one and the same feature, of length 2: T17's chain is an equality for a small step."""
    return _prompts([[0.5, 0.5]] * 2, [[2.0], [2.0]], [[-1e-5, 1e-5]])


def _misaligned() -> Featured:
    """The aligned parameters are no minimiser: the safety data want more of the first response."""
    return _prompts([[0.8, 0.2]] * 2, [[1.0], [1.0]], [[-1.0, 1.0]])


def _off_span() -> Featured:
    """The step moves a feature that the task does not have."""
    return _prompts([[0.5, 0.5]] * 2, [[0.1, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.3, -0.3]])
