"""Average-case robustness of classifiers by batched multivariate normal probabilities."""

from ._load import simd_level
from ._mvn_cdf import MVNResult, Status, mvn_cdf

__all__ = ["MVNResult", "Status", "mvn_cdf", "simd_level"]
__version__ = "0.1.0"
