#include "cpu/mvn_cdf_series.h"

#include <algorithm>

#include "math/lattice.h"

namespace mvnrob {

namespace {

constexpr int64_t kChunkTiles = 64;    // tiles of one task: fixed, so that sums are too
constexpr double kWorthThreads = 5e6;  // multiply-adds

SampleFn<float> pick(const SimdTable& table, float) { return table.sample_float; }
SampleFn<double> pick(const SimdTable& table, double) { return table.sample_double; }

}  // namespace

void run_here(int64_t count, const std::function<void(int64_t)>& task) {
  for (int64_t i = 0; i < count; ++i) task(i);
}

template <class scalar_t>
void Series<scalar_t>::start(const Factor& factor, double skip_limit, uint64_t seed) {
  const int64_t pivots = factor.pivots();
  packed_.pack(factor, skip_limit);
  generators_ = richtmyer_generators(pivots);
  shifts_.resize(kShifts * pivots);
  for (int s = 0; s < kShifts; ++s)
    for (int64_t j = 0; j < pivots; ++j)
      shifts_[s * pivots + j] = math::hash_shift(seed, uint32_t(s), uint32_t(j));
  for (SampleSums& sums : sums_) sums = {};
  points_ = 0;
}

template <class scalar_t>
void Series<scalar_t>::extend(int64_t points, const Runner& run) {
  const Program<scalar_t>& program = packed_.program();
  const int64_t tiles = (points - points_) / kTileSamples;
  const int64_t chunks = (tiles + kChunkTiles - 1) / kChunkTiles;
  task_sums_.assign(kShifts * chunks, {});
  const SampleFn<scalar_t> sample = pick(simd_table(), scalar_t(0));
  auto task = [&](int64_t number) {
    thread_local std::vector<scalar_t> scratch;
    const size_t size = size_t(workspace_size(program.n_pivots)) + 64;
    if (scratch.size() < size) scratch.resize(size);
    const uintptr_t address = reinterpret_cast<uintptr_t>(scratch.data());
    scalar_t* aligned = scratch.data() + (64 - address % 64) % 64 / sizeof(scalar_t);
    const int64_t shift = number / chunks, chunk = number % chunks;
    const int64_t first = points_ + chunk * kChunkTiles * kTileSamples;
    sample(program, generators_->data(), shifts_.data() + shift * program.n_pivots, uint32_t(first),
           std::min(kChunkTiles, tiles - chunk * kChunkTiles), aligned, &task_sums_[number]);
  };
  // Waking threads costs more than a few hundred microseconds of samples.
  const double work = double(kShifts * (points - points_)) * packed_.cost();
  if (work < kWorthThreads)
    run_here(kShifts * chunks, task);
  else
    run(kShifts * chunks, task);
  for (int s = 0; s < kShifts; ++s)
    for (int64_t c = 0; c < chunks; ++c) sums_[s].add(task_sums_[s * chunks + c]);
  points_ = points;
}

template class Series<float>;
template class Series<double>;

}  // namespace mvnrob
