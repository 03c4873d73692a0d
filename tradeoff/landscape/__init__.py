"""The landscape around an aligned model: curvature of both losses, by the same names for toys and checkpoints."""

from tradeoff.landscape.lanczos import RitzPairs as RitzPairs
from tradeoff.landscape.lanczos import lanczos as lanczos
from tradeoff.landscape.neighbourhood import BallConstants as BallConstants
from tradeoff.landscape.neighbourhood import LocalLaw as LocalLaw
from tradeoff.landscape.neighbourhood import Path as Path
from tradeoff.landscape.neighbourhood import along as along
from tradeoff.landscape.neighbourhood import ball_constants as ball_constants
from tradeoff.landscape.neighbourhood import local_law as local_law
from tradeoff.landscape.operators import HostOperator as HostOperator
from tradeoff.landscape.operators import Operator as Operator
from tradeoff.landscape.operators import dense as dense
from tradeoff.landscape.operators import fisher as fisher
from tradeoff.landscape.operators import from_matrix as from_matrix
from tradeoff.landscape.operators import gauss_newton as gauss_newton
from tradeoff.landscape.operators import hessian as hessian
from tradeoff.landscape.spectrum import CurvatureOverlap as CurvatureOverlap
from tradeoff.landscape.spectrum import SpectralDensity as SpectralDensity
from tradeoff.landscape.spectrum import TraceEstimate as TraceEstimate
from tradeoff.landscape.spectrum import curvature_overlap as curvature_overlap
from tradeoff.landscape.spectrum import density as density
from tradeoff.landscape.spectrum import generalised_eigenvalues as generalised_eigenvalues
from tradeoff.landscape.spectrum import principal_angles as principal_angles
from tradeoff.landscape.spectrum import trace as trace
