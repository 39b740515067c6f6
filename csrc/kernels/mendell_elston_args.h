// Arguments of the kernels of mendell_elston. No device code: the torch side includes this too.
#pragma once
#include <cstdint>

#include "kernels/mvn_cdf_args.h"
#include "plan/mendell_elston.h"

namespace mvnrob::kernels {

struct SweepPivotRecord {
  double sd;
  plan::Bounds bounds;
  math::Truncated interval;
  int32_t end, end_after;  // variables left before the multiples of the pivot went, and after
};

struct MendellElstonArgs {
  // Input; limits contiguous [rows, n].
  int64_t rows;
  int32_t n;
  bool is_double;
  const void* upper;
  const void* lower;  // null: minus infinity
  const void* cov;
  CovarianceStrides cov_strides;  // in elements
  // Output, [rows] each
  void *prob, *complement, *log_prob;
  int64_t *status, *n_active, *n_pivots;
  // or, where grad [rows] is given, its products with the gradient; the last two may be null
  const double* grad;
  void *to_upper, *to_lower, *to_cov;

  unsigned char* memory;
  int64_t block_bytes;

  MVNROB_HD double limit(const void* p, int64_t row, int32_t i) const {
    const int64_t k = row * n + i;
    return is_double ? static_cast<const double*>(p)[k] : double(static_cast<const float*>(p)[k]);
  }
  MVNROB_HD double covariance(int64_t row, int32_t i, int32_t j) const {
    const int64_t k = row * cov_strides.batch + i * cov_strides.row + j * cov_strides.column;
    return is_double ? static_cast<const double*>(cov)[k]
                     : double(static_cast<const float*>(cov)[k]);
  }
};

// What a block works in (SweepMemory).
inline int64_t sweep_bytes(const MendellElstonArgs& a) {
  const int64_t n = a.n;
  const int64_t forward = int64_t(sizeof(SweepPivotRecord)) * n + 4 * (n + n % 2) + 8 * n * (7 + n);
  const int64_t reverse = a.grad ? 8 * n * (n + 4) : 0;
  return (forward + reverse + 127) / 128 * 128;
}

}  // namespace mvnrob::kernels
