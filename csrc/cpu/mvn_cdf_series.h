// The points sampled of one factor, and what they sum to. Torch-free.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/generators.h"
#include "cpu/mvn_cdf_pack.h"

namespace mvnrob {

// Runs task(0) .. task(count - 1), in any order, possibly at once.
using Runner = std::function<void(int64_t count, const std::function<void(int64_t)>& task)>;

// Runs them in order on the calling thread.
void run_here(int64_t count, const std::function<void(int64_t)>& task);

template <class scalar_t>
class Series {
 public:
  // Of this factor and seed; no points yet.
  void start(const Factor& factor, double skip_limit, uint64_t seed);

  // Continues to `points` of each shift.
  void extend(int64_t points, const Runner& run);

  const SampleSums* sums() const { return sums_; }  // of each shift

 private:
  PackedProgram<scalar_t> packed_;
  Generators generators_;
  std::vector<uint32_t> shifts_;
  std::vector<SampleSums> task_sums_;
  SampleSums sums_[kShifts] = {};
  int64_t points_ = 0;  // of each shift
};

}  // namespace mvnrob
