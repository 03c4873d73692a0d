r"""Answers of several tokens: a policy with a law of its own for the next token after every prefix.

An answer is a response like any other, so a world may have all $K^T$ sequences of T tokens as its responses, in the order
in which one counts. Seen token by token it is another world, whose contexts are prompts with prefixes and whose responses
are tokens. There the gaps are averages per token, the penalty is the same, and so is the best policy (T11).
"""

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from tradeoff import divergences as dv
from tradeoff import gaps
from tradeoff._records import record, static
from tradeoff.gaps import Gaps
from tradeoff.problems.tabular import Tabular
from tradeoff.worlds.world import DataLaw, World


@record
class Sequence:
    r"""A softmax policy with its own logits for the next token after every prefix of every prompt.

    Prefixes count breadth first, the empty one at 0: the children of number i are numbers $Ki+1,\dots,Ki+K$.

    Args:
        world: a world whose responses are all $K^T$ answers of T tokens; number $\sum_tK^{T-t}y_t$ is $(y_1,\dots,y_T)$.
        tokens: K, at least 2.

    Raises:
        ValueError: when the number of responses is no power of `tokens`.

    Example:
        >>> from tradeoff import DataLaw
        >>> safe = DataLaw([1.0], answers([[[0.9, 0.1], [0.5, 0.5], [0.5, 0.5]]]))  # refuses in its first token
        >>> task = DataLaw([1.0], answers([[[0.1, 0.9], [0.5, 0.5], [0.5, 0.5]]]))
        >>> problem = Sequence(World(safe, task), tokens=2)
        >>> [round(gap, 6) for gap in problem.gaps_by_position(problem.zero()).safety.tolist()]
        [0.368064, 0.0]

    Source: T11 (framework).
    """

    world: World
    tokens: int = static()

    def __init__(self, world: World, tokens: int) -> None:
        responses = world.safety.P.shape[-1]
        if tokens < 2 or tokens ** _length(responses, tokens) != responses:
            raise ValueError(
                f"Sequence was given a world of {responses} responses and tokens={tokens}; the responses must be all "
                "tokens^T answers of T tokens, with tokens at least 2."
            )
        object.__setattr__(self, "world", world)
        object.__setattr__(self, "tokens", tokens)

    def __repr__(self) -> str:
        return f"Sequence({self.world!r}, answers of {self.length} of {self.tokens} tokens)"

    @property
    def length(self) -> int:
        """Tokens of an answer, T."""
        return _length(self.world.safety.P.shape[-1], self.tokens)

    @property
    def next_token(self) -> World:
        """The same data token by token: contexts are prompts with prefixes, as often as the average position has them."""
        world = self.world
        proxy = None if world.proxy is None else self._by_token(world.proxy)
        return World(self._by_token(world.safety), self._by_token(world.capability), proxy)

    def prefixes(self, P: Float[Array, "X Y"]) -> Float[Array, "X all"]:
        """The probability of every prefix under a law over answers: the empty one first, whole answers last."""
        levels = [P]
        for _ in range(self.length):
            levels.append(jnp.sum(levels[-1].reshape(P.shape[0], -1, self.tokens), axis=-1))
        return jnp.concatenate(levels[::-1], axis=-1)

    def token_laws(self, P: Float[Array, "X Y"]) -> Float[Array, "XN K"]:
        """The law of the next token after every prefix under a law over answers; uniform after an impossible one."""
        prefixes = self.prefixes(P)
        below = prefixes[:, 1:].reshape(P.shape[0], -1, self.tokens)
        here = prefixes[:, : below.shape[1], None]
        return jnp.where(here > 0, below / jnp.where(here > 0, here, 1), 1 / self.tokens).reshape(-1, self.tokens)

    def zero(self) -> Float[Array, "XN K"]:
        """Logits of the uniform policy, shape (contexts times prefixes, K)."""
        return jnp.zeros(self.next_token.safety.P.shape)

    def aligned(self) -> Float[Array, "XN K"]:
        """Logits of the aligned policy: the safety data's own law after every prefix."""
        return Tabular(self.next_token).aligned()

    def log_policy(self, logits: Float[Array, "XN K"]) -> Float[Array, "X Y"]:
        """Log-probabilities of whole answers."""
        steps = jax.nn.log_softmax(logits, axis=-1).reshape(self.world.safety.p.shape[0], -1, self.tokens)
        return _joined(steps, operator.add)

    def gaps(self, parameters: Float[Array, "XN K"]) -> Gaps:
        """True safety gap and capability gap at the logits, in nats per answer."""
        return gaps.both(self.world, self.log_policy(parameters))

    def objective(self, parameters: Float[Array, "XN K"], lam: ArrayLike) -> Float[Array, ""]:
        r"""$G_f+\lambda\hat G_s$ at the logits, in nats per answer."""
        return gaps.weighted_sum(self.world, self.log_policy(parameters), lam)

    def gaps_by_position(self, parameters: Float[Array, "XN K"]) -> Gaps:
        """Both gaps split over the positions of an answer by the chain rule, nats, shape (T,)."""
        data, log_laws = self.next_token, jax.nn.log_softmax(parameters, axis=-1)
        safety, capability = (
            self.by_position(law, dv.kl_log(law.P, log_laws)) for law in (data.safety, data.capability)
        )
        return Gaps(safety, capability)

    def by_position(self, law: DataLaw, values: Float[Array, " XN"]) -> Float[Array, " T"]:
        """What a value of every prefix comes to at each position, on average over answers.

        Args:
            law: a law of `next_token`.
            values: shape (contexts times prefixes,).
        """
        # After an impossible prefix a value may be infinite, and does not matter.
        heard = jnp.where(law.p > 0, law.p * jnp.where(law.p > 0, values, 0), 0)
        weighted = jnp.sum(heard.reshape(self.world.safety.p.shape[0], -1), axis=0)
        starts = [(self.tokens**t - 1) // (self.tokens - 1) for t in range(self.length + 1)]
        return self.length * jnp.stack([jnp.sum(weighted[at:end]) for at, end in zip(starts, starts[1:], strict=False)])

    def _by_token(self, law: DataLaw) -> DataLaw:
        rows, prefixes = self.token_laws(law.P), self.prefixes(law.P)
        before = prefixes[:, : rows.shape[0] // law.p.shape[0]]
        return DataLaw((law.p[:, None] * before / self.length).ravel(), rows)


def answers(laws: ArrayLike | list) -> Float[Array, "X Y"]:
    """The law over whole answers that a tree of conditional laws makes.

    Args:
        laws: the law of the next token after every prefix, shape (X, prefixes, K), in the order of `Sequence`.

    Example:
        >>> answers([[[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]]).tolist()
        [[0.5, 0.0, 0.125, 0.375]]
    """
    return _joined(jnp.asarray(laws, jnp.float64), operator.mul)


def _joined(steps: Array, join: Callable[[Array, Array], Array]) -> Array:
    """Whole answers of what every step brings, shape (X, prefixes, K): level by level from the root."""
    X, _, K = steps.shape
    whole, start = steps[:, 0], 1
    while start < steps.shape[1]:
        width = whole.shape[1]
        whole = join(whole[:, :, None], steps[:, start : start + width]).reshape(X, width * K)
        start += width
    return whole


def _length(responses: int, tokens: int) -> int:
    """The largest T with tokens^T <= responses, at least 1."""
    T = 1
    while tokens > 1 and tokens ** (T + 1) <= responses:
        T += 1
    return T
