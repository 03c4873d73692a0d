r"""The flat vector of what is trained: its parts by name, and the changes of the weights that it makes.

Of LoRA's factors only the left ones move the weights at the start, for they are zero there: the tangent space of the
adapters is $\delta W=BA$ with A as it was drawn. With matrices trained in full it is the matrices themselves.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np
import torch

from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.curvature import moved
from tradeoff.bridge.local_losses import Vector
from tradeoff.bridge.projection import LEFT, RIGHT


class Flat:
    """What is trained of a checkpoint, as one vector.

    Args:
        checkpoint: the language model, inside `trainable`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.held = {name: p for name, p in checkpoint.model.named_parameters() if p.requires_grad}
        """The parameters that are trained, by name."""
        self.names = sorted(name for name in self.held if RIGHT not in name)
        """Of those that move the weights to first order, in the order of the vector."""
        self._checkpoint = checkpoint

    def split(self, v: Vector) -> Mapping[str, np.ndarray]:
        """A flat vector as named arrays."""
        ends = np.cumsum([self.held[name].numel() for name in self.names])[:-1]
        return {
            name: part.reshape(tuple(self.held[name].shape))
            for name, part in zip(self.names, np.split(v, ends), strict=True)
        }

    def tensors(self, v: Vector) -> list[torch.Tensor]:
        """A flat vector as tensors like the parameters, in the order of `names`."""
        return [torch.from_numpy(part).to(self.held[name]) for name, part in self.split(v).items()]

    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters in the order of `names`."""
        return [self.held[name] for name in self.names]

    def taken_gradient(self) -> Vector:
        """The parameters' gradients as a flat vector; they are cleared."""
        try:
            return flattened([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters()])
        finally:
            for p in self.held.values():
                p.grad = None

    def inner(self, v: Vector, w: Vector) -> float:
        """The inner product of the changes of the weights that two vectors make to first order."""
        one, other = self.split(v), self.split(w)
        return sum(
            float(np.vdot(self._change(name, one[name]), self._change(name, other[name]))) for name in self.names
        )

    @contextmanager
    def moved(self, v: Vector | None) -> Iterator[None]:
        """The checkpoint a move away for a while; the weights are put back bit for bit."""
        if v is None:
            yield
            return
        with moved(self._checkpoint, {name: jnp.asarray(part) for name, part in self.split(v).items()}, 1.0):
            yield

    def _change(self, name: str, part: np.ndarray) -> np.ndarray:
        if LEFT not in name:
            return part.astype(np.float64)
        right = self.held[name.replace(LEFT, RIGHT)].detach().cpu().numpy()
        return part.astype(np.float64) @ right.astype(np.float64)


def flattened(tensors: list[torch.Tensor]) -> Vector:
    """Tensors in the order of `Flat.names` as one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors]).cpu().numpy()
