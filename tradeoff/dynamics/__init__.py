"""How training gets there: gradient flows, early stopping, descent and its noise."""

from tradeoff.dynamics.descent import Descent as Descent
from tradeoff.dynamics.descent import descend as descend
from tradeoff.dynamics.early_stopping import EarlyStopping as EarlyStopping
from tradeoff.dynamics.early_stopping import Onset as Onset
from tradeoff.dynamics.early_stopping import early_stopping_path as early_stopping_path
from tradeoff.dynamics.early_stopping import onset as onset
from tradeoff.dynamics.engine import JaxEngine as JaxEngine
from tradeoff.dynamics.expected import expected_descent as expected_descent
from tradeoff.dynamics.flow import Flow as Flow
from tradeoff.dynamics.flow import gradient_flow as gradient_flow
from tradeoff.dynamics.flow import relaxation_time as relaxation_time
from tradeoff.dynamics.noise import NoiseFloor as NoiseFloor
from tradeoff.dynamics.noise import minibatch_noise as minibatch_noise
from tradeoff.dynamics.noise import noise_floor as noise_floor
from tradeoff.dynamics.quadratic import QuadraticFlow as QuadraticFlow
from tradeoff.dynamics.quadratic import quadratic_flow as quadratic_flow
from tradeoff.dynamics.quadratic import quadratic_states as quadratic_states
from tradeoff.dynamics.tabular import TabularFlow as TabularFlow
from tradeoff.dynamics.tabular import tabular_flow as tabular_flow
