// A standard normal truncated to [a, b]: what one step of the recursion of Mendell and Elston
// (Biometrics 30 (1974)) needs, its probability, mean and variance, and their derivatives.
//
// With h = phi(b) / Phi(b), the half-line below b has b - mean = d = b + h and variance 1 - h d.
// For b < -3 that cancels; there the continued fraction of Mills' ratio, d = 1 / (|b| + K) with K =
// 2 / (|b| + 3 / (|b| + ...)), gives d, and h d = 1 - d (K - d). An interval, reflected so that its
// midpoint is not positive, is the half-line below b without the one below a while less than .3 of
// it goes; a larger part means that it is narrow (at most 1.5 wide), and quadrature by ten nodes of
// Gauss and Legendre is exact to rounding: no difference is taken there.
//
// Worst relative errors measured by tests/test_mendell_elston.py against mpmath, |a|, |b| <= 1e4
// and widths from 1e-12: log_mass 1e-14, variance 5e-13, the distances of the mean from the limits,
// in units of the larger of 1 and the smaller one, 3e-14.
#pragma once
#include <cmath>

#include "config.h"
#include "normal.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {

struct Truncated {
  double log_mass;  // ln P(a <= Z <= b)
  double mean, variance;
  double shrink;                // 1 - variance
  double from_lower, to_upper;  // mean - a, b - mean
  double at_lower, at_upper;    // phi(a) and phi(b) over the mass
};

namespace detail {

MVNROB_HD double density(double x) {
  double hi, lo;
  square(min(40.0, ::fabs(x)), hi, lo);  // at 40 the exponential is zero
  return 0.3989422804014326779 * ::exp(-0.5 * hi) * (1 - 0.5 * lo);
}

// Below b: h and d as above, variance, and 1 - variance.
struct HalfLine {
  double h, d, variance, shrink;
};

MVNROB_HD_FN HalfLine half_line(double b) {
  if (b == HUGE_VAL) return {0, HUGE_VAL, 1, 0};
  if (b >= -3) {
    const double h = density(b) / ndtr(b), d = b + h;
    return {h, d, 1 - h * d, h * d};
  }
  // The fraction's end is where it would be constant; 36 terms reach 1e-15 at 3.
  constexpr int kTerms = 36;
  const double a = -b;
  double k = 0.5 * (::sqrt(a * a + 4 * (kTerms + 1)) - a);
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
  for (int i = kTerms; i > 1; --i) k = i / (a + k);
  const double d = 1 / (a + k), variance = d * (k - d);
  return {a + d, d, variance, 1 - variance};
}

MVNROB_HD_FN Truncated truncated_narrow(double a, double b) {
  constexpr double node[] = {.14887433898163121088, .43339539412924719080, .67940956829902440623,
                             .86506336668898451073, .97390652851717172008};
  constexpr double weight[] = {.29552422471475287017, .26926671930999635509, .21908636251598204400,
                               .14945134915058059315, .066671344308688137594};
  const double width = b - a, half = 0.5 * width, centre = a + half;
  const double tilt = centre * half, bend = 0.5 * half * half;
  double mass = 0, first = 0, value[10];
  for (int i = 0; i < 5; ++i) {
    const double flat = weight[i] * ::exp(-bend * node[i] * node[i]);
    const double up = ::exp(-tilt * node[i]);
    value[2 * i] = flat * up;
    value[2 * i + 1] = flat / up;
    mass += value[2 * i] + value[2 * i + 1];
    first += node[i] * (value[2 * i] - value[2 * i + 1]);
  }
  const double s = first / mass;
  double second = 0;
  for (int i = 0; i < 5; ++i) {
    const double above = node[i] - s, below = node[i] + s;
    second += value[2 * i] * above * above + value[2 * i + 1] * below * below;
  }
  const double whole = half * mass;  // the integral over exp(-centre^2 / 2)
  const double variance = half * half * (second / mass);
  const double log_root_two_pi = 0.91893853320467274178;
  return {::log(whole) - 0.5 * centre * centre - log_root_two_pi,
          centre + half * s,
          variance,
          1 - variance,
          half * (1 + s),
          half * (1 - s),
          ::exp(tilt - bend) / whole,
          ::exp(-tilt - bend) / whole};
}

}  // namespace detail

