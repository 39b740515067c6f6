// Shape, dtype and device requirements of each op, in the same words on every backend. The public
// Python functions check first (ValueError, TypeError); these guard direct calls of torch.ops.
#pragma once
#include <optional>

#include "torch_utils.h"

namespace mvnrob {

inline void check_mvn_cdf(const Tensor& upper, const Tensor& cov, const std::optional<Tensor>& lower,
                          const Tensor& seed) {
  STD_TORCH_CHECK(upper.dim() == 2, "mvn_cdf: upper must have shape [B, n], got ",
                  shape_text(upper));
  const int64_t batch = upper.size(0), n = upper.size(1);
  STD_TORCH_CHECK(cov.dim() == 3 && cov.size(0) == batch && cov.size(1) == n && cov.size(2) == n,
                  "mvn_cdf: cov must have shape [", batch, ", ", n, ", ", n, "], got ",
                  shape_text(cov));
  STD_TORCH_CHECK(is_float_or_double(upper), "mvn_cdf: upper must be float32 or float64");
  STD_TORCH_CHECK(cov.scalar_type() == upper.scalar_type(),
                  "mvn_cdf: cov must have the dtype of upper");
  if (lower.has_value()) {
    STD_TORCH_CHECK(lower->dim() == 2 && lower->size(0) == batch && lower->size(1) == n,
                    "mvn_cdf: lower must have shape [", batch, ", ", n, "], got ",
                    shape_text(*lower));
    STD_TORCH_CHECK(lower->scalar_type() == upper.scalar_type(),
                    "mvn_cdf: lower must have the dtype of upper");
  }
  STD_TORCH_CHECK(
      seed.dim() == 1 && seed.size(0) == batch && seed.scalar_type() == ScalarType::Long,
      "mvn_cdf: seed must be int64 of shape [", batch, "], got ", shape_text(seed));
}

}  // namespace mvnrob
