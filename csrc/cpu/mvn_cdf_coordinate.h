// One coordinate of the 64 points of a tile, for the samplers. Included by mvn_cdf_simd.cpp, once
// for each instruction set.
#pragma once
#include "cpu/mvn_cdf_panel.h"
#include "math/points.h"

namespace mvnrob {
namespace MVNROB_ISA {
namespace {

struct Lanes {
  uint32_t v[kTileSamples];
};

// 0 .. 63, as they are and with the bits of a word reversed: a tile begins at a multiple of 64, so
// the index of point first + i is that of `first` plus that of i.
constexpr Lanes lanes(bool reversed) {
  Lanes out{};
  for (uint32_t i = 0; i < kTileSamples; ++i) {
    uint32_t x = 0;
    for (int b = 0; b < 6; ++b) x |= ((i >> b) & 1u) << (reversed ? 31 - b : b);
    out.v[i] = x;
  }
  return out;
}
constexpr Lanes kLanes = lanes(false), kReversedLanes = lanes(true);

// Of a lattice.
struct LatticeCoordinate {
  const uint32_t* lanes;
  uint32_t index, generator, shift;

  // Points at .. of the tile, as many as V has lanes.
  template <class V>
  MVNROB_HD void get(int at, V& w, V& wc) const {
    using Index = math::UintPackOf<V>;
    math::lattice_point<V>(Index::load(lanes + at) + Index(index), generator, shift, w, wc);
  }
};

// Of Sobol's sequence.
struct SobolCoordinate {
  alignas(64) uint32_t word[kTileSamples];
  uint32_t seed;

  SobolCoordinate(const uint32_t* direction, uint32_t first, uint32_t seed) : seed(seed) {
    word[0] = math::sobol_word(direction, first);
    for (int b = 0; b < 6; ++b)
      for (int i = 0; i < 1 << b; ++i) word[(1 << b) + i] = word[i] ^ direction[b];
  }

  template <class V>
  MVNROB_HD void get(int at, V& w, V& wc) const {
    math::scrambled_point<V>(math::UintPackOf<V>::load(word + at), seed, w, wc);
  }
};

// use(coordinate j of the tile that begins with point `first`)
template <class Use>
MVNROB_HD void with_coordinate(const ShiftedPoints& points, int64_t j, uint32_t first,
                               const Use& use) {
  const uint32_t* words = points.words + j * math::words_of(points.set);
  if (math::is_sobol(points.set, int(j)))
    use(SobolCoordinate(words, first, points.shift[j]));
  else
    use(LatticeCoordinate{(points.set == PointSet::lattice ? kReversedLanes : kLanes).v,
                          math::point_index(points.set, first), *words, points.shift[j]});
}

}  // namespace
}  // namespace MVNROB_ISA
}  // namespace mvnrob
