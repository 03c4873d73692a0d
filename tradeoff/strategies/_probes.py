"""Probes: terms added to hidden states, which a model exposes as arrays of their own, zero unless a strategy moves them.

A strategy sees named arrays only. A model whose hidden states are to be perturbed adds to them arrays named `probe/...`, zero
at the start: one array of one row for every context perturbs each context by itself, a bias is one probe for all. A strategy
that acts on probes asks for gradients with them moved, and trains the other arrays only.
"""

from tradeoff.strategies._named import Weights, namespace

PROBE = "probe/"
"""What the names of probes begin with."""

ATTENTION, MLP = "attention", "mlp"
"""What a checkpoint is asked to probe: the outputs of attention blocks, a term for each hidden state, or those of MLPs, one
bias for all states; of each trained layer."""


def is_probe(name: str) -> bool:
    """Whether the array of this name is a probe."""
    return name.startswith(PROBE)


def probes(weights: Weights) -> dict:
    """The probes alone."""
    return {name: array for name, array in weights.items() if is_probe(name)}


def held(gradient: Weights) -> Weights:
    """A gradient that leaves the probes where they are."""
    still = namespace(gradient).zeros_like
    return {name: still(array) if is_probe(name) else array for name, array in gradient.items()}


def kept(moved: Weights, weights: Weights) -> Weights:
    """Weights after a step, with the probes as they were before it."""
    return {**moved, **probes(weights)}