// a < b; either may be infinite.
MVNROB_HD_FN Truncated truncated(double a, double b) {
  const bool reflect = a + b > 0;
  if (reflect) {
    const double x = -a;
    a = -b;
    b = x;
  }
  const detail::HalfLine up = detail::half_line(b);
  // phi(a) / phi(b), and how much of the half-line below b is cut off below a
  const double ratio = a == -HUGE_VAL ? 0 : ::exp(0.5 * (b - a) * (b + a));
  Truncated t{log_ndtr(b), b - up.d, up.variance, up.shrink, HUGE_VAL, up.d, 0, up.h};
  t.from_lower = b == HUGE_VAL ? HUGE_VAL : (b - a) - up.d;
  if (b > 0) t.mean = -up.h;
  if (ratio > 1e-300) {
    const detail::HalfLine down = detail::half_line(a);
    const double cut = ratio * up.h / down.h, left = 1 - cut;
    if (cut > 0.3) {
      t = detail::truncated_narrow(a, b);
    } else {
      t.log_mass += ::log1p(-cut);
      t.at_upper = up.h / left;
      t.at_lower = t.at_upper * ratio;
      if (b > 0) {
        t.mean = t.at_lower - t.at_upper;
        t.shrink = b * t.at_upper - a * t.at_lower + t.mean * t.mean;
        t.variance = 1 - t.shrink;
        t.to_upper = b - t.mean;
      } else {
        const double far = (b - a) + down.d;  // of the mean below a from b
        t.to_upper = (up.d - cut * far) / left;
        t.mean = b - t.to_upper;
        t.variance = (up.variance + up.d * up.d - cut * (down.variance + far * far)) / left -
                     t.to_upper * t.to_upper;
        t.shrink = 1 - t.variance;
      }
      t.from_lower = (b - a) - t.to_upper;
    }
  }
  if (!reflect) return t;
  return {t.log_mass, -t.mean,      t.variance, t.shrink,
          t.to_upper, t.from_lower, t.at_upper, t.at_lower};
}

// Adjoints of a and b from those of log_mass, mean and shrink. From
//   d mean / db = at_upper (b - mean),   d variance / db = at_upper ((b - mean)^2 - variance)
// and the mirror image for a.
struct TruncatedSlopes {
  double lower, upper;
};

MVNROB_HD_FN TruncatedSlopes truncated_slopes(const Truncated& t, double log_mass, double mean,
                                              double shrink) {
  TruncatedSlopes out{0, 0};
  if (t.at_upper > 0)
    out.upper = t.at_upper *
                (log_mass + mean * t.to_upper - shrink * (t.to_upper * t.to_upper - t.variance));
  if (t.at_lower > 0)
    out.lower = t.at_lower * (-log_mass + mean * t.from_lower +
                              shrink * (t.from_lower * t.from_lower - t.variance));
  return out;
}

// 2 ln P(a <= Z <= b), to rounding of itself also where the interval holds nearly everything.
template <class T>
MVNROB_HD T two_log_interval(T a, T b) {
  using S = scalar_t<T>;
  const detail::IntervalParts<T> parts(a, b);
  const T tails =
      select(parts.gone, T(S(0)), times_exp_half(parts.mb + parts.ma, parts.hi, parts.lo));
  // -2 ln(1 - t)
  T series = fma(tails, T(S(1.0 / 5)), T(S(1.0 / 4)));
  series = fma(tails, series, T(S(1.0 / 3)));
  series = fma(tails, series, T(S(1.0 / 2)));
  series = fma(tails, series, T(S(1))) * (tails + tails);
  const auto near_one = parts.straddles & (tails < T(S(0x1p-10)));
  return -select(near_one, series, minus_two_log_interval(a, b));
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
