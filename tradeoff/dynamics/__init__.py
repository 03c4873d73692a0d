"""How training gets there: gradient flows of the problems."""

from tradeoff.dynamics.flow import Flow as Flow
from tradeoff.dynamics.flow import gradient_flow as gradient_flow
from tradeoff.dynamics.flow import relaxation_time as relaxation_time
from tradeoff.dynamics.quadratic import QuadraticFlow as QuadraticFlow
from tradeoff.dynamics.quadratic import quadratic_flow as quadratic_flow
