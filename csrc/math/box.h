// Probabilities of boxes in up to three dimensions, by inclusion-exclusion over the corners.
#pragma once
#include <cfloat>
#include <cmath>

#include "bivariate.h"
#include "config.h"
#include "normal.h"
#include "pack.h"
#include "trivariate.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {

struct Interval {
  double lower, upper;
};

namespace detail {

// Reflected so that differences are taken in the lower tail; true when it was.
MVNROB_HD bool to_lower_tail(Interval& a) {
  const bool reflect = a.lower + a.upper > 0;
  if (reflect) a = {-a.upper, -a.lower};
  return reflect;
}

MVNROB_HD double rounding_of_rho(double rest) {
  constexpr double kUlps = 4 * DBL_EPSILON;
  return kUlps / (2 * 3.141592653589793 * ::sqrt(max(rest, kUlps)));
}

}  // namespace detail

// P(X in a).
MVNROB_HD_FN double box1(Interval a) {
  detail::to_lower_tail(a);
  return ndtr(a.upper) - ndtr(a.lower);
}

// P(X not in a).
MVNROB_HD_FN double box1_complement(Interval a) { return ndtr(a.lower) + ndtr(-a.upper); }

// P(X1 in a, X2 in b), correlation rho.
MVNROB_HD_FN double box2(Interval a, Interval b, double rho) {
  if (detail::to_lower_tail(a)) rho = -rho;
  if (detail::to_lower_tail(b)) rho = -rho;
  double p = 0;
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
  for (int corner = 0; corner < 4; ++corner) {
    const double h = corner & 1 ? a.lower : a.upper, k = corner & 2 ? b.lower : b.upper;
    if (h == -HUGE_VAL || k == -HUGE_VAL) continue;
    const double part = bvn_cdf(h, k, rho);
    p += corner == 1 || corner == 2 ? -part : part;
  }
  return max(p, 0.0);
}

// P(X1 in a, X2 in b, X3 in c).
MVNROB_HD_FN double box3(Interval a, Interval b, Interval c, double r12, double r13, double r23) {
  if (detail::to_lower_tail(a)) r12 = -r12, r13 = -r13;
  if (detail::to_lower_tail(b)) r12 = -r12, r23 = -r23;
  if (detail::to_lower_tail(c)) r13 = -r13, r23 = -r23;
  double p = 0;
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
  for (int corner = 0; corner < 8; ++corner) {
    const double h = corner & 1 ? a.lower : a.upper, k = corner & 2 ? b.lower : b.upper,
                 l = corner & 4 ? c.lower : c.upper;
    if (h == -HUGE_VAL || k == -HUGE_VAL || l == -HUGE_VAL) continue;
    const bool negative = ((corner >> 2) ^ (corner >> 1) ^ corner) & 1;
    const double part = tvn_cdf(h, k, l, r12, r13, r23);
    p += negative ? -part : part;
  }
  return max(p, 0.0);
}

// The correlation of two variables of variances v, w and covariance c, and how far its rounding
// moves a probability: dP / drho <= 1 / (2 pi sqrt(1 - rho^2)) (Plackett 1954). Near +-1 that is
// far more than an ulp, so v w - c^2 is formed with the products' rounding errors, and variables
// that are multiples of each other are found as such.
struct PairCorrelation {
  double rho, rounding;

  // Of a probability whose limits lie in these intervals' ends: dP / drho is a density there, at
  // most exp(-max(h^2, k^2) / 2) of that at the origin.
  MVNROB_HD double rounding_at(Interval a, Interval b) const {
    const double h = min(::fabs(a.lower), ::fabs(a.upper));
    const double k = min(::fabs(b.lower), ::fabs(b.upper));
    const double far = max(h, k);
    return rounding > 0 ? rounding * ::exp(-0.5 * far * far) : 0.0;
  }
};

// Error of a closed form whose complement is a sum of positive terms, each right to a few ulps of
// the mass outside its variable (1e-12 at 38 standard deviations): near one it is relative to that
// side.
MVNROB_HD double closed_form_error(double absolute, double complement) {
  return min(absolute, 1e-12 * complement);
}

MVNROB_HD_FN PairCorrelation pair_correlation(double v, double w, double c, double rho) {
  const detail::TwoDoubles p = detail::two_product(v, w), q = detail::two_product(c, c);
  const double gap = (p.hi - q.hi) + (p.lo - q.lo);
  // Where a product leaves the range its rounding error is lost, and rho must do.
  const bool fits = p.hi > 1e-290 && p.hi <= DBL_MAX;
  if (fits && gap == 0) return {c > 0 ? 1.0 : -1.0, 0};
  const double ratio = ::fabs(gap / p.hi);
  const double rest = fits && ratio <= DBL_MAX ? ratio : ::fabs(1 - rho * rho);
  return {rho, detail::rounding_of_rho(rest)};
}

