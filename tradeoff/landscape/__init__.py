"""The landscape around an aligned model: curvature of both losses, by the same names for toys and checkpoints."""

from tradeoff.landscape.lanczos import RitzPairs as RitzPairs
from tradeoff.landscape.lanczos import lanczos as lanczos
from tradeoff.landscape.operators import HostOperator as HostOperator
from tradeoff.landscape.operators import Operator as Operator
from tradeoff.landscape.operators import dense as dense
from tradeoff.landscape.operators import fisher as fisher
from tradeoff.landscape.operators import from_matrix as from_matrix
from tradeoff.landscape.operators import gauss_newton as gauss_newton
from tradeoff.landscape.operators import hessian as hessian
