// Points of an Owen-scrambled Sobol sequence in 32-bit integers.
//
// Sobol (1967), direction numbers of Joe and Kuo (2008). Point k in natural order: coordinate j is
// the exclusive or of the direction numbers of k's bits. Scrambling (Owen 1995) makes each bit's
// flip depend on all higher bits; a hash in which bit i depends on the bits below does it to the
// word with its bits reversed (Laine and Karras 2011, Comput. Graph. Forum 30(4); Burley 2020, J.
// Comput. Graph. Tech. 9(4); constants of Vegdahl 2021). So direction numbers are kept reversed.
// The first 2^m points stay a digital net under every seed.
#pragma once

#include <cstdint>

#include "config.h"
#include "lattice.h"
#include "pack.h"
#include "sobol_table.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {

constexpr int kSobolBits = 32;

// words[b]: reversed direction number of bit b of k, for a dimension of the table.
MVNROB_HD_FN void fill_sobol(uint32_t* words, int dimension) {
  // Numbers m_i, from m_i = 2 a_1 m_(i-1) ^ .. ^ 2^s m_(i-s) ^ m_(i-s); here `words` holds them.
  const uint32_t polynomial = tables::sobol_entry(dimension, 0);
  int degree = 0;
  while (polynomial >> (degree + 1)) ++degree;
  for (int i = 0; i < kSobolBits; ++i) {
    if (dimension == 0) {
      words[i] = 1;
    } else if (i < degree) {
      words[i] = tables::sobol_entry(dimension, i + 1);
    } else {
      uint32_t m = words[i - degree];
      for (int l = 1; l <= degree; ++l)
        if ((polynomial >> (degree - l)) & 1) m ^= words[i - l] << l;
      words[i] = m;
    }
  }
  for (int i = 0; i < kSobolBits; ++i) words[i] = reverse_bits<uint32_t>(words[i] << (31 - i));
}

// Reversed coordinate of point k.
MVNROB_HD_FN uint32_t sobol_word(const uint32_t* words, uint32_t k) {
  uint32_t x = 0;
  for (; k != 0; k >>= 1, ++words) x ^= *words & (0u - (k & 1u));
  return x;
}

// Coordinate from its reversed word: w in (0, 1) and wc = 1 - w, both exact. The word after the
// hash's sum with the seed is uniform on its own, so every point is.
template <class T>
MVNROB_HD void scrambled_point(UintPackOf<T> x, uint32_t seed, T& w, T& wc) {
  using U = UintPackOf<T>;
  x = x ^ (x * U(0x3d20adeau));
  x = x + U(seed);
  x = x * U((seed >> 16) | 1u);
  x = x ^ (x * U(0x05526c56u));
  x = x ^ (x * U(0x53a22864u));
  word_to_unit<T>(reverse_bits<U>(x), w, wc);
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
