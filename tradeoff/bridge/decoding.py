"""What the debiasing of a checkpoint's decoding is estimated from."""

import torch

from tradeoff.bridge import template
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.strategies.debiasing import Model


def response_logits(checkpoint: Checkpoint) -> Model:
    """A checkpoint as `strategies.debiasing.estimate` asks it: the logits at every position of a response to a prompt.

    An aligned checkpoint and its reference must not share weights: `merged` gives the former weights of its own. The
    debiasing is then `estimate(response_logits(aligned), response_logits(reference), samples, length)`, and
    `log_policy(aligned, world, decode=debiasing.decode)` measures what it does.

    Args:
        checkpoint: the language model.

    Returns:
        From a prompt and a response, words both, to logits of shape (tokens of the response + 1, V), float32 at least.
    """

    @torch.inference_mode()
    def logits(prompt: str, response: str) -> torch.Tensor:
        tokenizer = checkpoint.tokenizer
        said = tuple(tokenizer(response, add_special_tokens=False).input_ids)
        tokens = template.prompt_tokens(tokenizer, template.asked(prompt)) + said
        found = checkpoint.model(torch.tensor([tokens], device=checkpoint.device), use_cache=False).logits
        seen = found[0, -len(said) - 1 :]
        return seen if seen.dtype == torch.float64 else seen.float()

    return logits
