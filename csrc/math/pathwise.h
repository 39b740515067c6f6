// Derivatives of one step of separation of variables (normal.h) with its point w held fixed.
//
// For limits a <= b: e = Phi(b) - Phi(a), y = Phi^-1(Phi(a) + w e), wc = 1 - w, so
//   d ln e / db = phi(b) / e,      dy / db = w phi(b) / phi(y),
//   d ln e / da = -phi(a) / e,     dy / da = wc phi(a) / phi(y).
// Zero where e or the density is below the smallest normal number: there the integrand is too.
// tests/test_mvn_cdf_pathwise.py has their differences (through the whole recursion).
//
// A tilted draw (plan/tilt.h) is one of z = y - mu between a - mu and b - mu whose weight gains
// e exp(-mu^2 / 2 - mu z): the same slopes at the moved limits, and -mu where the slope to y
// begins. e itself may have underflowed there.
#pragma once

#include "config.h"
#include "elementary.h"
#include "pack.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {

// What a limit t of a step does: rho = phi(t) / e, gamma = share phi(t) / phi(y); share is w for
// an upper limit and wc for a lower one.
template <class T>
MVNROB_HD void limit_slopes(T t, T share, T e, T y, T& rho, T& gamma) {
  using S = scalar_t<T>;
  using F = float_format<S>;
  const T zero(S(0)), tiny(F::tiny), most(F::square_end);
  const auto nothing = (abs(t) > T(F::tail_end())) | (e < tiny);
  const T at = max(-T(F::tail_end()), min(T(F::tail_end()), t));
  const T density = times_exp_half(T(S(0.3989422804014327)), at * at, zero);
  const T drop = max(-most, min(most, (at - y) * (at + y)));
  rho = select(nothing, zero, quotient(density, max(e, tiny)));
  gamma = select(nothing, zero, times_exp_half(share, drop, zero));
}

// The same where e is given as loss = -2 ln e, at any distance from the centre: phi(t) / e =
// exp((loss - t^2 - ln 2 pi) / 2). Zero where the interval is empty (loss infinite).
template <class T>
MVNROB_HD void far_limit_slopes(T t, T share, T loss, T y, T& rho, T& gamma) {
  using S = scalar_t<T>;
  using F = float_format<S>;
  const T zero(S(0)), one(S(1)), most(F::square_end), far(F::far());
  const T at = max(-far, min(far, t));
  const auto nothing = (abs(t) >= far) | (loss >= T(S(HUGE_VAL)));
  const T fall = fma(at, at, T(S(1.8378770664093454836))) - select(nothing, zero, loss);
  const T drop = (at - y) * (at + y);
  rho =
      select(nothing | (fall > most), zero, times_exp_half(one, max(-most, min(most, fall)), zero));
  gamma = select(nothing | (drop > most), zero,
                 times_exp_half(share, max(-most, min(most, drop)), zero));
}

// phi(t) / e alone.
template <class T>
MVNROB_HD T log_slope(T t, T e) {
  using S = scalar_t<T>;
  using F = float_format<S>;
  const T zero(S(0)), tiny(F::tiny);
  const T at = max(-T(F::tail_end()), min(T(F::tail_end()), t));
  const T density = times_exp_half(T(S(0.3989422804014327)), at * at, zero);
  return select((abs(t) > T(F::tail_end())) | (e < tiny), zero, quotient(density, max(e, tiny)));
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
