#include "cpu/mvn_cdf_series.h"

namespace mvnrob {

namespace {

SampleFn<float> pick(const SimdTable& table, const Program<float>&) { return table.sample_float; }
SampleFn<double> pick(const SimdTable& table, const Program<double>& program) {
  return program.tilt ? table.sample_tilted : table.sample_double;
}

}  // namespace

template <class scalar_t>
void Series<scalar_t>::start(const Factor& factor, double skip_limit, uint64_t seed, PointSet set) {
  packed_.pack(factor, skip_limit);
  points_.start(factor.pivots(), seed, set);
}

template <>
void Series<double>::start_tilted(const Factor& factor, double skip_limit, uint64_t seed,
                                  PointSet set, const Tilt& tilt) {
  start(factor, skip_limit, seed, set);
  packed_.set_tilt(tilt.of_pivots(), tilt.found().log_unit);
}

template <class scalar_t>
void Series<scalar_t>::extend(int64_t points, const Runner& run) {
  const Program<scalar_t>& program = packed_.program();
  const SampleFn<scalar_t> sample = pick(simd_table(), program);
  points_.extend(
      points, packed_.cost(), run,
      [&](const ShiftedPoints& shifted, uint32_t first, int64_t tiles, SampleSums* sums) {
        sample(program, shifted, first, tiles,
               aligned_scratch<scalar_t>(workspace_size(program.n_pivots)), sums);
      });
}

template class Series<float>;
template class Series<double>;

}  // namespace mvnrob
