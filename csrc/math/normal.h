// Normal distribution function, its inverse, and the fused steps of separation of variables.
//
// Phi(-x) = exp(-x^2 / 2) M(x), x >= 0, M a rational function fitted on [0, inf);
// -Phi^-1(exp(-l^2 / 2)) = l - R(l), R a rational function fitted on [sqrt(2 ln 2), 14 or 39].
// The fits are our own (fits/fit_normal.py; their errors head normal_coefs.h). Everything is
// branch-free; T is float, double or a pack of them.
//
// Worst errors measured by tests/test_math.py (float / double, worst instruction set):
//   ndtr, ndtr_pair   relative, normal results: x >= -12.93 / -37.51       4.4e-7 / 1.2e-15
//   ndtri             relative, 0 < p < 1, subnormal p included            7.3e-7 / 2.1e-15
//   ndtri_half        absolute, normal p                                   1.4e-6 / 7.9e-14
//   step_*: y         absolute, where e is a normal number                 1.3e-6 / 7.9e-14
//           y         absolute, |t| < 5                                    5.7e-7 / 1.1e-15
//           e, ec     relative to the tail they are cut from, in epsilons     2.7 / 4.3
//   log_ndtr          relative, x <= 12 / 37.5                             5.3e-8 / 9.8e-16
#pragma once

#include "config.h"
#include "elementary.h"
#include "normal_coefs.h"
#include "pack.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {

namespace detail {

// The tail at a = |t|: Phi(-a) = tail and M(a) = mills; square = a^2.
template <class T>
struct Tail {
  T mills, tail, square;
};

template <class T>
MVNROB_HD T mills(T a) {
  using S = scalar_t<T>;
  return quotient(coefs::mills_num(a, S(0)), coefs::mills_den(a, S(0)));
}

// a <= float_format::far. exp(-a^2 / 2) keeps its digits because a^2 is split; below the smallest
// normal number Phi(-a) is zero.
template <class T>
MVNROB_HD Tail<T> tail_at(T a, T m) {
  using S = scalar_t<T>;
  T hi, lo;
  square(a, hi, lo);
  const T tail = times_exp_half(m, hi, lo);
  return {m, select(a > T(float_format<S>::tail_end()), T(S(0)), tail), hi};
}

// -|Phi^-1(p)| from l^2 = -2 ln p. The fit ends where p does in its format; `far` goes on by a
// Newton step on x^2 - 2 ln M(x) = l^2, in double.
template <bool far = false, class T>
MVNROB_HD T ndtri_from_square(T square) {
  using S = scalar_t<T>;
  const T l = root(square);
  const T x = l - quotient(coefs::gap_num(l, S(0)), coefs::gap_den(l, S(0)));
  if constexpr (far) {
    const T m = mills(x);
    const T half_root_two_pi(S(1.2533141373155002512));
    const T better = fma(minus_two_log(m, x * x - square), -half_root_two_pi * m, x);
    return -select(l > T(S(36)), better, x);
  }
  return -x;
}

}  // namespace detail

// p = Phi(x), q = Phi(-x), each to its own relative accuracy.
template <class T>
MVNROB_HD void ndtr_pair(T x, T& p, T& q) {
  using S = scalar_t<T>;
  const T a = min(T(float_format<S>::far()), abs(x));
  const T small = detail::tail_at(a, detail::mills(a)).tail;
  const T large = T(S(1)) - small;
  const auto positive = x > T(S(0));
  p = select(positive, large, small);
  q = select(positive, small, large);
}

// Phi(x).
template <class T>
MVNROB_HD T ndtr(T x) {
  using S = scalar_t<T>;
  const T a = min(T(float_format<S>::far()), abs(x));
  // Not quotient(): the planning kernel has no registers for one Phi overlapping the next.
  const T mills = coefs::mills_num(a, S(0)) / coefs::mills_den(a, S(0));
  const T small = detail::tail_at(a, mills).tail;
  return select(x > T(S(0)), T(S(1)) - small, small);
}

