// Points of randomly shifted, tent-transformed lattice sequences in 32-bit integers, point k and
// coordinate j: x = i a_j + s_j mod 2^32, s_j hashed from seed, replicate and dimension.
//   Richtmyer's sequence: i = k, a_j = frac(sqrt(prime_j)) 2^32 made odd.
//   An embedded lattice in base 2: i = k with its bits reversed, so that the first 2^m points are
//   the rank-1 lattice of that many points; a_j from component-by-component search
//   (lattice_table.h).
// Bit-identical on every device, extensible in k.
#pragma once

#include <cstdint>
#include <vector>

#include "config.h"
#include "lattice_table.h"
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

// x with its bits in reverse order; U is uint32_t or a pack of them.
template <class U>
MVNROB_HD U reverse_bits(U x) {
#if defined(__CUDA_ARCH__)
  return __brev(x);
#else
  x = (x >> 16) | (x << 16);
  x = ((x >> 8) & U(0x00ff00ffu)) | ((x & U(0x00ff00ffu)) << 8);
  x = ((x >> 4) & U(0x0f0f0f0fu)) | ((x & U(0x0f0f0f0fu)) << 4);
  x = ((x >> 2) & U(0x33333333u)) | ((x & U(0x33333333u)) << 2);
  return ((x >> 1) & U(0x55555555u)) | ((x & U(0x55555555u)) << 1);
#endif
}

// a_j of the embedded lattice. The table knows the low bits, those of the first 2^kLatticeBits
// points; beyond them, and beyond its dimensions, the bits are those of Richtmyer's generator,
// which are as good as random ones.
MVNROB_HD_FN uint32_t embedded_generator(int j, uint32_t richtmyer) {
  if (j >= tables::kLatticeDimensions) return richtmyer;
  constexpr uint32_t kKnown = (1u << tables::kLatticeBits) - 1;
  return (richtmyer & ~kKnown) | tables::lattice_generator(j);
}

// Shift of one coordinate. Two rounds, so that neighbouring seeds, replicates and dimensions are
// unrelated; for one seed different (replicate, dimension) never meet the same 64-bit state.
MVNROB_HD uint32_t hash_shift(uint64_t seed, uint32_t replicate, uint32_t dimension) {
  const uint64_t counter = (uint64_t(replicate) << 32) | dimension;
  const uint64_t state = mix64(seed + 0x9e3779b97f4a7c15ull);
  return static_cast<uint32_t>(mix64(state + counter * 0x9e3779b97f4a7c15ull) >> 32);
}

// w = (x + 1/2) 2^-32 in (0, 1) and wc = 1 - w, both exact. float keeps the top 23 bits and double
// all 32, at the middle of their cell.
template <class T>
MVNROB_HD void word_to_unit(UintPackOf<T> x, T& w, T& wc) {
  using U = UintPackOf<T>;
  if constexpr (sizeof(scalar_t<T>) == 4) {
    w = as_real((x >> 9) | U(0x3f800000u)) - T(0x1.fffffep-1f);  // 1.m - (1 - 2^-24)
    wc = T(1.0f) - w;
  } else {
    using L = uint_bits_t<T>;
    const L bits = (widen(x) << 20) | L(0x3ff0000000080000ull);  // 1.m and half a cell
    w = as_real(bits) - T(1.0);
    wc = T(1.0) - w;
  }
}

// Coordinate of the point of index i.
// The tent transform 1 - |2 x - 1| acts on the integer: x < 1/2 doubles, x >= 1/2 doubles the
// complement.
template <class T>
MVNROB_HD void lattice_point(UintPackOf<T> i, uint32_t a, uint32_t s, T& w, T& wc) {
  using U = UintPackOf<T>;
  const U x = i * U(a) + U(s);
  const U fold = U(0u) - (x >> 31);
  word_to_unit<T>((x << 1) ^ fold, w, wc);
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
