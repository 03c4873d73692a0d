"""The bridge to language models: checkpoints, their policies of a text world, their fine-tuning (extra `lm`)."""

try:
    import gguf as _gguf  # noqa: F401
    import peft as _peft  # noqa: F401
    import torch as _torch  # noqa: F401
    import transformers.utils as _transformers  # noqa: F401  (not the package: a type checker would read all its models)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"tradeoff.bridge needs {error.name}, which is not installed. Install the extra for language models: pip "
        "install 'tradeoff[lm]'",
        name=error.name,
    ) from error

from tradeoff.bridge import curvature as curvature
from tradeoff.bridge import landscape as landscape
from tradeoff.bridge.checkpoints import SMOLLM2 as SMOLLM2
from tradeoff.bridge.checkpoints import Checkpoint as Checkpoint
from tradeoff.bridge.checkpoints import CheckpointError as CheckpointError
from tradeoff.bridge.checkpoints import load as load
from tradeoff.bridge.finetuning import FineTuned as FineTuned
from tradeoff.bridge.finetuning import Recipe as Recipe
from tradeoff.bridge.finetuning import adapted as adapted
from tradeoff.bridge.finetuning import finetune as finetune
from tradeoff.bridge.finetuning import identity as identity
from tradeoff.bridge.policy import Contract as Contract
from tradeoff.bridge.policy import contract as contract
from tradeoff.bridge.policy import log_policy as log_policy
from tradeoff.bridge.policy import reference_log_policy as reference_log_policy
