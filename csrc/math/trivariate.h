// Trivariate normal probabilities in double, float through double: Plackett's identity in the form
// of Genz (2004, Stat. Comput. 14), with our own path and algebra.
//
// F(b; R) = P(X_i <= b_i). dF/dr12 = phi2(b1, b2; r12) Phi((b3 - E[X3 | b1, b2]) / sd). Variables
// are permuted so that |r23| is largest; along r12 = rho12 sin t, r13 = rho13 sin t, r23 fixed,
//   F = Phi(b1) F2(b2, b3; r23) + int_0^(pi/2) (rho12 phi2 Phi + rho13 phi2 Phi) cos t dt.
// A linear path keeps R positive semi-definite: det(t) = det R + q cos^2 t, q >= 0; the sine makes
// the integrand finite where a correlation or det R reaches its limit. Every difference that
// vanishes in a singular case (1 - r^2, r13 - r12 r23, r23 - r12 r13, det) is written as its value
// at the end plus a multiple of cos^2 t, each formed with one rounding, so nothing cancels as
// |rho| -> 1.
// Measured (tests/test_math.py): absolute error 4e-16 for matrices that are positive definite as
// given, down to 1 - |r| = 5e-15 and det = 2e-15. Entries that only rounding keeps from being
// consistent (|r| within an ulp of one) decide the answer no better than sqrt(ulp) / (2 pi), 2e-9.
#pragma once

#include "bivariate.h"
#include "config.h"
#include "normal.h"
#include "quadrature.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {

namespace detail {

// hi + lo: about 32 digits, for the few quantities whose leading digits cancel.
struct TwoDoubles {
  double hi, lo;
};
MVNROB_HD TwoDoubles two_sum(double x, double y) {
  const double s = x + y, z = s - x;
  return {s, (x - (s - z)) + (y - z)};
}
MVNROB_HD TwoDoubles two_product(double x, double y) {
  const double p = x * y;
#if MVNROB_FUSED
  return {p, fma(x, y, -p)};
#else
  const double split = 134217729.0;  // 2^27 + 1: Dekker's product
  const double xs = x * split, ys = y * split;
  const double xh = xs - (xs - x), yh = ys - (ys - y);
  const double xl = x - xh, yl = y - yh;
  return {p, ((xh * yh - p) + xh * yl + xl * yh) + xl * yl};
#endif
}
MVNROB_HD TwoDoubles operator-(double x, TwoDoubles y) {
  const TwoDoubles s = two_sum(x, -y.hi);
  return two_sum(s.hi, s.lo - y.lo);
}
MVNROB_HD TwoDoubles operator-(TwoDoubles x, TwoDoubles y) {
  const TwoDoubles s = two_sum(x.hi, -y.hi);
  return two_sum(s.hi, s.lo + (x.lo - y.lo));
}
MVNROB_HD TwoDoubles operator*(TwoDoubles x, TwoDoubles y) {
  const TwoDoubles p = two_product(x.hi, y.hi);
  return two_sum(p.hi, p.lo + (x.hi * y.lo + x.lo * y.hi));
}

// det R = (1 - r12^2) (1 - r13^2) - (r23 - r12 r13)^2 to 1e-30: an error in it alone, without the
// matching change of R, is amplified by 1 / sqrt(det).
MVNROB_HD_FN double tvn_det(double r12, double r13, double r23) {
  const TwoDoubles v12 = 1.0 - two_product(r12, r12);
  const TwoDoubles v13 = 1.0 - two_product(r13, r13);
  const TwoDoubles beta = r23 - two_product(r12, r13);
  return (v12 * v13 - beta * beta).hi;
}

// One of the two terms of the integrand: the pair (b1, b2) moves, b3 is conditioned.
struct PlackettTerm {
  double rho, unit_gap, s, distance, product;
  double base, slope_tau, slope_cos;

  MVNROB_HD_FN PlackettTerm(double b1, double b2, double b3, double r12, double r13, double r23)
      : rho(r12) {
    s = r12 < 0.0 ? -1.0 : 1.0;
    unit_gap = (1.0 - r12) * (1.0 + r12);
    distance = (b1 - s * b2) * (b1 - s * b2);
    product = s * b1 * b2;
    const TwoDoubles alpha = r13 - two_product(r12, r23);
    const TwoDoubles beta = r23 - two_product(r12, r13);
    // b3 (1 - r12^2) - (r13 - r12 r23) b1 - (r23 - r12 r13) b2
    //   = base + slope_tau (1 - sin t) + slope_cos cos^2 t
    base = (TwoDoubles{b3, 0.0} * (1.0 - two_product(r12, r12)) - alpha * TwoDoubles{b1, 0.0} -
            beta * TwoDoubles{b2, 0.0})
               .hi;
    slope_tau = alpha.hi * b1;
    slope_cos = r12 * (two_product(r12, b3) - two_product(r13, b2)).hi;
  }

