"""Every published way to keep safety while fine-tuning, each written once and run by two engines.

A strategy is a small frozen record of settings with hooks (see `Strategy`); `dynamics.descend` runs it on toy problems in JAX
and `bridge.finetune` on checkpoints in torch, by the same lines.
"""

from tradeoff.strategies import registry as registry
from tradeoff.strategies.averaging import EMA as EMA
from tradeoff.strategies.constraints import EWC as EWC
from tradeoff.strategies.constraints import L2SP as L2SP
from tradeoff.strategies.constraints import Ball as Ball
from tradeoff.strategies.constraints import Penalty as Penalty
from tradeoff.strategies.constraints import SafetyConstraint as SafetyConstraint
from tradeoff.strategies.losses import ALIGNMENT as ALIGNMENT
from tradeoff.strategies.losses import HARMFUL as HARMFUL
from tradeoff.strategies.losses import SAFETY as SAFETY
from tradeoff.strategies.losses import TASK as TASK
from tradeoff.strategies.losses import CrossEntropy as CrossEntropy
from tradeoff.strategies.losses import Data as Data
from tradeoff.strategies.losses import Loss as Loss
from tradeoff.strategies.losses import Weighted as Weighted
from tradeoff.strategies.strategy import Engine as Engine
from tradeoff.strategies.strategy import Plain as Plain
from tradeoff.strategies.strategy import Strategy as Strategy
from tradeoff.strategies.strategy import compose as compose
from tradeoff.strategies.surgery import AGEM as AGEM
from tradeoff.strategies.surgery import SafeGrad as SafeGrad
