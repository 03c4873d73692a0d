"""Choosing a strategy's settings for a new task from earlier ones, without trying an unsafe setting on the way.

Earlier tasks teach a prior (`FPACOH`, or the sharpest calibrated squared-exponential one), and `tune` searches the new task's
settings for the most capable one whose safety gap is below a limit.
"""

from tradeoff.tuning.calibration import Calibration as Calibration
from tradeoff.tuning.calibration import FrontierSearch as FrontierSearch
from tradeoff.tuning.calibration import calibration_frequency as calibration_frequency
from tradeoff.tuning.calibration import calibration_of as calibration_of
from tradeoff.tuning.calibration import frontier_search as frontier_search
from tradeoff.tuning.calibration import sharpest_calibrated as sharpest_calibrated
from tradeoff.tuning.gaussian_process import Gaussian as Gaussian
from tradeoff.tuning.gaussian_process import Prior as Prior
from tradeoff.tuning.gaussian_process import SquaredExponential as SquaredExponential
from tradeoff.tuning.gaussian_process import Standardised as Standardised
from tradeoff.tuning.gaussian_process import Units as Units
from tradeoff.tuning.gaussian_process import conditioned as conditioned
from tradeoff.tuning.gaussian_process import gaussian_kl as gaussian_kl
from tradeoff.tuning.gaussian_process import log_likelihood as log_likelihood
from tradeoff.tuning.gaussian_process import posterior as posterior
from tradeoff.tuning.pacoh import FPACOH as FPACOH
from tradeoff.tuning.pacoh import Learned as Learned
from tradeoff.tuning.safe_search import History as History
from tradeoff.tuning.safe_search import SafeSearch as SafeSearch
from tradeoff.tuning.safe_search import confidence_multiplier as confidence_multiplier
from tradeoff.tuning.safe_search import largest_safe_weight as largest_safe_weight
from tradeoff.tuning.safe_search import merging as merging
from tradeoff.tuning.safe_search import replay as replay
from tradeoff.tuning.safe_search import tune as tune
