// The points sampled of one factor by separation of variables, and what they sum to. Torch-free.
#pragma once
#include <cstdint>

#include "cpu/mvn_cdf_pack.h"
#include "cpu/mvn_cdf_points.h"
#include "cpu/mvn_cdf_tilt.h"

namespace mvnrob {

template <class scalar_t>
class Series {
 public:
  // Of this factor and seed; no points yet.
  void start(const Factor& factor, double skip_limit, uint64_t seed, PointSet set);

  // The same, tilted, which only float64 samples are; the tilt is kept by reference.
  void start_tilted(const Factor& factor, double skip_limit, uint64_t seed, PointSet set,
                    const Tilt& tilt);

  // Continues to `points` of each shift.
  void extend(int64_t points, const Runner& run);

  const SampleSums* sums() const { return points_.sums(); }  // of each shift

 private:
  PackedProgram<scalar_t> packed_;
  Points points_;
};

}  // namespace mvnrob
