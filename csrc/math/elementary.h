// Elementary functions over the ranges that normal.h needs, for scalars and packs alike.
// No libm calls: they would turn a pack into a loop.
#pragma once

#include "config.h"
#include "normal_coefs.h"
#include "pack.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {

template <class S>
struct float_format;
template <>
struct float_format<float> {
  static constexpr int mantissa_bits = 23;
  static constexpr int bias = 127;
  static constexpr float magic = 0x1.8p23f;      // adding it rounds to an integer
  static constexpr float tiny = 0x1p-126f;       // smallest normal number
  static constexpr float log2e = 0x1.715476p+0f;
  static constexpr float ln2_hi = 0x1.62ep-1f;   // 11 bits: k ln2_hi is exact for |k| < 2^12
  static constexpr float ln2_lo = 0x1.0bfbe8p-15f;
  static constexpr float exp_limit = 120.0f;     // exp(-120) rounds to zero
  static constexpr float exp_limit_root = 15.49f;  // exp(-x^2 / 2) at this x rounds to zero
  static constexpr float gradual = 0x1p-64f;
  static constexpr int gradual_bits = 64;
  // Largest |t| that the step functions distinguish: its fifth power must not overflow.
  static constexpr float far = 1e6f;
};
template <>
struct float_format<double> {
  static constexpr int mantissa_bits = 52;
  static constexpr int bias = 1023;
  static constexpr double magic = 0x1.8p52;
  static constexpr double tiny = 0x1p-1022;
  static constexpr double log2e = 0x1.71547652b82fep+0;
  static constexpr double ln2_hi = 0x1.62e42fefa0000p-1;  // 36 bits
  static constexpr double ln2_lo = 0x1.cf79abc9e3b3ap-40;
  static constexpr double exp_limit = 770.0;
  static constexpr double exp_limit_root = 39.2;
  static constexpr double gradual = 0x1p-128;
  static constexpr int gradual_bits = 128;
  static constexpr double far = 1e15;
};

// x^2 as an unevaluated sum hi + lo. Without a fused multiply-add x is split by masking its low
// bits, so that the three partial products are exact.
template <class T>
MVNROB_HD void square(T x, T& hi, T& lo) {
  hi = x * x;
#if MVNROB_FUSED
  lo = fma(x, x, -hi);
#else
  using u = scalar_t<uint_bits_t<T>>;
  constexpr int low = (float_format<scalar_t<T>>::mantissa_bits + 2) / 2;
  const T a = as_real(as_uint(x) & uint_bits_t<T>(~((u(1) << low) - 1)));
  const T b = x - a;
  lo = ((a * a - hi) + (a + a) * b) + b * b;
#endif
}

// exp(-(hi + lo)) = factor * 2^-k for 0 <= hi <= exp_limit, |lo| <= ulp(hi); 0.7 < factor < 1.42.
template <class T>
struct ExpNeg {
  T factor;
  T shifted;  // magic - k: its low bits hold -k
};
template <class T>
MVNROB_HD ExpNeg<T> exp_neg(T hi, T lo) {
  using S = scalar_t<T>;
  using F = float_format<S>;
  const T shifted = fma(hi, T(-F::log2e), T(F::magic));
  const T k = shifted - T(F::magic);  // -round(hi / ln 2)
  T r = fma(k, T(-F::ln2_hi), -hi);   // exact
  r = fma(k, T(-F::ln2_lo), r) - lo;
  const T p = fma(coefs::exp_tail(r, S(0)), r * r, r) + T(S(1));
  return {p, shifted};
}

// x * 2^-k with gradual underflow, k as exp_neg returned it.
template <class T>
MVNROB_HD T scale(T x, T shifted) {
  using S = scalar_t<T>;
  using F = float_format<S>;
  using u = scalar_t<uint_bits_t<T>>;
  const uint_bits_t<T> exponent =
      (as_uint(shifted) + uint_bits_t<T>(u(F::bias + F::gradual_bits))) << F::mantissa_bits;
  return x * as_real(exponent) * T(F::gradual);
}

// -2 ln(x) for normal x > 0, to a few ulp of max(1, |result|).
template <class T>
MVNROB_HD T minus_two_log(T x) {
  using S = scalar_t<T>;
  using F = float_format<S>;
  using U = uint_bits_t<T>;
  using u = scalar_t<U>;
  // 2^k f with f in [1/sqrt 2, sqrt 2): subtracting the bits of 1/sqrt 2 leaves k on top.
  constexpr u root_half = sizeof(S) == 4 ? u(0x3f3504f3) : u(0x3fe6a09e667f3bcd);
  const U top = as_uint(x) - U(root_half);
  const U mantissa = (top & U((u(1) << F::mantissa_bits) - 1)) + U(root_half);
  const T f = as_real(mantissa) - T(S(1));
  // k as a real number: biased to stay positive, then placed under the magic number's bits.
  const U biased = (top + U(u(F::bias + 1) << F::mantissa_bits)) >> F::mantissa_bits;
  const T k = as_real(biased | as_uint(T(F::magic))) - T(F::magic + S(F::bias + 1));
  T ln;
  if constexpr (sizeof(S) == 4) {
    ln = coefs::log_poly(f, S(0)) * f;
  } else {
    const T z = f / (f + T(S(2)));
    const T zz = z * z;
    ln = fma(coefs::log_poly(zz, S(0)) * zz, z, z + z);
  }
  return fma(k, T(S(-2) * F::ln2_hi), fma(k, T(S(-2) * F::ln2_lo), T(S(-2)) * ln));
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
