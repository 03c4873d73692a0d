"""Training examples as the data maps see them: a prompt that carries no loss, and a response that does."""

from typing import Any, NamedTuple

Text = str | tuple[int, ...]
"""Words before they are tokenised, or the ids of tokens."""

IGNORED = -100
"""The label of a token that carries no loss, as in torch and transformers."""


class Example(NamedTuple):
    """One row of training data. A map makes another one and leaves this one as it was.

    Args:
        prompt: what the model is given; no loss on it.
        response: what follows it.
        targets: ids of what is to be predicted in place of each token of the response; `None` for the response itself.
        weight: ≥ 0, of its loss beside that of the row that it was made from.

    Example:
        >>> Example((5, 6), (7, 8)).labels
        (-100, -100, 7, 8)
    """

    prompt: Text
    response: Text
    targets: tuple[int, ...] | None = None
    weight: Any = 1.0

    @property
    def tokens(self) -> tuple[int, ...]:
        """Ids of prompt and response, what the model reads."""
        return (*_ids("prompt", self.prompt), *_ids("response", self.response))

    @property
    def labels(self) -> tuple[int, ...]:
        """What is to be predicted at each token: nothing in the prompt, the targets in the response."""
        response = _ids("response", self.response)
        targets = response if self.targets is None else self.targets
        if len(targets) != len(response):
            raise ValueError(
                f"an example has {len(response)} tokens of response and {len(targets)} targets; give as many."
            )
        return (IGNORED,) * len(_ids("prompt", self.prompt)) + targets


class Triple(NamedTuple):
    """A row of safety data: a harmful query with a safe and a harmful response to it.

    Args:
        query: words, or ids of tokens; as the model is given it, with its chat template.
        safe: the response that refuses.
        harmful: the response that complies.
    """

    query: Text
    safe: Text
    harmful: Text


def joined(*parts: Text) -> Any:
    """Texts one after the other; one that is empty adds nothing and may be of either kind.

    Raises:
        TypeError: when words are to be joined to ids of tokens.
    """
    said = [part for part in parts if len(part) > 0] or [parts[0]]
    whole = said[0]
    for part in said[1:]:
        if isinstance(part, str) != isinstance(whole, str):
            raise TypeError(
                f"{part!r} cannot be joined to {whole!r}: words and ids of tokens do not mix. Give both as words, or as "
                "tuples of ids."
            )
        whole = whole + part  # pyright: ignore[reportOperatorIssue]
    return whole


def _ids(what: str, text: Text) -> tuple[int, ...]:
    if isinstance(text, str):
        raise TypeError(f"the {what} is words, {text!r}, which have no labels; tokenise the example first.")
    return text