  // rho phi2(b1, b2; rho sin t) Phi(...) cos t, given sin t, cos t, 1 - sin t and det(t).
  MVNROB_HD_FN double operator()(double sine, double cosine, double gap, double det) const {
    if (rho == 0.0) return 0.0;
    const double cc = cosine * cosine;
    const double v = unit_gap + rho * rho * cc;  // 1 - r12^2
    const double exponent = 0.5 * distance / v + product / (1.0 + s * rho * sine);
    if (!(exponent < 745.0)) return 0.0;
    const double density = ::exp(-exponent) * cosine / ::sqrt(v);
    const double num = base + slope_tau * gap + slope_cos * cc;
    const double scale = ::sqrt(v * det);
    double conditional;
    if (scale > 0.0) {
      conditional = ndtr(num / scale);
    } else {
      conditional = num > 0.0 ? 1.0 : (num < 0.0 ? 0.0 : 0.5);
    }
    return rho * kInvTwoPi * density * conditional;
  }
};

// F(b; R) - Phi(b1) F2(b2, b3; r23) for |r23| >= |r12|, |r13|. tol is absolute.
MVNROB_HD_FN double tvn_path(double b1, double b2, double b3, double r12, double r13, double r23,
                             double tol) {
  if (r12 == 0.0 && r13 == 0.0) return 0.0;
  const PlackettTerm first(b1, b2, b3, r12, r13, r23);
  const PlackettTerm second(b1, b3, b2, r13, r12, r23);
  const double gap23 = (1.0 - r23) * (1.0 + r23);
  const double alpha12 = (r12 - two_product(r13, r23)).hi;
  const double q = alpha12 * alpha12 + r13 * r13 * gap23;
  const double det_end = max(0.0, tvn_det(r12, r13, r23));
  const auto f = [&](double u) {  // u = pi/2 - t
    const double cosine = sine_quarter(u);
    const double half = sine_quarter(0.5 * u);
    const double gap = 2.0 * half * half;  // 1 - sin t
    const double sine = 1.0 - gap;
    const double det = det_end + q * cosine * cosine;
    return first(sine, cosine, gap, det) + second(sine, cosine, gap, det);
  };
  int halvings = 1 << 16;  // far more than any limits take
  return integrate(f, 0.0, 1.5707963267948966192, tol, halvings);
}

MVNROB_HD bool is_nan(double x, double y, double z) { return x != x || y != y || z != z; }

// Moves the largest |r| to r23.
MVNROB_HD_FN void tvn_order(double& b1, double& b2, double& b3, double& r12, double& r13,
                            double& r23) {
  const auto swap = [](double& x, double& y) {
    const double z = x;
    x = y;
    y = z;
  };
  if (::fabs(r12) > ::fabs(r23) && ::fabs(r12) >= ::fabs(r13)) {
    swap(b1, b3);
    swap(r12, r23);
  } else if (::fabs(r13) > ::fabs(r23)) {
    swap(b1, b2);
    swap(r13, r23);
  }
}

constexpr double kFarLimit = 1e9;  // Phi there is 0 or 1 to every digit

}  // namespace detail

// P(X1 <= b1, X2 <= b2, X3 <= b3) for a positive semi-definite correlation matrix, singular
// included. Infinite limits are limits, NaN gives NaN.
MVNROB_HD_FN double tvn_cdf(double b1, double b2, double b3, double r12, double r13, double r23) {
  if (detail::is_nan(b1, b2, b3) || detail::is_nan(r12, r13, r23)) return NAN;
  const double far = detail::kFarLimit;
  if (b1 < -far || b2 < -far || b3 < -far) return 0.0;
  if (b1 > far) return bvn_cdf(b2, b3, r23);
  if (b2 > far) return bvn_cdf(b1, b3, r13);
  if (b3 > far) return bvn_cdf(b1, b2, r12);
  detail::tvn_order(b1, b2, b3, r12, r13, r23);
  const double p =
      ndtr(b1) * bvn_cdf(b2, b3, r23) + detail::tvn_path(b1, b2, b3, r12, r13, r23, 2e-15);
  return min(1.0, max(0.0, p));
}

// 1 - tvn_cdf = P(some X_i > b_i), to the relative accuracy of its own size.
MVNROB_HD_FN double tvn_complement(double b1, double b2, double b3, double r12, double r13,
                                   double r23) {
  if (detail::is_nan(b1, b2, b3) || detail::is_nan(r12, r13, r23)) return NAN;
  const double far = detail::kFarLimit;
  if (b1 < -far || b2 < -far || b3 < -far) return 1.0;
  if (b1 > far) return bvn_complement(b2, b3, r23);
  if (b2 > far) return bvn_complement(b1, b3, r13);
  if (b3 > far) return bvn_complement(b1, b2, r12);
  detail::tvn_order(b1, b2, b3, r12, r13, r23);
  const double one = ndtr(-b1);
  const double two = bvn_complement(b2, b3, r23);
  const double path = detail::tvn_path(b1, b2, b3, r12, r13, r23, 2e-15 * max(one, two));
  return min(1.0, max(0.0, one + ndtr(b1) * two - path));
}

MVNROB_HD_FN float tvn_cdf(float b1, float b2, float b3, float r12, float r13, float r23) {
  return float(tvn_cdf(double(b1), double(b2), double(b3), double(r12), double(r13), double(r23)));
}
MVNROB_HD_FN float tvn_complement(float b1, float b2, float b3, float r12, float r13, float r23) {
  return float(
      tvn_complement(double(b1), double(b2), double(b3), double(r12), double(r13), double(r23)));
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
