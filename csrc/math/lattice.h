// Points of the randomly shifted, tent-transformed Richtmyer sequence in 32-bit integers:
// x = k a_j + s_j mod 2^32, a_j = frac(sqrt(prime_j)) 2^32 made odd, s_j hashed from seed,
// replicate and dimension. Bit-identical on every device, extensible in k.
#pragma once

#include <cstdint>
#include <vector>

#include "config.h"
#include "pack.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {

// floor(sqrt(prime) 2^32) mod 2^32, made odd so that k a runs through all 2^32 residues.
// Exact: integer square root of prime 2^64, prime < 2^32.
MVNROB_HD_FN uint32_t richtmyer_from_prime(uint32_t prime) {
  const unsigned __int128 target = static_cast<unsigned __int128>(prime) << 64;
  uint64_t root = 0;
  for (int bit = 47; bit >= 0; --bit) {
    const uint64_t trial = root | (uint64_t(1) << bit);
    if (static_cast<unsigned __int128>(trial) * trial <= target) root = trial;
  }
  return static_cast<uint32_t>(root) | 1u;
}

// a[j] for the first n primes 2, 3, 5, ...; host only.
inline void fill_richtmyer(uint32_t* a, int n) {
  std::vector<uint32_t> primes;
  primes.reserve(n);
  for (uint32_t c = 2; static_cast<int>(primes.size()) < n; c += 1 + (c & 1)) {
    bool is_prime = true;
    for (uint32_t p : primes) {
      if (p * p > c) break;
      if (c % p == 0) {
        is_prime = false;
        break;
      }
    }
    if (!is_prime) continue;
    a[primes.size()] = richtmyer_from_prime(c);
    primes.push_back(c);
  }
}

// a[j] alone: fill_richtmyer is the way to a table.
inline uint32_t richtmyer_generator(int j) {
  std::vector<uint32_t> a(j + 1);
  fill_richtmyer(a.data(), j + 1);
  return a[j];
}

// SplitMix64's finaliser (Stafford's mix 13): a bijection with full avalanche.
MVNROB_HD uint64_t mix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// Shift of one coordinate. Two rounds, so that neighbouring seeds, replicates and dimensions are
// unrelated; for one seed different (replicate, dimension) never meet the same 64-bit state.
MVNROB_HD uint32_t hash_shift(uint64_t seed, uint32_t replicate, uint32_t dimension) {
  const uint64_t counter = (uint64_t(replicate) << 32) | dimension;
  const uint64_t state = mix64(seed + 0x9e3779b97f4a7c15ull);
  return static_cast<uint32_t>(mix64(state + counter * 0x9e3779b97f4a7c15ull) >> 32);
}

// Coordinate of point k: w in (0, 1) and wc = 1 - w, both exact.
// The tent transform 1 - |2 x - 1| acts on the integer: x < 1/2 doubles, x >= 1/2 doubles the
// complement. float keeps the top 23 bits and double all 32, at the middle of their cell.
template <class T>
MVNROB_HD void lattice_point(UintPackOf<T> k, uint32_t a, uint32_t s, T& w, T& wc) {
  using U = UintPackOf<T>;
  const U x = k * U(a) + U(s);
  const U fold = U(0u) - (x >> 31);
  const U tent = (x << 1) ^ fold;
  if constexpr (sizeof(scalar_t<T>) == 4) {
    w = as_real((tent >> 9) | U(0x3f800000u)) - T(0x1.fffffep-1f);  // 1.m - (1 - 2^-24)
    wc = T(1.0f) - w;
  } else {
    using L = uint_bits_t<T>;
    const L bits = (widen(tent) << 20) | L(0x3ff0000000080000ull);  // 1.m and half a cell
    w = as_real(bits) - T(1.0);
    wc = T(1.0) - w;
  }
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
