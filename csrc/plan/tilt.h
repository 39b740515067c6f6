// Exponential tilting of separation of variables, for small p (Botev 2017).
//
// Pivot j is drawn from N(mu_j, 1) within its limits instead of N(0, 1), and the sample weighted by
//   exp(sum mu_j^2 / 2 - mu_j y_j) prod (Phi(u_j - mu_j) - Phi(l_j - mu_j)),
// whose logarithm is psi(y, mu). mu is the saddle point of psi (plan/tilt_search.h): forward,
// y_j = mu_j + E[Z | l_j - mu_j < Z < u_j - mu_j] with the limits at the y before; backward,
// mu_k = sum_j d ln(Phi(u_j - mu_j) - Phi(l_j - mu_j)) / d y_k. Any mu is unbiased; a good one
// makes the weights nearly equal, and exp(psi) there is of their size, so it serves as their unit.
//
// Of a singular covariance more rows than its own bound a pivot, and psi has kinks, where as a rule
// its saddle point lies. The search leaves the other rows out: psi is smooth then, and an upper
// bound on what the weights are. For that the pivots have to be the rows that matter, those that
// hold the nearest point of the box (plan/nearest_point.h), where the search starts.
#pragma once
#include <cmath>

#include "math/normal.h"

namespace mvnrob::plan {

// What the search knows of each pivot. Slopes are d ln P by the limits, which are those of y - mu.
enum TiltArray {
  kTiltMu,
  kTiltResidual,
  kTiltBest,
  kTiltDirection,
  kTiltUpperSlope,
  kTiltLowerSlope,
  kTiltUpperLimit,
  kTiltLowerLimit,
  // of Newton's method
  kTiltStep,
  kTiltDiagonal,
  kTiltLeft,
  kTiltConjugate,
  kTiltProduct,
  kTiltBy,
  kTiltArrays,
};

// Of Z in [lower, upper]: ln P, and its derivatives with respect to the limits.
struct IntervalSlopes {
  double log_mass;
  double by_upper, by_lower;  // phi(upper) / P, -phi(lower) / P

  // Change of ln P for a relative rounding of one in the limits.
  MVNROB_HD double sensitivity(double lower, double upper) const {
    return (by_upper > 0 ? by_upper * (1 + ::fabs(upper)) : 0.0) -
           (by_lower < 0 ? by_lower * (1 + ::fabs(lower)) : 0.0);
  }
};

// What the search has found.
struct FoundTilt {
  double log_unit = 0;  // psi at the saddle point; without one kPlainLogUnit
  // Of ln p: by the limits' rounding, and by moving those of all rows, where some were taken as
  // bounding a pivot that they only nearly do.
  double by_rounding = 0, by_groups = 0;
  bool tilts = false;  // there is a saddle point, or the tilt was given
};

// The unit of plain samples' weights, which are at most 1. Their squares, and those of the shifts'
// sums from their mean, are numbers for weights down to exp(2 kPlainLogUnit), and add up.
constexpr double kPlainLogUnit = -340;

// Residual up to which mu is taken for the saddle point, where psi cannot be positive (mu = 0 gives
// the logarithm of a product of probabilities). Otherwise samples stay plain: weights far from each
// other would know nothing of what they miss.
constexpr double kTiltAccepted = 0.3;
MVNROB_HD bool is_saddle(double residual, double log_unit) {
  return residual <= kTiltAccepted && log_unit <= 0 && log_unit > -1e300;
}

MVNROB_HD_FN IntervalSlopes interval_slopes(double lower, double upper) {
  constexpr double kHalfLogTwoPi = 0.91893853320467274178;
  if (!(lower < upper)) return {-HUGE_VAL, 0, 0};
  const double log_mass = -0.5 * math::minus_two_log_interval<double>(lower, upper);
  const auto slope = [&](double x) {
    return ::fabs(x) < 1e8 ? ::exp(-0.5 * x * x - kHalfLogTwoPi - log_mass) : 0.0;
  };
  return {log_mass, slope(upper), -slope(lower)};
}

// Beyond it in one tail differences of ln P's slopes are rounding, and its series is exact enough.
constexpr double kFarOut = 50;

// The variance of Z; moving both limits moves its mean by one minus that.
MVNROB_HD_FN double interval_variance(double lower, double upper, const IntervalSlopes& s) {
  const double out = s.by_lower == 0 ? -upper : s.by_upper == 0 ? lower : 0.0;
  if (out > kFarOut) {
    const double square = 1 / (out * out);
    return square * (1 - square * (6 - 50 * square));
  }
  // Of a narrow interval the sum is rounding; it is not more than that of a uniform variable.
  const double width = upper - lower;
  if (width < 0.1) return math::max(width * width / 12, 1e-30);
  double variance = 1 - 2 * s.by_upper * s.by_lower;
  if (s.by_upper != 0) variance -= s.by_upper * (upper + s.by_upper);
  if (s.by_lower != 0) variance -= s.by_lower * (lower + s.by_lower);
  return math::max(variance, 1e-30);
}

// Mean of Z in [lower, upper].
MVNROB_HD double mean_from(const IntervalSlopes& s) { return -(s.by_upper + s.by_lower); }

}  // namespace mvnrob::plan
