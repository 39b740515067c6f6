// Pack<S, W>: W lanes of S with the arithmetic, comparisons and bit operations that the
// mathematics headers need, plus the same free functions for plain float and double, so that one
// template serves a scalar (host or CUDA) and a vector.
//
// Built on GCC / clang vector extensions; intrinsics only where the extension has no operator
// (fma, sqrt, min, max, any). A pack wider than one register of the instruction set is a pair of
// halves, so Pack<float, 64> under AVX-512 is four independent chains. CUDA sees scalars only.
//
// fma(a, b, c) is fused wherever the instruction set has it (AVX2 and AVX-512 builds, CUDA) and a
// rounded product plus a rounded sum in the baseline build; MVNROB_FUSED says which.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "config.h"

#if defined(__CUDA_ARCH__) || defined(__FMA__)
#define MVNROB_FUSED 1
#else
#define MVNROB_FUSED 0
#endif

#if !defined(__CUDACC__)
#define MVNROB_PACKS 1
#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && \
    defined(__AVX512VL__) && defined(__FMA__)
#define MVNROB_VECTOR_BYTES 64
#elif defined(__AVX2__) && defined(__FMA__)
#define MVNROB_VECTOR_BYTES 32
#else
#define MVNROB_VECTOR_BYTES 16
#endif
#endif

