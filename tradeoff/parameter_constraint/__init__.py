r"""Case II, the alignment parameter constraint: fine-tune while the weights stay near the aligned ones.

For a pair of quadratics the constrained optimum $\theta_\varepsilon\in\arg\min\{L_f:\|\theta-\theta_s\|\le\varepsilon\}$ is
$\theta_s+(H_f+\mu I)^{-1}H_fd$ with μ the root of the secular equation $\sum_i\lambda_i^2c_i^2/(\lambda_i+\mu)^2=\varepsilon^2$
(T14). One eigendecomposition of $H_f$ serves every radius (`solve`, `path`), also where the loss curves downwards. Weight
decay toward $\theta_s$ is the same path in μ (`soft_path`); another metric is a change of variable; adapters are the same
problem in fewer coordinates (`restrict`). Case I of the same pair (`penalised_path`) is one generalised eigenproblem, and
the two differ by the price of isotropy (T15). Losses of any other kind are descended and projected (`projected_descent`),
by the operators that also hold checkpoints in a ball (`projection`).
"""

from tradeoff.parameter_constraint import projection as projection
from tradeoff.parameter_constraint._spectral import eigen as eigen
from tradeoff.parameter_constraint.ball import path as path
from tradeoff.parameter_constraint.ball import soft_path as soft_path
from tradeoff.parameter_constraint.ball import solve as solve
from tradeoff.parameter_constraint.descent import ProjectedPoint as ProjectedPoint
from tradeoff.parameter_constraint.descent import projected_descent as projected_descent
from tradeoff.parameter_constraint.isotropy import price_of_isotropy as price_of_isotropy
from tradeoff.parameter_constraint.penalty import penalised_gaps as penalised_gaps
from tradeoff.parameter_constraint.penalty import penalised_path as penalised_path
from tradeoff.parameter_constraint.records import IsotropyPrice as IsotropyPrice
from tradeoff.parameter_constraint.records import LocalPoint as LocalPoint
from tradeoff.parameter_constraint.records import PenalisedPoint as PenalisedPoint
from tradeoff.parameter_constraint.records import TrustRegionPoint as TrustRegionPoint
from tradeoff.parameter_constraint.records import failures as failures
from tradeoff.parameter_constraint.subspace import Restricted as Restricted
from tradeoff.parameter_constraint.subspace import restrict as restrict
