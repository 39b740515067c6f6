// The points of 8 random shifts (or scramblings), sampled in tasks of a fixed size. Torch-free.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/generators.h"
#include "cpu/mvn_cdf_program.h"

namespace mvnrob {

// Runs task(0) .. task(count - 1), in any order, possibly at once.
using Runner = std::function<void(int64_t count, const std::function<void(int64_t)>& task)>;

// Runs them in order on the calling thread.
void run_here(int64_t count, const std::function<void(int64_t)>& task);

class Points {
 public:
  // No points yet; the shifts are hashed from the seed.
  void start(int64_t dimensions, uint64_t seed, PointSet set);

  // Continues to `points` of each shift: sample(its points, first point, tiles, sums) for every
  // task, of `cost` multiply-adds a point.
  using Sample = std::function<void(const ShiftedPoints& shifted, uint32_t first, int64_t tiles,
                                    SampleSums* sums)>;
  void extend(int64_t points, double cost, const Runner& run, const Sample& sample);

  const SampleSums* sums() const { return sums_; }  // of each shift

 private:
  PointSet set_ = PointSet::lattice;
  Generators generators_;
  int64_t dimensions_ = 0;
  std::vector<uint32_t> shifts_;
  std::vector<SampleSums> task_sums_;
  SampleSums sums_[kShifts] = {};
  int64_t points_ = 0;  // of each shift
};

// Memory of this thread, aligned for any register.
template <class scalar_t>
scalar_t* aligned_scratch(int64_t count) {
  thread_local std::vector<scalar_t> scratch;
  if (int64_t(scratch.size()) < count + 64) scratch.resize(size_t(count + 64));
  const uintptr_t address = reinterpret_cast<uintptr_t>(scratch.data());
  return scratch.data() + (64 - address % 64) % 64 / sizeof(scalar_t);
}

}  // namespace mvnrob
