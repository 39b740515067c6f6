// Quantiles of Student's t with 7 degrees of freedom: the spread of 8 shifts.
#pragma once
#include <cmath>

namespace mvnrob::plan {

// P(|T| > t), 7 degrees of freedom: the finite cosine series of odd degrees (Abramowitz and Stegun
// 26.7.3), with theta = atan(t / sqrt(7)).
inline double student_t7_two_sided_tail(double t) {
  const double theta = std::atan(t / std::sqrt(7.0)), c = std::cos(theta), c2 = c * c;
  const double series = c * (1 + c2 * (2.0 / 3 + c2 * (8.0 / 15)));
  return 1 - 0.6366197723675814 * (theta + std::sin(theta) * series);
}

// t with P(|T| > t) = alpha, alpha in (1e-7, 1): bisection, then exact to rounding of the tail.
inline double student_t7_quantile(double alpha) {
  double low = 0, high = 200;
  for (int i = 0; i < 60; ++i) {
    const double middle = 0.5 * (low + high);
    (student_t7_two_sided_tail(middle) > alpha ? low : high) = middle;
  }
  return high;
}

}  // namespace mvnrob::plan
