r"""A small causal transformer over the words of a text world: the smallest model that learns what words have in common.

It reads a prompt word by word and gives each listed answer a probability by teacher forcing, the product over the answer's
words. What it may say besides the listed answers keeps its mass, so rows of the policy sum to less than one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from tradeoff import gaps
from tradeoff._records import record, static
from tradeoff.gaps import Gaps
from tradeoff.worlds.grammar import words
from tradeoff.worlds.world import World

Parameters = dict[str, Array]
"""Arrays by name: "words", "positions", "head", and of layer l "l/attention in" and so on."""
PAD = -1
"""In place of a word, before a prompt that is shorter than the longest."""


class Shape(NamedTuple):
    """The size of a transformer.

    Args:
        layers: how many blocks.
        heads: attention heads of a block.
        width: of the residual stream, a multiple of the heads.
    """

    layers: int = 2
    heads: int = 2
    width: int = 16


@record
class Transformer:
    r"""A policy that is a transformer: $\log\pi(y|x)=\sum_t\log\pi(y_t|x,y_{<t})$ over the words of an answer.

    The answers of a prompt are read together, as a tree: a word that several answers begin with is one node, and sees the
    prompt, the words before it and nothing of other answers. Blocks of causal attention and a perceptron of fourfold width,
    each after a norm and added to what it read; learned positions; no biases.

    Args:
        world: a world whose contexts and responses are named by texts; no answer may begin with another.
        shape: layers, heads and width.
        vocabulary: the words that the model knows; those of the world unless given.
        longest: words of the longest prompt that it reads; that of the world unless given. With one vocabulary and one
            length, problems of several worlds stack.

    Raises:
        ValueError: when the world has no texts, a text has an unknown word or none, two prompts are the same words, an answer
            begins with another, a prompt is too long, or the heads do not divide the width.

    Example:
        >>> from tradeoff import worlds
        >>> problem = Transformer(worlds.requests(2, 2, overlap=0.0), Shape(1, 1, 4))
        >>> policy = problem.log_policy(problem.initial(jax.random.key(0)))
        >>> policy.shape, bool(jnp.all(jnp.sum(jnp.exp(policy), axis=-1) < 1))
        ((4, 6), True)

    Source: T17 (framework), beyond features that are given.
    """

    world: World
    tokens: Int[Array, "*batch X L"]
    sees: Bool[Array, "*batch L L"]
    positions: Int[Array, "*batch L"]
    said: Float[Array, "*batch Y N V"]
    shape: Shape = static()

    def __init__(
        self,
        world: World,
        shape: Shape = Shape(),  # noqa: B008  (a tuple)
        vocabulary: Sequence[str] | None = None,
        longest: int | None = None,
    ) -> None:
        if min(shape) < 1 or shape.width % shape.heads:
            raise ValueError(
                f"Transformer was given {shape}; all must be positive and the heads must divide the width."
            )
        if world.contexts is None or world.responses is None:
            raise ValueError(f"{world!r} has no texts to read; make it with worlds.from_texts or worlds.grammar.")
        prompts, answers = _read("prompt", world.contexts), _read("answer", world.responses)
        known = tuple(dict.fromkeys(vocabulary or [word for text in prompts + answers for word in text]))
        longest = longest or max(map(len, prompts))
        _check(prompts, answers, known, longest)
        nodes, sees, positions, said = _tree(answers, known, longest)
        rows = [[PAD] * (longest - len(p)) + [known.index(word) for word in p] + nodes for p in prompts]
        for name, value in (("tokens", rows), ("sees", sees), ("positions", positions), ("said", said)):
            object.__setattr__(self, name, jnp.asarray(value))
        # Without its texts, so that problems of several worlds stack.
        object.__setattr__(self, "world", World(world.safety, world.capability, world.proxy))
        object.__setattr__(self, "shape", shape)

    def __repr__(self) -> str:
        return f"Transformer({self.world!r}, {self.shape}, {self.said.shape[-1]} words)"

    def initial(self, key: Array) -> Parameters:
        """Random weights, normal: of variance one for words and positions, one over the inputs of a layer for the rest."""
        d, V, L = self.shape.width, self.said.shape[-1], self.sees.shape[-1]
        sizes = {"words": (V, d), "positions": (L, d), "head": (d, V)}
        for layer in range(self.shape.layers):
            sizes |= {f"{layer}/attention in": (d, 3 * d), f"{layer}/attention out": (d, d)}
            sizes |= {f"{layer}/mlp in": (d, 4 * d), f"{layer}/mlp out": (4 * d, d)}
        keys = jax.random.split(key, len(sizes))
        drawn = {n: jax.random.normal(k, size) for k, (n, size) in zip(keys, sizes.items(), strict=True)}
        return {n: a if n in ("words", "positions") else a / a.shape[0] ** 0.5 for n, a in drawn.items()}

    def probed(self, parameters: Parameters, where: str) -> Parameters:
        """The same model with zeros that a strategy may move, added to hidden states: see `strategies.SAP`.

        Args:
            parameters: the model's.
            where: "attention", a term for each hidden state that a block's attention brings; "mlp", one bias for all that
                its perceptron brings; "" for none.
        """
        sizes = {"attention": ("", (*self.tokens.shape, self.shape.width)), "mlp": ("/mlp", (1, 1, self.shape.width))}
        if not where:
            return parameters
        name, size = sizes[where]
        return parameters | {f"probe/{layer}{name}": jnp.zeros(size) for layer in range(self.shape.layers)}

    def log_policy(self, parameters: Parameters) -> Float[Array, "X Y"]:
        """Log-probabilities of the listed answers; rows sum to less than one."""
        x = jax.nn.one_hot(self.tokens, self.said.shape[-1], dtype=jnp.float64) @ parameters["words"]
        x = x + parameters["positions"][self.positions][None]
        # Nothing sees a word that is not there, but for that itself: a softmax needs something to see.
        seen = self.sees[None] & ((self.tokens != PAD)[:, None, :] | jnp.eye(len(self.sees), dtype=bool)[None])
        for layer in range(self.shape.layers):
            x = x + _attention(x, seen, parameters, layer, self.shape.heads) + parameters.get(f"probe/{layer}", 0.0)
            inside = jax.nn.relu(_norm(x) @ parameters[f"{layer}/mlp in"])
            x = x + inside @ parameters[f"{layer}/mlp out"] + parameters.get(f"probe/{layer}/mlp", 0.0)
        log_next = jax.nn.log_softmax(_norm(x[:, -self.said.shape[1] :]) @ parameters["head"], axis=-1)
        return jnp.einsum("xnv,ynv->xy", log_next, self.said)

    def gaps(self, parameters: Parameters) -> Gaps:
        """True safety gap and capability gap at the parameters, above the data entropies, in nats."""
        return gaps.both(self.world, self.log_policy(parameters))

    def objective(self, parameters: Parameters, lam: ArrayLike) -> Float[Array, ""]:
        r"""$G_f+\lambda\hat G_s$ at the parameters, in nats."""
        return gaps.weighted_sum(self.world, self.log_policy(parameters), lam)


def _norm(x: Array) -> Array:
    """Mean 0 and variance 1 along the width."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6)


