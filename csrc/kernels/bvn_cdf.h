// Body of the bvn_cdf kernel.
//
// Mapping: one element per thread, grid-stride. Limiter: issue, of which sm_90 takes 3424
// instructions in all branches together, 1212 of them FP64 (share reached: not measured); the 32
// bytes of an element are nothing beside that.
#pragma once
#include <cstdint>

#include "math/bivariate.h"

namespace mvnrob::kernels {

MVNROB_HD void bvn_cdf(const double* h, const double* k, const double* rho, double* out, int64_t n,
                       int64_t first, int64_t stride) {
  for (int64_t i = first; i < n; i += stride) out[i] = math::bvn_cdf(h[i], k[i], rho[i]);
}

}  // namespace mvnrob::kernels
