r"""How steep and how curved the losses are near a point: along a path, over a ball, and in the limit of the smallest steps.

T12 bounds the safety gap of Case II by the Lipschitz and smoothness constants of the safety loss over the ball,
$G_s\le\ell_s\varepsilon$ and $G_s\le\tfrac12\beta_s\varepsilon^2$. A bound needs constants that are certified, so every result here
says which kind it is: exact, a proved upper bound, or a lower estimate that no bound may rest on.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Float

from tradeoff import divergences as dv
from tradeoff._records import Numbers, record, static
from tradeoff.gaps import Gaps
from tradeoff.landscape import operators
from tradeoff.landscape.lanczos import lanczos
from tradeoff.landscape.operators import Of
from tradeoff.problems import Problem, Quadratic, SoftmaxLinear, Tabular

Kind = Literal["exact", "upper bound", "lower estimate"]
DUAL_FROM = 2.0**-50
"""The dual of the Lipschitz constant is searched from this far above its pole, relative to it."""


@record
class Path:
    r"""Both losses along $\theta+t\delta$.

    Args:
        distances: t, shape (T,).
        gaps: safety and capability gap at each t, nats (or the unit of the losses), shape (T,).
        slope: $\frac{d}{dt}$ of each, shape (T,).
        curvature: $\frac{d^2}{dt^2}=\delta^\top H\delta$ of each, shape (T,).
        steepness: $\|\nabla L\|$ of each, over all directions, shape (T,).
    """

    distances: Float[Array, " T"]
    gaps: Gaps
    slope: Gaps
    curvature: Gaps
    steepness: Gaps


@record
class BallConstants:
    r"""Lipschitz and smoothness constants of a loss over a ball.

    Args:
        lipschitz: $\sup\|\nabla L\|$, nats per unit of parameter norm.
        smoothness: $\sup\|\nabla^2L\|$, nats per squared unit.
        radius: of the ball, in parameter norm.
        kind: `exact`; `upper bound` (proved, and good for every radius); or `lower estimate` (the most that was seen).
    """

    lipschitz: Float[Array, ""]
    smoothness: Float[Array, ""]
    radius: float = static()
    kind: Kind = static()

    @property
    def certified(self) -> bool:
        """Whether a bound may rest on them."""
        return self.kind != "lower estimate"


@record
class LocalLaw:
    r"""The Kullback-Leibler divergence of small steps beside its quadratic form.

    Args:
        distances: t, shape (T,).
        divergence: $E_{x\sim p}\mathrm{KL}(\pi_\theta\|\pi_{\theta+t\delta})$, nats, shape (T,).
        quadratic: $\tfrac12t^2\delta^\top F\delta$, nats, shape (T,).
        ratio: the first over the second, shape (T,); 1 + O(t).
    """

    distances: Float[Array, " T"]
    divergence: Float[Array, " T"]
    quadratic: Float[Array, " T"]
    ratio: Float[Array, " T"]


def along(problem: Problem, at: Any, direction: Any, distances: Numbers) -> Path:
    r"""Both losses, their slopes and their curvatures along a straight line.

    Args:
        problem: any problem.
        at: the parameters θ at t = 0.
        direction: δ, of the same structure; its length is the unit of t.
        distances: t, any sign, shape (T,).

    Returns:
        A `Path`.

    Raises:
        ValueError: when the direction does not fit the parameters, or a number is not finite.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> quad = quadratic.golden()
        >>> found = along(quad, quad.theta_s, quad.displacement, [0.0, 1.0])
        >>> found.gaps.capability.tolist(), found.slope.capability.tolist(), found.curvature.safety.tolist()
        ([2.0, 0.0], [-4.0, 0.0], [2.0, 2.0])
    """
    check_direction(at, direction)
    return _along(operators.losses(problem), at, direction, check_distances(distances))


def ball_constants(
    problem: Problem, centre: Any, radius: float, key: Array, of: Of = "safety", samples: int = 8, steps: int = 20
) -> BallConstants:
    r"""The Lipschitz and smoothness constants of a loss over the ball of a radius, certified where the problem allows.

    * Quadratic: exact. $\sup\|H(\theta-\theta_*)\|$ over a ball is a trust-region problem without duality gap.
    * Tabular: T12's $\sqrt2\|p\|_2$ and $\tfrac12\max p$, proved for every radius.
    * Softmax-linear: $\sqrt2\min(E_p\|\varphi\|,\sqrt{\Lambda})$ and $\tfrac12\Lambda$ with
      $\Lambda=\lambda_{\max}(E_p\varphi\varphi^\top)$, proved likewise: $\mathrm{diag}\,\pi-\pi\pi^\top\preceq\tfrac12I$.
    * Anything else: the steepest gradient and the largest eigenvalue seen at the centre and at random points of the ball,
      a *lower estimate*: the truth is at least that, and a bound may not rest on it.

    Args:
        problem: any problem.
        centre: the parameters in the middle of the ball.
        radius: ε > 0, in parameter norm.
        key: a JAX random key, for the lower estimate.
        of: the loss.
        samples: random points of the lower estimate beside the centre.
        steps: Lanczos steps at each (at most the number of parameters).

    Returns:
        `BallConstants`.

    Raises:
        ValueError: when the radius is not positive and finite, or samples or steps are below 1.

    Example:
        >>> from tradeoff import problems, worlds
        >>> problem = problems.Tabular(worlds.golden())
        >>> found = ball_constants(problem, problem.aligned(), 1.0, jax.random.key(0))
        >>> round(float(found.lipschitz), 9), float(found.smoothness), found.kind  # √2·√.38 and ½·.5
        (0.871779789, 0.25, 'upper bound')

    Source: T12 (framework).
    """
    check_ball(radius, samples, steps)
    flat = operators.check_parameters(centre)
    loss = operators.loss(problem, of)
    if isinstance(problem, Quadratic):
        H, middle = (problem.H_s, problem.theta_s) if of == "safety" else (problem.H_f, problem.theta_f)
        lipschitz, smoothness = _quadratic_constants(np.asarray(H), np.asarray(flat - middle), radius)
        return BallConstants(jnp.asarray(lipschitz), jnp.asarray(smoothness), float(radius), "exact")
    if isinstance(problem, Tabular | SoftmaxLinear):
        law = problem.world.safety if of == "safety" else problem.world.capability
        if isinstance(problem, Tabular):
            reach, most = jnp.linalg.norm(law.p), jnp.max(law.p)
        else:
            rows = problem.features
            most = jnp.linalg.eigvalsh(rows.T @ (law.p[:, None] * rows))[-1]
            reach = jnp.minimum(jnp.sum(law.p * jnp.linalg.norm(rows, axis=1)), jnp.sqrt(most))
        return BallConstants(jnp.sqrt(2.0) * reach, most / 2, float(radius), "upper bound")
    return _most_seen(problem, loss, centre, radius, key, of, samples, min(steps, flat.size))


def local_law(problem: Problem, at: Any, direction: Any, distances: Numbers, of: Of = "safety") -> LocalLaw:
    r"""How the divergence of a small step compares with the form of the Fisher matrix.

    $$ \frac{\mathrm{KL}(\theta\,\|\,\theta+t\delta)}{\tfrac12t^2\,\delta^\top F\delta}\;\to\;1\qquad(t\to0). $$

    Args:
        problem: a problem with a policy.
        at: the parameters θ.
        direction: δ, of the same structure, not in the null space of the Fisher matrix.
        distances: t ≠ 0, shape (T,).
        of: the loss whose contexts are weighted by p.

    Returns:
        A `LocalLaw`.

    Raises:
        ValueError: when the problem has no policy, the direction does not fit or does not move the policy, or a distance
            is zero or not finite.

    Example:
        >>> from tradeoff import problems, worlds
        >>> problem = problems.Tabular(worlds.over_penalised())
        >>> law = local_law(problem, jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]), [1e-3])
        >>> bool(abs(law.ratio[0] - 1) < 1e-6)  # uniform: the cubic term vanishes
        True

    Source: framework 3.2.
    """
    log_policy, p = operators.policy(problem, of, "local_law")
    check_direction(at, direction)
    steps = check_distances(distances)
    if not bool(jnp.all(steps != 0)):
        raise ValueError(f"distances are {steps}; the law compares steps that are not zero.")
    curvature = operators.fisher(problem, at, of)
    delta = ravel_pytree(direction)[0]
    form = jnp.dot(delta, curvature @ delta)
    if not float(form) > 0:
        raise ValueError(
            "the direction does not move the policy in any context of this loss (δᵀFδ = 0); take another, for instance "
            "minus the gradient of the capability loss."
        )
    divergence = _divergences(log_policy, p, at, direction, steps)
    quadratic = steps**2 * form / 2
    return LocalLaw(steps, divergence, quadratic, divergence / quadratic)


# --- kernels ----------------------------------------------------------------------------------------------------


def moved(at: Any, direction: Any, t: Array) -> Any:
    """The parameters $θ+tδ$."""
    return jax.tree.map(lambda a, b: a + t.astype(a.dtype) * b, at, direction)


@jax.jit
def _along(losses: Partial, at: Any, direction: Any, distances: Array) -> Path:
    def one(t: Array) -> tuple[Gaps, Gaps, Gaps, Gaps]:
        def line(t: Array) -> Gaps:
            return losses(moved(at, direction, t))

        def slope(t: Array) -> tuple[Gaps, Gaps]:
            return jax.jvp(line, (t,), (jnp.ones_like(t),))

        (gaps, first), (_, second) = jax.jvp(slope, (t,), (jnp.ones_like(t),))
        here = moved(at, direction, t)
        steep = [
            jnp.linalg.norm(ravel_pytree(gradient)[0])
            for gradient in (jax.grad(lambda z: losses(z).safety)(here), jax.grad(lambda z: losses(z).capability)(here))
        ]
        return gaps, first, second, Gaps(steep[0], steep[1])

    return Path(distances, *jax.lax.map(one, distances))


def _quadratic_constants(H: np.ndarray, offset: np.ndarray, radius: float) -> tuple[float, float]:
    r"""$\sup\|H(o+\delta)\|$ over $\|\delta\|\le r$, and $\lambda_{\max}(H)$.

    The dual function $\nu r^2+\sum_i\nu g_i^2/(\nu-\lambda_i^2)$, g = Uᵀ H o, is an upper bound of the square for every
    $\nu>\lambda_{\max}^2$, and its least value is the square itself (the S-lemma).
    """
    rates, U = np.linalg.eigh(H)
    top = float(np.abs(rates).max())
    if top == 0:
        return 0.0, 0.0
    squares, pull = (rates / top) ** 2, (U.T @ (H @ offset)) / top

    def excess(log_over: float) -> float:
        # How far the maximiser at this ν, δ = λ g/(ν - λ²), is outside the ball: falls as ν grows.
        return float(np.sum(squares * (pull / (1 - squares + np.exp(log_over))) ** 2)) - radius**2

    low, high = np.log(DUAL_FROM), np.log(1 + np.sum(np.abs(pull)) / radius) + 1
    # Hard case: the maximiser at the pole is inside the ball, and the top eigenvector fills it up at no extra ν.
    root = scipy.optimize.brentq(excess, low, high, xtol=1e-14) if excess(low) > 0 else low
    over = np.exp(np.asarray(root, np.float64))
    dual = (1 + over) * (radius**2 + np.sum(pull**2 / (1 - squares + over)))
    return top * float(np.sqrt(dual)), top


def _most_seen(
    problem: Problem, loss: Partial, centre: Any, radius: float, key: Array, of: Of, samples: int, steps: int
) -> BallConstants:
    flat, unravel = ravel_pytree(centre)
    steepest = curviest = 0.0
    for i in range(samples + 1):
        draw, run = jax.random.split(jax.random.fold_in(key, i))
        way = jax.random.normal(draw, flat.shape, flat.dtype)
        # On the sphere, where a ball in many dimensions has its volume; the centre comes first.
        here = unravel(flat + (radius if i else 0.0) * way / jnp.linalg.norm(way))
        steepest = max(steepest, float(_steepness(loss, here)))
        top = lanczos(operators.hessian(problem, here, of), run, steps, pairs=1)
        # A Ritz value never exceeds the largest eigenvalue in magnitude, so it stays a lower estimate.
        curviest = max(curviest, abs(float(top.values[0])))
    return BallConstants(jnp.asarray(steepest), jnp.asarray(curviest), float(radius), "lower estimate")


@jax.jit
def _steepness(loss: Partial, at: Any) -> Array:
    return jnp.linalg.norm(ravel_pytree(jax.grad(loss)(at))[0])


@jax.jit
def _divergences(log_policy: Partial, p: Array, at: Any, direction: Any, distances: Array) -> Array:
    law = jnp.exp(log_policy(at))
    return jax.lax.map(lambda t: jnp.sum(p * dv.kl_log(law, log_policy(moved(at, direction, t)))), distances)


# --- checks -----------------------------------------------------------------------------------------------------


def check_direction(at: Any, direction: Any) -> None:
    """Check that a direction has the structure and shapes of the parameters, and that both are finite."""
    given, wanted = (
        [(jax.tree_util.keystr(path), jnp.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
        for tree in (direction, at)
    )
    if given != wanted:
        raise ValueError(f"the direction has arrays {given} and the parameters {wanted}; they must be the same.")
    operators.check_parameters(at)
    operators.check_parameters(direction)


def check_ball(radius: float, samples: int, steps: int) -> None:
    """Check the numbers with which constants over a ball are asked."""
    if not 0 < radius < np.inf:
        raise ValueError(f"radius is {radius}; a ball needs a positive, finite radius in parameter norm.")
    if samples < 1 or steps < 1:
        raise ValueError(f"samples is {samples} and steps {steps}; both must be at least 1.")


def check_distances(distances: Numbers) -> Float[Array, " T"]:
    """Finite distances as an array, shape (T,)."""
    array = np.atleast_1d(np.asarray(distances, np.float64))
    if array.ndim != 1 or not array.size or not np.all(np.isfinite(array)):
        raise ValueError(f"distances are {array}; they must be finite, at least one, shape (T,).")
    return jnp.asarray(array)
