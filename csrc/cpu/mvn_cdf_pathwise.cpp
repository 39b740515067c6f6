// mvn_cdf_pathwise on the CPU: values and derivatives for given pivots and points.
#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "checks.h"
#include "cpu/mvn_cdf_batch.h"
#include "cpu/mvn_cdf_pathwise_row.h"
#include "cpu/simd_dispatch.h"
#include "mvn_cdf_options.h"
#include "plan/variable.h"

namespace mvnrob {

const PathwiseTable& pathwise_table() { return MVNROB_SIMD_TABLE(mvn_cdf_pathwise_table); }

namespace {

bool forced(const int64_t* order, int64_t pivots) { return pivots > 0 && order[0] >= 0; }

// The tilt of the factor's pivots, or of others where those are free: as mvn_cdf takes it.
void find_tilt(const double* given, bool forced, RowWorkspace& w) {
  const int64_t pivots = w.factor.pivots();
  const bool nearest = !given && !forced && w.factor.facts().exhausted && w.factor.has_groups();
  if (nearest) {
    w.nearest.find(w.factor);
    w.factor.start_again(w.nearest.multipliers());
    if (w.factor.advance(pivots) == Advanced::yes) {
      w.tilt.find(w.factor, nullptr, &w.nearest.multipliers());
      return;
    }
    w.factor.start_again({});
    w.factor.advance(pivots);
  }
  w.tilt.find(w.factor, given);
}

// The row's variables and its factor; false where it has no answer. Without forced pivots variables
// that have no limits are left out.
bool factor_row(const RowInput& input, const int64_t* order, int64_t pivots, RowWorkspace& w) {
  const bool named = forced(order, pivots);
  if (named ? !w.all.read_all(input) : w.all.read(input) != Prepared::integrate) return false;
  w.factor.start(w.all, input.cov);
  int64_t count = 0;
  while (count < pivots && order[count] >= -1) ++count;
  if (named) return w.factor.follow(order, count);
  if (w.factor.advance(count) == Advanced::yes) return true;
  // Float32's rounding, as mvn_cdf takes it.
  const double single = plan::entry_error(false);
  if (w.all.entry_error >= single) return false;
  w.all.entry_error = single;
  w.factor.start(w.all, input.cov);
  return w.factor.advance(count) == Advanced::yes;
}

}  // namespace

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Outputs mvn_cdf_pathwise_cpu(const Tensor& upper, const Tensor& cov, std::optional<Tensor> lower,
                             const Tensor& seed, const Tensor& order_in, const Tensor& first_in,
                             const Tensor& count_in, const Tensor& weight_in,
                             std::string compute_dtype, bool wants_cov, std::string points_name,
                             bool factored, std::optional<Tensor> tilt_in) {
  check_mvn_cdf_pathwise(upper, cov, lower, seed, order_in, first_in, count_in, weight_in,
                         compute_dtype, wants_cov, factored, tilt_in);
  const PointSet set = point_set_of("mvn_cdf_pathwise", points_name);
  const Tensor order = contiguous_of(order_in), first = contiguous_of(first_in),
               points = contiguous_of(count_in), weight = contiguous_of(weight_in);
  const std::optional<Tensor> tilt = contiguous_of(tilt_in);
  const int64_t batch = upper.size(0), n = upper.size(1), pivots = order.size(1);
  const int64_t* orders = order.const_data_ptr<int64_t>();
  check_mvn_cdf_pathwise_values(orders, first.const_data_ptr<int64_t>(),
                                points.const_data_ptr<int64_t>(), batch, pivots, n);
  const Batch rows(upper, cov, lower, seed, factored);
  auto real = [&](std::initializer_list<int64_t> shape) {
    Tensor t = new_tensor(upper, shape, ScalarType::Double);
    std::fill(t.mutable_data_ptr<double>(), t.mutable_data_ptr<double>() + t.numel(), 0.0);
    return t;
  };
  Tensor value = real({batch, kShifts}), to_upper = real({batch, kShifts, n}),
         to_lower = real({batch, kShifts, n}), to_cov = wants_cov ? real({batch, n, n}) : real({0}),
         cov_variance = wants_cov ? real({batch, n, n}) : real({0}), log_unit = real({batch}),
         used = new_tensor(upper, {batch}, ScalarType::Long);
  solve_rows(batch, [&](int64_t b, RowWorkspace& w, const Runner& run) {
    double* values = value.mutable_data_ptr<double>() + b * kShifts;
    double* upper_out = to_upper.mutable_data_ptr<double>() + b * kShifts * n;
    double* lower_out = to_lower.mutable_data_ptr<double>() + b * kShifts * n;
    double* cov_out = wants_cov ? to_cov.mutable_data_ptr<double>() + b * n * n : nullptr;
    double* variance_out =
        wants_cov ? cov_variance.mutable_data_ptr<double>() + b * n * n : nullptr;
    int64_t& pivots_out = used.mutable_data_ptr<int64_t>()[b];
    const RowInput input = rows.row(b);
    const int64_t* mine = orders + b * pivots;
    if (!factor_row(input, mine, pivots, w)) {
      const double nan = std::numeric_limits<double>::quiet_NaN();
      std::fill(values, values + kShifts, nan);
      std::fill(upper_out, upper_out + kShifts * n, nan);
      std::fill(lower_out, lower_out + kShifts * n, nan);
      for (double* p : {cov_out, variance_out})
        if (p) std::fill(p, p + n * n, nan);
      pivots_out = 0;
      log_unit.mutable_data_ptr<double>()[b] = nan;
      return;
    }
    Pathwise pathwise;
    const int64_t from = first.const_data_ptr<int64_t>()[b],
                  count = points.const_data_ptr<int64_t>()[b];
    if (tilt) {
      const double* mu = tilt->const_data_ptr<double>() + b * pivots;
      find_tilt(std::isnan(mu[0]) ? nullptr : mu, forced(mine, pivots), w);
      log_unit.mutable_data_ptr<double>()[b] = w.tilt.found().log_unit;
      pathwise.run_tilted(w.factor, w.tilt, rows.seed(b), set, from, count, wants_cov, run);
    } else if (compute_dtype == "float32") {
      pathwise.run<float>(w.factor, rows.seed(b), set, from, count, wants_cov, run);
    } else {
      pathwise.run<double>(w.factor, rows.seed(b), set, from, count, wants_cov, run);
    }
    for (int s = 0; s < kShifts; ++s) {
      values[s] = pathwise.value(s);
      pathwise.to_limits(s, upper_out + s * n, lower_out + s * n);
    }
    if (wants_cov)
      pathwise.to_cov(weight.const_data_ptr<double>() + b * kShifts, n, cov_out, variance_out);
    pivots_out = pathwise.pivots();
  });
  return {value, to_upper, to_lower, to_cov, cov_variance, used, log_unit};
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CPU, m) {
  MVNROB_IMPL(m, "mvn_cdf_pathwise", &mvn_cdf_pathwise_cpu);
}

}  // namespace mvnrob
