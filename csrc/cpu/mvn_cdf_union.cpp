#include "cpu/mvn_cdf_union.h"

#include <algorithm>

namespace mvnrob {

void Union::start(const Factor& factor, uint64_t seed, PointSet set) {
  const int64_t m = factor.m_, pivots = factor.pivots_, rows = simd_table().block_rows;
  upper_ = factor.upper_;
  lower_ = factor.lower_;
  coef_.resize(m * pivots);
  for (int64_t row = 0; row < m; row += rows) {
    double* block = coef_.data() + row * pivots;
    const int64_t count = std::min(rows, m - row);
    for (int64_t l = 0; l < pivots; ++l)
      for (int64_t r = 0; r < count; ++r) *block++ = factor.entry(row + r, l);
  }
  const Problem& problem = *factor.problem_;
  row_of_.resize(m);
  for (int64_t row = 0; row < m; ++row) row_of_[factor.position_[row]] = row;
  mass_.resize(2 * m);
  share_.resize(2 * m);
  std::vector<double> negated(m);
  for (int64_t i = 0; i < m; ++i) negated[i] = -problem.upper[i];
  simd_table().ndtr(negated.data(), mass_.data(), m);
  simd_table().ndtr(problem.lower.data(), mass_.data() + m, m);
  const int64_t events = problem.rectangular ? 2 * m : m;
  double whole = 0;
  for (int64_t h = 0; h < events; ++h) share_[h] = whole += mass_[h];
  for (int64_t h = 0; h < events; ++h) share_[h] /= whole;
  program_.n_variables = m;
  program_.n_pivots = pivots;
  program_.coef = coef_.data();
  program_.upper = upper_.data();
  program_.lower = lower_.data();
  program_.n_events = events;
  program_.row_of = row_of_.data();
  program_.mass = mass_.data();
  program_.share = share_.data();
  program_.whole_mass = whole;
  points_.start(pivots + 1, seed, set);
}

void Union::extend(int64_t points, const Runner& run) {
  const double cost = double(program_.n_variables) * double(program_.n_pivots + 20);
  points_.extend(
      points, cost, run,
      [&](const ShiftedPoints& shifted, uint32_t first, int64_t tiles, SampleSums* sums) {
        simd_table().sample_union(program_, shifted, first, tiles,
                                  aligned_scratch<double>(union_workspace_size(program_)), sums);
      });
}

}  // namespace mvnrob