// -|Phi^-1(p)| for p in (0, 1/2]; p below the smallest normal number counts as that number.
template <class T>
MVNROB_HD T ndtri_half(T p) {
  using S = scalar_t<T>;
  const T x = max(T(float_format<S>::tiny), p);
  return detail::ndtri_from_square(minus_two_log(x, T(S(0))));
}

// Phi^-1(p): -inf at 0, inf at 1, NaN outside [0, 1]. Unlike ndtri_half it also has relative
// accuracy around p = 1/2 (a separate polynomial for |p - 1/2| <= 0.2 or 0.1), takes subnormal p,
// and in double removes the error of the fit by one Newton step on x^2 - 2 ln M(x) = -2 ln p, which
// needs no exponential and so no range.
template <class T>
MVNROB_HD T ndtri(T p) {
  using S = scalar_t<T>;
  using F = float_format<S>;
  const T zero(S(0)), one(S(1));
  const T q = one - p;
  const T least = min(p, q);
  constexpr S lift = sizeof(S) == 4 ? S(0x1p32) : S(0x1p64);
  const auto subnormal = least < T(F::tiny);
  const T square =
      minus_two_log(select(subnormal, max(T(F::tiny), least * T(lift)), least),
                    select(subnormal, T(S(sizeof(S) == 4 ? 32 : 64) * F::two_ln2()), zero));
  T x = -detail::ndtri_from_square(square);
  if constexpr (sizeof(S) == 8) {
    const T m = detail::mills(x);
    const T half_root_two_pi(S(1.2533141373155002512));
    x = fma(minus_two_log(m, x * x - square), -half_root_two_pi * m, x);
  }
  const T centre = p - T(S(0.5));
  T y = select(centre > zero, x, -x);
  const T near(S(sizeof(S) == 4 ? 0.2 : 0.1));
  y = select(abs(centre) <= near, centre * coefs::centre_poly(centre * centre, S(0)), y);
  y = select(p == zero, T(S(-HUGE_VAL)), select(p == one, T(S(HUGE_VAL)), y));
  return select((p >= zero) & (p <= one), y, T(S(NAN)));
}

// One step of separation of variables: e = Phi(t), ec = Phi(-t), y = Phi^-1(w e), with w in (0, 1)
// and wc = 1 - w exact.
//
// For t <= 0, w e <= 1/2 and -2 ln(w e) = t^2 - 2 ln(w M(-t)), which cannot underflow: y is right
// even where e is zero. For t > 0 the smaller of w e and wc + w Phi(-t) enters, so neither tail
// cancels. |t| is cut at float_format::far, so infinities give finite y. NaN gives NaN.
template <class T>
MVNROB_HD void step_upper(T t, T w, T wc, T& e, T& ec, T& y) {
  using S = scalar_t<T>;
  const T a = min(T(float_format<S>::far()), abs(t));
  const detail::Tail<T> at = detail::tail_at(a, detail::mills(a));
  const T large = T(S(1)) - at.tail;
  const auto positive = t > T(S(0));
  e = select(positive, large, at.tail);
  ec = select(positive, at.tail, large);
  const T p = w * e;
  const T q = fma(w, ec, wc);
  const T v = select(positive, min(p, q), w * at.mills);
  const T z = detail::ndtri_from_square(minus_two_log(v, select(positive, T(S(0)), at.square)));
  y = select(q < p, -z, z);
}

namespace detail {

// What an interval's functions are made of: reflected if its midpoint is positive, so that
// a <= -|b|; then Phi(-|b|) = E mb and Phi(a) = E ma with E = exp(-b^2 / 2), b^2 = hi + lo.
template <class T>
struct IntervalParts {
  using Mask = decltype(T(scalar_t<T>(0)) > T(scalar_t<T>(0)));
  Mask reflect, straddles, gone;  // gone: E is below the smallest normal number
  T hi, lo, mb, ma;

