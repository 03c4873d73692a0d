"""Any JAX function in arithmetic of any precision, by interpreting its jaxpr with mpmath numbers.

A float64 attack on a true bound reports false violations: rounding near masses of one looks like a counterexample. The
very code that made the candidate is run again here with 80 digits, so nobody writes a claim twice and the second opinion
cannot drift from the first.
"""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import mpmath
import numpy as np

from tradeoff.theorems import _precise_linalg as linalg

DIGITS = 80


class UnsupportedError(NotImplementedError):
    """A primitive that has no high-precision counterpart here."""


def evaluate(function: Callable[..., Any], *arguments: Any, digits: int = DIGITS) -> Any:
    """Evaluate a function of pytrees with `digits` significant decimal digits.

    Args:
        function: a function that JAX can trace; float inputs are taken as exact.
        *arguments: pytrees of arrays.
        digits: working precision.

    Returns:
        The outputs, with every float array replaced by an object array of mpmath numbers (scalars stay scalars).

    Raises:
        UnsupportedError: when the function uses a primitive without a high-precision rule (the logarithm of the gamma function, say).

    Example:
        >>> import jax.numpy as jnp
        >>> mpmath.nstr(evaluate(lambda x: jnp.exp(x) - 1, 1e-20, digits=40), 10)  # float64 gives 0
        '1.0e-20'
    """
    flat, tree = jax.tree.flatten(arguments)
    closed, shape = jax.make_jaxpr(lambda *leaves: function(*jax.tree.unflatten(tree, leaves)), return_shape=True)(
        *flat
    )
    with mpmath.workdps(digits):
        outputs = _run(closed.jaxpr, closed.consts, [_lift(np.asarray(leaf)) for leaf in flat])
    outputs = [out[()] if isinstance(out, np.ndarray) and out.ndim == 0 else out for out in outputs]
    return jax.tree.unflatten(jax.tree.structure(shape), outputs)


def missing(function: Callable[..., Any], *arguments: Any) -> set[str]:
    """The primitives of a function that have no high-precision rule; empty when `evaluate` can run it.

    Example:
        >>> missing(jax.numpy.exp, 1.0)
        set()
    """
    return _unknown(jax.make_jaxpr(function)(*arguments).jaxpr)


def _unknown(jaxpr: jex.Jaxpr) -> set[str]:
    found: set[str] = set()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _CALLS:
            if equation.params.get("name") not in _EXACT:
                found |= set().union(*map(_unknown, _inner(equation)))
        elif (name not in _RULES and _kinds(equation) & {"f", "c"}) or "c" in _kinds(equation):
            found.add(name)
    return found


def _inner(equation: Any) -> Iterator[jex.Jaxpr]:
    """The functions that an equation calls."""
    for parameter in equation.params.values():
        for value in parameter if isinstance(parameter, tuple | list) else [parameter]:
            if isinstance(value, jex.ClosedJaxpr | jex.Jaxpr):
                yield value.jaxpr if isinstance(value, jex.ClosedJaxpr) else value


def _kinds(equation: Any) -> set[str]:
    """Of what kinds the outputs are: "f" for floats, "c" for complex numbers."""
    return {variable.aval.dtype.kind for variable in equation.outvars}


def _lift(array: np.ndarray) -> np.ndarray:
    """Floats as mpmath numbers, everything else as it is."""
    if array.dtype.kind != "f":
        return array
    return np.array([mpmath.mpf(float(v)) for v in array.ravel()] + [None], dtype=object)[:-1].reshape(array.shape)


