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
from tradeoff.bridge.data import Data as Data
from tradeoff.bridge.data import Prompts as Prompts
from tradeoff.bridge.data import read_data as read_data
from tradeoff.bridge.data import read_prompts as read_prompts
from tradeoff.bridge.data import sample as sample
from tradeoff.bridge.data_engine import Sampling as Sampling
from tradeoff.bridge.data_files import DataError as DataError
from tradeoff.bridge.data_finetuning import TunedOnData as TunedOnData
from tradeoff.bridge.data_finetuning import finetune_data as finetune_data
from tradeoff.bridge.data_preflight import preflight_data as preflight_data
from tradeoff.bridge.decoding import response_logits as response_logits
from tradeoff.bridge.drift import Drift as Drift
from tradeoff.bridge.drift import SmoothedSafety as SmoothedSafety
from tradeoff.bridge.drift import distance as distance
from tradeoff.bridge.drift import drift as drift
from tradeoff.bridge.drift import smoothed_safety as smoothed_safety
from tradeoff.bridge.finetuning import FineTuned as FineTuned
from tradeoff.bridge.finetuning import Recipe as Recipe
from tradeoff.bridge.finetuning import adapted as adapted
from tradeoff.bridge.finetuning import finetune as finetune
from tradeoff.bridge.finetuning import identity as identity
from tradeoff.bridge.lower import LowerStates as LowerStates
from tradeoff.bridge.measuring import Measurement as Measurement
from tradeoff.bridge.measuring import MeasureSettings as MeasureSettings
from tradeoff.bridge.measuring import data_gap as data_gap
from tradeoff.bridge.measuring import measure as measure
from tradeoff.bridge.measuring import teacher_gap as teacher_gap
from tradeoff.bridge.merged import merged as merged
from tradeoff.bridge.merged import save as save
from tradeoff.bridge.outcome import Comparison as Comparison
from tradeoff.bridge.outcome import Point as Point
from tradeoff.bridge.policy import Contract as Contract
from tradeoff.bridge.policy import contract as contract
from tradeoff.bridge.policy import log_policy as log_policy
from tradeoff.bridge.policy import reference_log_policy as reference_log_policy
from tradeoff.bridge.preflight import Preflight as Preflight
from tradeoff.bridge.preflight import preflight as preflight
from tradeoff.bridge.refusals import refusal_probability as refusal_probability
from tradeoff.bridge.refusals import refusal_rates as refusal_rates
from tradeoff.bridge.similarity import context_overlap as context_overlap
from tradeoff.bridge.similarity import joint_separation as joint_separation
from tradeoff.bridge.similarity import response_divergence as response_divergence