def _attention(x: Array, seen: Array, parameters: Parameters, layer: int, heads: int) -> Array:
    """What each word takes over from those that it sees."""
    X, L, width = x.shape
    q, k, v = jnp.moveaxis(
        (_norm(x) @ parameters[f"{layer}/attention in"]).reshape(X, L, 3, heads, width // heads), 2, 0
    )
    scores = jnp.einsum("xihd,xjhd->xhij", q, k) * (width // heads) ** -0.5
    shares = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("xhij,xjhd->xihd", shares, v).reshape(X, L, width) @ parameters[f"{layer}/attention out"]


def _read(what: str, texts: Sequence[str]) -> list[tuple[str, ...]]:
    read = [words(text) for text in texts]
    for text, found in zip(texts, read, strict=True):
        if not found:
            raise ValueError(f"{what} {text!r} has no words; give texts that say something.")
    return read


def _check(
    prompts: list[tuple[str, ...]], answers: list[tuple[str, ...]], known: tuple[str, ...], longest: int
) -> None:
    unknown = sorted({word for text in prompts + answers for word in text} - set(known))
    if unknown:
        raise ValueError(f"the vocabulary lacks {', '.join(unknown)}; give every word of the world's texts.")
    if max(map(len, prompts)) > longest:
        raise ValueError(f"longest is {longest} and a prompt has {max(map(len, prompts))} words; give at least that.")
    if len(set(prompts)) < len(prompts):
        raise ValueError("two prompts are the same words, so the model cannot tell them apart; give one of them.")
    for one in answers:
        for other in answers:
            if one is not other and other[: len(one)] == one:
                raise ValueError(
                    f"the answer {' '.join(other)!r} begins with the answer {' '.join(one)!r}, so that their probabilities would "
                    "count some mass twice; give answers none of which begins another."
                )


def _tree(
    answers: list[tuple[str, ...]], known: tuple[str, ...], longest: int
) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """The answers behind a prompt of `longest` words.

    Returns:
        The words of the tree's nodes, all answers' words but their last; who sees whom, shape (L, L); positions, shape (L,);
        and, for each answer, which word it says after which node, shape (Y, nodes and the prompt's end, V).
    """
    nodes = list(dict.fromkeys(answer[:t] for answer in answers for t in range(1, len(answer))))
    place = {(): 0} | {node: 1 + n for n, node in enumerate(nodes)}  # 0 is the end of the prompt
    L, start = longest + len(nodes), longest - 1
    sees, positions = np.tri(L, dtype=bool), np.arange(L)
    sees[longest:, longest:] = False
    for node in nodes:
        positions[start + place[node]] = start + len(node)
        sees[start + place[node], [start + place[node[:t]] for t in range(1, len(node) + 1)]] = True
    said = np.zeros((len(answers), len(place), len(known)))
    for y, answer in enumerate(answers):
        for t, word in enumerate(answer):
            said[y, place[answer[:t]], known.index(word)] = 1
    return [known.index(node[-1]) for node in nodes], sees, positions, said
