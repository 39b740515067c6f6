// mvn_cdf_sums on the CPU: what the sampler sums to for given pivots and points.
#include <algorithm>
#include <limits>

#include "checks.h"
#include "cpu/mvn_cdf_batch.h"
#include "mvn_cdf_options.h"

namespace mvnrob {

namespace {

// A row that mvn_cdf would not sample, or whose pivots cannot be these, is NaN.
template <class scalar_t>
void sum_row(const RowInput& input, uint64_t seed, const int64_t* order, int64_t pivots,
             int64_t points, PointSet set, RowWorkspace& w, Series<scalar_t>& series,
             const Runner& run, double* out) {
  std::fill(out, out + kShifts * kSums, std::numeric_limits<double>::quiet_NaN());
  if (!w.all.read_all(input)) return;
  w.factor.start(w.all, input.cov);
  if (!w.factor.follow(order, pivots)) return;
  series.start(w.factor, std::numeric_limits<double>::infinity(), seed, set);
  series.extend(points, run);
  for (int s = 0; s < kShifts; ++s, out += kSums) {
    const SampleSums& sums = series.sums()[s];
    out[0] = sums.value;
    out[1] = sums.complement;
    out[2] = sums.below;
    out[3] = sums.above;
    out[4] = sums.square;
  }
}

}  // namespace

Tensor mvn_cdf_sums_cpu(const Tensor& upper, const Tensor& cov, std::optional<Tensor> lower,
                        const Tensor& seed, const Tensor& order_in, int64_t n_points,
                        std::string compute_dtype, std::string points, bool factored) {
  check_mvn_cdf_sums(upper, cov, lower, seed, order_in, n_points, compute_dtype, factored);
  const PointSet set = point_set_of("mvn_cdf_sums", points);
  const Tensor order = contiguous_of(order_in);
  const int64_t* orders = order.const_data_ptr<int64_t>();
  const int64_t pivots = order.size(1);
  check_mvn_cdf_order_values(orders, order.size(0), pivots, upper.size(1));
  const Batch rows(upper, cov, lower, seed, factored);
  Tensor out = new_tensor(upper, {rows.size(), kShifts, kSums}, ScalarType::Double);
  double* sums = out.mutable_data_ptr<double>();
  solve_rows(rows.size(), [&](int64_t b, RowWorkspace& w, const Runner& run) {
    auto sum = [&](auto& series) {
      sum_row(rows.row(b), rows.seed(b), orders + b * pivots, pivots, n_points, set, w, series, run,
              sums + b * kShifts * kSums);
    };
    if (compute_dtype == "float32")
      sum(w.series_float);
    else
      sum(w.series_double);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CPU, m) { MVNROB_IMPL(m, "mvn_cdf_sums", &mvn_cdf_sums_cpu); }

}  // namespace mvnrob
