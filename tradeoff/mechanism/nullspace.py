r"""What safety fine-tuning did to a layer: where activations lie, which directions of the weights changed, and the edit of least norm.

Matrices act on columns, $y = Wx$: a weight has shape (outputs, inputs), and activations are given one to a row, shape
(samples, inputs). Everything here is NumPy in float64.

Source: [makesandbreaks2024]; methods.md 9.
"""

from typing import Any, NamedTuple

import numpy as np

ENERGY = 0.9
"""The share of the squared singular values that a subspace must hold."""


# --- activations ---------------------------------------------------------------------------------------------------


class Nearness(NamedTuple):
    """How much nearer activations are to the mean of the safe ones than to that of the unsafe; positive is nearer to safe.

    Args:
        l2: distance to the unsafe mean less distance to the safe mean, by sample.
        cosine: cosine with the safe mean less cosine with the unsafe mean, by sample.
    """

    l2: np.ndarray
    cosine: np.ndarray


def nearness(activations: Any, safe: Any, unsafe: Any) -> Nearness:
    r"""Nearness of samples to the means of two clusters, $\|x-\mu_u\|-\|x-\mu_s\|$ and $\cos(x,\mu_s)-\cos(x,\mu_u)$.

    Args:
        activations: the samples, shape (samples, inputs); jailbreaks, for example.
        safe: activations of safe prompts, whose mean is $\mu_s$.
        unsafe: activations of unsafe prompts, whose mean is $\mu_u$.

    Returns:
        Both, by sample.

    Example:
        >>> nearness([[1.0, 0.0]], safe=[[1.0, 0.0]], unsafe=[[0.0, 1.0]]).cosine
        array([1.])

    Unknown: how the source combines the two distances; the difference is signed and needs no scale.

    Source: [makesandbreaks2024]; methods.md 9.
    """
    x, s, u = (_samples(a, name) for a, name in ((activations, "activations"), (safe, "safe"), (unsafe, "unsafe")))
    s, u = s.mean(0), u.mean(0)
    return Nearness(np.linalg.norm(x - u, axis=-1) - np.linalg.norm(x - s, axis=-1), _cosine(x, s) - _cosine(x, u))


def separation(safe: Any, unsafe: Any) -> tuple[float, float]:
    """How far apart the clusters are: the mean nearness of the safe samples less that of the unsafe, by L2 and cosine.

    Both are 0 for clusters with one mean and grow with the distance of the means.

    Args:
        safe: activations of safe prompts, shape (samples, inputs).
        unsafe: of unsafe prompts.

    Returns:
        The separation by L2, in units of the activations, and by cosine, at most 4.

    Example:
        >>> separation([[1.0, 0.0]], [[-1.0, 0.0]])
        (4.0, 4.0)

    Source: [makesandbreaks2024]; methods.md 9.
    """
    ours, theirs = nearness(safe, safe, unsafe), nearness(unsafe, safe, unsafe)
    return tuple(float(a.mean() - b.mean()) for a, b in zip(ours, theirs, strict=True))  # type: ignore[return-value]


# --- weights -------------------------------------------------------------------------------------------------------


def column_space_sines(tuned: Any, original: Any, energy: float = ENERGY) -> np.ndarray:
    r"""$\sin\theta_i$ between each leading left singular vector of the tuned weight and the leading ones of the original.

    Args:
        tuned: the weight after fine-tuning, shape (outputs, inputs).
        original: the weight before.
        energy: the share of the squared singular values, in (0, 1], that the leading vectors of each hold.

    Returns:
        A number in [0, 1] for each leading vector of the tuned weight, the largest singular value first.

    Example:
        >>> column_space_sines([[1.0], [1.0]], [[1.0], [0.0]]).round(4)
        array([0.7071])

    Unknown: whether energy counts singular values or their squares; squares here.

    Source: [makesandbreaks2024]; methods.md 9.
    """
    ours, theirs = leading(tuned, energy), leading(original, energy)
    return np.minimum(np.linalg.norm(ours - theirs @ (theirs.T @ ours), axis=0), 1.0)


