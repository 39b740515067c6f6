#include "cpu/mvn_cdf_points.h"

#include <algorithm>

#include "math/lattice.h"

namespace mvnrob {

namespace {

constexpr int64_t kChunkTiles = 64;    // tiles of one task: fixed, so that sums are too
constexpr double kWorthThreads = 5e6;  // multiply-adds

}  // namespace

void run_here(int64_t count, const std::function<void(int64_t)>& task) {
  for (int64_t i = 0; i < count; ++i) task(i);
}

void Points::start(int64_t dimensions, uint64_t seed, PointSet set) {
  set_ = set;
  dimensions_ = dimensions;
  generators_ = generators_of(set, dimensions);
  shifts_.resize(kShifts * dimensions);
  for (int s = 0; s < kShifts; ++s)
    for (int64_t j = 0; j < dimensions; ++j)
      shifts_[s * dimensions + j] = math::hash_shift(seed, uint32_t(s), uint32_t(j));
  for (SampleSums& sums : sums_) sums = {};
  points_ = 0;
}

void Points::extend(int64_t points, double cost, const Runner& run, const Sample& sample) {
  const int64_t tiles = (points - points_) / kTileSamples;
  const int64_t chunks = (tiles + kChunkTiles - 1) / kChunkTiles;
  task_sums_.assign(kShifts * chunks, {});
  auto task = [&](int64_t number) {
    const int64_t shift = number / chunks, chunk = number % chunks;
    const int64_t first = points_ + chunk * kChunkTiles * kTileSamples;
    sample({set_, generators_->data(), shifts_.data() + shift * dimensions_}, uint32_t(first),
           std::min(kChunkTiles, tiles - chunk * kChunkTiles), &task_sums_[number]);
  };
  // Waking threads costs more than a few hundred microseconds of samples.
  if (double(kShifts * (points - points_)) * cost < kWorthThreads)
    run_here(kShifts * chunks, task);
  else
    run(kShifts * chunks, task);
  for (int s = 0; s < kShifts; ++s)
    for (int64_t c = 0; c < chunks; ++c) sums_[s].add(task_sums_[s * chunks + c]);
  points_ = points;
}

}  // namespace mvnrob
