"""Probabilistic context-free grammars in layers, each of whose texts has one derivation and comes from one of two branches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Rules = tuple[tuple[tuple[int, ...], ...], ...]
"""By symbol, its rules: sequences of symbols of the layer below."""

TRIES = 10_000


@dataclass(frozen=True)
class Grammar:
    """A grammar in layers.

    Args:
        layers: from the letters upwards, the rules of each symbol, which are equally probable; the last layer has two
            symbols, the safe branch and the unsafe one. No rule of a layer begins with another.
    """

    layers: tuple[Rules, ...]

    def text(self, rng: np.random.Generator, branch: bool, lengths: tuple[int, int]) -> np.ndarray:
        """Draw a text of a branch, given that its length is within bounds.

        Args:
            rng: where the randomness comes from.
            branch: whether from the unsafe branch.
            lengths: the least and the largest number of letters.

        Returns:
            The letters.

        Raises:
            ValueError: when no text of that length comes up.
        """
        for _ in range(TRIES):
            symbols = [int(branch)]
            for layer in reversed(self.layers):
                picks = rng.random(len(symbols))
                symbols = [
                    s for one, u in zip(symbols, picks, strict=True) for s in layer[one][int(u * len(layer[one]))]
                ]
            if lengths[0] <= len(symbols) <= lengths[1]:
                return np.array(symbols)
        raise ValueError(
            f"The grammar gave no text of {lengths[0]} to {lengths[1]} letters in {TRIES} draws (the last had "
            f"{len(symbols)}). Choose lengths that fit arity, or another seed."
        )

    def parse(self, text: Sequence[int] | np.ndarray) -> int | None:
        """The branch that a text comes from: 0 is the safe one, 1 the unsafe one, None neither.

        Since no rule of a layer begins with another, reading from the left finds the only derivation there can be.

        Args:
            text: letters.

        Returns:
            The branch, or None where the grammar does not make the text.
        """
        symbols = tuple(int(letter) for letter in text)
        *lower, branches = self.layers
        for layer in lower:
            above = _read(symbols, layer)
            if above is None:
                return None
            symbols = above
        return next((branch for branch, rules in enumerate(branches) if symbols in rules), None)


def draw_grammar(
    rng: np.random.Generator,
    letters: int,
    symbols: Sequence[int],
    arity: Sequence[tuple[int, int]],
    rules: int,
    branch_rules: int,
) -> Grammar:
    """Draw a grammar.

    Args:
        rng: where the randomness comes from.
        letters: how many there are.
        symbols: how many each layer has, from the letters upwards; half of the last serve each branch.
        arity: the least and largest length of a rule, by layer, the branches last; all lengths occur in turn.
        rules: how many each symbol has.
        branch_rules: how many each branch has.

    Returns:
        The grammar.

    Raises:
        ValueError: when there are not so many rules of which none begins with another.
    """
    below, layers = letters, []
    for count, sizes in zip(symbols, arity, strict=False):
        layers.append(_layer(rng, [range(below)] * count, rules, sizes))
        below = count
    halves = [range(below // 2), range(below // 2, below)]
    return Grammar((*layers, _layer(rng, halves, branch_rules, arity[-1])))


def _layer(rng: np.random.Generator, below: list[range], rules: int, arity: tuple[int, int]) -> Rules:
    """Rules for each symbol over the symbols below it."""
    taken: list[tuple[int, ...]] = []
    sizes = [arity[0] + k % (arity[1] - arity[0] + 1) for k in range(rules)]
    for symbols in below:
        for size in sizes:
            for _ in range(TRIES):
                rule = tuple(int(symbols[k]) for k in rng.integers(len(symbols), size=size))
                if not any(other[:size] == rule[: len(other)] for other in taken):
                    taken.append(rule)
                    break
            else:
                raise ValueError(
                    f"A layer of {len(below)} symbols with {rules} rules each over {len(symbols)} symbols leaves no rule of "
                    f"{size} symbols that no other begins with. Lower the number of rules or raise arity."
                )
    return tuple(tuple(taken[k : k + rules]) for k in range(0, len(taken), rules))


def _read(symbols: tuple[int, ...], layer: Rules) -> tuple[int, ...] | None:
    """The symbols whose rules, one after the other, are the given ones."""
    owner = {rule: symbol for symbol, rules in enumerate(layer) for rule in rules}
    longest = max(map(len, owner))
    above: list[int] = []
    while symbols:
        head = next((symbols[:n] for n in range(1, longest + 1) if symbols[:n] in owner), None)
        if head is None:
            return None
        above.append(owner[head])
        symbols = symbols[len(head) :]
    return tuple(above)