def leading(weight: Any, energy: float = ENERGY) -> np.ndarray:
    """The left singular vectors, as columns, that hold a share of a weight's energy; the fewest there are.

    Args:
        weight: shape (outputs, inputs).
        energy: the share of the squared singular values, in (0, 1].

    Returns:
        Orthonormal columns, none for a weight of zeros.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"leading was given energy={energy}; a share of the squared singular values lies in (0, 1].")
    u, sigma, _ = np.linalg.svd(_matrix(weight, "weight"), full_matrices=False)
    held = np.cumsum(sigma**2)
    if not held.size or held[-1] == 0:
        return u[:, :0]
    # Rounding may leave the last sum an ulp below the total that energy=1 asks for.
    return u[:, : int(np.searchsorted(held, energy * held[-1] * (1 - np.finfo(float).eps * len(held)))) + 1]


def row_space(weight: Any, activations: Any, centred: bool = False) -> np.ndarray:
    r"""$\sigma_j\cos(x,v_j)$ of each activation with each right singular vector of a weight.

    The weight may be a difference of weights: then it tells whom the change acts on. Signs are those of the singular
    vectors and mean nothing; compare magnitudes.

    Args:
        weight: shape (outputs, inputs).
        activations: shape (samples, inputs).
        centred: take the mean row from the weight first, as the source's code does.

    Returns:
        Shape (samples, min(outputs, inputs)), the largest singular value first.

    Example:
        >>> np.abs(row_space([[3.0, 0.0], [0.0, 1.0]], [[0.0, 2.0]]))
        array([[0., 1.]])

    Source: [makesandbreaks2024]; methods.md 9.
    """
    w, x = _matrix(weight, "weight"), _samples(activations, "activations")
    _, sigma, right = np.linalg.svd(w - w.mean(0) if centred else w, full_matrices=False)
    return sigma * np.stack([_cosine(x, v) for v in right], axis=-1)


def local_lipschitz(jacobian: Any) -> np.ndarray:
    """The local Lipschitz constant of each sample: the largest singular value of the Jacobian there.

    Args:
        jacobian: shape (samples, outputs, inputs).

    Returns:
        A number for each sample.

    Example:
        >>> local_lipschitz([[[3.0, 0.0], [0.0, 4.0]]])
        array([4.])

    Unknown: the function and the norm of the source; `transformer.jacobians` says which function is ours, the norm is L2.

    Source: [makesandbreaks2024]; methods.md 9.
    """
    return np.linalg.norm(np.asarray(jacobian, float), ord=2, axis=(-2, -1))


# --- the edit of least norm ----------------------------------------------------------------------------------------


def minimum_norm_edit(weight: Any, inputs: Any, outputs: Any) -> np.ndarray:
    r"""The smallest change that sends inputs to given outputs, $\Delta W=(R-W_0U)U^+$.

    It is where gradient descent from $W_0$ on $\tfrac12\|WU-R\|^2$ ends, for any step size at which it converges; where no
    change will do, both end at the least-squares fit. Its rank is at most the number of inputs, its rows lie in
    span(U), so it does not touch any x orthogonal to them. Adam's limit is another.

    Args:
        weight: $W_0$, shape (outputs, inputs).
        inputs: U, the unsafe activations as columns, shape (inputs, samples).
        outputs: R, where they are to go, shape (outputs, samples); with columns in the kernel of the next layer's weight
            nothing of them is left after it.

    Returns:
        The change, to be added to the weight.

    Example:
        >>> minimum_norm_edit([[1.0, 2.0]], [[1.0], [0.0]], [[0.0]])
        array([[-1.,  0.]])

    Source: [makesandbreaks2024]; methods.md 9 and 0.6, derived there.
    """
    w, u, r = _matrix(weight, "weight"), _matrix(inputs, "inputs"), _matrix(outputs, "outputs")
    if w.shape[1] != u.shape[0] or r.shape != (w.shape[0], u.shape[1]):
        raise ValueError(
            f"minimum_norm_edit was given a weight of shape {w.shape}, inputs {u.shape} and outputs {r.shape}; they must be "
            "(m, n), (n, k) and (m, k): one column for each sample."
        )
    return (r - w @ u) @ np.linalg.pinv(u)


def row_space_outside(change: Any, inputs: Any) -> float:
    r"""The share of a change that acts outside the span of some inputs, $\|\Delta W(I-P_U)\|_F^2/\|\Delta W\|_F^2$.

    Args:
        change: ΔW, shape (outputs, inputs).
        inputs: U, as columns, shape (inputs, samples).

    Returns:
        A number in [0, 1]; 0 for no change at all.

    Example:
        >>> row_space_outside([[3.0, 4.0]], [[1.0], [0.0]])
        0.64

    Source: [makesandbreaks2024]; methods.md 9.
    """
    change = _matrix(change, "change")
    basis = _span(_matrix(inputs, "inputs"))
    return _share(change - (change @ basis) @ basis.T, change)


class NullSpace(NamedTuple):
    """How much of a change the next layer does not see.

    Args:
        fraction: the share of the columns' energy in the next weight's kernel.
        chance: the share that columns without a preferred direction would have: the kernel's dimension over the whole.
    """

    fraction: float
    chance: float


def null_space_fraction(change: Any, following: Any, tolerance: float | None = None) -> NullSpace:
    r"""The share of the columns of ΔW that lies in the kernel of the next weight, to be read against chance.

    The claim of the source is that it is large. It is reported, and nothing here relies on it: gradients reach a layer
    through the transpose of the next weight, which favours what that weight sees.

    Args:
        change: ΔW, shape (outputs, inputs).
        following: the next layer's weight, shape (next outputs, outputs).
        tolerance: singular values up to it, relative to the largest, count as 0; None for rounding.

    Returns:
        The share, and what chance would give.

    Example:
        >>> null_space_fraction([[1.0], [1.0]], [[0.0, 2.0]])
        NullSpace(fraction=0.5, chance=0.5)

    Source: [makesandbreaks2024]; methods.md 9.
    """
    change, following = _matrix(change, "change"), _matrix(following, "following")
    seen = _span(following.T, tolerance)
    return NullSpace(_share(change - seen @ (seen.T @ change), change), 1 - seen.shape[1] / following.shape[1])


def _span(columns: np.ndarray, tolerance: float | None = None) -> np.ndarray:
    """An orthonormal basis of the span of columns."""
    u, sigma, _ = np.linalg.svd(columns, full_matrices=False)
    cut = max(columns.shape) * np.finfo(float).eps if tolerance is None else tolerance
    return u[:, sigma > cut * sigma.max(initial=0.0)]


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    total = float(np.sum(whole**2))
    return float(np.sum(part**2)) / total if total > 0 else 0.0


def _cosine(x: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Cosines of rows with a direction; 0 where one of them is zero."""
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(direction)
    return np.divide(x @ direction, norms, out=np.zeros(len(x)), where=norms > 0)


def _samples(values: Any, name: str) -> np.ndarray:
    samples = _matrix(values, name)
    if not len(samples):
        raise ValueError(f"{name} holds no sample; a mean needs at least one.")
    return samples


def _matrix(values: Any, name: str) -> np.ndarray:
    matrix = np.asarray(values, float)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise ValueError(f"{name} has shape {matrix.shape}; it must be a matrix of finite numbers.")
    return matrix
