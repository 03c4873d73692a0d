"""The landscape around a checkpoint: the pictures, basins and constants of `tradeoff.landscape`, by the same names.

The gaps are the true ones of a text world, in nats. Directions are named tensors like `curvature.parameters(checkpoint,
tensors)`; weights are moved in place and put back bit for bit. One point costs one scoring of the world, and where slopes or
curvatures are asked, gradients and products of both losses: lower estimates and basins take minutes on a small checkpoint.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from peft.tuners.lora import Linear
from tqdm import tqdm

from tradeoff import gaps
from tradeoff._records import Numbers
from tradeoff.bridge import policy
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.curvature import LossOf, Tree, moved, parameters
from tradeoff.bridge.finetuning import Objective, adapted
from tradeoff.bridge.recipe import FinishedRun
from tradeoff.landscape import BallConstants, Basin, Line, Path, Plane, Visage, basins, lanczos, pictures
from tradeoff.landscape.neighbourhood import check_ball, check_direction, check_distances
from tradeoff.worlds.world import World

HALVINGS = 6
"""The end of a basin is bisected so often between two points of the grid: each is a scoring of the world."""


def line(
    checkpoint: Checkpoint,
    world: World,
    direction: Tree,
    distances: Numbers,
    batch_size: int = 16,
    progress: bool = False,
) -> Line:
    """Both gaps of a checkpoint along a direction, as `landscape.line`.

    Args:
        checkpoint: the language model in the middle.
        world: a text world.
        direction: named tensors like `curvature.parameters(checkpoint, tensors)`; only these are moved.
        distances: multiples of the direction, shape (T,).
        batch_size: prompts in one pass; it changes memory and speed, not results.
        progress: whether to show a progress bar.

    Returns:
        A `landscape.Line`.

    Raises:
        ValueError: when the direction does not fit, a distance is not finite, or as `log_policy`.
    """
    check_direction(parameters(checkpoint, sorted(direction)), dict(direction))
    steps = check_distances(distances)
    measured = _Gaps(checkpoint, world, direction, batch_size)
    found = [measured.at((direction, t)) for t in tqdm(steps.tolist(), desc="line", disable=not progress)]
    return Line(steps, jax.tree.map(lambda *each: jnp.stack(each), *found))


def plane(
    checkpoint: Checkpoint,
    world: World,
    first: Tree,
    second: Tree,
    x: Numbers,
    y: Numbers,
    batch_size: int = 16,
    progress: bool = False,
) -> Plane:
    """Both gaps of a checkpoint on the plane of two directions, as `landscape.plane`: one scoring of the world a point.

    Args:
        checkpoint: as in `line`.
        world: as in `line`.
        first: the direction of x, as in `line`.
        second: the direction of y; it may move other tensors than the first.
        x: multiples of the first, shape (A,).
        y: multiples of the second, shape (B,).
        batch_size: as in `line`.
        progress: as in `line`.

    Returns:
        A `landscape.Plane`.

    Raises:
        ValueError: as `line`.
    """
    for way in (first, second):
        check_direction(parameters(checkpoint, sorted(way)), dict(way))
    x, y = check_distances(x), check_distances(y)
    measured = _Gaps(checkpoint, world, [*first, *second], batch_size)
    points = [(a, b) for b in y.tolist() for a in x.tolist()]
    found = [measured.at((first, a), (second, b)) for a, b in tqdm(points, desc="plane", disable=not progress)]
    return Plane(x, y, jax.tree.map(lambda *each: jnp.stack(each).reshape(len(y), len(x)), *found))


def along(checkpoint: Checkpoint, world: World, direction: Tree, distances: Numbers, batch_size: int = 16) -> Path:
    """Both gaps of a checkpoint, their slopes and their curvatures along a direction, as `landscape.along`.

    Args:
        checkpoint: as in `line`, in float64 or float32.
        world: as in `line`.
        direction: as in `line`; the steepness is over the tensors that it names.
        distances: as in `line`.
        batch_size: as in `line`.

    Returns:
        A `landscape.Path`.

    Raises:
        ValueError: as `line` and `curvature.hessian`.
    """
    check_direction(parameters(checkpoint, sorted(direction)), dict(direction))
    steps = check_distances(distances)
    delta = np.asarray(ravel_pytree(dict(direction))[0])
    losses = [LossOf(checkpoint, world, of, sorted(direction), batch_size) for of in ("safety", "capability")]
    found = []
    for t in steps.tolist():
        with moved(checkpoint, direction, t):
            found.append([_slopes(loss, delta) for loss in losses])
    slope, curved, steepness = (gaps.Gaps(*jnp.asarray(each)) for each in np.array(found).transpose(2, 1, 0))
    return Path(steps, line(checkpoint, world, direction, steps, batch_size).gaps, slope, curved, steepness)


def ball_constants(
    checkpoint: Checkpoint,
    world: World,
    radius: float,
    key: Array,
    of: str = "safety",
    samples: int = 8,
    steps: int = 20,
    tensors: Sequence[str] | None = None,
    batch_size: int = 16,
) -> BallConstants:
    """The steepest gradient and the strongest curvature seen in a ball, as `landscape.ball_constants`: a lower estimate.

    Args:
        checkpoint: as in `along`, in the middle of the ball.
        world: as in `line`.
        radius: ε > 0, in parameter norm over the tensors.
        key: a JAX random key.
        of: `safety` or `capability`.
        samples: random points on the sphere, beside the centre.
        steps: Lanczos steps at each (at most the number of parameters).
        tensors: as in `curvature.parameters`.
        batch_size: as in `line`.

    Returns:
        `landscape.BallConstants` of kind `lower estimate`: no bound may rest on them.

    Raises:
        ValueError: when the radius is not positive and finite, samples or steps are below 1, or as `curvature.hessian`.
    """
    check_ball(radius, samples, steps)
    weights = parameters(checkpoint, tensors)
    steepest = curviest = 0.0
    for i in range(samples + 1):
        draw, run = jax.random.split(jax.random.fold_in(key, i))
        with moved(checkpoint, pictures.direction(draw, weights, "unit"), radius if i else 0.0):
            loss = LossOf(checkpoint, world, of, sorted(weights), batch_size)
            steepest = max(steepest, float(np.linalg.norm(loss.gradient().astype(np.float64))))
            operator = loss.operator(loss.hessian_product, semidefinite=False)
            top = lanczos(operator, run, min(steps, operator.size), pairs=1)
        curviest = max(curviest, abs(float(top.values[0])))
    return BallConstants(jnp.asarray(steepest), jnp.asarray(curviest), float(radius), "lower estimate")


def basin(
    checkpoint: Checkpoint,
    world: World,
    key: Array,
    threshold: float,
    scale: str = "filter",
    directions: int = 32,
    reach: float = 2.0,
    points: int = 64,
    confidence: float = 0.95,
    tensors: Sequence[str] | None = None,
    batch_size: int = 16,
) -> Basin:
    """The safety basin of a checkpoint, as `landscape.basin`; an end is known to reach/points/64.

    Args:
        checkpoint: as in `line`.
        world: a text world, whose true safety gap is watched.
        key: a JAX random key.
        threshold: rise of the safety gap at which safety counts as lost, nats, > 0.
        scale: of the directions, as in `landscape.scaled`; it sets the unit.
        directions: D, at least 2; each costs up to 2·points scorings, and ends at the first crossing.
        reach: how far to look, in that unit.
        points: of the grid from 0 to the reach.
        confidence: of the interval, in (0, 1).
        tensors: as in `curvature.parameters`.
        batch_size: as in `line`.

    Returns:
        A `landscape.Basin`.

    Raises:
        ValueError: when a number is out of range, the safety gap is not finite at the checkpoint, or as `landscape.scaled`.
    """
    basins.check_basin(scale, threshold, reach, confidence, directions, points)
    weights = parameters(checkpoint, tensors)

    measured = _Gaps(checkpoint, world, weights, batch_size)
    start = float(measured.at().safety)
    basins.check_start(start)

    def end(way: Tree, sign: float) -> float:
        def lost(t: float) -> bool:
            return not float(measured.at((way, sign * t)).safety) <= start + threshold

        grid = np.linspace(0, reach, points + 1)
        first = next((i for i in range(1, points + 1) if lost(grid[i])), None)
        if first is None:
            return reach
        low, high = grid[first - 1], grid[first]
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if lost(middle) else (middle, high)
        return low

    ways = (pictures.direction(k, weights, scale) for k in jax.random.split(key, directions))
    ends = jnp.asarray([[end(way, -1.0), end(way, 1.0)] for way in ways])
    return basins.summarised(ends, reach, threshold, scale, confidence)


def visage(
    attack_success: Callable[[Checkpoint], Numbers],
    checkpoint: Checkpoint,
    key: Array,
    directions: int = 1,
    tensors: Sequence[str] | None = None,
) -> Visage:
    """VISAGE's score of a checkpoint on its own definition, as `landscape.visage`.

    Args:
        attack_success: the checkpoint, with its weights moved, to the attack success rate, percent in [0, 100].
        checkpoint: as in `line`.
        key: a JAX random key.
        directions: how many to average over.
        tensors: as in `curvature.parameters`; VISAGE moves every matrix of the model.

    Returns:
        A `landscape.Visage`.

    Raises:
        ValueError: when there is no direction, a rate is outside [0, 100], or as `landscape.scaled`.

    Source: VISAGE (arXiv 2405.17374).
    """

    def rate(way: Tree, t: float) -> Numbers:
        with moved(checkpoint, way, t):
            return attack_success(checkpoint)

    return basins.visage_along(rate, parameters(checkpoint, tensors), key, directions)


def displacement(checkpoint: Checkpoint, tuned: FinishedRun) -> dict[str, Array]:
    """What a fine-tuning run did to the weights, as a direction: the checkpoint is at 0 and the tuned model at 1.

    Args:
        checkpoint: the checkpoint that the run started from.
        tuned: the run.

    Returns:
        Name of each tensor that was trained, in full or by an adapter, to its change.

    Raises:
        ValueError: when the checkpoint has adapters on already.
    """
    if tuned.recipe.rank is None:
        start = {name: p.detach().clone() for name, p in checkpoint.model.named_parameters() if name in tuned.adapter}
        with adapted(checkpoint, tuned) as one, torch.no_grad():
            return {name: jnp.asarray((one.model.get_parameter(name) - w).cpu().numpy()) for name, w in start.items()}
    with adapted(checkpoint, tuned) as one:
        layers = {f"{name}.weight": m for name, m in one.model.named_modules() if isinstance(m, Linear)}
        with torch.no_grad():
            changes: dict[str, Any] = {name: m.get_delta_weight("default") for name, m in layers.items()}
        return {name: jnp.asarray(change.cpu().numpy()) for name, change in changes.items()}


class _Gaps:
    """Both gaps of a checkpoint while some of its tensors move: layers below all of these are computed once."""

    def __init__(self, checkpoint: Checkpoint, world: World, names: Iterable[str], batch_size: int) -> None:
        self.checkpoint, self.world, self.batch_size = checkpoint, world, batch_size
        encoding = policy.encode(checkpoint, world)
        packed = not policy.not_packed_because(checkpoint, encoding)
        upper = _upper_layers(checkpoint, names) if packed else 0
        self.objective = Objective(checkpoint, encoding, upper, batch_size) if upper else None

    def at(self, *moves: tuple[Tree, float]) -> gaps.Gaps:
        with ExitStack() as stack:
            for way, t in moves:
                stack.enter_context(moved(self.checkpoint, way, t))
            if self.objective is None:
                return gaps.both(self.world, policy.log_policy(self.checkpoint, self.world, self.batch_size, False))
            return gaps.both(self.world, policy.checked(self.objective.scores()))


def _upper_layers(checkpoint: Checkpoint, names: Iterable[str]) -> int:
    """How many layers, counted from the top, hold all the tensors named; 0 where one is outside the layers."""
    layers = checkpoint.model.base_model.layers
    home = {id(tensor): i for i, layer in enumerate(layers) for tensor in layer.parameters()}
    tensors = dict(checkpoint.model.named_parameters())
    at = [home.get(id(tensors[name])) for name in names]
    lowest = [i for i in at if i is not None]
    return len(layers) - min(lowest) if lowest and len(lowest) == len(at) else 0


def _slopes(loss: LossOf, delta: np.ndarray) -> tuple[float, float, float]:
    """Slope and curvature along δ, and the length of the gradient."""
    gradient, product = (each.astype(np.float64) for each in loss.gradient_and_product(delta))
    return float(delta @ gradient), float(delta @ product), float(np.linalg.norm(gradient))
