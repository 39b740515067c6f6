// Variables with one common factor: X_i = l_i Y + s_i e_i with Y and all e_i standard normal, so
// that R_ij = l_i l_j off the diagonal (Dunnett and Sobel 1955). Given Y they are independent, and
//   P = int phi(y) prod_i P_i(y) dy,  P_i(y) = Phi((u_i - l_i y) / s_i) - Phi((v_i - l_i y) / s_i).
// The smaller of P and 1 - P is integrated, so neither is a difference.
//
// The complement's integrand, phi (1 - prod P_i), changes no faster than a tail of phi or than the
// steps of the P_i, so pieces of length one see all of it, and adaptive halving does the rest. P's
// is log-concave: its peak is found by bracketing, it has fallen by e^-40 at the ends of the range,
// and beyond them lies less than e^-40 of it. It is carried as a logarithm, right however small P
// is.
#pragma once
#include <cfloat>
#include <cmath>

#include "math/box.h"
#include "math/normal.h"
#include "math/quadrature.h"
#include "plan/ordering.h"

namespace mvnrob::plan {

// A matrix is of this form where every entry is, to within eight entry errors, 7e-15, for float64
// and three roundings of one, 3.6e-7, for float32. What is left between the entries and the
// products of loads is known, and its effect on P part of the error (moved_by), but for float32,
// where it is the input's. So a matrix near the form is not taken for it, and one taken for it
// costs no digits.
//
// Whether R_ij = l_i l_j, the entries being known to entry_error.
MVNROB_HD bool is_product(double correlation, double load_i, double load_j, double entry_error) {
  return ::fabs(correlation - load_i * load_j) <= math::min(8 * entry_error, 3.0 * FLT_EPSILON);
}

// A load, from three entries: l_i^2 = R_ij R_ik / R_jk. Zero where there is none up to one.
MVNROB_HD double load_from(double ij, double ik, double jk, double entry_error) {
  const double square = ij * ik / jk;
  return square > 0 && square <= 1 + 16 * entry_error ? ::sqrt(math::min(square, 1.0)) : 0.0;
}

// Standard deviation that the factor leaves; zero where it explains all up to rounding, or more.
// The load is then taken as one, which changes the entries by less than their error.
MVNROB_HD double rest_of_load(double load, double entry_error) {
  const double square = (1 - load) * (1 + load);
  return square > first_variance_error(entry_error) ? ::sqrt(square) : 0.0;
}

// How much P moves by a residual R_ij - l_i l_j, at most: phi_2 <= min(phi_i, phi_j) min(.4 / s).
MVNROB_HD double moved_by(double residual, double density_i, double density_j, double rest_i,
                          double rest_j) {
  const double rest = math::max(math::max(rest_i, rest_j), 1e-8);
  return ::fabs(residual) * math::min(density_i, density_j) * 0.4 / rest;
}

// The limits' largest density.
MVNROB_HD double density_of(double upper, double lower) {
  return math::max(phi(upper), phi(lower));
}

// Steps steeper than kSteepest could hide between the end of a piece and its outermost node; such
// blocks (loads beyond .9995, but for one of one) are sampled.
constexpr double kSteepest = 0.03;
MVNROB_HD bool is_quick(double least_rest) { return least_rest >= kSteepest; }

// A range full of steps as steep as that, wherever they are, takes 20 / kSteepest halvings of 42
// evaluations, fewer by far than samples would be. With none left the integrand has no digits.
constexpr int kMostHalvings = 2000;

// What all variables contribute at y, T a pack or double: the probability that one holds and fails.
template <class T>
MVNROB_HD void holds_and_fails(T upper, T lower, T slope, T y, T& holds, T& fails) {
  const T b = upper - slope * y, a = lower - slope * y;
  holds = interval_probability(a, b);
  fails = math::ndtr<T>(a) + math::ndtr<T>(-b);
}

struct OneFactorProbability {
  double value, complement, log_value;
  double error, log_error;  // of the smaller of both, and of the logarithm
  double log_slope;         // how ln P moves with the limits, infinite where it is not known
  double by_limits;         // the part of log_error that is their rounding
  bool found;
};

// What the loads leave unexplained, which moves P by `moved` at most. The largest residual and the
// slopes of ln P, dP / dR_ij = int phi(y) p_i p_j / (P_i P_j) prod P_k dy (Plackett 1954), p the
// densities at the limits, say it of a small P, to first order by the slopes at the peak.
struct Residuals {
  double moved, largest;
};

// By how much ln P moves where the limits of a variable move, in units of what the factor leaves,
// and where they are rounded, on their own or by subtracting `move`: what counts for narrow
// intervals.
struct Slopes {
  double sum, rounding;
};
MVNROB_HD_FN Slopes slopes_of(double lower, double upper, double move) {
  const double slope = math::relative_slope(lower, upper);
  const double size = math::largest_limit(lower, upper) + 2 * ::fabs(move);
  return {slope, slope > 0 ? math::kRoundingOfLimit * slope * size : 0.0};
}

namespace detail {

// The peak of a concave g within [lower, upper], to within about one of its height.
struct Peak {
  double at, height, step;
};
template <class G>
MVNROB_HD_FN Peak find_peak(const G& g, double lower, double upper) {
  double x = math::min(math::max(0.0, lower), upper), height = g(x), step = 1;
  double left = x, right = x, at_left = height, at_right = height;
  for (int side = 0; side < 2; ++side) {  // to the right, then to the left
    const double sign = side == 0 ? 1.0 : -1.0;
    for (step = 1; step < 1e18; step *= 2) {
      const double next = math::min(math::max(x + sign * step, lower), upper);
      const double value = g(next);
      (side == 0 ? right : left) = next;
      (side == 0 ? at_right : at_left) = value;
      if (!(value > height)) break;
      (side == 0 ? left : right) = x;
      (side == 0 ? at_left : at_right) = height;
      x = next;
      height = value;
      if (x == lower || x == upper) break;
    }
  }
  // Golden section.
  for (int pass = 0; pass < 200; ++pass) {
    if (at_left > height - 1 && at_right > height - 1) break;
    const bool on_right = right - x > x - left;
    const double next = x + 0.381966 * (on_right ? right - x : left - x);
    if (next == x) break;
    const double value = g(next);
    if (value > height) {
      (on_right ? left : right) = x;
      (on_right ? at_left : at_right) = height;
      x = next;
      height = value;
    } else {
      (on_right ? right : left) = next;
      (on_right ? at_right : at_left) = value;
    }
  }
  return {x, height, math::max(right - left, 1e-300)};
}

// From the peak towards `bound`, to where g has fallen by 40.
template <class G>
MVNROB_HD_FN double find_end(const G& g, const Peak& peak, double bound) {
  const double sign = bound > peak.at ? 1.0 : -1.0, room = ::fabs(bound - peak.at);
  double inside = 0, outside = peak.step;
  while (outside < room && g(peak.at + sign * outside) > peak.height - 40) {
    inside = outside;
    outside *= 2;
  }
  if (!(outside < room)) outside = room;
  for (int pass = 0; pass < 5 && outside < HUGE_VAL; ++pass) {
    const double middle = 0.5 * (inside + outside);
    if (g(peak.at + sign * middle) > peak.height - 40)
      inside = middle;
    else
      outside = middle;
  }
  return peak.at + sign * outside;
}

}  // namespace detail

// `fails(y)` is 1 - prod P_i(y), `log_holds(y)` sum ln P_i(y) and `slopes(y)` the sums of
// slopes_of, the first divided by s_i, over `count` variables, Y lies within `range` (what
// variables without rest leave of it), `largest` is the largest probability that one of the
// variables fails.
template <class Fails, class LogHolds, class SlopesAt>
MVNROB_HD_FN OneFactorProbability integrate_one_factor(const Fails& fails,
                                                       const LogHolds& log_holds,
                                                       const SlopesAt& slopes, int count,
                                                       Bounds range, double largest,
                                                       const Residuals& residuals) {
  OneFactorProbability out{0, 1, -HUGE_VAL, 0, 0, HUGE_VAL, 0, true};
  if (!(range.lower < range.upper)) return out;
  const double rounding = 1e-12 + 4e-15 * count;
  int halvings = kMostHalvings;
  if (largest <= 0.5) {
    const double far = math::min(38.6, -math::ndtri<double>(math::max(1e-18 * largest, 0x1p-1074)));
    const double lower = math::max(range.lower, -far), upper = math::min(range.upper, far);
    double missing = math::ndtr<double>(range.lower) + math::ndtr<double>(-range.upper);
    const int pieces = int(::ceil(upper - lower));
    const double length = (upper - lower) / pieces;
    const auto integrand = [&](double y) { return phi(y) * fails(y); };
    for (int i = 0; i < pieces; ++i)
      missing += math::integrate(integrand, lower + i * length, lower + (i + 1) * length,
                                 1e-9 * largest, halvings);
    if (halvings == 0) {
      out.found = false;
      return out;
    }
    if (!(missing > 0.5)) {
      out.complement = missing;
      out.value = 1 - missing;
      out.log_value = ::log1p(-missing);
      out.error = rounding * missing + residuals.moved + DBL_MIN * count;  // Phi's smallest number
      out.log_error = out.error / out.value;
      out.found = missing == missing;
      return out;
    }
  }
  const auto height = [&](double y) { return log_holds(y) - 0.5 * y * y; };
  const detail::Peak peak = detail::find_peak(height, range.lower, range.upper);
  if (!(peak.height > -HUGE_VAL)) {
    out.found = false;
    return out;
  }
  if (peak.height < -1e28) {  // minus_two_log_interval ends where its squares do
    out.log_value = peak.height;
    out.log_error = HUGE_VAL;
    return out;
  }
  const double lower = detail::find_end(height, peak, range.lower);
  const double upper = detail::find_end(height, peak, range.upper);
  const auto integrand = [&](double y) { return ::exp(math::min(height(y) - peak.height, 99.0)); };
  // What rounding does to the logarithm and so, relatively, to the integrand: halving shows no
  // more.
  Slopes slope = slopes(peak.at);
  const double noise = 1e-15 * ::fabs(peak.height) + slope.rounding;
  const double tolerance = (2.5e-12 + 0.1 * noise) * (upper - lower);
  const double integral = math::integrate(integrand, lower, peak.at, tolerance, halvings) +
                          math::integrate(integrand, peak.at, upper, tolerance, halvings);
  // A variable without rest has its limits at the ends of the range. What is left of its products
  // moves both ends together.
  const auto of_end = [&](double end) {
    return ::fabs(end) < HUGE_VAL ? integrand(end) / integral : 0.0;
  };
  const double of_lower = of_end(range.lower), of_upper = of_end(range.upper);
  if (of_lower > 0) slope.rounding += math::kRoundingOfLimit * ::fabs(range.lower) * of_lower;
  if (of_upper > 0) slope.rounding += math::kRoundingOfLimit * ::fabs(range.upper) * of_upper;
  const double together = slope.sum + ::fabs(of_upper - of_lower);
  out.log_value = ::log(integral) + peak.height - 0.91893853320467274178;
  out.log_error = rounding + 1e-15 * ::fabs(out.log_value) + slope.rounding;
  if (!(noise < 1)) {  // the integral is known by its peak, its width between e^-40 and 2.6
    out.log_value = peak.height - 20;
    out.log_error = noise + slope.rounding + 21;
    slope.rounding = out.log_error;
  }
  out.value = ::exp(out.log_value);
  out.complement = 1 - out.value;
  if (residuals.largest > 0)
    out.log_error += math::min(out.value > 0 ? residuals.moved / out.value : HUGE_VAL,
                               2 * residuals.largest * together * together);
  out.error = out.log_error < 0.5 ? out.value * ::expm1(out.log_error)
                                  : math::min(1.0, ::exp(out.log_value + out.log_error));
  out.log_slope = slope.sum + of_lower + of_upper;
  out.by_limits = slope.rounding;
  out.found = halvings > 0 && out.log_error < HUGE_VAL;
  return out;
}

// Independent blocks multiply.
struct ProductOfBlocks {
  double value = 1, complement = 0, log_value = 0;
  double error = 0, log_error = 0;      // of the complement, of the logarithm
  double log_slope = 0, by_limits = 0;  // of the logarithm
  bool found = true;

