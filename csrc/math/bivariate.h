// Bivariate normal probabilities in double (Genz, 2004, Stat. Comput. 14, after Drezner and
// Wesolowsky, 1990), float through double.
//
// L(h, k, rho) = P(X > h, Y > k). By Plackett's identity dL/drho is the bivariate density, so
//   L = Phi(-h) Phi(-k) + 1/(2 pi) int_0^asin(rho) exp(-(h^2 + k^2 - 2 h k sin t) / (2 cos^2 t)) dt
// for |rho| < 0.925. Nearer to one, with s = sign(rho), j = s k, r = sqrt(1 - x^2),
//   L = L(h, k, s) - s I(h, j, sqrt(1 - rho^2)),
//   I = 1/(2 pi) int_0^a exp(-(h - j)^2 / (2 x^2) - h j / (1 + r)) / r dx;
// the factor exp(-(h - j)^2 / (2 x^2)) is not analytic at 0, so it is integrated exactly against
// the expansion exp(-h j / 2) (1 + c x^2 + d x^4) of the rest and numerically against the
// remainder, which is O(x^6).
// Measured (tests/test_math.py): absolute error 4.7e-16; the complement, relative to itself,
// 7.6e-16 up to limits of 12.
#pragma once

#include "config.h"
#include "normal.h"
#include "quadrature.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {

namespace detail {

constexpr double kInvTwoPi = 0.15915494309189533577;

// 1/(2 pi) int_0^asin(rho) ..., |rho| < 0.925.
MVNROB_HD_FN double bvn_arc(double h, double k, double rho) {
  const double squares = 0.5 * (h * h + k * k), hk = h * k;
  const auto f = [squares, hk](double t) {
    const double s = sine_quarter(t);
    return ::exp((hk * s - squares) / ((1.0 - s) * (1.0 + s)));
  };
  return kInvTwoPi * gauss20(f, 0.0, ::asin(rho));
}

// I(h, j, a) for a = sqrt(1 - rho^2), rho > 0.
MVNROB_HD_FN double bvn_near_one(double h, double j, double a) {
  const double b = ::fabs(h - j), bb = b * b, q = h * j;
  if (!(a > 0.0)) return 0.0;
  // Against the expansion: int x^n exp(-b^2 / (2 x^2)) dx, n = 0, 2, 4, by parts; all carry
  // exp(-b^2 / (2 a^2)), which together with exp(-q / 2) cannot overflow.
  const double c = (4.0 - q) / 8.0, d = c * (12.0 - q) / 16.0;
  const double aa = a * a;
  const double root_two_pi = 2.5066282746310005024;
  const double common = ::exp(-0.5 * (bb / aa + q));
  double exact = 0.0;
  if (common > 0.0) {
    const double i0 = a - b * root_two_pi * mills(min(1e15, b / a));
    const double i2 = (a * aa - bb * i0) / 3.0;
    const double i4 = (a * aa * aa - bb * i2) / 5.0;
    exact = common * (i0 + c * i2 + d * i4);
  }
  const auto f = [bb, q, c, d](double x) {
    const double xx = x * x;
    const double r = ::sqrt((1.0 - x) * (1.0 + x));
    const double outer = ::exp(-0.5 * (bb / xx + q));
    // 1 / (1 + r) - 1 / 2 = x^2 / (2 (1 + r)^2)
    const double inner = ::exp(-0.5 * q * xx / ((1.0 + r) * (1.0 + r))) / r;
    return outer > 0.0 ? outer * (inner - (1.0 + xx * (c + d * xx))) : 0.0;
  };
  return kInvTwoPi * (exact + gauss20(f, 0.0, a));
}

}  // namespace detail

// P(X > h, Y > k), correlation rho in [-1, 1]. Infinite limits are limits, NaN gives NaN.
MVNROB_HD_FN double bvn_upper(double h, double k, double rho) {
  if (h != h || k != k || rho != rho) return h + k + rho;
  const double huge = 1e9;  // Phi there is 0 or 1 to every digit
  if (h > huge || k > huge) return 0.0;
  if (h < -huge) return ndtr(-k);
  if (k < -huge) return ndtr(-h);
  if (::fabs(rho) < 0.925) {
    const double p = ndtr(-h) * ndtr(-k);
    return rho == 0.0 ? p : max(0.0, p + detail::bvn_arc(h, k, rho));
  }
  const double a = ::sqrt(max(0.0, (1.0 - rho) * (1.0 + rho)));
  if (rho > 0.0) {
    return max(0.0, ndtr(-max(h, k)) - detail::bvn_near_one(h, k, a));
  }
  double p = 0.0;  // P(h < X < -k) in the tail where it does not cancel
  if (h < -k) p = h > 0.0 ? ndtr(-h) - ndtr(k) : ndtr(-k) - ndtr(h);
  return p + detail::bvn_near_one(h, -k, a);
}

// P(X <= h, Y <= k).
MVNROB_HD_FN double bvn_cdf(double h, double k, double rho) { return bvn_upper(-h, -k, rho); }

// 1 - bvn_cdf = P(X > h or Y > k), to the relative accuracy of its own size.
MVNROB_HD_FN double bvn_complement(double h, double k, double rho) {
  return ndtr(-h) + ndtr(-k) - bvn_upper(h, k, rho);
}

MVNROB_HD_FN float bvn_upper(float h, float k, float rho) {
  return float(bvn_upper(double(h), double(k), double(rho)));
}
MVNROB_HD_FN float bvn_cdf(float h, float k, float rho) {
  return float(bvn_cdf(double(h), double(k), double(rho)));
}
MVNROB_HD_FN float bvn_complement(float h, float k, float rho) {
  return float(bvn_complement(double(h), double(k), double(rho)));
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
