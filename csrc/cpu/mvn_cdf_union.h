// Samples of the union of the events that a variable fails (plan/union.h): 1 - P with its digits.
// Torch-free.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/mvn_cdf_factor.h"
#include "cpu/mvn_cdf_points.h"
#include "cpu/mvn_cdf_program.h"

namespace mvnrob {

class Union {
 public:
  // Of a factor with all its pivots; no points yet.
  void start(const Factor& factor, uint64_t seed, PointSet set);

  // Continues to `points` of each shift.
  void extend(int64_t points, const Runner& run);

  const SampleSums* sums() const { return points_.sums(); }  // of each shift

 private:
  UnionProgram program_{};
  Points points_;
  std::vector<int64_t> row_of_;
  std::vector<double> coef_, upper_, lower_, mass_, share_;
};

}  // namespace mvnrob
