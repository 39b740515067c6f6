// Fixed and adaptive quadrature in double for the closed forms, on host and device.
#pragma once

#include "config.h"
#include "pack.h"
#include "quadrature_tables.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {

// sin(x) for |x| <= pi/2, relative error 1.3e-16 (measured, tests/test_math.py). The library's sine
// reduces large arguments through a stack frame on CUDA, which no caller here needs.
MVNROB_HD double sine_quarter(double x) {
  const double u = x * x;
  return fma(tables::sine_poly(u) * u, x, x);
}

// 20-point Gauss-Legendre rule for f on [lo, hi].
template <class F>
MVNROB_HD_FN double gauss20(const F& f, double lo, double hi) {
  const double mid = 0.5 * (lo + hi), half = 0.5 * (hi - lo);
  double sum = 0;
  for (int i = 0; i < 10; ++i) {
    const double x = half * tables::gauss20_node(i);
    sum += tables::gauss20_weight(i) * (f(mid - x) + f(mid + x));
  }
  return half * sum;
}

// Adaptive Gauss-Kronrod (10, 21) rule: an interval is halved until its two rules agree within
// tol, which leaves the 21-point value, the one that counts, far closer than that. Depth first,
// so the stack is as deep as the bisection: at most 50, where an interval has rounding width.
// `halvings` are those that are left: each takes one, and with none left, where the integrand's
// rounding is more than tol for instance, the intervals stay as they are.
template <class F>
MVNROB_HD_FN double integrate(const F& f, double lo, double hi, double tol, int& halvings) {
  constexpr int max_depth = 50;
  double right_end[max_depth + 1];
  int depth_of[max_depth + 1];
  int top = 0;
  right_end[0] = hi;
  depth_of[0] = 0;
  double a = lo, total = 0;
  while (top >= 0) {
    const double b = right_end[top];
    const double mid = 0.5 * (a + b), half = 0.5 * (b - a);
    const double centre = f(mid);
    double fine = tables::kronrod21_weight(0) * centre, coarse = 0;
    for (int i = 1; i < 11; ++i) {
      const double x = half * tables::kronrod21_node(i);
      const double pair = f(mid - x) + f(mid + x);
      fine += tables::kronrod21_weight(i) * pair;
      coarse += tables::kronrod21_coarse(i) * pair;
    }
    // A NaN compares false and must not be halved for ever.
    const bool refine =
        ::fabs(fine - coarse) * half > tol && depth_of[top] < max_depth && halvings > 0;
    if (refine) {
      --halvings;
      const int depth = ++depth_of[top];
      ++top;
      right_end[top] = mid;
      depth_of[top] = depth;
    } else {
      total += half * fine;
      a = b;
      --top;
    }
  }
  return total;
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
