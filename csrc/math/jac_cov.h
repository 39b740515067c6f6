// From S_ij = <u_i, u_j>, u_i = J_t - J_i, to standardised margins and correlations. No torch.
//
//   norm_i = sqrt(S_ii),  z_i = (f_t - f_i) / (sigma norm_i),  corr_ij = S_ij / (norm_i norm_j)
//
// Rows of S are rescaled by powers of two before anything is multiplied, so no norm of float64 range
// overflows or underflows on the way, and equal or opposite rows (S_ij = +-S_ii = +-S_jj) come out
// at exactly +-1: sqrt(m * m) = m. tests/test_jac_cov.py measures both.
#pragma once
#include <cmath>
#include <limits>

#include "config.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {

// Squared norm of a row as square / scale^2, scale a power of two and square in [1/2, 2). A row of
// zeros has scale 0; one whose squared norm is negative, infinite or NaN has square NaN.
struct JacRowScale {
  double scale;
  double square;
};

MVNROB_HD_FN JacRowScale jac_row_scale(double squared_norm) {
  using std::frexp;
  using std::ldexp;
  if (squared_norm == 0.0) return {0.0, 1.0};
  if (!(squared_norm > 0.0 && squared_norm <= std::numeric_limits<double>::max()))
    return {1.0, std::numeric_limits<double>::quiet_NaN()};
  int exponent;
  frexp(squared_norm, &exponent);  // squared_norm = m 2^exponent, m in [1/2, 1)
  const int half = exponent >= 0 ? exponent / 2 : -((1 - exponent) / 2);  // floor(exponent / 2)
  const double scale = ldexp(1.0, -half);
  return {scale, squared_norm * scale * scale};
}

// z_i; `margin` is f_t - f_i. A row of zeros is an event without noise: it holds (+inf) unless the
// margin is negative, for P(0 <= 0) = 1. NaN in, NaN out; an infinite norm (overflow) gives NaN.
MVNROB_HD_FN double jac_cov_limit(double margin, double norm, double sigma) {
  if (norm > 0.0 && norm <= std::numeric_limits<double>::max()) return margin / norm / sigma;
  if (norm == 0.0 && margin == margin) {
    const double infinity = std::numeric_limits<double>::infinity();
    return margin >= 0.0 ? infinity : -infinity;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

// corr_ij for i != j, from product = S_ij; within [-1, 1], 0 if a row is zero.
MVNROB_HD double jac_cov_corr(double product, JacRowScale a, JacRowScale b) {
  using std::sqrt;
  const double r = product * a.scale * b.scale / sqrt(a.square * b.square);
  return r > 1.0 ? 1.0 : (r < -1.0 ? -1.0 : r);
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
