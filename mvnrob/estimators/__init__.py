"""The estimators of :func:`mvnrob.robustness`, one file each."""

from .logit_moments import logit_moments
from .mmse import mmse
from .monte_carlo import mc
from .mvs import calibrated_slope, mmse_mvs, mv_sigmoid, taylor_mvs
from .softmax import softmax, softmax_temperature
from .taylor import taylor

#: name -> estimator of a chunk of inputs
ESTIMATORS = {
    "mc": mc,
    "taylor": taylor,
    "mmse": mmse,
    "taylor_mvs": taylor_mvs,
    "mmse_mvs": mmse_mvs,
    "softmax": softmax,
    "logit_moments": logit_moments,
}

__all__ = [
    "ESTIMATORS",
    "calibrated_slope",
    "mv_sigmoid",
    "softmax_temperature",
]
