"""How a conversation is put to a checkpoint, and the token that ends a turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PLAIN_TEMPLATE = "{prompt}\n"
"""How a prompt is put to a checkpoint that has no chat template."""


@dataclass(frozen=True)
class Turn:
    """What one speaker says in a conversation.

    Attributes:
        role: `user`, `assistant` or `system`.
        content: the words.
    """

    role: str
    content: str


def asked(prompt: str) -> tuple[Turn, ...]:
    """The conversation in which a user says one thing."""
    return (Turn("user", prompt),)


def source(tokenizer: Any) -> str:
    """The text of the checkpoint's chat template, or `PLAIN_TEMPLATE` where there is none."""
    return tokenizer.chat_template or PLAIN_TEMPLATE


def rendered(tokenizer: Any, turns: Sequence[Turn]) -> str:
    """A conversation as the checkpoint reads it, up to where the assistant begins to speak.

    Args:
        tokenizer: the checkpoint's.
        turns: what was said so far.

    Raises:
        ValueError: when the template cannot put the conversation, or there is none and it is more than one question.
    """
    if not tokenizer.chat_template:
        if [turn.role for turn in turns] != ["user"]:
            raise ValueError(
                f"the conversation has the roles {[turn.role for turn in turns]} and the tokenizer has no chat template, so "
                "only one turn of a user can be put to it. Set tokenizer.chat_template, or give single questions."
            )
        return PLAIN_TEMPLATE.format(prompt=turns[0].content)
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of the checkpoint's, and may raise anything
        raise ValueError(
            f"the checkpoint's chat template refuses the roles {[turn.role for turn in turns]} "
            f"({type(error).__name__}: {error}). Leave out what it does not know, such as a system turn."
        ) from error


def prompt_tokens(tokenizer: Any, turns: Sequence[Turn]) -> tuple[int, ...]:
    """The token ids of `rendered`."""
    # A chat template writes its own special tokens; without one the tokenizer adds what the model expects.
    return tuple(tokenizer(rendered(tokenizer, turns), add_special_tokens=not tokenizer.chat_template).input_ids)


def end_of_turn(tokenizer: Any) -> int:
    """The first special token that the template writes after the assistant's words, else the end-of-text token."""
    if tokenizer.chat_template:
        words = "a response"
        turns = [{"role": "user", "content": "a prompt"}, {"role": "assistant", "content": words}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        after = tokenizer(text[text.rindex(words) + len(words) :], add_special_tokens=False).input_ids
        for token in after:
            if token in tokenizer.all_special_ids:
                return token
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no end-of-text token and its chat template marks no end of turn, so the end of a "
            "response cannot be scored. Set tokenizer.eos_token."
        )
    return tokenizer.eos_token_id
