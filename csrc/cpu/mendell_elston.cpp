// mendell_elston and its reverse on the CPU: a row a thread.
#include <cmath>
#include <tuple>

#include "checks.h"
#include "cpu/mendell_elston_sweep.h"
#include "cpu/mvn_cdf_batch.h"

namespace mvnrob {

using SweepOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SweepOutputs mendell_elston_cpu(const Tensor& upper, const Tensor& cov,
                                std::optional<Tensor> lower) {
  check_mendell_elston(upper, cov, lower);
  const Batch rows(upper, cov, lower);
  const int64_t batch = rows.size();
  const bool is_double = upper.scalar_type() == ScalarType::Double;
  auto real = [&] { return new_tensor(upper, {batch}); };
  auto integer = [&] { return new_tensor(upper, {batch}, ScalarType::Long); };
  Tensor prob = real(), complement = real(), log_prob = real(), status = integer(),
         active = integer(), pivots = integer();
  auto store = [&](Tensor& t, int64_t b, double x) {
    if (is_double)
      t.mutable_data_ptr<double>()[b] = x;
    else
      t.mutable_data_ptr<float>()[b] = float(x);
  };
  share_rows(batch, [&](const NextRow& next) {
    MendellElstonSweep sweep;
    for (int64_t b = next(); b < batch; b = next()) {
      const SweepResult r = sweep.run(rows.row(b));
      store(prob, b, std::exp(r.log_prob));
      store(complement, b, r.log_prob == 0 ? 0 : -std::expm1(r.log_prob));
      store(log_prob, b, r.log_prob);
      status.mutable_data_ptr<int64_t>()[b] = int64_t(r.status);
      active.mutable_data_ptr<int64_t>()[b] = r.n_active;
      pivots.mutable_data_ptr<int64_t>()[b] = r.n_pivots;
    }
  });
  return {prob, complement, log_prob, status, active, pivots};
}

namespace {

template <class scalar_t>
void reverse_rows(const Batch& rows, const Tensor& grad, Tensor& to_upper, Tensor* to_lower,
                  Tensor* to_cov) {
  const int64_t batch = rows.size(), n = to_upper.size(1);
  const double* factor = grad.const_data_ptr<double>();
  share_rows(batch, [&](const NextRow& next) {
    MendellElstonSweep sweep;
    for (int64_t b = next(); b < batch; b = next()) {
      sweep.run(rows.row(b));
      sweep.reverse<scalar_t>(
          factor[b], {to_upper.mutable_data_ptr<scalar_t>() + b * n,
                      to_lower ? to_lower->mutable_data_ptr<scalar_t>() + b * n : nullptr,
                      to_cov ? to_cov->mutable_data_ptr<scalar_t>() + b * n * n : nullptr});
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> mendell_elston_backward_cpu(const Tensor& grad,
                                                               const Tensor& upper,
                                                               const Tensor& cov,
                                                               std::optional<Tensor> lower,
                                                               bool wants_cov) {
  check_mendell_elston_backward(grad, upper, cov, lower);
  const Batch rows(upper, cov, lower);
  const int64_t batch = upper.size(0), n = upper.size(1);
  Tensor to_upper = new_tensor(upper, {batch, n});
  Tensor to_lower = lower.has_value() ? new_tensor(upper, {batch, n}) : new_tensor(upper, {0});
  Tensor to_cov = wants_cov ? new_tensor(upper, {batch, n, n}) : new_tensor(upper, {0});
  const Tensor factor = contiguous_of(grad);
  Tensor* lower_out = lower.has_value() ? &to_lower : nullptr;
  Tensor* cov_out = wants_cov ? &to_cov : nullptr;
  if (upper.scalar_type() == ScalarType::Double)
    reverse_rows<double>(rows, factor, to_upper, lower_out, cov_out);
  else
    reverse_rows<float>(rows, factor, to_upper, lower_out, cov_out);
  return {to_upper, to_lower, to_cov};
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CPU, m) {
  MVNROB_IMPL(m, "mendell_elston", &mendell_elston_cpu);
  MVNROB_IMPL(m, "mendell_elston_backward", &mendell_elston_backward_cpu);
}

}  // namespace mvnrob
