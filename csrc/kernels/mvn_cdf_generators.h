// What the points' coordinates are made of, on the device, so that a call needs no table from the
// host.
#pragma once
#include "kernels/block.h"
#include "kernels/mvn_cdf_data.h"
#include "math/points.h"

namespace mvnrob::kernels {

MVNROB_DEVICE_FN bool is_prime(uint32_t x) {
  if (x < 4) return x > 1;
  if (x % 2 == 0) return false;
  for (uint32_t d = 3; d * d <= x; d += 2)
    if (x % d == 0) return false;
  return true;
}

// Words of coordinates 0 .. n, Richtmyer's generators being those of the primes in order;
// collective over a block. Samples of the union have a dimension more than there are variables.
template <int threads>
MVNROB_DEVICE_FN void fill_generators(const MvnCdfArgs& a, const Block<threads>& block) {
  const PointSet set = a.options.points;
  int found = 0;
  for (uint32_t first = 2; found <= a.n; first += threads) {
    const uint32_t candidate = first + uint32_t(block.thread());
    const bool prime = is_prime(candidate);
    int total = 0;
    const int j = found + block.rank(prime, total);
    if (prime && j <= a.n)
      math::fill_coordinate(set, j, math::richtmyer_from_prime(candidate),
                            a.generators + int64_t(j) * math::words_of(set));
    found += total;
  }
}

}  // namespace mvnrob::kernels
