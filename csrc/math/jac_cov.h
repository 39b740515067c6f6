// From S_ij = <u_i, u_j>, u_i = J_t - J_i, to standardised margins and correlations. No torch.
//
//   norm_i = sqrt(S_ii),  z_i = (f_t - f_i) / (sigma norm_i),  corr_ij = S_ij / (norm_i norm_j)
//
// tests/test_jac_cov.py measures these at far scales, for zero, equal and opposite rows.
#pragma once
#include <cmath>

#include "config.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {

constexpr double kJacLargest = 0x1.fffffffffffffp1023;  // of the finite numbers

// z_i; `margin` is f_t - f_i. A row of zeros is an event without noise: it holds (+inf) unless the
// margin is negative, for P(0 <= 0) = 1. NaN in, NaN out; an infinite norm (overflow) gives NaN.
MVNROB_HD_FN double jac_cov_limit(double margin, double norm, double sigma) {
  if (norm > 0.0 && norm <= kJacLargest) return margin / norm / sigma;
  if (norm == 0.0 && margin == margin) return margin >= 0.0 ? HUGE_VAL : -HUGE_VAL;
  return double(NAN);
}

// 1 / norm_i; 0 for a row of zeros, so that it correlates with nothing; NaN for a norm that is not
// finite. Never overflows: the root of the least float64 is 2^-537.
MVNROB_HD_FN double jac_cov_inverse(double norm) {
  if (norm == 0.0) return 0.0;
  return norm <= kJacLargest ? 1.0 / norm : double(NAN);
}

// corr_ij from product = S_ij and the inverse norms of i and j, symmetric to the bit because the
// larger inverse goes first; S_ij times that is at most the other norm, so nothing overflows.
//
// Two roots, two reciprocals and two products err by at most 6 x 2^-53, so snapping what lies
// within 8 x 2^-53 of +-1 makes equal and opposite rows (S_ij = +-S_ii = +-S_jj) exactly +-1, and
// is the clamp to [-1, 1].
MVNROB_HD double jac_cov_corr(double product, double a, double b) {
  constexpr double kAlmostOne = 1.0 - 0x1p-50;
  const double r = product * (a > b ? a : b) * (a > b ? b : a);
  return r > kAlmostOne ? 1.0 : (r < -kAlmostOne ? -1.0 : r);
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
