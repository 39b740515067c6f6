// mvn_cdf on the CPU.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <tuple>

#include "checks.h"
#include "cpu/mvn_cdf_batch.h"
#include "cpu/simd_dispatch.h"
#include "mvn_cdf_options.h"

namespace mvnrob {

const SimdTable& simd_table() { return MVNROB_SIMD_TABLE(mvn_cdf_table); }

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Outputs mvn_cdf_cpu(const Tensor& upper, const Tensor& cov, std::optional<Tensor> lower,
                    const Tensor& seed, double abs_tol, double rel_tol, int64_t max_points,
                    std::string method, std::string compute_dtype, std::string points,
                    bool factored, double log_tol) {
  check_mvn_cdf(upper, cov, lower, seed, factored);
  const Batch rows(upper, cov, lower, seed, factored);
  const int64_t batch = rows.size();
  const bool is_double = upper.scalar_type() == ScalarType::Double;
  const RowOptions options{abs_tol,
                           rel_tol,
                           max_points,
                           method_of(method),
                           compute_type_of(compute_dtype),
                           point_set_of("mvn_cdf", points),
                           log_tol};

  auto real = [&] { return new_tensor(upper, {batch}); };
  auto integer = [&] { return new_tensor(upper, {batch}, ScalarType::Long); };
  Tensor prob = real(), complement = real(), error = real(), status = integer(),
         n_points = integer(), active = integer(), pivots = integer(), log_prob = real(),
         log_error = real();
  auto store = [&](Tensor& t, int64_t b, double x) {
    if (is_double)
      t.mutable_data_ptr<double>()[b] = x;
    else
      t.mutable_data_ptr<float>()[b] = float(x);
  };

  solve_rows(batch, [&](int64_t b, RowWorkspace& workspace, const Runner& run) {
    const RowResult r = integrate_row(rows.row(b), rows.seed(b), options, workspace, run);
    // A float32 answer is rounded: half an ulp of it belongs to the error.
    const double rounding = is_double || r.error == 0 ? 0 : 6e-8 * std::max(r.prob, r.complement);
    const double log_rounding = is_double || r.log_error == 0 ? 0 : 6e-8 * std::abs(r.log_prob);
    store(prob, b, r.prob);
    store(complement, b, r.complement);
    store(error, b, r.error + rounding);
    store(log_prob, b, r.log_prob);
    store(log_error, b, r.log_error + log_rounding);
    status.mutable_data_ptr<int64_t>()[b] = int64_t(r.status);
    n_points.mutable_data_ptr<int64_t>()[b] = r.n_points;
    active.mutable_data_ptr<int64_t>()[b] = r.n_active;
    pivots.mutable_data_ptr<int64_t>()[b] = r.n_pivots;
  });
  return {prob, complement, error, status, n_points, active, pivots, log_prob, log_error};
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CPU, m) { MVNROB_IMPL(m, "mvn_cdf", &mvn_cdf_cpu); }

}  // namespace mvnrob
