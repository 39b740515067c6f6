// Standard normal numbers from a counter: hash of a key and a place, inverse normal CDF of its
// bits.
//
// splitmix64 (Steele, Lea & Flood, OOPSLA 2014): the golden-ratio step and the finaliser. A word
// of 64 bits gives two numbers, 32 bits each: the top one is the sign, the others with a half
// added are a probability below 1/2. So |number| <= 6.34, and numbers are symmetric.
#pragma once
#include <cstdint>

#include "math/config.h"
#include "math/normal.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;

MVNROB_HD uint64_t splitmix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Number `at` of what a key stands for: a draw's key from a row's, a word from a draw's key.
MVNROB_HD uint64_t hashed(uint64_t key, int64_t at) {
  return splitmix64(key + (uint64_t(at) + 1) * kGolden);
}

// The probability below 1/2 that the bits stand for.
MVNROB_HD double half_uniform(uint32_t bits) {
  return (double(int32_t(bits & 0x7fffffffu)) + 0.5) * 0x1p-32;
}

// The number, of the magnitude that ndtri_half gave for half_uniform(bits). Rounded to float32, so
// that last bits of the inverse, which differ between processors, hardly ever show.
MVNROB_HD float with_sign(uint32_t bits, double minus_magnitude) {
  return float(int32_t(bits) < 0 ? -minus_magnitude : minus_magnitude);
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
