// Coordinates of the points of any set, in words that every backend keeps alike.
#pragma once

#include <cstdint>

#include "lattice.h"
#include "point_set.h"
#include "sobol.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {

// Words of one coordinate: a generator, or the direction numbers of Sobol's sequence.
MVNROB_HD int words_of(PointSet set) { return set == PointSet::sobol ? kSobolBits : 1; }

// Sobol's sequence beyond the dimensions of its table goes on as Richtmyer's.
MVNROB_HD int sobol_coordinates(PointSet set) {
  return set == PointSet::sobol ? int(tables::kSobolDimensions) : 0;
}
MVNROB_HD bool is_sobol(PointSet set, int j) { return j < sobol_coordinates(set); }

// The words of coordinate j, given Richtmyer's generator for it.
MVNROB_HD_FN void fill_coordinate(PointSet set, int j, uint32_t richtmyer, uint32_t* words) {
  if (is_sobol(set, j))
    fill_sobol(words, j);
  else
    *words = set == PointSet::lattice ? embedded_generator(j, richtmyer) : richtmyer;
}

// What multiplies the generator at point k.
MVNROB_HD uint32_t point_index(PointSet set, uint32_t k) {
  return set == PointSet::lattice ? reverse_bits(k) : k;
}

}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