  MVNROB_HD IntervalParts(T a, T b) {
    using S = scalar_t<T>;
    using F = float_format<S>;
    const T zero(S(0)), far(F::far());
    // Operand order lets a NaN in either limit through.
    const T lower = max(-far, min(far, min(b, a)));
    const T upper = max(-far, min(far, max(a, b)));
    reflect = lower + upper > zero;
    const T a_abs = -select(reflect, -upper, lower);
    const T b_signed = select(reflect, -lower, upper);
    const T b_abs = abs(b_signed);
    straddles = b_signed > zero;
    gone = b_abs > T(F::tail_end());
    square(b_abs, hi, lo);
    mb = mills(b_abs);
    const T drop = (a_abs - b_abs) * (a_abs + b_abs);
    // What is cut off at `far` counts as infinite.
    ma = select((drop > T(F::square_end)) | (a_abs >= far), zero,
                times_exp_half(mills(a_abs), drop, zero));
  }
};

}  // namespace detail

// The same between two limits a <= b: e = Phi(b) - Phi(a), ec = 1 - e,
// y = Phi^-1(Phi(a) + w e). a >= b gives e = 0, ec = 1 and a finite y.
//
// An interval whose midpoint is positive is reflected, so that a <= -|b|. With
// r = exp((b^2 - a^2) / 2) <= 1 and E = exp(-b^2 / 2), Phi(a) = E r M(-a): for b <= 0
// e = E (M(-b) - r M(-a)) and Phi^-1 sees t^2 - 2 ln as in step_upper; for b > 0
// ec = E (M(b) + r M(-a)) and the smaller of the two convex combinations enters.
// e is exact to rounding relative to Phi(b), not to itself when the interval is narrow.
// With `far_tails`, y is right beyond 37 standard deviations too.
template <class T, bool far_tails = false>
MVNROB_HD void step_interval(T a, T b, T w, T wc, T& e, T& ec, T& y) {
  using S = scalar_t<T>;
  const T zero(S(0)), one(S(1));
  const detail::IntervalParts<T> parts(a, b);
  const auto straddles = parts.straddles;
  const T w1 = select(parts.reflect, wc, w);
  const T wc1 = select(parts.reflect, w, wc);
  const T scale = select(parts.gone, zero, times_exp_half(one, parts.hi, parts.lo));  // E
  const T tail_b = scale * parts.mb;                                                  // Phi(-|b|)
  const T tail_a = scale * parts.ma;                                                  // Phi(a)
  const T small = scale * (parts.mb + select(straddles, parts.ma, -parts.ma));
  const T large = one - small;
  const auto empty = a >= b;
  e = select(empty, zero, select(straddles, large, small));
  ec = select(empty, one, select(straddles, small, large));

  const T p = fma(wc1, tail_a, w1 * (one - tail_b));
  const T q = fma(w1, tail_b, wc1 * (one - tail_a));
  const T v = select(straddles, min(p, q), fma(w1, parts.mb, wc1 * parts.ma));
  const T z =
      detail::ndtri_from_square<far_tails>(minus_two_log(v, select(straddles, zero, parts.hi)));
  const T signed_z = select(straddles, select(q < p, -z, z), z);
  y = select(parts.reflect, -signed_z, signed_z);
}

