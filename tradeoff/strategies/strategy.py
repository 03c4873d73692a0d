"""What a fine-tuning rule is: hooks that either engine calls, on flat dictionaries of named arrays.

A step of training asks for a gradient and takes a step along it; a strategy has its say at these places:

             strategy.check(engine)                                     a start that it forbids is refused
    state  = strategy.init(weights, engine)                             before training
    state  = strategy.refresh(state, weights, step, engine)             before a step: schedules, references taken anew
    g      = strategy.gradient(inner, state, weights, step, engine)     the gradient that is descended
    w, s   = strategy.land(state, weights, moved, step, engine)         after a step: where the weights come to lie
    w      = strategy.export(state, weights, engine)                    the weights that are used
    rows   = strategy.examples(row, draw, number)                       what is trained on, where it is texts
    logits = strategy.decode(logits, position)                          what is decoded from

Each has a default that changes nothing, so a strategy says only what it does. Nothing is changed in place: weights at which
a gradient is asked for are given to the engine, which puts its own back bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from jaxtyping import Array

from tradeoff._records import record
from tradeoff.strategies._named import Weights
from tradeoff.strategies.examples import Example, Triple
from tradeoff.strategies.losses import Data, Loss

Gradient = Callable[[Weights], Weights]
"""From weights to the gradient there."""
State = Any
"""What a strategy remembers: a dictionary of arrays and of dictionaries of arrays."""


class Engine(ABC):
    """What a strategy may ask of the training that it is part of."""

    steps: int
    """How many steps there will be."""
    learning_rate: float | Array
    """That of the optimiser, where it is one number; a rule that moves the weights itself goes by it."""
    maps_examples: bool = False
    """Whether what is descended is the loss of the examples that the strategy makes."""

    @property
    @abstractmethod
    def start(self) -> Weights:
        """The aligned weights, where training began."""

    @property
    @abstractmethod
    def data(self) -> Data:
        """The laws of the world; an error for a problem without a policy."""

    @abstractmethod
    def value(self, loss: Loss, weights: Weights) -> Any:
        """A loss, nats."""

    @abstractmethod
    def gradient(self, loss: Loss, weights: Weights) -> Weights:
        """Its gradient, by name."""

    @abstractmethod
    def log_policy(self, weights: Weights) -> Any:
        """The policy's log-probabilities, shape (X, Y)."""

    @abstractmethod
    def normal(self, label: str, step: Any, like: Weights) -> Weights:
        """Standard normals of the shapes of `like`, the same in either engine; another label, others."""

    @abstractmethod
    def uniform(self, label: str, step: Any, shape: tuple[int, ...]) -> Any:
        """Uniforms on (0, 1), the same in either engine."""

    @abstractmethod
    def either(self, condition: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        """One of two computations, of which only the one that is wanted costs."""


class Strategy(ABC):
    """A fine-tuning rule. Subclasses are frozen records of its settings."""

    kind: ClassVar[str]
    """One of "gradient", "loss", "perturb", "data", "weights", "decoding", "schedule", "tuner"."""
    source: ClassVar[str]
    """Citation key."""
    needs: ClassVar[tuple[str, ...]] = ()
    """What it needs beyond the task's data, in words."""
    owns: ClassVar[str] = ""
    """What no second strategy of a composition may own too: "loss" (it replaces the loss) or "step" (it sets the step's
    length, so the optimiser must be plain descent with learning rate 1)."""

    @property
    def exports(self) -> str:
        """What `export` gives: "" for the weights as they are, "map" for a map of those it is handed, "own" for others."""
        return "" if type(self).export is Strategy.export else "map"

    @property
    def probes(self) -> str:
        """Which hidden states of a checkpoint it moves: "attention" or "mlp" (see `_probes`), "" for none."""
        return ""

    @property
    def maps_examples(self) -> bool:
        """Whether `examples` makes other examples."""
        return type(self).examples is not Strategy.examples

    @property
    def decodes(self) -> bool:
        """Whether `decode` makes other logits."""
        return type(self).decode is not Strategy.decode

    def tokenised(self, encode: Callable[[str], Sequence[int]]) -> "Strategy":
        """The same rule with its words as ids of tokens, by a tokenizer (which adds no special tokens)."""
        return self

    def check(self, engine: Engine) -> None:  # noqa: B027  (most rules forbid nothing)
        """Refuse a start that the rule forbids; called with numbers, before anything is compiled."""

    def init(self, weights: Weights, engine: Engine) -> State:
        """The first state."""
        return {}

    def refresh(self, state: State, weights: Weights, step: Any, engine: Engine) -> State:
        """The state at the beginning of a step."""
        return state

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The gradient that is descended, from that of what this strategy is wrapped around."""
        return inner(weights)

    def land(self, state: State, weights: Weights, moved: Weights, step: Any, engine: Engine) -> tuple[Weights, State]:
        """Where the weights come to lie after a step from `weights` to `moved`, and the state."""
        return moved, state

    def export(self, state: State, weights: Weights, engine: Engine) -> Weights:
        """The weights that are used and measured."""
        return weights

    def examples(self, row: Example | Triple, draw: float, number: int = 0) -> tuple[Example | Triple, ...]:
        """The training examples that row `number` of the data becomes.

        Args:
            row: an `Example` of the task, its prompt without the end of its chat template, which comes before the response;
                a `Triple` of the safety data, its query with that end. No response has its end-of-turn token yet: it follows
                where the response itself is the target.
            draw: a uniform number in [0, 1), if chance has a say; drawn once for each row.
            number: of the row in the data.

        Returns:
            Examples; a `Triple` stands for its safe response to its query.
        """
        return (row,)

    def decode(self, logits: Any, position: Any) -> Any:
        """The logits that the token at a position of the response is drawn from, shape (..., V)."""
        return logits


@record
class Plain(Strategy):
    """Fine-tuning as it comes: the loss descended as it is."""

    kind = "loss"
    source = "framework"


@record
class Composed(Strategy):
    """Several strategies at once; see `compose`."""

    parts: tuple[Strategy, ...]

    kind = "composition"
    source = "framework"

    @property
    def needs(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What any part needs."""
        return tuple(dict.fromkeys(need for part in self.parts for need in part.needs))

    @property
    def owns(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What its parts own, of which only the step's length concerns an engine."""
        return "step" if any(part.owns == "step" for part in self.parts) else ""

    @property
    def probes(self) -> str:
        """What its parts move, all the same."""
        return next((part.probes for part in self.parts if part.probes), "")

    @property
    def maps_examples(self) -> bool:
        """Whether any part does."""
        return any(part.maps_examples for part in self.parts)

    @property
    def decodes(self) -> bool:
        """Whether any part does."""
        return any(part.decodes for part in self.parts)

    def tokenised(self, encode: Callable[[str], Sequence[int]]) -> Strategy:
        """All parts'."""
        return Composed(tuple(part.tokenised(encode) for part in self.parts))

    def check(self, engine: Engine) -> None:
        """Every part's own."""
        for part in self.parts:
            part.check(engine)

    def init(self, weights: Weights, engine: Engine) -> State:
        """The first states of all parts."""
        return tuple(part.init(weights, engine) for part in self.parts)

    def refresh(self, state: State, weights: Weights, step: Any, engine: Engine) -> State:
        """The states of all parts."""
        pairs = zip(self.parts, state, strict=True)
        return tuple(part.refresh(own, weights, step, engine) for part, own in pairs)

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The first part wraps the loss, and each part the one before it."""

        def wrapped(part: Strategy, own: State, inside: Gradient) -> Gradient:
            return lambda at: part.gradient(inside, own, at, step, engine)

        for part, own in zip(self.parts, state, strict=True):
            inner = wrapped(part, own, inner)
        return inner(weights)

    def land(self, state: State, weights: Weights, moved: Weights, step: Any, engine: Engine) -> tuple[Weights, State]:
        """One part after the other."""
        states = []
        for part, own in zip(self.parts, state, strict=True):
            moved, new = part.land(own, weights, moved, step, engine)
            states.append(new)
        return moved, tuple(states)

    def export(self, state: State, weights: Weights, engine: Engine) -> Weights:
        """One part after the other."""
        for part, own in zip(self.parts, state, strict=True):
            weights = part.export(own, weights, engine)
        return weights

    def examples(self, row: Example | Triple, draw: float, number: int = 0) -> tuple[Example | Triple, ...]:
        """What one part makes, the next maps."""
        rows: tuple[Example | Triple, ...] = (row,)
        for part in self.parts:
            rows = tuple(new for one in rows for new in part.examples(one, draw, number))
        return rows

    def decode(self, logits: Any, position: Any) -> Any:
        """One part after the other."""
        for part in self.parts:
            logits = part.decode(logits, position)
        return logits


def compose(*parts: Strategy) -> Strategy:
    """Several strategies at once: each wraps the gradient of the one before it, and acts on the weights after it.

    Args:
        *parts: innermost first; one that replaces the loss must be the first.

    Raises:
        ValueError: when two parts own the same thing or move different hidden states, or one that replaces the loss would
            discard another or the examples that it makes.

    Example:
        >>> from tradeoff.strategies import EMA, SafeGrad
        >>> [type(part).__name__ for part in compose(SafeGrad(), EMA()).parts]
        ['SafeGrad', 'EMA']
    """
    flat = [one for part in parts for one in (part.parts if isinstance(part, Composed) else (part,))]
    for thing, words in (("loss", "replaces the loss"), ("step", "sets the length of the step")):
        owners = [type(part).__name__ for part in flat if part.owns == thing]
        if len(owners) > 1:
            raise ValueError(f"{' and '.join(owners)} do not compose: each {words}. Give one of them.")
    if len({part.probes for part in flat if part.probes}) > 1:
        movers = " and ".join(f"{type(part).__name__} ({part.probes})" for part in flat if part.probes)
        raise ValueError(f"{movers} do not compose: they move different hidden states. Give one of them.")
    makers = [type(part).__name__ for part in flat if part.maps_examples]
    blind = [type(part).__name__ for part in flat if part.probes or (part.owns == "loss" and not part.maps_examples)]
    if makers and blind:
        raise ValueError(
            f"{' and '.join(blind)} trains on the data as they are and would not see the examples that {' and '.join(makers)} "
            "makes; give one of them."
        )
    for place, part in enumerate(flat):
        if part.owns == "loss" and place > 0:
            before = ", ".join(type(other).__name__ for other in flat[:place])
            raise ValueError(
                f"{type(part).__name__} replaces the loss and would discard what {before} does to it; give it first."
            )
        if part.exports == "own" and any(other.exports for other in flat[:place]):
            raise ValueError(
                f"{type(part).__name__} exports weights of its own and would discard what the strategies before it make of the "
                "weights; give it before them."
            )
        if part.owns == "step" and place < len(flat) - 1 and any(_changes_gradient(p) for p in flat[place + 1 :]):
            raise ValueError(
                f"{type(part).__name__} sets the length of the step along the gradient it sees; give it after every "
                "strategy that changes the gradient."
            )
    return flat[0] if len(flat) == 1 else Composed(tuple(flat))


def _changes_gradient(part: Strategy) -> bool:
    return type(part).gradient is not Strategy.gradient