namespace mvnrob::math {
inline namespace MVNROB_ISA {

// ---- integers of the same width ---------------------------------------------------------------

template <class S>
struct bits_of;
template <>
struct bits_of<float> {
  using int_type = int32_t;
  using uint_type = uint32_t;
};
template <>
struct bits_of<int32_t> : bits_of<float> {};
template <>
struct bits_of<uint32_t> : bits_of<float> {};
template <>
struct bits_of<double> {
  using int_type = int64_t;
  using uint_type = uint64_t;
};
template <>
struct bits_of<int64_t> : bits_of<double> {};
template <>
struct bits_of<uint64_t> : bits_of<double> {};

// ---- scalars ----------------------------------------------------------------------------------

MVNROB_HD float fma(float a, float b, float c) {
#if MVNROB_FUSED
  return ::fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
MVNROB_HD double fma(double a, double b, double c) {
#if MVNROB_FUSED
  return ::fma(a, b, c);
#else
  return a * b + c;
#endif
}
MVNROB_HD float sqrt(float x) { return ::sqrtf(x); }
MVNROB_HD double sqrt(double x) { return ::sqrt(x); }
MVNROB_HD float abs(float x) { return ::fabsf(x); }
MVNROB_HD double abs(double x) { return ::fabs(x); }
// min and max return their second argument when either is NaN, as the x86 instructions do:
// write min(limit, x) to let a NaN in x through.
MVNROB_HD float min(float a, float b) { return a < b ? a : b; }
MVNROB_HD double min(double a, double b) { return a < b ? a : b; }
MVNROB_HD float max(float a, float b) { return a > b ? a : b; }
MVNROB_HD double max(double a, double b) { return a > b ? a : b; }

template <class T>
MVNROB_HD std::enable_if_t<std::is_arithmetic_v<T>, T> select(bool m, T a, T b) {
  return m ? a : b;
}
MVNROB_HD bool any(bool m) { return m; }

template <class To, class From>
MVNROB_HD To bit_cast_scalar(From x) {
  static_assert(sizeof(To) == sizeof(From), "bit cast between types of different size");
#if defined(__CUDACC__)
  To y;
  memcpy(&y, &x, sizeof(y));
  return y;
#else
  return __builtin_bit_cast(To, x);
#endif
}
template <class T>
MVNROB_HD auto as_uint(T x)
    -> std::enable_if_t<std::is_arithmetic_v<T>, typename bits_of<T>::uint_type> {
  return bit_cast_scalar<typename bits_of<T>::uint_type>(x);
}
template <class T>
MVNROB_HD auto as_int(T x)
    -> std::enable_if_t<std::is_arithmetic_v<T>, typename bits_of<T>::int_type> {
  return bit_cast_scalar<typename bits_of<T>::int_type>(x);
}
MVNROB_HD float as_real(uint32_t x) { return bit_cast_scalar<float>(x); }
MVNROB_HD float as_real(int32_t x) { return bit_cast_scalar<float>(x); }
MVNROB_HD double as_real(uint64_t x) { return bit_cast_scalar<double>(x); }
MVNROB_HD double as_real(int64_t x) { return bit_cast_scalar<double>(x); }

MVNROB_HD uint64_t widen(uint32_t x) { return x; }

template <class T>
MVNROB_HD std::enable_if_t<std::is_arithmetic_v<T>, T> reduce_add(T x) {
  return x;
}
template <class T>
MVNROB_HD std::enable_if_t<std::is_arithmetic_v<T>, T> reduce_min(T x) {
  return x;
}
template <class T>
MVNROB_HD std::enable_if_t<std::is_arithmetic_v<T>, T> reduce_max(T x) {
  return x;
}

// ---- packs ------------------------------------------------------------------------------------

#if defined(MVNROB_PACKS)

// Lanes of S in one register.
template <class S>
inline constexpr int native_width = MVNROB_VECTOR_BYTES / int(sizeof(S));

namespace detail {
template <class S, int W>
inline constexpr bool is_wide = sizeof(S) * W > MVNROB_VECTOR_BYTES;
template <class S, int W>
struct vec_of {
  typedef S type __attribute__((vector_size(W * sizeof(S))));
};
template <class S, int W>
using vec = typename vec_of<S, W>::type;
template <class S>
using sint = typename bits_of<S>::int_type;
}  // namespace detail

// Result of a comparison: all bits of a lane set or clear.
template <class S, int W, bool Wide = detail::is_wide<S, W>>
struct Mask {
  detail::vec<detail::sint<S>, W> v;
  friend MVNROB_HD Mask operator&(Mask a, Mask b) { return {a.v & b.v}; }
  friend MVNROB_HD Mask operator|(Mask a, Mask b) { return {a.v | b.v}; }
  friend MVNROB_HD Mask operator!(Mask a) { return {~a.v}; }
};
template <class S, int W>
struct Mask<S, W, true> {
  Mask<S, W / 2> lo, hi;
  friend MVNROB_HD Mask operator&(Mask a, Mask b) { return {a.lo & b.lo, a.hi & b.hi}; }
  friend MVNROB_HD Mask operator|(Mask a, Mask b) { return {a.lo | b.lo, a.hi | b.hi}; }
  friend MVNROB_HD Mask operator!(Mask a) { return {!a.lo, !a.hi}; }
};

template <class S, int W, bool Wide = detail::is_wide<S, W>>
struct Pack {
  using vec = detail::vec<S, W>;
  using mask = Mask<S, W>;
  vec v;

  Pack() = default;
  // x - 0 is x for every x, signed zeros included; 0 + x would lose -0.
  MVNROB_HD Pack(S s) : v(s - vec{}) {}
  static MVNROB_HD Pack from(vec v) {
    Pack p;
    p.v = v;
    return p;
  }
  static MVNROB_HD Pack load(const S* p) {
    Pack r;
    std::memcpy(&r.v, p, sizeof(vec));
    return r;
  }
  MVNROB_HD void store(S* p) const { std::memcpy(p, &v, sizeof(vec)); }
  MVNROB_HD S operator[](int i) const { return v[i]; }

#define MVNROB_BINARY(op) \
  friend MVNROB_HD Pack operator op(Pack a, Pack b) { return from(a.v op b.v); }
  MVNROB_BINARY(+)
  MVNROB_BINARY(-)
  MVNROB_BINARY(*)
  MVNROB_BINARY(/)
  MVNROB_BINARY(&)
  MVNROB_BINARY(|)
  MVNROB_BINARY(^)
#undef MVNROB_BINARY
  friend MVNROB_HD Pack operator-(Pack a) { return from(-a.v); }
  friend MVNROB_HD Pack operator~(Pack a) { return from(~a.v); }
  friend MVNROB_HD Pack operator<<(Pack a, int n) { return from(a.v << n); }
  friend MVNROB_HD Pack operator>>(Pack a, int n) { return from(a.v >> n); }
#define MVNROB_COMPARE(op) \
  friend MVNROB_HD mask operator op(Pack a, Pack b) { return {(decltype(mask::v))(a.v op b.v)}; }
  MVNROB_COMPARE(<)
  MVNROB_COMPARE(<=)
  MVNROB_COMPARE(>)
  MVNROB_COMPARE(>=)
  MVNROB_COMPARE(==)
  MVNROB_COMPARE(!=)
#undef MVNROB_COMPARE
};

template <class S, int W>
struct Pack<S, W, true> {
  using half = Pack<S, W / 2>;
  using mask = Mask<S, W>;
  half lo, hi;

  Pack() = default;
  MVNROB_HD Pack(S s) : lo(s), hi(s) {}
  MVNROB_HD Pack(half a, half b) : lo(a), hi(b) {}
  static MVNROB_HD Pack load(const S* p) { return Pack(half::load(p), half::load(p + W / 2)); }
  MVNROB_HD void store(S* p) const {
    lo.store(p);
    hi.store(p + W / 2);
  }
  MVNROB_HD S operator[](int i) const { return i < W / 2 ? lo[i] : hi[i - W / 2]; }

#define MVNROB_BINARY(op) \
  friend MVNROB_HD Pack operator op(Pack a, Pack b) { return Pack(a.lo op b.lo, a.hi op b.hi); }
  MVNROB_BINARY(+)
  MVNROB_BINARY(-)
  MVNROB_BINARY(*)
  MVNROB_BINARY(/)
  MVNROB_BINARY(&)
  MVNROB_BINARY(|)
  MVNROB_BINARY(^)
#undef MVNROB_BINARY
  friend MVNROB_HD Pack operator-(Pack a) { return Pack(-a.lo, -a.hi); }
  friend MVNROB_HD Pack operator~(Pack a) { return Pack(~a.lo, ~a.hi); }
  friend MVNROB_HD Pack operator<<(Pack a, int n) { return Pack(a.lo << n, a.hi << n); }
  friend MVNROB_HD Pack operator>>(Pack a, int n) { return Pack(a.lo >> n, a.hi >> n); }
#define MVNROB_COMPARE(op) \
  friend MVNROB_HD mask operator op(Pack a, Pack b) { return {a.lo op b.lo, a.hi op b.hi}; }
  MVNROB_COMPARE(<)
  MVNROB_COMPARE(<=)
  MVNROB_COMPARE(>)
  MVNROB_COMPARE(>=)
  MVNROB_COMPARE(==)
  MVNROB_COMPARE(!=)
#undef MVNROB_COMPARE
};

template <class S, int W>
MVNROB_HD Pack<S, W> select(Mask<S, W> m, Pack<S, W> a, Pack<S, W> b) {
  if constexpr (detail::is_wide<S, W>) {
    return Pack<S, W>(select(m.lo, a.lo, b.lo), select(m.hi, a.hi, b.hi));
  } else {
    return Pack<S, W>::from(m.v ? a.v : b.v);
  }
}

template <class S, int W>
MVNROB_HD bool any(Mask<S, W> m) {
  if constexpr (detail::is_wide<S, W>) {
    return any(m.lo | m.hi);
  }
#if defined(__SSE2__)
  else if constexpr (sizeof(m) == 16) {
    return _mm_movemask_epi8((__m128i)m.v) != 0;
  }
#endif
#if MVNROB_VECTOR_BYTES >= 32
  else if constexpr (sizeof(m) == 32) {
    return _mm256_movemask_epi8((__m256i)m.v) != 0;
  }
#endif
#if MVNROB_VECTOR_BYTES >= 64
  else if constexpr (sizeof(m) == 64) {
    return _mm512_movepi8_mask((__m512i)m.v) != 0;
  }
#endif
  else {
    bool found = false;
    for (int i = 0; i < W; ++i) found |= m.v[i] != 0;
    return found;
  }
}

// f lane by lane, for what has no vector instruction.
template <class F, class S, int W, class... Rest>
MVNROB_HD Pack<S, W> map_lanes(const F& f, Pack<S, W> a, Rest... rest) {
  S lane[W];
  for (int i = 0; i < W; ++i) lane[i] = f(a[i], rest[i]...);
  return Pack<S, W>::load(lane);
}

// One function per operation without an operator: the wide case splits, the register case calls
// the intrinsic, and widths below 16 bytes (half of an SSE register) go lane by lane. The 512-bit
// intrinsics are the zero-masked ones with a full mask (the same instruction): GCC 12 warns about
// an undefined operand inside the plain ones.
#define MVNROB_CASE(S_, BYTES, EXPR)                                    \
  else if constexpr (std::is_same_v<S, S_> && sizeof(S) * W == BYTES) { \
    return P::from((typename P::vec)(EXPR));                            \
  }
#if defined(__SSE2__)
#define MVNROB_CASE16(S_, EXPR) MVNROB_CASE(S_, 16, EXPR)
#else
#define MVNROB_CASE16(S_, EXPR)
#endif
#if MVNROB_VECTOR_BYTES >= 32
#define MVNROB_CASE32(S_, EXPR) MVNROB_CASE(S_, 32, EXPR)
#else
#define MVNROB_CASE32(S_, EXPR)
#endif
#if MVNROB_VECTOR_BYTES >= 64
#define MVNROB_CASE64(S_, EXPR) MVNROB_CASE(S_, 64, EXPR)
#else
#define MVNROB_CASE64(S_, EXPR)
#endif

template <class S, int W>
MVNROB_HD Pack<S, W> sqrt(Pack<S, W> a) {
  using P = Pack<S, W>;
  if constexpr (detail::is_wide<S, W>) {
    return P(sqrt(a.lo), sqrt(a.hi));
  }
  MVNROB_CASE16(float, _mm_sqrt_ps(a.v))
  MVNROB_CASE16(double, _mm_sqrt_pd(a.v))
  MVNROB_CASE32(float, _mm256_sqrt_ps(a.v))
  MVNROB_CASE32(double, _mm256_sqrt_pd(a.v))
  MVNROB_CASE64(float, _mm512_maskz_sqrt_ps(__mmask16(-1), a.v))
  MVNROB_CASE64(double, _mm512_maskz_sqrt_pd(__mmask8(-1), a.v))
  else {
    return map_lanes([](S x) { return sqrt(x); }, a);
  }
}

template <class S, int W>
MVNROB_HD Pack<S, W> min(Pack<S, W> a, Pack<S, W> b) {
  using P = Pack<S, W>;
  if constexpr (detail::is_wide<S, W>) {
    return P(min(a.lo, b.lo), min(a.hi, b.hi));
  }
  MVNROB_CASE16(float, _mm_min_ps(a.v, b.v))
  MVNROB_CASE16(double, _mm_min_pd(a.v, b.v))
  MVNROB_CASE32(float, _mm256_min_ps(a.v, b.v))
  MVNROB_CASE32(double, _mm256_min_pd(a.v, b.v))
  MVNROB_CASE64(float, _mm512_maskz_min_ps(__mmask16(-1), a.v, b.v))
  MVNROB_CASE64(double, _mm512_maskz_min_pd(__mmask8(-1), a.v, b.v))
  else {
    return select(a < b, a, b);
  }
}

template <class S, int W>
MVNROB_HD Pack<S, W> max(Pack<S, W> a, Pack<S, W> b) {
  using P = Pack<S, W>;
  if constexpr (detail::is_wide<S, W>) {
    return P(max(a.lo, b.lo), max(a.hi, b.hi));
  }
  MVNROB_CASE16(float, _mm_max_ps(a.v, b.v))
  MVNROB_CASE16(double, _mm_max_pd(a.v, b.v))
  MVNROB_CASE32(float, _mm256_max_ps(a.v, b.v))
  MVNROB_CASE32(double, _mm256_max_pd(a.v, b.v))
  MVNROB_CASE64(float, _mm512_maskz_max_ps(__mmask16(-1), a.v, b.v))
  MVNROB_CASE64(double, _mm512_maskz_max_pd(__mmask8(-1), a.v, b.v))
  else {
    return select(a > b, a, b);
  }
}

template <class S, int W>
MVNROB_HD Pack<S, W> fma(Pack<S, W> a, Pack<S, W> b, Pack<S, W> c) {
  using P = Pack<S, W>;
  if constexpr (detail::is_wide<S, W>) {
    return P(fma(a.lo, b.lo, c.lo), fma(a.hi, b.hi, c.hi));
  }
#if MVNROB_FUSED
  MVNROB_CASE16(float, _mm_fmadd_ps(a.v, b.v, c.v))
  MVNROB_CASE16(double, _mm_fmadd_pd(a.v, b.v, c.v))
  MVNROB_CASE32(float, _mm256_fmadd_ps(a.v, b.v, c.v))
  MVNROB_CASE32(double, _mm256_fmadd_pd(a.v, b.v, c.v))
  MVNROB_CASE64(float, _mm512_fmadd_ps(a.v, b.v, c.v))
  MVNROB_CASE64(double, _mm512_fmadd_pd(a.v, b.v, c.v))
  else {
    return map_lanes([](S x, S y, S z) { return fma(x, y, z); }, a, b, c);
  }
#else
  else {
    return a * b + c;
  }
#endif
}
#undef MVNROB_CASE
#undef MVNROB_CASE16
#undef MVNROB_CASE32
#undef MVNROB_CASE64

template <class To, class S, int W>
MVNROB_HD Pack<To, W> bit_cast_pack(Pack<S, W> a) {
  static_assert(sizeof(To) == sizeof(S), "bit cast between types of different size");
  if constexpr (detail::is_wide<S, W>) {
    return Pack<To, W>(bit_cast_pack<To>(a.lo), bit_cast_pack<To>(a.hi));
  } else {
    return Pack<To, W>::from((detail::vec<To, W>)a.v);
  }
}
template <class S, int W>
MVNROB_HD Pack<typename bits_of<S>::uint_type, W> as_uint(Pack<S, W> a) {
  return bit_cast_pack<typename bits_of<S>::uint_type>(a);
}
template <class S, int W>
MVNROB_HD Pack<typename bits_of<S>::int_type, W> as_int(Pack<S, W> a) {
  return bit_cast_pack<typename bits_of<S>::int_type>(a);
}
template <class S, int W>
MVNROB_HD auto as_real(Pack<S, W> a) {
  return bit_cast_pack<std::conditional_t<sizeof(S) == 4, float, double>>(a);
}

template <class S, int W>
MVNROB_HD Pack<S, W> abs(Pack<S, W> a) {
  using U = typename bits_of<S>::uint_type;
  constexpr U all_but_sign = U(~U(0)) >> 1;
  return bit_cast_pack<S>(as_uint(a) & Pack<U, W>(all_but_sign));
}

// The low and the high half of the lanes.
template <class S, int W>
MVNROB_HD Pack<S, W / 2> low_half(Pack<S, W> a) {
  if constexpr (detail::is_wide<S, W>) {
    return a.lo;
  } else {
    Pack<S, W / 2> r;
    std::memcpy(&r, &a, sizeof(r));
    return r;
  }
}
template <class S, int W>
MVNROB_HD Pack<S, W / 2> high_half(Pack<S, W> a) {
  if constexpr (detail::is_wide<S, W>) {
    return a.hi;
  } else {
    Pack<S, W / 2> r;
    std::memcpy(&r, reinterpret_cast<const char*>(&a) + sizeof(r), sizeof(r));
    return r;
  }
}

// Zero extension, lane by lane.
template <int W>
MVNROB_HD Pack<uint64_t, W> widen(Pack<uint32_t, W> a) {
  if constexpr (detail::is_wide<uint64_t, W>) {
    return Pack<uint64_t, W>(widen(low_half(a)), widen(high_half(a)));
  }
#if MVNROB_VECTOR_BYTES >= 64
  else if constexpr (W == 8) {  // the generic conversion goes through two halves
    using L = Pack<uint64_t, W>;
    return L::from((typename L::vec)_mm512_maskz_cvtepu32_epi64(__mmask8(-1), (__m256i)a.v));
  }
#endif
  else {
    return Pack<uint64_t, W>::from(__builtin_convertvector(a.v, detail::vec<uint64_t, W>));
  }
}

// Reductions fold the upper half of the lanes onto the lower half, so the order is the same for
// every instruction set.
template <class S, int W>
MVNROB_HD S reduce_add(Pack<S, W> a) {
  if constexpr (W == 2) {
    return a[0] + a[1];
  } else {
    return reduce_add(low_half(a) + high_half(a));
  }
}
template <class S, int W>
MVNROB_HD S reduce_min(Pack<S, W> a) {
  if constexpr (W == 2) {
    return min(a[0], a[1]);
  } else {
    return reduce_min(min(low_half(a), high_half(a)));
  }
}
template <class S, int W>
MVNROB_HD S reduce_max(Pack<S, W> a) {
  if constexpr (W == 2) {
    return max(a[0], a[1]);
  } else {
    return reduce_max(max(low_half(a), high_half(a)));
  }
}

#endif  // MVNROB_PACKS

// ---- traits: T is float, double or a pack of them ---------------------------------------------

namespace detail {
template <class T>
struct traits {
  using scalar = T;
  static constexpr int width = 1;
  template <class S>
  using rebind = S;
};
#if defined(MVNROB_PACKS)
template <class S_, int W>
struct traits<Pack<S_, W>> {
  using scalar = S_;
  static constexpr int width = W;
  template <class S>
  using rebind = Pack<S, W>;
};
#endif
}  // namespace detail

template <class T>
using scalar_t = typename detail::traits<T>::scalar;
template <class T>
inline constexpr int width = detail::traits<T>::width;
template <class T>
using uint_bits_t =
    typename detail::traits<T>::template rebind<typename bits_of<scalar_t<T>>::uint_type>;
template <class T>
using int_bits_t =
    typename detail::traits<T>::template rebind<typename bits_of<scalar_t<T>>::int_type>;
// 32-bit lattice words, as many lanes as T.
template <class T>
using UintPackOf = typename detail::traits<T>::template rebind<uint32_t>;

// x in every lane of a word pack as wide as T, and 0, 1, ..., width - 1.
template <class T>
MVNROB_HD UintPackOf<T> uint_broadcast(uint32_t x) {
  return UintPackOf<T>(x);
}
template <class T>
MVNROB_HD UintPackOf<T> iota() {
  if constexpr (width<T> == 1) {
    return 0u;
  } else {
    alignas(64) uint32_t lane[width<T>];
    for (int i = 0; i < width<T>; ++i) lane[i] = uint32_t(i);
    return UintPackOf<T>::load(lane);
  }
}

// |magnitude| with the sign bit of sign.
template <class T>
MVNROB_HD T copysign(T magnitude, T sign) {
  using U = uint_bits_t<T>;
  using u = scalar_t<U>;
  const U mask(u(1) << (8 * sizeof(u) - 1));
  return as_real((as_uint(magnitude) & ~mask) | (as_uint(sign) & mask));
}
// x with its sign bit flipped where sign is negative (or -0).
template <class T>
MVNROB_HD T mulsign(T x, T sign) {
  using U = uint_bits_t<T>;
  using u = scalar_t<U>;
  const U mask(u(1) << (8 * sizeof(u) - 1));
  return as_real(as_uint(x) ^ (as_uint(sign) & mask));
}

// Horner's rule, ascending coefficients.
template <class T, class S>
MVNROB_HD T poly(T, S c0) {
  return T(c0);
}
template <class T, class S, class... Rest>
MVNROB_HD T poly(T x, S c0, Rest... rest) {
  return fma(poly(x, rest...), x, T(c0));
}

// The same with a leading coefficient of one: x^n + ... + c1 x + c0.
template <class T, class S>
MVNROB_HD T monic(T x, S c0) {
  return x + T(c0);
}
template <class T, class S, class... Rest>
MVNROB_HD T monic(T x, S c0, Rest... rest) {
  return fma(monic(x, rest...), x, T(c0));
}

// Both from an array of coefficients.
namespace detail {
template <class T, class S, std::size_t n, std::size_t... i>
MVNROB_HD T poly_of(T x, const S (&c)[n], std::index_sequence<i...>) {
  return math::poly(x, c[i]...);
}
template <class T, class S, std::size_t n, std::size_t... i>
MVNROB_HD T monic_of(T x, const S (&c)[n], std::index_sequence<i...>) {
  return math::monic(x, c[i]...);
}
}  // namespace detail
template <class T, class S, std::size_t n>
MVNROB_HD T poly(T x, const S (&c)[n]) {
  return detail::poly_of(x, c, std::make_index_sequence<n>());
}
template <class T, class S, std::size_t n>
MVNROB_HD T monic(T x, const S (&c)[n]) {
  return detail::monic_of(x, c, std::make_index_sequence<n>());
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
