"""Every published way to keep safety while fine-tuning, each written once and run by two engines.

A strategy is a small frozen record of settings with hooks (see `Strategy`); `dynamics.descend` runs it on toy problems in JAX
and `bridge.finetune` on checkpoints in torch, by the same lines.
"""

from tradeoff.strategies import merges as merges
from tradeoff.strategies import registry as registry
from tradeoff.strategies.alternating import Lisa as Lisa
from tradeoff.strategies.averaging import EMA as EMA
from tradeoff.strategies.averaging import LAWA as LAWA
from tradeoff.strategies.averaging import SWA as SWA
from tradeoff.strategies.barrier import LBSGD as LBSGD
from tradeoff.strategies.barrier import Constraint as Constraint
from tradeoff.strategies.constraints import EWC as EWC
from tradeoff.strategies.constraints import L2SP as L2SP
from tradeoff.strategies.constraints import Ball as Ball
from tradeoff.strategies.constraints import Penalty as Penalty
from tradeoff.strategies.constraints import SafetyConstraint as SafetyConstraint
from tradeoff.strategies.debiasing import TSDI as TSDI
from tradeoff.strategies.examples import Example as Example
from tradeoff.strategies.examples import Triple as Triple
from tradeoff.strategies.guarded_losses import STARDSS as STARDSS
from tradeoff.strategies.guarded_losses import ConstrainedSFT as ConstrainedSFT
from tradeoff.strategies.guarded_losses import betas_by_position as betas_by_position
from tradeoff.strategies.losses import ALIGNMENT as ALIGNMENT
from tradeoff.strategies.losses import HARMFUL as HARMFUL
from tradeoff.strategies.losses import SAFETY as SAFETY
from tradeoff.strategies.losses import TASK as TASK
from tradeoff.strategies.losses import CrossEntropy as CrossEntropy
from tradeoff.strategies.losses import Data as Data
from tradeoff.strategies.losses import Loss as Loss
from tradeoff.strategies.losses import Weighted as Weighted
from tradeoff.strategies.merging import DARE as DARE
from tradeoff.strategies.merging import Merge as Merge
from tradeoff.strategies.merging import ModelStock as ModelStock
from tradeoff.strategies.merging import SafeLoRA as SafeLoRA
from tradeoff.strategies.merging import TaskArithmetic as TaskArithmetic
from tradeoff.strategies.perturbing import Booster as Booster
from tradeoff.strategies.perturbing import Smoothed as Smoothed
from tradeoff.strategies.perturbing import TVaccine as TVaccine
from tradeoff.strategies.perturbing import Vaccine as Vaccine
from tradeoff.strategies.preferences import DPO as DPO
from tradeoff.strategies.preferences import RAFT as RAFT
from tradeoff.strategies.preferences import Mixing as Mixing
from tradeoff.strategies.preferences import best_of as best_of
from tradeoff.strategies.preferences import bradley_terry as bradley_terry
from tradeoff.strategies.previews import LookAhead as LookAhead
from tradeoff.strategies.probing import SAP as SAP
from tradeoff.strategies.probing import SAPReleased as SAPReleased
from tradeoff.strategies.recovery import DeRTa as DeRTa
from tradeoff.strategies.sampling import SmallBatch as SmallBatch
from tradeoff.strategies.selection import SEAL as SEAL
from tradeoff.strategies.strategy import Engine as Engine
from tradeoff.strategies.strategy import Plain as Plain
from tradeoff.strategies.strategy import Strategy as Strategy
from tradeoff.strategies.strategy import compose as compose
from tradeoff.strategies.surgery import AGEM as AGEM
from tradeoff.strategies.surgery import OGPSA as OGPSA
from tradeoff.strategies.surgery import SPAG as SPAG
from tradeoff.strategies.surgery import SafeGrad as SafeGrad
