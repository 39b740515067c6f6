"""Average-case robustness of classifiers by batched multivariate normal probabilities."""

from . import _vmap as _vmap  # registers the rules of torch.func.vmap
from . import distributions
from ._bvn_cdf import bvn_cdf
from ._jac_cov import (
    JacCovResult,
    jac_cov,
    jac_cov_accumulate,
    jac_cov_finalize,
    jac_cov_norms,
)
from ._load import simd_level
from ._mvn_cdf import MVNResult, Status, mvn_cdf
from ._mvn_log_cdf import mvn_log_cdf
from ._pivoted_cholesky import PivotedCholesky, pivoted_cholesky
from .argmax import ArgmaxResult, argmax_probabilities
from .estimator import Estimator
from .evaluation import Evaluation, compare, evaluate, selfcheck
from .robustness import RobustnessResult, robustness

__all__ = [
    "ArgmaxResult",
    "Estimator",
    "Evaluation",
    "JacCovResult",
    "MVNResult",
    "PivotedCholesky",
    "RobustnessResult",
    "Status",
    "argmax_probabilities",
    "bvn_cdf",
    "compare",
    "distributions",
    "evaluate",
    "jac_cov",
    "jac_cov_accumulate",
    "jac_cov_finalize",
    "jac_cov_norms",
    "mvn_cdf",
    "mvn_log_cdf",
    "pivoted_cholesky",
    "robustness",
    "selfcheck",
    "simd_level",
]
__version__ = "0.1.0"
