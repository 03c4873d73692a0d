r"""Merges of models, as pure functions of arrays by name, of any library.

Models of different names or shapes are refused, by name. Angles, cosines and projections are those of one array at a time, as
in the released implementations.

Of the two factors of a LoRA adapter these are merges of each factor, and not of their product: the merge of products
$(1-\lambda)B_0A_0+\lambda B_1A_1$ needs the merged weights. Where the start has no adapter, $B_0=0$, scaling one factor by λ
is the linear merge, and merging both factors is not.
"""

from typing import Any

from array_api_compat import array_namespace

from tradeoff._records import is_concrete
from tradeoff.strategies._named import Weights, each, less, mixed, moved, namespace, ratio

COSINES = 1e5
"""Cosines that differ by less than one over this are equal to Safe LoRA."""


def linear(weight: Any, start: Weights, tuned: Weights) -> Weights:
    r"""The linear merge $(1-\lambda)\theta_0+\lambda\theta$; either model itself, bit for bit, at its end.

    Args:
        weight: λ, of the tuned model.
        start: the aligned weights.
        tuned: the trained weights.

    Example:
        >>> linear(0.25, {"w": jnp.zeros(2)}, {"w": jnp.array([4.0, 8.0])})["w"].tolist()
        [1.0, 2.0]

    Source: [merging2024], [wiseft2021]; methods.md 7, P12.
    """
    return _between(weight, start, tuned, mixed(weight, tuned, start))


def slerp(weight: Any, start: Weights, tuned: Weights) -> Weights:
    r"""The spherical merge $[\sin((1-\lambda)W)\,\theta_0+\sin(\lambda W)\,\theta]/\sin W$, W the angle between two arrays.

    Where $\sin W$ is too small to be divided by, the merge is the linear one: for parallel arrays they agree to rounding;
    antiparallel ones of one length have no shortest way, and the linear merge has $|1-2\lambda|$ times that length. An array of
    zeros has no angle and is merged linearly too.

    Args:
        weight: λ, of the tuned model.
        start: the aligned weights.
        tuned: the trained weights.

    Example:
        >>> slerp(0.5, {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 1.0])})["w"].round(3).tolist()
        [0.707, 0.707]

    Source: [merging2024]; methods.md 7.
    """
    return _between(weight, start, tuned, each(lambda a, b: _arc(weight, a, b), start, tuned))


def dare(vector: Weights, drop: Any, uniforms: Weights) -> Weights:
    r"""A task vector with entries dropped with probability p, and the rest times $1/(1-p)$: the same on average.

    Args:
        vector: trained weights less the aligned ones.
        drop: p in [0, 1).
        uniforms: of the shapes of the vector, uniform on (0, 1).

    Example:
        >>> dare({"d": jnp.array([1.0, 2.0])}, 0.5, {"d": jnp.array([0.3, 0.7])})["d"].tolist()
        [0.0, 4.0]

    Source: [dare2023]; methods.md 7.
    """

    def kept(d: Any, u: Any) -> Any:
        xp = array_namespace(d)
        return xp.where(u >= drop, d / (1 - drop), xp.zeros_like(d))

    return each(kept, vector, uniforms)


def task_arithmetic(weights: Weights, scale: Any, vector: Weights) -> Weights:
    r"""Weights moved along the difference of two other models, $\theta+sv$, $v=\theta_+-\theta_-$.

    Args:
        weights: θ.
        scale: s; what s did, -s takes back.
        vector: v, of a model that has what θ shall have less one without it.

    Example:
        >>> task_arithmetic({"w": jnp.array([1.0])}, 0.5, {"w": jnp.array([3.0])})["w"].tolist()
        [2.5]

    Source: [taskarithmetic2022]; methods.md 7, P8.
    """
    return moved(weights, scale, vector)


def model_stock(start: Weights, models: tuple[Weights, ...]) -> Weights:
    r"""The mean of several fine-tuned models, drawn to the start as far as they disagree: $t\bar\theta+(1-t)\theta_0$.

    $t=N\cos/(1+(N-1)\cos)$ for N models, cos the mean cosine between two of their task vectors. With vectors of one length
    and one cosine it is the point of the plane through all models and the start that is nearest to the centre around which
    the models lie.

    Args:
        start: the aligned weights.
        models: at least two fine-tuned models.

    Raises:
        ValueError: when there are fewer than two.

    Example:
        >>> models = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.5, 0.75**0.5])}
        >>> model_stock({"w": jnp.zeros(2)}, models)["w"].round(3).tolist()
        [0.5, 0.289]

    Source: [modelstock2024]; methods.md 7.
    """
    if len(models) < 2:
        raise ValueError(
            f"model stock was given {len(models)} fine-tuned model(s); it needs at least two of one start."
        )
    return each(_stock, start, *models)


