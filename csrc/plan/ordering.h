// Arithmetic of the ordered, rank-revealing Cholesky factor that every backend shares.
#pragma once
#include <cmath>
#include <cstdint>

#include "math/normal.h"

namespace mvnrob::plan {

MVNROB_HD_FN double phi(double x) { return 0.3989422804014327 * ::exp(-0.5 * x * x); }

// Mean of a standard normal truncated to [-inf, b]: -phi(b) / Phi(b), by its asymptotic series
// where both underflow.
MVNROB_HD_FN double mean_below(double b) {
  if (b < -30) return b + 1 / b - 2 / (b * b * b);
  return -phi(b) / math::ndtr<double>(b);
}

// Mean of a standard normal truncated to [a, b].
MVNROB_HD_FN double truncated_mean(double a, double b) {
  if (a == -HUGE_VAL) return mean_below(b);
  if (b == HUGE_VAL) return -mean_below(-a);
  const bool reflect = a + b > 0;
  const double low = reflect ? -b : a, high = reflect ? -a : b;
  const double mass = math::ndtr<double>(high) - math::ndtr<double>(low);
  double mean;
  if (!(mass > 1e-280) || high - low < 1e-8) {
    // A narrow or a very far interval: between its ends, next to the one nearer to zero.
    mean = high < -30 ? math::max(low, high + 1 / high) : 0.5 * (low + high);
  } else {
    mean = math::min(high, math::max(low, (phi(low) - phi(high)) / mass));
  }
  return reflect ? -mean : mean;
}

// P(a <= X <= b), the difference taken in the lower tail; T is double or a pack of them.
template <class T>
MVNROB_HD T interval_probability(T a, T b) {
  const auto reflect = a + b > T(0.0);
  return math::ndtr<T>(math::select(reflect, -a, b)) - math::ndtr<T>(math::select(reflect, -b, a));
}

// The same, its complement and its logarithm, each without cancellation; an interval may be empty.
struct IntervalProbability {
  double value, complement, log_value;
};

MVNROB_HD_FN IntervalProbability interval(double a, double b) {
  if (!(a < b)) return {0, 1, -HUGE_VAL};
  return {interval_probability(a, b), math::ndtr<double>(a) + math::ndtr<double>(-b),
          math::log_interval(a, b)};
}

// What orders the variables given those already chosen: the smallest goes first. Without lower
// limits the limit itself will do, because Phi is monotone. T is double or a pack of them.
template <class T>
MVNROB_HD T priority(T upper, T lower, T mean, T variance, bool rectangular) {
  const T scale = T(1.0) / math::sqrt(variance);
  const T b = (upper - mean) * scale;
  return rectangular ? interval_probability<T>((lower - mean) * scale, b) : b;
}

// Beside pivots that hold the nearest point (plan/nearest_point.h) a row of less variance than this
// is taken last: it is nearly decided by them, and bounds a pivot of its own by a wall.
constexpr double kThin = 1e-6;

// What a row with no variance left says of its pivot: limits divided by its coefficient there,
// which exchanges them when it is negative.
struct Bounds {
  double lower, upper;
};

MVNROB_HD Bounds bounds_on_pivot(double lower, double upper, double coefficient) {
  const double from_lower = lower / coefficient, from_upper = upper / coefficient;
  return coefficient > 0 ? Bounds{from_lower, from_upper} : Bounds{from_upper, from_lower};
}

// Rounding of the entries, taken as independent, makes the variance given the pivots wrong by about
// entry_error (1 + |w|^2), w the regression on the pivots (the derivative of a Schur complement); a
// new pivot of variance d^2 adds c^2 / d^2 times its own error. A variance within its error is
// zero; one below minus ten times it says that the matrix is indefinite. The start is a few
// entries' worth, so that rows equal up to rounding count as equal.
MVNROB_HD double first_variance_error(double entry_error) { return 8 * entry_error; }

// Of a factor of the covariance the rows are known to entry_error of their length, so the standard
// deviations have that error and the variances its square; it grows in the same way. Such a
// variance is never negative.
MVNROB_HD double first_factor_error(double entry_error) { return 64 * entry_error * entry_error; }
// A variance that has been subtracted from is as wrong as the rounding of what it was. Below this
// part of it the row's rest is formed anew.
constexpr double kRefresh = 1e-6;

// When no row has variance left, what the rows without leave between each other must be nothing
// too: |E_ij| <= sqrt(E_ii E_jj) for a semidefinite rest E = R - L L^T. One product with a vector
// of pseudo-random signs tells, each |E_ii| within its error.
MVNROB_HD double sign_of(int64_t variable) {
  const uint64_t bits = (uint64_t(variable) + 1) * 0x9e3779b97f4a7c15ull;
  return ((bits ^ (bits >> 29)) * 0xbf58476d1ce4e5b9ull) >> 63 ? 1.0 : -1.0;
}
MVNROB_HD double error_of_rest(double variance_error) { return ::sqrt(10 * variance_error); }
MVNROB_HD bool is_zero_rest(double product, double error, double sum_of_errors) {
  return ::fabs(product) <= error * sum_of_errors;
}

// T is double or a pack of them.
template <class T>
MVNROB_HD auto is_zero_variance(T variance, T error) {
  return variance <= error;
}
template <class T>
MVNROB_HD auto is_valid_variance(T variance, T error) {
  return variance > T(-10.0) * error;
}

// Whether a variable of zero variance, in a matrix of this largest one, may have that covariance
// with one of `variance`: what a pivot of the latter would leave of the former.
MVNROB_HD bool is_valid_beside_zero(double covariance, double variance, double largest,
                                    double entry_error) {
  if (covariance == 0) return true;
  const double rest = variance > 0 ? -covariance * covariance / variance : -::fabs(covariance);
  return is_valid_variance(rest, largest * first_variance_error(entry_error));
}

}  // namespace mvnrob::plan
