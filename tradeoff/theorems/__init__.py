"""Claims as objects: state, verify, replay."""

from tradeoff.theorems import instances as instances
from tradeoff.theorems.claim import Assumption as Assumption
from tradeoff.theorems.claim import Family as Family
from tradeoff.theorems.claim import Theorem as Theorem
from tradeoff.theorems.claim import Tight as Tight
from tradeoff.theorems.claim import theorem as theorem
from tradeoff.theorems.falsification import Falsification as Falsification
from tradeoff.theorems.falsification import falsify as falsify
from tradeoff.theorems.files import load as load
from tradeoff.theorems.registry import all as all
from tradeoff.theorems.registry import get as get
from tradeoff.theorems.together import verify_each as verify_each
from tradeoff.theorems.verification import Verdict as Verdict
from tradeoff.theorems.verification import replay as replay
from tradeoff.theorems.verification import slacks as slacks
from tradeoff.theorems.verification import verify as verify