def safe_lora(
    base: Weights, start: Weights, tuned: Weights, threshold: Any = 0.5, layers: int | None = None, outputs: int = 0
) -> Weights:
    r"""The tuned model with the updates that leave the alignment's directions projected onto them.

    For each matrix of `base`: $V=\theta_0-\theta_{base}$, $C=VV^\top/\|V\|_F$, and where $\cos(C\Delta,\Delta)\le\tau$ the
    update $\Delta=\theta-\theta_0$ becomes $C\Delta$. C is a projector only up to scale, so it rescales what it keeps: by
    $\sigma_i^2/\|V\|_F$ along V's i-th direction, which is $\|V\|_F$ if V has rank 1.

    Args:
        base: weights before alignment of the layers in question; its arrays that are not matrices are passed over.
        start: the aligned weights.
        tuned: the trained weights.
        threshold: τ; cosines are never negative (0 where $C\Delta=0$), so τ = -1 changes nothing. They are rounded to five
            digits before they are compared, as in the released code.
        layers: in place of the threshold, how many matrices are projected, those of the smallest cosines and all ties.
        outputs: the axis of a matrix that its outputs lie on, on which C acts: 0 as in a linear layer of torch, 1 for
            logits $\varphi^\top\theta$.

    Raises:
        ValueError: when `base` has a name that the model has not, or no matrix.

    Example:
        >>> base, start = {"w": jnp.zeros((2, 2))}, {"w": jnp.array([[2.0, 0.0], [0.0, 0.0]])}
        >>> safe_lora(base, start, {"w": jnp.array([[3.0, 0.0], [1.0, 1.0]])})["w"].tolist()  # C = diag(2, 0), cos 0.577
        [[3.0, 0.0], [1.0, 1.0]]
        >>> safe_lora(base, start, {"w": jnp.array([[3.0, 0.0], [1.0, 2.0]])})["w"].tolist()  # cos 0.408
        [[4.0, 0.0], [0.0, 0.0]]

    Source: [safelora2024]; methods.md P1.
    """
    odd = sorted(set(base) - set(start))
    names = [name for name, array in base.items() if array.ndim == 2]
    if odd or not names:
        said = f"names {', '.join(odd)}, which the model has not" if odd else "has no matrix among them"
        raise ValueError(
            f"safe LoRA was given weights before alignment, and {said}; give the matrices to project by name."
        )
    whole = less(tuned, start)
    update = {name: whole[name] for name in names}
    alignment = less({name: start[name] for name in names}, {name: base[name] for name in names})
    projected = each(lambda v, d: _projected(v, d, outputs), alignment, update)
    xp = namespace(update)
    cosines = each(lambda p, d: xp.round(_cosine(p, d) * COSINES) / COSINES, projected, update)
    if layers is not None:
        threshold = xp.sort(xp.stack(list(cosines.values())))[min(layers, len(names)) - 1]

    def chosen(name: str) -> Any:
        return xp.where(cosines[name] <= threshold, start[name] + projected[name], tuned[name])

    return {name: chosen(name) if name in cosines else array for name, array in tuned.items()}


# --- pieces -----------------------------------------------------------------------------------------------------


def _between(weight: Any, start: Weights, tuned: Weights, merged: Weights) -> Weights:
    """A merge, or the model at either end itself."""
    return either(weight == 0, start, either(weight == 1, tuned, merged))


def either(condition: Any, these: Weights, those: Weights) -> Weights:
    """One of two models, by a condition that may be traced."""
    if is_concrete(condition):
        return these if bool(condition) else those
    return each(lambda a, b: array_namespace(a).where(condition, a, b), these, those)


def _length(a: Any) -> Any:
    xp = array_namespace(a)
    return xp.sqrt(xp.sum(a * a))


def _cosine(a: Any, b: Any) -> Any:
    """Of the angle between two arrays; 0 if one is zero."""
    return ratio(array_namespace(a).sum(a * b), _length(a) * _length(b))


def _arc(weight: Any, a: Any, b: Any) -> Any:
    """The spherical merge of two arrays; from the chords of unit vectors, angles keep their precision near 0."""
    xp = array_namespace(a)
    size = _length(a) * _length(b)
    u, v = ratio(1.0, _length(a)) * a, ratio(1.0, _length(b)) * b
    angle = 2 * xp.atan2(_length(v - u), _length(v + u))
    sine = xp.where(size == 0, 0 * angle, xp.sin(angle))
    curved = sine > xp.finfo(a.dtype).eps ** 0.5
    safe = xp.where(curved, sine, xp.ones_like(sine))
    first, second = xp.sin((1 - weight) * angle) / safe, xp.sin(weight * angle) / safe
    return xp.where(curved, first * a + second * b, (1 - weight) * a + weight * b)


def _stock(start: Any, *models: Any) -> Any:
    """`model_stock` of one array."""
    vectors, number = [model - start for model in models], len(models)
    pairs = [_cosine(vectors[i], vectors[j]) for i in range(number) for j in range(i)]
    cosine = sum(pairs) / len(pairs)
    t = ratio(number * cosine, 1 + (number - 1) * cosine)
    return start + t * (sum(vectors) / number)


def _projected(v: Any, d: Any, outputs: int) -> Any:
    r"""$VV^\top\Delta/\|V\|_F$, never as the square matrix $VV^\top$ of a layer's outputs."""
    scale = ratio(1.0, _length(v))
    return scale * (v @ (v.T @ d)) if outputs == 0 else scale * ((d @ v.T) @ v)
