// Weights of tilted samples (plan/tilt.h), for the sampler and its derivatives. Included by
// mvn_cdf_simd.cpp and mvn_cdf_pathwise_simd.cpp, once for each instruction set.
#pragma once
#include "cpu/mvn_cdf_panel.h"
#include "math/elementary.h"

namespace mvnrob {
namespace MVNROB_ISA {
namespace {

// What a draw of z = y - mu takes from ln weight, its interval being of -2 ln P = interval:
// mu^2 / 2 - mu y = -mu^2 / 2 - mu z.
template <class V>
MVNROB_HD V tilted_loss(V interval, V mu, V z) {
  return math::fma(V(0.5), interval + mu * mu, mu * z);
}

// exp(ln weight - log_unit), in place of ln weight.
inline void weigh(double* value, double log_unit) {
  using V = Vec<double>;
  for (int p = 0; p < kTileSamples / kWidth<double>; ++p) {
    const V loss = (V(log_unit) - load(value, p)) * V(2.0);  // -2 ln
    const V bounded = math::min(math::max(loss, V(-1400.0)), V(1400.0));
    const V weight = math::times_exp_half(V(1.0), bounded, V(0.0));
    store(value, p, math::select(loss > V(1400.0), V(0.0), weight));
  }
}

}  // namespace
}  // namespace MVNROB_ISA
}  // namespace mvnrob
