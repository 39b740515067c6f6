// Elementary functions over the ranges that normal.h needs, for scalars and packs alike.
// No libm calls: they would turn a pack into a loop.
#pragma once

#include "config.h"
#include "normal_coefs.h"
#include "pack.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {

// Float64 numbers of 64 bits. Others have 32 zeros at their end, and are literals of one part.
struct DoubleNumbers {
  double half_log2e, two_ln2, two_ln2_hi, two_ln2_lo, log_magic, tail_end, far;
};
constexpr DoubleNumbers kDoubleNumbers = {
    0x1.71547652b82fep-1,   // half_log2e
    0x1.62e42fefa39efp0,    // two_ln2
    0x1.62e42fefa0000p0,    // two_ln2_hi: 36 bits
    0x1.cf79abc9e3b3ap-39,  // two_ln2_lo
    0x1.8p52 + 1024,        // log_magic
    37.51,                  // tail_end
    1e15,                   // far
};
MVNROB_NUMBERS(DoubleNumbers, kDoubleNumbers)

template <class S>
struct float_format;
template <>
struct float_format<float> {
  static constexpr int mantissa_bits = 23;
  static constexpr int bias = 127;
  static constexpr float magic = 0x1.8p23f;       // adding it rounds to an integer
  static constexpr float tiny = 0x1p-126f;        // smallest normal number
  static constexpr float square_end = 2 * 87.0f;  // exp(-x / 2) is a normal number up to here
  static MVNROB_HD float half_log2e() { return 0x1.715476p-1f; }
  static MVNROB_HD float two_ln2() { return 0x1.62e43p0f; }
  // 12 bits: k two_ln2_hi is exact, |k| < 2^12
  static MVNROB_HD float two_ln2_hi() { return 0x1.62ep0f; }
  static MVNROB_HD float two_ln2_lo() { return 0x1.0bfbe8p-14f; }
  static MVNROB_HD float log_magic() { return magic + (bias + 1); }
  static MVNROB_HD float tail_end() { return 12.93f; }  // Phi(-x) is a normal number up to here
  static MVNROB_HD float far() { return 1e6f; }  // the step functions cut |t| here: far^5 is finite
};
template <>
struct float_format<double> {
  static constexpr int mantissa_bits = 52;
  static constexpr int bias = 1023;
  static constexpr double magic = 0x1.8p52;
  static constexpr double tiny = 0x1p-1022;
  static constexpr double square_end = 2 * 708.0;
  static MVNROB_HD double half_log2e() { return MVNROB_NUMBERS_OF(kDoubleNumbers).half_log2e; }
  static MVNROB_HD double two_ln2() { return MVNROB_NUMBERS_OF(kDoubleNumbers).two_ln2; }
  static MVNROB_HD double two_ln2_hi() { return MVNROB_NUMBERS_OF(kDoubleNumbers).two_ln2_hi; }
  static MVNROB_HD double two_ln2_lo() { return MVNROB_NUMBERS_OF(kDoubleNumbers).two_ln2_lo; }
  static MVNROB_HD double log_magic() { return MVNROB_NUMBERS_OF(kDoubleNumbers).log_magic; }
  static MVNROB_HD double tail_end() { return MVNROB_NUMBERS_OF(kDoubleNumbers).tail_end; }
  static MVNROB_HD double far() { return MVNROB_NUMBERS_OF(kDoubleNumbers).far; }
};

// x^2 as an unevaluated sum hi + lo: exact with a fused multiply-add. Without one x is split by
// masking its low bits, and only the square of that low part rounds (in double).
template <class T>
MVNROB_HD void square(T x, T& hi, T& lo) {
  hi = x * x;
#if MVNROB_FUSED
  lo = fma(x, x, -hi);
#else
  using u = scalar_t<uint_bits_t<T> >;
  constexpr int low = (float_format<scalar_t<T> >::mantissa_bits + 2) / 2;
  const T a = as_real(as_uint(x) & uint_bits_t<T>(~((u(1) << low) - 1)));
  const T b = x - a;
  lo = ((a * a - hi) + (a + a) * b) + b * b;
#endif
}

// n / d and sqrt(x), to within .52 ulp, where d, 1 / d and x are normal numbers and neither n / d
// nor x overflows. CUDA's own have a branch for everything else, and a branch keeps the steps of
// two points from overlapping: here a reciprocal (root) of 20 or 23 bits is corrected, the last
// time by the exact remainder. A NaN comes through.
template <class T>
MVNROB_HD T quotient(T n, T d) {
#if defined(__CUDA_ARCH__)
  T r;
  if constexpr (sizeof(T) == 4) {
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
  } else {
    asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(d));
    r = fma(fma(-d, r, T(1)), r, r);
  }
  const T q = n * r;
  return fma(fma(-d, q, n), r, q);
#else
  return n / d;
#endif
}
template <class T>
MVNROB_HD T root(T x) {
#if defined(__CUDA_ARCH__)
  T r;
  if constexpr (sizeof(T) == 4)
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  else
    asm("rsqrt.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(x));
  const T half = T(0.5) * r;
  T y = x * r;
  if constexpr (sizeof(T) == 8) y = fma(fma(-y, half, T(0.5)), y, y);
  return fma(fma(-y, y, x), half, y);
#else
  return sqrt(x);
#endif
}

// exp(-(hi + lo) / 2) for 0 <= hi, |lo| <= ulp(hi), times x. Where the exponential is not a normal
// number the result is meaningless: callers mask it. A NaN in x comes through.
template <class T>
MVNROB_HD T times_exp_half(T x, T hi, T lo) {
  using S = scalar_t<T>;
  using F = float_format<S>;
  using U = uint_bits_t<T>;
  using u = scalar_t<U>;
  const T shifted = fma(hi, T(-F::half_log2e()), T(F::magic));
  const T k = shifted - T(F::magic);  // -round(hi / (2 ln 2))
  const T r = fma(k, T(F::two_ln2_lo()), fma(k, T(F::two_ln2_hi()), hi) + lo);
  const U power = (as_uint(shifted) + U(u(F::bias))) << F::mantissa_bits;
  return x * coefs::exp_half(r, S(0)) * as_real(power);
}

// plus - 2 ln(x) for normal x > 0, to a few ulp of max(1, |2 ln x|).
template <class T>
MVNROB_HD T minus_two_log(T x, T plus) {
  using S = scalar_t<T>;
  using F = float_format<S>;
  using U = uint_bits_t<T>;
  using u = scalar_t<U>;
  // 2^k (1 + f) with 1 + f in [1/sqrt 2, sqrt 2): subtracting the bits of 1/sqrt 2 leaves k on top.
  constexpr u root_half = sizeof(S) == 4 ? u(0x3f3504f3) : u(0x3fe6a09e667f3bcd);
  const U top = as_uint(x) - U(root_half);
  const U mantissa = (top & U((u(1) << F::mantissa_bits) - 1)) + U(root_half);
  const T f = as_real(mantissa) - T(S(1));
  // k as a real number: biased to stay positive, then placed under the magic number's bits.
  const U biased = (top + U(u(F::bias + 1) << F::mantissa_bits)) >> F::mantissa_bits;
  const T k = as_real(biased | as_uint(T(F::magic))) - T(F::log_magic());
  const T rest = fma(k, T(-F::two_ln2()), plus);
  if constexpr (sizeof(S) == 4) {
    return fma(coefs::log_poly(f, S(0)), f, rest);
  } else {
    const T z = quotient(f, f + T(S(2)));
    return fma(coefs::log_poly(z * z, S(0)), z, rest);
  }
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