// The same for two rows of a factor of the covariance: `rest` is 1 - rho^2, formed from what one
// row leaves of the other, and rows alike within error_of_rest are multiples.
MVNROB_HD_FN PairCorrelation pair_correlation_of_rows(double rho, double rest,
                                                      double error_of_rest) {
  if (rest <= error_of_rest) return {rho > 0 ? 1.0 : -1.0, 0};
  if (rest < 0.5) rho = rho > 0 ? ::sqrt(1 - rest) : -::sqrt(1 - rest);
  return {rho, detail::rounding_of_rho(rest)};
}

// One to three variables and their limits. Pairs are 12, 13, 23; zero where a variable is absent.
struct Box {
  int size;
  Interval limits[3];
  PairCorrelation pairs[3];
};

// P and 1 - P, each without cancellation, and the error of both. Consistent is false where the
// correlations belong to no distribution within `tolerance`.
struct BoxProbability {
  double value, complement;
  double error;
  // Of variables that are independent; NaN otherwise, where it is log(value).
  double log_value, log_error;
  double log_slope;  // then how that moves with the limits, otherwise infinite
  bool consistent, nan;
};

// The half-lines outside an interval: part 0 above it, part 1 below; an empty one is skipped by
// box2 and box3 (its lower limit is not below its upper one).
MVNROB_HD Interval outside(const Interval& a, int part) {
  return part == 0 ? Interval{a.upper, HUGE_VAL} : Interval{-HUGE_VAL, a.lower};
}
MVNROB_HD bool is_empty(const Interval& a) { return !(a.lower < a.upper); }

MVNROB_HD_FN BoxProbability box_probability(const Box& box, double tolerance) {
  const int m = box.size;
  const Interval* x = box.limits;
  const PairCorrelation* pairs = box.pairs;
  double r12 = pairs[0].rho, r13 = pairs[1].rho, r23 = pairs[2].rho;
  BoxProbability out{1, 0, 4e-15 * m, 0, 4e-15 * m, 0, true, false};
  if (r12 == 0 && r13 == 0 && r23 == 0) {
    for (int i = 0; i < m; ++i) {
      out.complement += out.value * box1_complement(x[i]);
      out.value *= box1(x[i]);
      out.log_value += log_interval(x[i].lower, x[i].upper);
      const double slope = relative_slope(x[i].lower, x[i].upper);
      out.log_slope += slope;
      if (slope > 0)
        out.log_error += kRoundingOfLimit * slope * largest_limit(x[i].lower, x[i].upper);
    }
    out.log_error += 4e-15 * ::fabs(out.log_value);
    out.error = closed_form_error(out.error, out.complement);
    return out;
  }
  out.value = 0;
  out.log_value = out.log_error = NAN;
  out.log_slope = HUGE_VAL;
  out.complement = box1_complement(x[0]);
  const double rounding = pairs[0].rounding_at(x[0], x[1]) + pairs[1].rounding_at(x[0], x[2]) +
                          pairs[2].rounding_at(x[1], x[2]);
  if (r12 != r12 || r13 != r13 || r23 != r23) {
    out.nan = true;
    return out;
  }
  const double determinant = 1 - r12 * r12 - r13 * r13 - r23 * r23 + 2 * r12 * r13 * r23;
  const double largest = max(::fabs(r12), max(::fabs(r13), ::fabs(r23)));
  if (!(largest <= 1 + tolerance) || !(determinant >= -tolerance)) {
    out.consistent = false;
    return out;
  }
  r12 = min(1.0, max(-1.0, r12));
  r13 = min(1.0, max(-1.0, r13));
  r23 = min(1.0, max(-1.0, r23));
  // 1 - P = P(1 out) + P(1 in, 2 out) + P(1 in, 2 in, 3 out): sums of positive terms, then P
  // itself. One loop, so that a device's code holds each function once.
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
  for (int part = 0; part < 3; ++part) {
    const bool whole = part == 2;
    if (m == 3) {
      const Interval c = whole ? x[2] : outside(x[2], part);
      if (!is_empty(c)) {
        const double p = box3(x[0], x[1], c, r12, r13, r23);
        (whole ? out.value : out.complement) += p;
      }
      if (whole) continue;
    }
    const Interval b = whole ? x[1] : outside(x[1], part);
    if (!is_empty(b)) {
      const double p = box2(x[0], b, r12);
      (whole ? out.value : out.complement) += p;
    }
  }
  // The quadrature of three variables is told an absolute tolerance.
  out.error = (m == 2 ? closed_form_error(4e-15, out.complement) : 1e-12) + rounding;
  return out;
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
