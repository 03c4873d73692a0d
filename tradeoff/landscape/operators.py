r"""Curvature that is never written down: symmetric maps of parameters, known by what they do to a vector.

The Hessian of a loss is the derivative of its gradient along v (forward over reverse), at the price of about two gradients;
the Gauss-Newton and Fisher matrices of a policy are $J^\top WJ$ with J the derivative of its log-probabilities. An
operator carries its problem and its point as arguments, never as constants of a compiled function: one compilation serves
every point, and XLA has nothing to fold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Float

from tradeoff._records import Numbers, is_concrete, record, static
from tradeoff.gaps import Gaps
from tradeoff.problems import Problem, Quadratic, SoftmaxLinear, Tabular
from tradeoff.problems.quadratic import POSITIVE_WITHIN, SYMMETRIC_WITHIN

Of = str
"""Which of the two losses: `safety` or `capability`."""


@record
class Operator:
    """A symmetric linear map of d parameters, taken as one flat vector (the order of `jax.flatten_util.ravel_pytree`).

    Args:
        product: v to Av for v of shape (d,); a `jax.tree_util.Partial`, so that its data are arguments of compiled code.
        size: d.
        semidefinite: whether no eigenvalue can be negative, by construction.
        dtype: number format of the vectors.

    Example:
        >>> A = from_matrix([[2.0, 1.0], [1.0, 2.0]])
        >>> (A @ jnp.array([1.0, 0.0])).tolist()
        [2.0, 1.0]
    """

    product: Partial
    size: int = static()
    semidefinite: bool = static()
    dtype: str = static()

    def __matmul__(self, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """The product with one vector, shape (d,)."""
        return _product(self, check_vector(self, v))

    def rows(self, vectors: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """The product with each row."""
        return _rows(self, vectors)

    def __repr__(self) -> str:
        return f"Operator({self.size} parameters{', semidefinite' if self.semidefinite else ''})"


@dataclass(frozen=True, eq=False)
class HostOperator:
    """As `Operator`, for a product that JAX cannot trace: NumPy vectors in, NumPy vectors out (the bridge's, in torch).

    Attributes:
        apply: v to Av for v of shape (d,).
        size: d.
        semidefinite: whether no eigenvalue can be negative, by construction.
        dtype: number format of the vectors.
    """

    apply: Callable[[np.ndarray], np.ndarray]
    size: int
    semidefinite: bool
    dtype: str = "float64"

    def __matmul__(self, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """The product with one vector, shape (d,)."""
        return jnp.asarray(self.apply(np.asarray(check_vector(self, v))), self.dtype)

    def rows(self, vectors: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """The product with each row."""
        return jnp.stack([self @ v for v in vectors])


AnyOperator = Operator | HostOperator
"""What the rest of the room takes."""


def hessian(problem: Problem, at: Any, of: Of = "safety") -> Operator:
    r"""The Hessian of a loss of any problem, $v\mapsto\frac{d}{dt}\nabla L(\theta+tv)$.

    Args:
        problem: any problem. One that is a record of arrays shares compiled code with its like; another compiles anew.
        at: the parameters θ, any pytree of floating-point arrays of one number format.
        of: the loss.

    Returns:
        An `Operator` on the flat parameters.

    Raises:
        ValueError: when `of` names no loss, or the parameters are empty, not finite or of several number formats.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> quad = quadratic.golden()
        >>> (hessian(quad, quad.theta_s) @ jnp.array([1.0, 0.0])).tolist()
        [2.0, 0.5]
    """
    convex = isinstance(problem, Quadratic | Tabular | SoftmaxLinear)
    return _operator(Partial(_hessian_product, _bound(_LOSSES[_check_of(of)], problem), at), at, convex)


def gauss_newton(problem: Problem, at: Any, of: Of = "safety") -> Operator:
    r"""The Gauss-Newton matrix: the Hessian of the loss with the policy's logits replaced by their linear part.

    $J^\top\mathrm{diag}_x\big(p(x)[\mathrm{diag}\,\pi-\pi\pi^\top]\big)J$ with $\pi=\pi(\cdot|x)$ and J the derivative of the
    logits; a quadratic's residual is linear, so there it is the Hessian. Never indefinite. For log-loss it equals the
    Fisher matrix; where logits are linear in θ (tabular, softmax-linear) both equal the Hessian.

    Args:
        problem: a quadratic, or a problem with a policy (`world` and `log_policy`).
        at: the parameters θ.
        of: the loss, whose contexts are weighted by p.

    Returns:
        An `Operator` on the flat parameters.

    Raises:
        ValueError: as `hessian`; and when the problem has neither policy nor quadratic form.

    Example:
        >>> from tradeoff import problems, worlds
        >>> problem = problems.Tabular(worlds.golden())
        >>> gauss_newton(problem, problem.aligned())
        Operator(12 parameters, semidefinite)
    """
    if isinstance(problem, Quadratic):
        return hessian(problem, at, of)
    return _of_policy(_gauss_newton_product, "gauss_newton", problem, at, of)


def fisher(problem: Problem, at: Any, of: Of = "safety") -> Operator:
    r"""The Fisher matrix of the policy, $E_{x\sim p}E_{y\sim\pi(\cdot|x)}[\nabla\log\pi(y|x)\,\nabla\log\pi(y|x)^\top]$.

    Its quadratic form is how fast the policy moves: $\mathrm{KL}(\theta\|\theta+t\delta)=\tfrac12t^2\delta^\top F\delta+O(t^3)$.

    Args:
        problem: a problem with a policy (`world` and `log_policy`).
        at: the parameters θ.
        of: the loss whose contexts x are weighted by p.

    Returns:
        An `Operator` on the flat parameters.

    Raises:
        ValueError: as `hessian`; and when the problem has no policy.

    Example:
        >>> from tradeoff import problems, worlds
        >>> problem = problems.Tabular(worlds.over_penalised())
        >>> (fisher(problem, jnp.zeros((1, 2))) @ jnp.array([1.0, 0.0])).tolist()
        [0.25, -0.25]
    """
    return _of_policy(_fisher_product, "fisher", problem, at, of)


def from_matrix(A: Numbers) -> Operator:
    """A symmetric matrix as an operator.

    Args:
        A: shape (d, d), symmetric, finite.

    Returns:
        An `Operator`; semidefinite when no eigenvalue is negative beyond rounding.

    Raises:
        ValueError: when A is not square, not finite or not symmetric.

    Example:
        >>> from_matrix([[1.0, 0.0], [0.0, -1.0]])
        Operator(2 parameters)
    """
    matrix = np.asarray(A, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"A has shape {matrix.shape}; a symmetric operator needs shape (d, d) with d at least 1.")
    if not np.all(np.isfinite(matrix)):
        i, j = np.argwhere(~np.isfinite(matrix))[0]
        raise ValueError(f"A[{i}, {j}] is {matrix[i, j]}; the entries must be finite.")
    uneven = np.abs(matrix - matrix.T)
    if uneven.max() > SYMMETRIC_WITHIN * np.abs(matrix).max():
        i, j = np.unravel_index(int(uneven.argmax()), uneven.shape)
        raise ValueError(
            f"A is not symmetric: A[{i}, {j}] is {matrix[i, j]:.12g} and A[{j}, {i}] is {matrix[j, i]:.12g}. Give "
            "(A + A.T) / 2, or A.T @ A for its singular values."
        )
    spectrum = np.linalg.eigvalsh(matrix)
    convex = bool(spectrum[0] >= -POSITIVE_WITHIN * len(matrix) * np.abs(spectrum).max())
    return Operator(Partial(jnp.dot, jnp.asarray((matrix + matrix.T) / 2)), len(matrix), convex, "float64")


def dense(operator: AnyOperator) -> Float[Array, "d d"]:
    """The matrix of an operator, by d products: for small ones, and for tests.

    Args:
        operator: any operator of at most a few thousand parameters.

    Returns:
        Shape (d, d), symmetric to the rounding of the products.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> dense(hessian(quadratic.golden(), jnp.zeros(2), "capability")).tolist()
        [[3.0, 0.0], [0.0, 1.0]]
    """
    return operator.rows(jnp.eye(operator.size, dtype=operator.dtype)).T


def check_vector(operator: AnyOperator, v: Array) -> Array:
    """The vector, after the check that it fits the operator."""
    if v.shape != (operator.size,):
        raise ValueError(
            f"the operator acts on {operator.size} parameters and was given a vector of shape {v.shape}; give shape "
            f"({operator.size},), for a tree of parameters jax.flatten_util.ravel_pytree(tree)[0]."
        )
    return v


# --- the three products -----------------------------------------------------------------------------------------


def _hessian_product(loss: Callable[[Any], Array], at: Any, v: Array) -> Array:
    flat, unravel = ravel_pytree(at)
    return jax.jvp(jax.grad(lambda z: loss(unravel(z))), (flat,), (v,))[1]


def _gauss_newton_product(log_policy: Callable[[Any], Array], p: Array, at: Any, v: Array) -> Array:
    logs, moved, pull = _both_ways(log_policy, at, v)
    law = jnp.exp(logs)
    centred = moved - jnp.sum(law * moved, axis=-1, keepdims=True)
    return pull(p[:, None] * law * centred)[0]


def _fisher_product(log_policy: Callable[[Any], Array], p: Array, at: Any, v: Array) -> Array:
    logs, moved, pull = _both_ways(log_policy, at, v)
    return pull(p[:, None] * jnp.exp(logs) * moved)[0]


def _both_ways(log_policy: Callable[[Any], Array], at: Any, v: Array) -> tuple[Array, Array, Callable]:
    """The log-policy, its derivative along v, and the map that pulls a change of it back to parameters."""
    flat, unravel = ravel_pytree(at)

    def outputs(z: Array) -> Array:
        return log_policy(unravel(z))

    return *jax.jvp(outputs, (flat,), (v,)), jax.vjp(outputs, flat)[1]


@jax.jit
def _product(operator: Operator, v: Array) -> Array:
    return operator.product(v)


@jax.jit
def _rows(operator: Operator, vectors: Array) -> Array:
    # One after the other: batching would hold every intermediate of the loss k times.
    return jax.lax.map(operator.product, vectors)


# --- from problems to operators ---------------------------------------------------------------------------------


def _safety(problem: Problem, parameters: Any) -> Array:
    return problem.gaps(parameters).safety


def _capability(problem: Problem, parameters: Any) -> Array:
    return problem.gaps(parameters).capability


def _log_policy(problem: Any, parameters: Any) -> Array:
    return problem.log_policy(parameters)


_LOSSES = {"safety": _safety, "capability": _capability}


def loss(problem: Problem, of: Of) -> Partial:
    """A loss of a problem as a function of its parameters, with the problem's arrays as arguments."""
    return _bound(_LOSSES[_check_of(of)], problem)


def losses(problem: Problem) -> Partial:
    """Both losses of a problem as a function of its parameters, with the problem's arrays as arguments."""
    return _bound(_gaps, problem)


def _gaps(problem: Problem, parameters: Any) -> Gaps:
    return problem.gaps(parameters)


def policy(problem: Any, of: Of, asked_by: str) -> tuple[Partial, Array]:
    """The log-policy of a problem as a function of its parameters, and the weights of the contexts."""
    if not (hasattr(problem, "world") and hasattr(problem, "log_policy")):
        raise ValueError(
            f"{asked_by} was given {problem!r}, which has no policy; it needs a problem with `world` and `log_policy` "
            "(tabular, softmax-linear, sequences). For other losses use landscape.hessian."
        )
    law = problem.world.safety if _check_of(of) == "safety" else problem.world.capability
    return _bound(_log_policy, problem), law.p


def _of_policy(product: Callable, asked_by: str, problem: Any, at: Any, of: Of) -> Operator:
    log_policy, p = policy(problem, of, asked_by)
    return _operator(Partial(product, log_policy, p, at), at, semidefinite=True)


def _bound(function: Callable, problem: Any) -> Partial:
    arrays = all(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(problem))
    # A problem that JAX cannot take apart becomes part of the function: correct, and compiled for itself alone.
    return Partial(function, problem) if arrays else Partial(lambda parameters: function(problem, parameters))


def _operator(product: Partial, at: Any, semidefinite: bool) -> Operator:
    flat = check_parameters(at)
    return Operator(product, flat.size, semidefinite, str(flat.dtype))


def check_parameters(at: Any) -> Float[Array, " d"]:
    """The parameters as one flat vector, after the checks that they are a point of the landscape."""
    kinds = {str(jnp.asarray(leaf).dtype) for leaf in jax.tree.leaves(at)}
    if len(kinds) != 1 or not next(iter(kinds)).startswith(("float", "bfloat")):
        raise ValueError(
            f"the parameters hold numbers of {sorted(kinds) or 'no kind'}; they must be floating-point arrays of one "
            "number format, at least one number in all."
        )
    flat = ravel_pytree(at)[0]
    if not flat.size:
        raise ValueError("the parameters hold no number; a landscape needs at least one.")
    if is_concrete(flat) and not bool(jnp.all(jnp.isfinite(flat))):
        where = int(jnp.argmin(jnp.isfinite(flat)))
        raise ValueError(
            f"parameter {where} (counted flat) is {flat[where]}; curvature is taken at finite parameters: check that "
            "training did not diverge."
        )
    return flat


def _check_of(of: str) -> str:
    if of not in _LOSSES:
        raise ValueError(f"of is {of!r}; it must be one of {', '.join(map(repr, _LOSSES))}.")
    return of