def _run(jaxpr: jex.Jaxpr, consts: Sequence[Any], arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
    known: dict[Any, np.ndarray] = {}

    def read(atom: Any) -> np.ndarray:
        return _lift(np.asarray(atom.val)) if isinstance(atom, jex.Literal) else known[atom]

    for variable, value in zip(jaxpr.constvars, consts, strict=True):
        known[variable] = _lift(np.asarray(value))
    known.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        outputs = _apply(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: Any, values: list[np.ndarray]) -> list[np.ndarray]:
    name = equation.primitive.name
    whole = all(value.dtype != object for value in values) and all(
        v.aval.dtype.kind not in "fc" for v in equation.outvars
    )
    if whole and name not in _CALLS:
        return _bind(equation, values)
    rule = _RULES.get(name)
    if rule is None or ("c" in _kinds(equation) and name not in _CALLS):
        raise UnsupportedError(
            f"no high-precision rule for the JAX primitive {name!r}; the claim was checked in float64 only."
        )
    return rule(equation, values)


def _call(equation: Any, values: list[np.ndarray]) -> list[np.ndarray]:
    """A function inside the function; our own cancellation-free ones by their definition."""
    exact = _EXACT.get(equation.params.get("name"))
    if exact is not None:
        return [_elementwise(exact, values)]
    inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
    return _run(inner.jaxpr, inner.consts, values)


def _convert(equation: Any, values: list[np.ndarray]) -> list[np.ndarray]:
    wanted, value = np.dtype(equation.params["new_dtype"]), values[0]
    if wanted.kind != "f":
        return [value.astype(wanted)]
    return [value if value.dtype == object else _lift(value.astype(float))]


def _select(_: Any, values: list[np.ndarray]) -> list[np.ndarray]:
    which, *cases = values
    return [np.where(which, cases[1], cases[0]) if len(cases) > 1 else cases[0]]


def _scan(equation: Any, values: list[np.ndarray]) -> list[np.ndarray]:
    """A loop of known length: constants, then carried values, then slices of stacked inputs."""
    parameters = equation.params
    constants, carried = parameters["num_consts"], parameters["num_carry"]
    fixed, carry, stacked = values[:constants], values[constants : constants + carried], values[constants + carried :]
    inner, collected = parameters["jaxpr"], []
    steps = range(parameters["length"])
    for step in reversed(steps) if parameters["reverse"] else steps:
        out = _run(inner.jaxpr, inner.consts, [*fixed, *carry, *(np.asarray(xs[step]) for xs in stacked)])
        carry = [np.asarray(value) for value in out[:carried]]
        collected.append(out[carried:])
    if parameters["reverse"]:
        collected.reverse()
    return [*carry, *(np.array(ys) for ys in zip(*collected, strict=True))]


def _while(equation: Any, values: list[np.ndarray]) -> list[np.ndarray]:
    """A loop that stops by itself: constants of the condition, of the body, then carried values."""
    parameters = equation.params
    asked, done = parameters["cond_nconsts"], parameters["body_nconsts"]
    of_condition, of_body, carry = values[:asked], values[asked : asked + done], values[asked + done :]
    condition, body = parameters["cond_jaxpr"], parameters["body_jaxpr"]
    # Under `vmap` every lane has a condition of its own, and stops by itself.
    while (goes_on := _run(condition.jaxpr, condition.consts, [*of_condition, *carry])[0]).any():
        moved = _run(body.jaxpr, body.consts, [*of_body, *carry])
        carry = [np.where(_fitted(goes_on, old), new, old) for new, old in zip(moved, carry, strict=True)]
    return list(carry)


def _fitted(lanes: np.ndarray, value: np.ndarray) -> np.ndarray:
    """A truth value for each lane, shaped to choose between values of all lanes."""
    return np.reshape(lanes, lanes.shape + (1,) * (np.ndim(value) - lanes.ndim))


def _branch(equation: Any, values: list[np.ndarray]) -> list[np.ndarray]:
    """One of several functions, chosen by a number."""
    chosen = equation.params["branches"][int(values[0])]
    return _run(chosen.jaxpr, chosen.consts, values[1:])


def _linear_solve(equation: Any, values: list[np.ndarray]) -> list[np.ndarray]:
    """A system that brings its own solver, after the constants of four functions."""
    lengths, solver = equation.params["const_lengths"], equation.params["jaxprs"].solve
    start = lengths.matvec + lengths.vecmat
    right = values[start + lengths.solve + lengths.transpose_solve :]
    return _run(solver.jaxpr, solver.consts, [*values[start : start + lengths.solve], *right])


def _bind(equation: Any, values: Sequence[Any]) -> list[np.ndarray]:
    out = equation.primitive.bind(*(np.asarray(v) for v in values), **equation.params)
    return [np.asarray(o) for o in (out if equation.primitive.multiple_results else [out])]


def _move(equation: Any, values: list[np.ndarray]) -> list[np.ndarray]:
    """Run a primitive that only moves entries on their numbers, then put the entries where their numbers went."""
    pool = [value for value in values if value.dtype == object]
    numbers = np.cumsum([0, *(value.size for value in pool)])
    offsets = iter(numbers)
    standing_in = [
        np.arange(value.size).reshape(value.shape) + next(offsets) if value.dtype == object else value
        for value in values
    ]
    entries = np.concatenate([value.ravel() for value in pool])
    return [np.asarray(entries[where], dtype=object) for where in _bind(equation, standing_in)]


def _elementwise(rule: Callable[..., Any], values: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(np.frompyfunc(rule, len(values), 1)(*values), dtype=object)


def _reduce(rule: Callable[[Any, Any], Any], value: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    moved = np.moveaxis(value, axes, range(len(axes)))
    flat = moved.reshape(math.prod(moved.shape[: len(axes)]), *moved.shape[len(axes) :])
    total = flat[0]
    for row in flat[1:]:
        total = np.frompyfunc(rule, 2, 1)(total, row)
    return np.asarray(total, dtype=value.dtype)


def _divide(a: Any, b: Any) -> Any:
    if b == 0:
        return mpmath.nan if a == 0 or mpmath.isnan(a) else mpmath.inf * mpmath.sign(a)
    return a / b


def _log(x: Any) -> Any:
    return mpmath.nan if mpmath.isnan(x) or x < 0 else mpmath.ninf if x == 0 else mpmath.log(x)


_EXACT: dict[str, Callable[..., Any]] = {
    "x_minus_log1p": lambda x: mpmath.inf if x <= -1 else x - mpmath.log(1 + x),
    "expm1_minus_x": lambda x: mpmath.exp(x) - 1 - x,
    "kl_terms": lambda P, Q, D: Q if P <= 0 else mpmath.inf if Q <= 0 else D - P * mpmath.log(Q / P),
}
"""Our own functions whose float64 series stop too early for 80 digits."""

_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": operator.add, "add_any": operator.add, "sub": operator.sub, "mul": operator.mul, "div": _divide,
    "neg": operator.neg, "abs": abs, "sign": mpmath.sign, "max": max, "min": min, "square": lambda x: x * x,
    "pow": lambda a, b: mpmath.power(a, b), "sqrt": mpmath.sqrt, "exp": mpmath.exp, "log": _log,
    "log1p": lambda x: _log(1 + x), "expm1": lambda x: mpmath.exp(x) - 1, "logistic": lambda x: 1 / (1 + mpmath.exp(-x)),
    "tanh": mpmath.tanh, "sin": mpmath.sin, "cos": mpmath.cos, "asin": mpmath.asin, "acos": mpmath.acos,
    "atan2": mpmath.atan2, "erf": mpmath.erf, "erfc": mpmath.erfc, "erf_inv": mpmath.erfinv, "ceil": mpmath.ceil, "floor": mpmath.floor, "rem": mpmath.fmod, "stop_gradient": lambda x: x, "copy": lambda x: x, "copy_p": lambda x: x,
}  # fmt: skip
_COMPARE: dict[str, Callable[..., Any]] = {
    "gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le, "eq": operator.eq, "ne": operator.ne,
    "is_finite": lambda x: bool(mpmath.isfinite(x)),
}  # fmt: skip
_REDUCE: dict[str, Callable[[Any, Any], Any]] = {
    "reduce_sum": operator.add, "reduce_max": max, "reduce_min": min, "reduce_prod": operator.mul,
}  # fmt: skip
_MOVED = "broadcast_in_dim reshape transpose squeeze slice split stack concatenate gather rev dynamic_slice expand_dims pad scatter"
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "scan", "while", "cond")

_RULES: dict[str, Callable[[Any, list[np.ndarray]], list[np.ndarray]]] = {
    **{name: lambda _, v, rule=rule: [_elementwise(rule, v)] for name, rule in _ELEMENTWISE.items()},
    **{name: lambda _, v, rule=rule: [_elementwise(rule, v).astype(bool)] for name, rule in _COMPARE.items()},
    **{
        name: lambda e, v, rule=rule: [_reduce(rule, v[0], tuple(map(int, e.params["axes"])))]
        for name, rule in _REDUCE.items()
    },
    **dict.fromkeys(_MOVED.split(), _move),
    **dict.fromkeys(_CALLS, _call),
    "iota": lambda e, v: [_lift(_bind(e, v)[0])],
    "scan": _scan,
    "while": _while,
    "cond": _branch,
    "platform_index": lambda e, _: [np.asarray(e.params["platforms"].index(None))],
    "custom_linear_solve": _linear_solve,
    "dot_general": linalg.dot_general,
    "eigh": linalg.eigh,
    "svd": linalg.svd,
    "cholesky": linalg.cholesky,
    "triangular_solve": linalg.triangular_solve,
    "lu": linalg.lu,
    "argmax": linalg.argmax,
    "sort": linalg.sort,
    "select_n": _select,
    "convert_element_type": _convert,
    "integer_pow": lambda e, v: [_elementwise(lambda x: x ** e.params["y"], v)],
}
