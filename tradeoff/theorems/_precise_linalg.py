"""Rules for the linear algebra of a jaxpr in mpmath numbers, used by `tradeoff.theorems.precise`."""

from collections.abc import Callable
from itertools import product
from typing import Any

import mpmath
import numpy as np

Values = list[np.ndarray]


def dot_general(equation: Any, values: Values) -> Values:
    """A product over contracted axes, one batch entry at a time."""
    (over_a, over_b), (batch_a, batch_b) = equation.params["dimension_numbers"]
    a, b = values
    a, b = np.moveaxis(a, batch_a, range(len(batch_a))), np.moveaxis(b, batch_b, range(len(batch_b)))
    left, right = (
        tuple(axis - sum(one < axis for one in batch) for axis in over)
        for over, batch in ((over_a, batch_a), (over_b, batch_b))
    )
    shape = a.shape[: len(batch_a)]
    out = np.empty(equation.outvars[0].aval.shape, dtype=object)
    for at in np.ndindex(*shape):
        out[at] = np.asarray(np.tensordot(a[at], b[at], axes=(left, right)), dtype=object)[()]
    return [out]


def eigh(_: Any, values: Values) -> Values:
    """Eigenvectors and ascending eigenvalues of a symmetric matrix."""

    def one(matrix: Any) -> tuple[np.ndarray, ...]:
        eigenvalues, vectors = mpmath.eigsy(matrix)
        return _matrix(vectors), _vector(eigenvalues)

    return _each(values[0], one)


def svd(equation: Any, values: Values) -> Values:
    """Singular values, and the vectors when they are asked for."""
    full, vectors = equation.params["full_matrices"], equation.params["compute_uv"]

    def one(matrix: Any) -> tuple[np.ndarray, ...]:
        if not vectors:
            return (_vector(mpmath.svd_r(matrix, compute_uv=False)),)
        u, s, v = mpmath.svd_r(matrix, full_matrices=full)
        return _vector(s), _matrix(u), _matrix(v)

    return _each(values[0], one)


def cholesky(_: Any, values: Values) -> Values:
    """The lower factor."""
    return _each(values[0], lambda matrix: (_matrix(mpmath.cholesky(matrix)),))


def triangular_solve(equation: Any, values: Values) -> Values:
    """Solve with a triangular matrix from either side."""
    p, (a, b) = equation.params, values

    def one(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        kept = np.array(np.tril(a) if p["lower"] else np.triu(a), dtype=object)
        if p["unit_diagonal"]:
            np.fill_diagonal(kept, mpmath.mpf(1))
        kept = kept.T if p["transpose_a"] else kept
        # X A = B is A^T X^T = B^T.
        kept, right = (kept, b) if p["left_side"] else (kept.T, b.T)
        columns = [mpmath.lu_solve(mpmath.matrix(kept.tolist()), mpmath.matrix(list(column))) for column in right.T]
        solved = np.array([_vector(column) for column in columns], dtype=object).T
        return solved if p["left_side"] else solved.T

    if a.ndim == 2:
        return [np.asarray(one(a, b), dtype=object)]
    out = np.empty(b.shape, dtype=object)
    for at in np.ndindex(*a.shape[:-2]):
        out[at] = one(a[at], b[at])
    return [out]


def lu(equation: Any, values: Values) -> Values:
    """A factorisation with partial pivoting: the packed factors, the pivots and the permutation."""
    outputs = [
        np.empty(v.aval.shape, dtype=object if v.aval.dtype.kind == "f" else v.aval.dtype) for v in equation.outvars
    ]
    for at in np.ndindex(*values[0].shape[:-2]):
        for output, value in zip(outputs, _lu(values[0][at].copy()), strict=True):
            output[at] = value
    return outputs


def _lu(a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = min(a.shape)
    pivots, order = np.zeros(size, int), np.arange(a.shape[0])
    for k in range(size):
        best = k + max(range(a.shape[0] - k), key=lambda i: abs(a[k + i, k]))
        pivots[k] = best
        a[[k, best]], order[[k, best]] = a[[best, k]], order[[best, k]]
        if a[k, k] != 0:
            a[k + 1 :, k] = a[k + 1 :, k] / a[k, k]
            a[k + 1 :, k + 1 :] = a[k + 1 :, k + 1 :] - np.outer(a[k + 1 :, k], a[k, k + 1 :])
    return a, pivots, order


def argmax(equation: Any, values: Values) -> Values:
    """The first greatest entry along an axis."""
    (axis,) = equation.params["axes"]
    moved = np.moveaxis(values[0], axis, -1)
    out = np.empty(moved.shape[:-1], int)
    for at in np.ndindex(*moved.shape[:-1]):
        row = moved[at]
        out[at] = max(range(len(row)), key=lambda i, row=row: (row[i], -i))
    return [out.astype(equation.params["index_dtype"])]


def sort(equation: Any, values: Values) -> Values:
    """Operands sorted along an axis by the first of them."""
    axis = equation.params["dimension"]
    keys = np.moveaxis(values[0], axis, -1)
    moved = [np.moveaxis(value, axis, -1).copy() for value in values]
    for at in product(*(range(n) for n in keys.shape[:-1])):
        row = keys[at]
        order = sorted(range(len(row)), key=lambda i, row=row: (row[i], i))
        for value in moved:
            value[at] = value[at][order]
    return [np.moveaxis(value, -1, axis) for value in moved]


def _each(stack: np.ndarray, function: Callable[[Any], tuple[np.ndarray, ...]]) -> Values:
    """A function of one matrix over a stack of them."""
    batch = stack.shape[:-2]
    results = [function(mpmath.matrix(stack[at].tolist())) for at in np.ndindex(*batch)]
    return [np.stack(parts).reshape(*batch, *parts[0].shape) for parts in zip(*results, strict=True)]


def _matrix(value: Any) -> np.ndarray:
    return np.array(value.tolist(), dtype=object)


def _vector(value: Any) -> np.ndarray:
    return np.array(list(value), dtype=object)
