// Tensor-core instructions for a C++ compiler: ldmatrix, mma.m16n8k16 of float16 or bfloat16 with
// float32 sums, mma.m16n8k8 of float64, and the conversions that go with them. Of a whole warp,
// with the fragments of the PTX manual.
//
// The unit adds the 16 products of an entry and its sum in wider arithmetic and cuts the result off
// to float32, or does worse than the exact sum that is cut off here by a few bits of the last
// place. In float64 it multiplies and adds, rounding each time, in an order that no manual gives;
// here the last column goes first, which no loop over pivots does.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "shim/cuda.h"

namespace mvnrob::shim {

template <class To, class From>
To of_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// These three by their bits: a product of two tiles calls them thousands of times, and ldexp is
// slow.
inline float half_to_float(unsigned bits) {
  const unsigned exponent = bits >> 10 & 31, fraction = bits & 1023;
  float x;
  if (exponent == 0)
    x = float(fraction) * 0x1p-24f;
  else if (exponent == 31)
    x = fraction ? std::nanf("") : HUGE_VALF;
  else
    x = of_bits<float>((exponent + 112) << 23 | fraction << 13);
  return bits & 0x8000u ? -x : x;
}

// To nearest, ties to even.
inline unsigned float_to_half(float x) {
  const unsigned sign = std::signbit(x) ? 0x8000u : 0u;
  if (std::isnan(x)) return 0x7fffu;
  const double a = std::fabs(double(x));
  if (a >= 65520.0) return sign | 0x7c00u;
  const int exponent = int(of_bits<uint64_t>(a) >> 52) - 1022;  // a < 2^exponent
  const int unit = exponent - 11 < -24 ? -24 : exponent - 11;
  const double n =
      std::nearbyint(a * of_bits<double>(uint64_t(1023 - unit) << 52));  // at most 2^11
  // Adding carries a fraction that rounds up into the exponent.
  return sign | (n < 1024.0 ? unsigned(n) : (unsigned(unit + 24) << 10) + unsigned(n));
}

inline float cut_off(double x) {
  const float near = float(x);
  if (!(std::fabs(double(near)) > std::fabs(x) && std::isfinite(near))) return near;
  return of_bits<float>(of_bits<uint32_t>(near) - 1);  // not zero: the next one towards it
}

// Lane 8 j + r gives the address of row r of matrix j; a lane gets word lane % 4 of row lane / 4 of
// each.
inline void load_matrices(uint32_t (&out)[4], const void* row, const Caller& caller) {
  const auto address = reinterpret_cast<uintptr_t>(row);
  const auto base = reinterpret_cast<uintptr_t>(dynamic_shared());
  if (address % 16 != 0 || address < base || address + 16 > base + running().grid().shared_bytes)
    throw std::runtime_error("load_matrices: rows must lie in shared memory at multiples of 16");
  const Exchange rows(0xffffffffu, address, "load_matrices", caller);
  for (unsigned j = 0; j < 4; ++j) {
    const auto* p = reinterpret_cast<const unsigned char*>(rows.from(8 * j + lane() / 4));
    std::memcpy(&out[j], p + 4 * (lane() % 4), 4);
  }
}

inline float bfloat16_to_float(unsigned bits) { return of_bits<float>(uint32_t(bits << 16)); }

// `real` is what 16 bits stand for.
template <class Real>
void multiply_16_bits(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                      const Real& real, const char* name, const Caller& caller) {
  const unsigned g = lane() / 4, t = lane() % 4;
  double left[2][16], right[2][16];  // rows g and g + 8; columns 2 t and 2 t + 1
  const auto put = [&](double* to, uint32_t word) {
    to[0] = real(word & 0xffffu);
    to[1] = real(word >> 16);
  };
  for (int half = 0; half < 2; ++half) {
    const Exchange words(0xffffffffu, a[2 * half] | uint64_t(a[2 * half + 1]) << 32, name, caller);
    for (unsigned l = 0; l < 4; ++l) {
      put(&left[0][8 * half + 2 * int(l)], uint32_t(words.from(4 * g + l)));
      put(&left[1][8 * half + 2 * int(l)], uint32_t(words.from(4 * g + l) >> 32));
    }
  }
  const Exchange words(0xffffffffu, b[0] | uint64_t(b[1]) << 32, name, caller);
  for (unsigned c = 0; c < 2; ++c)
    for (unsigned l = 0; l < 4; ++l) {
      const uint64_t word = words.from(4 * (2 * t + c) + l);
      put(&right[c][2 * l], uint32_t(word));
      put(&right[c][8 + 2 * l], uint32_t(word >> 32));
    }
  for (int r = 0; r < 2; ++r)
    for (int c = 0; c < 2; ++c) {
      double x = sum[2 * r + c];
      for (int k = 0; k < 16; ++k) x += left[r][k] * right[c][k];
      sum[2 * r + c] = cut_off(x);
    }
}

inline void multiply_matrices(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              const Caller& caller) {
  multiply_16_bits(sum, a, b, half_to_float, "multiply_matrices", caller);
}

inline void multiply_bfloat16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              const Caller& caller) {
  multiply_16_bits(sum, a, b, bfloat16_to_float, "multiply_bfloat16", caller);
}

inline void multiply_matrices(double (&sum)[4], const double (&a)[4], const double (&b)[2],
                              const Caller& caller) {
  const unsigned g = lane() / 4, t = lane() % 4;
  const auto exchange = [&](double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, 8);
    return Exchange(0xffffffffu, bits, "multiply_matrices", caller);
  };
  const auto value = [](uint64_t bits) {
    double x;
    std::memcpy(&x, &bits, 8);
    return x;
  };
  double left[2][8], right[8][2];  // rows g and g + 8; columns 2 t and 2 t + 1
  for (unsigned half = 0; half < 2; ++half) {
    for (unsigned m = 0; m < 2; ++m) {
      const Exchange words = exchange(a[2 * half + m]);
      for (unsigned l = 0; l < 4; ++l) left[m][4 * half + l] = value(words.from(4 * g + l));
    }
    const Exchange words = exchange(b[half]);
    for (unsigned c = 0; c < 2; ++c)
      for (unsigned l = 0; l < 4; ++l)
        right[4 * half + l][c] = value(words.from(4 * (2 * t + c) + l));
  }
  for (int r = 0; r < 2; ++r)
    for (int c = 0; c < 2; ++c)
      for (int k = 7; k >= 0; --k)
        sum[2 * r + c] = std::fma(left[r][k], right[k][c], sum[2 * r + c]);
}

}  // namespace mvnrob::shim
