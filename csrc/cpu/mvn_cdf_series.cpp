#include "cpu/mvn_cdf_series.h"

namespace mvnrob {

namespace {

SampleFn<float> pick(const SimdTable& table, float) { return table.sample_float; }
SampleFn<double> pick(const SimdTable& table, double) { return table.sample_double; }

}  // namespace

template <class scalar_t>
void Series<scalar_t>::start(const Factor& factor, double skip_limit, uint64_t seed) {
  packed_.pack(factor, skip_limit);
  points_.start(factor.pivots(), seed);
}

template <class scalar_t>
void Series<scalar_t>::extend(int64_t points, const Runner& run) {
  const Program<scalar_t>& program = packed_.program();
  const SampleFn<scalar_t> sample = pick(simd_table(), scalar_t(0));
  points_.extend(points, packed_.cost(), run,
                 [&](const uint32_t* shift, uint32_t first, int64_t tiles, SampleSums* sums) {
                   sample(program, points_.generators(), shift, first, tiles,
                          aligned_scratch<scalar_t>(workspace_size(program.n_pivots)), sums);
                 });
}

template class Series<float>;
template class Series<double>;

}  // namespace mvnrob