  MVNROB_HD void add(const OneFactorProbability& p) {
    error += error * p.complement + value * p.error;
    complement += value * p.complement;
    value *= p.value;
    log_value += p.log_value;
    log_error += p.log_error;
    log_slope += p.log_slope;
    by_limits += p.by_limits;
    found = found && p.found;
  }
  MVNROB_HD_FN void add(double lower, double upper, double fails) {
    const IntervalProbability p = interval(lower, upper);
    const Slopes slope = slopes_of(lower, upper, 0);
    const double log_error = 4e-15 * (1 + ::fabs(p.log_value)) + slope.rounding;
    double error = 4e-15 * math::min(fails, 1.0);
    if (p.value < fails && log_error < 0.5) error = math::min(error, p.value * ::expm1(log_error));
    add(OneFactorProbability{p.value, fails, p.log_value, error, log_error, slope.sum,
                             slope.rounding, true});
  }
  // Two or three variables whose factor is steep, or that have none: errors are absolute.
  MVNROB_HD void add(const math::BoxProbability& p) {
    const bool known = p.log_value == p.log_value;
    add(OneFactorProbability{p.value, p.complement, known ? p.log_value : ::log(p.value), p.error,
                             known ? p.log_error : p.error / p.value, p.log_slope,
                             known ? p.log_error : 0.0, p.consistent && !p.nan});
  }
  // Of the smaller of P and 1 - P.
  MVNROB_HD double error_of_smaller() const {
    return value < complement && log_error < 0.5 ? math::min(error, value * ::expm1(log_error))
                                                 : error;
  }
  // ln P, NaN where it has not the digits (see closed) and P itself may.
  MVNROB_HD double known_log_value() const {
    return log_error - by_limits <= 1e-6 || value < 1e-290 ? log_value : NAN;
  }
};

}  // namespace mvnrob::plan
