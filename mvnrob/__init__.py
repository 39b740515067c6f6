"""Average-case robustness of classifiers by batched multivariate normal probabilities."""

import importlib

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

#: Parts with imports of their own, some of extras: loaded when they are asked for.
_PARTS = ("metrics", "models", "report", "scipy_compat", "training")


def __getattr__(name: str):
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
