"""Curvature of a small classifier: Hessian-vector products against gradients, Lanczos against the curvature libraries."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg as sparse
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from benchmarks.protocol import Benchmark, Contender, peer
from tradeoff import landscape
from tradeoff._records import record
from tradeoff.gaps import Gaps

WIDTHS = (64, 256, 256, 10)
SAMPLES = 1024
PRODUCTS = 20
"""Products in one run of the loop, so that what starts a run does not count."""
STEPS, PAIRS = 40, 10
TRAINING, RATE = 300, 0.5
"""Steps of gradient descent and their length: after them the top of the spectrum stands out, as in any trained network."""


@record
class Classifier:
    """Log-loss of a tanh network on labelled inputs, as a problem: both losses are the same.

    Args:
        inputs: shape (N, d).
        labels: shape (N,).
    """

    inputs: Float[Array, "N d"]
    labels: Int[Array, " N"]

    def gaps(self, parameters: Any) -> Gaps:
        """The mean log-loss, twice."""
        z = self.inputs
        *hidden, last = zip(parameters[::2], parameters[1::2], strict=True)
        for W, b in hidden:
            z = jnp.tanh(z @ W.T + b)
        logs = jax.nn.log_softmax(z @ last[0].T + last[1])
        loss = -jnp.mean(jnp.take_along_axis(logs, self.labels[:, None], axis=1))
        return Gaps(loss, loss)

    def objective(self, parameters: Any, lam: Any) -> Array:
        """The one loss, counted once as capability and λ times as safety."""
        return (1 + lam) * self.gaps(parameters).capability


@functools.cache
def setting() -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[NDArray[np.float32], ...], NDArray[np.float32]]:
    """Inputs, labels, trained weights in the order of torch's parameters, and unit vectors, shape (PRODUCTS, parameters)."""
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(SAMPLES, WIDTHS[0])).astype(np.float32)
    labels = np.argmax(inputs @ draw.normal(size=(WIDTHS[0], WIDTHS[-1])), axis=1)
    weights: list[Array] = []
    for fan_in, fan_out in zip(WIDTHS, WIDTHS[1:], strict=False):
        drawn = draw.normal(size=(fan_out, fan_in)) / np.sqrt(fan_in)
        weights += [jnp.asarray(drawn, jnp.float32), jnp.zeros(fan_out, jnp.float32)]
    trained = _descend(Classifier(jnp.asarray(inputs), jnp.asarray(labels)), tuple(weights))
    vectors = draw.normal(size=(PRODUCTS, sum(w.size for w in weights)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return inputs, labels, tuple(np.asarray(w) for w in trained), vectors.astype(np.float32)


@jax.jit
def _descend(model: Classifier, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    def step(_: Array, held: tuple[Array, ...]) -> tuple[Array, ...]:
        slope = jax.grad(lambda w: model.gaps(w).safety)(held)
        return tuple(w - RATE * g for w, g in zip(held, slope, strict=True))

    return jax.lax.fori_loop(0, TRAINING, step, weights)


def problem(dtype: Any) -> tuple[Classifier, tuple[Array, ...]]:
    """The classifier and its weights in a number format."""
    inputs, labels, weights, _ = setting()
    return Classifier(jnp.asarray(inputs, dtype), jnp.asarray(labels)), tuple(jnp.asarray(w, dtype) for w in weights)


@functools.cache
def reference_products() -> NDArray[np.float64]:
    """The products in float64, reverse over reverse."""
    model, weights = problem(jnp.float64)
    flat, unravel = ravel_pytree(weights)

    def product(v: Array) -> Array:
        return jax.grad(lambda z: jnp.vdot(jax.grad(lambda y: model.gaps(unravel(y)).safety)(z), v))(flat)

    return np.stack([product(v) for v in jnp.asarray(setting()[3], jnp.float64)])


@functools.cache
def reference_pairs() -> NDArray[np.float64]:
    """The eigenvalues of largest magnitude in float64, by ARPACK to rounding, falling in magnitude."""
    model, weights = problem(jnp.float64)
    operator = landscape.hessian(model, weights)
    return _arpack(lambda v: np.asarray(operator @ jnp.asarray(v)), np.float64, 1e-10)


def _arpack(product: Callable[[Any], Any], dtype: Any, tolerance: float) -> Any:
    size, start = setting()[3].shape[1], setting()[3][0].astype(dtype)
    library: Any = sparse
    matrix = library.LinearOperator((size, size), matvec=product, dtype=dtype)
    values = library.eigsh(matrix, k=PAIRS, which="LM", tol=tolerance, v0=start, return_eigenvectors=False)
    return values[np.argsort(-np.abs(values))]


def error_of_products(found: Any) -> float:
    """The largest error of a product, relative to its length."""
    true = reference_products()
    return float(np.max(np.linalg.norm(np.asarray(found, np.float64) - true, axis=1) / np.linalg.norm(true, axis=1)))


def error_of_pairs(found: tuple[Any, Any]) -> float:
    """The largest error of an eigenvalue, and of a residual that was told, relative to the largest eigenvalue."""
    values, told = (np.asarray(each, np.float64) for each in found)
    true = reference_pairs()
    wrong = np.max(np.abs(values - true))
    # An eigenvalue lies within a true residual of its value.
    beyond = np.max(np.min(np.abs(values[:, None] - true), axis=1) - told) if told.size else 0
    return float(max(wrong, beyond) / np.abs(true[0]))


def _products() -> list[Contender]:
    vectors = jnp.asarray(setting()[3])
    model, weights = problem(jnp.float32)
    operator = landscape.hessian(model, weights)
    flat, unravel = ravel_pytree(weights)

    @jax.jit
    def gradients(model: Classifier, flat: Array, vectors: Array) -> Array:
        loss = jax.grad(lambda z: model.gaps(unravel(z)).safety)
        return jax.lax.map(lambda v: loss(flat + v), vectors)

    found = [
        Contender("tradeoff", lambda: jax.block_until_ready(operator.rows(vectors))),
        Contender(
            "gradient",
            lambda: jax.block_until_ready(gradients(model, flat, vectors)),
            error=lambda result: 0.0 if np.all(np.isfinite(np.asarray(result))) else np.inf,
        ),
    ]
    if torch := peer("torch"):
        network, loss, _ = in_torch(torch)
        rows = torch.from_numpy(setting()[3])

        def twice() -> NDArray[np.float32]:
            held = list(network.parameters())
            sizes = [each.numel() for each in held]
            products = []
            for v in rows:
                slope = torch.autograd.grad(loss(), held, create_graph=True)
                parts = [part.view_as(each) for part, each in zip(v.split(sizes), held, strict=True)]
                products.append(torch.cat([p.flatten() for p in torch.autograd.grad(slope, held, parts)]))
            return torch.stack(products).numpy()

        found.append(Contender("torch double backward", twice, repeats=3))
    found += [
        Contender(name, lambda apply=apply: np.stack([apply(v) for v in setting()[3]]), repeats=3)
        for name, apply in _libraries()
    ]
    return found


def _lanczos() -> list[Contender]:
    model, weights = problem(jnp.float32)
    operator, key = landscape.hessian(model, weights), jax.random.key(0)

    def ours() -> tuple[Array, Array]:
        found = landscape.lanczos(operator, key, STEPS, PAIRS)
        return jax.block_until_ready((found.values, found.residuals))

    found = [Contender("tradeoff", ours)]
    if (eigenthings := peer("hessian_eigenthings")) and (torch := peer("torch")):
        product = eigenthings_operator(eigenthings, torch)

        def theirs() -> tuple[Any, Any]:
            pairs = eigenthings.lanczos(product, k=PAIRS, max_iter=STEPS, seed=0)
            return pairs.eigenvalues.numpy(), pairs.residuals.numpy()

        found.append(Contender("hessian-eigenthings", theirs, repeats=3))
    libraries = dict(_libraries())
    if "curvlinops" in libraries:
        # ARPACK's tolerance is relative to the eigenvalue: as far as ours came, told by its residuals.
        values, residuals = ours()
        reached = float(jnp.max(residuals / jnp.abs(values)))

        def arpack() -> tuple[Any, Any]:
            return _arpack(libraries["curvlinops"], np.float32, reached), np.array([])

        found.append(Contender("curvlinops + eigsh", arpack, repeats=1))
    return found


def in_torch(torch: Any) -> tuple[Any, Callable[[], Any], tuple[Any, Any]]:
    """The same network in torch, its loss, and its data."""
    inputs, labels, weights, _ = setting()
    nn = torch.nn
    layers: list[Any] = []
    for fan_in, fan_out in zip(WIDTHS, WIDTHS[1:], strict=False):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    network = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for held, w in zip(network.parameters(), weights, strict=True):
            held.copy_(torch.tensor(w))
    data = torch.from_numpy(inputs), torch.from_numpy(labels)
    return network, lambda: nn.functional.cross_entropy(network(data[0]), data[1]), data


def eigenthings_operator(eigenthings: Any, torch: Any) -> Any:
    """That network's Hessian as the library has it."""
    network, _, data = in_torch(torch)
    return eigenthings.HessianOperator(network, [data], eigenthings.supervised_loss(torch.nn.functional.cross_entropy))


def _libraries() -> list[tuple[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]]]:
    """The products of the curvature libraries that are installed."""
    found: list[tuple[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]]] = []
    torch = peer("torch")
    if torch and (eigenthings := peer("hessian_eigenthings")):
        product = eigenthings_operator(eigenthings, torch)
        found.append(("hessian-eigenthings", lambda v: product.matvec(torch.from_numpy(v)).numpy()))
    if torch and (curvlinops := peer("curvlinops")):
        network, _, data = in_torch(torch)
        held = list(network.parameters())
        matrix = curvlinops.HessianLinearOperator(
            network, torch.nn.CrossEntropyLoss(), held, [data], check_deterministic=False
        ).to_scipy()
        found.append(("curvlinops", lambda v: matrix @ v))
    return found


BENCHMARKS = (
    Benchmark(
        name="hessian_products",
        title=f"{PRODUCTS} Hessian-vector products of a network of 85,002 parameters, float32, against as many gradients",
        contenders=_products,
        error=error_of_products,
        tolerance=1e-5,
        bars={"gradient": 0.5},
    ),
    Benchmark(
        name="lanczos_top10",
        title=f"top {PAIRS} eigenpairs of that Hessian: {STEPS} Lanczos steps, ours with a true residual for every pair",
        contenders=_lanczos,
        error=error_of_pairs,
        tolerance=1e-4,
        bars={"hessian-eigenthings": 2.0, "curvlinops + eigsh": 3.0},
    ),
)