// -2 ln(Phi(b) - Phi(a)), by the same parts as step_interval: no underflow however far out, and the
// midpoint rule with its second-order term where the difference would cancel. Infinite where the
// interval is empty.
template <class T>
MVNROB_HD T minus_two_log_interval(T a, T b) {
  using S = scalar_t<T>;
  using F = float_format<S>;
  const T zero(S(0)), one(S(1)), far(F::far());
  const detail::IntervalParts<T> parts(a, b);
  const auto straddles = parts.straddles;
  const T tails = select(parts.gone, zero, times_exp_half(parts.mb + parts.ma, parts.hi, parts.lo));
  const T inner = select(straddles, one - tails, parts.mb - parts.ma);
  const T wide = minus_two_log(max(T(F::tiny), inner), select(straddles, zero, parts.hi)) +
                 select(straddles, zero, parts.lo);
  const T lower = max(-far, min(far, a)), upper = max(-far, min(far, b));
  // phi(c) w (1 + (c^2 - 1) w^2 / 24), c the centre; ln(2 pi) = 1.8378770664093454836
  const T width = upper - lower, centre = T(S(0.5)) * (upper + lower), cc = centre * centre;
  const T bend = fma((cc - one) * width, width * T(S(1.0 / 24)), one);
  const T narrow = minus_two_log(max(T(F::tiny), width * bend), cc + T(S(1.8378770664093454836)));
  const auto is_narrow = width * max(one, abs(centre)) < T(S(2e-3));
  const T value = select(is_narrow, narrow, wide);
  const T never = T(S(HUGE_VAL));
  return select((a < b) & (is_narrow | (inner > zero)), value, never);
}

// ln(Phi(b) - Phi(a)), as far out as doubles go: -inf where the square of the nearer limit is.
MVNROB_HD_FN double log_interval(double a, double b) {
  const double near = a + b > 0 ? a : -b;
  if (near > 1e14 && a < b)  // the farther one, next to it even, is nothing
    return -0.5 * near * near - ::log(near) - 0.91893853320467274178;
  return -0.5 * minus_two_log_interval<double>(a, b);
}

// Limits in units of the standard deviation, relatively: a square root, a reciprocal and two
// products or quotients.
constexpr double kRoundingOfLimit = 6e-16;

// The largest |limit| but for infinite ones.
MVNROB_HD double largest_limit(double lower, double upper) {
  return max(lower == -HUGE_VAL ? 0.0 : ::fabs(lower), upper == HUGE_VAL ? 0.0 : ::fabs(upper));
}

// (phi(lower) + phi(upper)) / (Phi(upper) - Phi(lower)): how ln P moves at most where the limits
// do. Infinite where the interval is empty.
MVNROB_HD_FN double relative_slope(double lower, double upper) {
  if (!(lower < upper)) return HUGE_VAL;
  const bool reflect = lower + upper > 0;
  const double a = reflect ? -upper : lower, b = reflect ? -lower : upper;
  if (b < -30) {  // Phi(x) = -phi(x) / x (1 - O(x^-2)); phi(a) = r phi(b)
    const double half_drop = 0.5 * (b - a) * -(a + b);
    return -b * (1 + 2 / (b * b)) * (1 + ::exp(-half_drop)) / -::expm1(-half_drop);
  }
  const double log_value = log_interval(a, b);
  const double above = b == HUGE_VAL ? 0 : ::exp(-0.5 * b * b - log_value);
  const double below = a == -HUGE_VAL ? 0 : ::exp(-0.5 * a * a - log_value);
  return 0.3989422804014327 * (above + below);
}

namespace detail {

MVNROB_HD_FN double log_ndtr_scalar(double x) {
  if (x > 37.0) {  // Phi(-x) itself, through its subnormal end
    double hi, lo;
    square(x, hi, lo);
    return x < 40.0 ? -::exp(-0.5 * hi) * (mills(x) * (1.0 - 0.5 * lo)) : -0.0;
  }
  if (x > -1.0) return ::log1p(-ndtr(-x));
  if (x > -1e6) return ::log(mills(-x)) - 0.5 * x * x;
  const double log_root_two_pi = 0.91893853320467274178;
  return -0.5 * x * x - log_root_two_pi - ::log(-x);  // M(x) sqrt(2 pi) x = 1 - O(x^-2)
}

}  // namespace detail

// ln Phi(x), double inside. Lane by lane through the library's logarithm: accuracy matters here,
// not speed.
template <class T>
MVNROB_HD T log_ndtr(T x) {
  using S = scalar_t<T>;
  const auto one_lane = [](S t) { return S(detail::log_ndtr_scalar(double(t))); };
  if constexpr (width<T> == 1) {
    return one_lane(x);
  } else {
    return map_lanes(one_lane, x);
  }
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
