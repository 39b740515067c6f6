// mendell_elston and its reverse on CUDA tensors: check, device guard, stream, workspace, launch.
#include "cuda/mendell_elston.h"

#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <tuple>

#include "checks.h"
#include "cuda/errors.h"
#include "cuda/rows.h"
#include "cuda/stream.h"

namespace mvnrob {

namespace {

using kernels::MendellElstonArgs;

void run(const char* op, MendellElstonArgs a, const cuda::Rows& in) {
  if (a.rows == 0) return;
  // More blocks at a time than this holds are no faster for rows so large.
  constexpr int64_t kMostBytes = int64_t(8) << 30;
  const int32_t device = in.device();
  int64_t blocks = 0;
  cuda::check(op, cuda::mendell_elston_blocks(a, device, &blocks), "run its kernels");
  a.block_bytes = std::max<int64_t>(kernels::sweep_bytes(a), 128);
  blocks = std::max<int64_t>(1, std::min(blocks, kMostBytes / a.block_bytes));
  const Tensor memory = in.empty({blocks * a.block_bytes}, ScalarType::Byte);
  a.memory = static_cast<unsigned char*>(memory.mutable_data_ptr());
  cuda::check(op, cuda::launch_mendell_elston(a, blocks, device, cuda::stream_of(device)),
              "take the launch");
}

}  // namespace

using SweepOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SweepOutputs mendell_elston_cuda(const Tensor& upper, const Tensor& cov,
                                 std::optional<Tensor> lower) {
  check_mendell_elston(upper, cov, lower);
  const torch::stable::accelerator::DeviceGuard guard(upper.get_device_index());
  const cuda::Rows in(upper, cov, lower);
  auto a = in.arguments<MendellElstonArgs>();
  const auto real = [&] { return in.empty({a.rows}); };
  const auto integer = [&] { return in.empty({a.rows}, ScalarType::Long); };
  const Tensor prob = real(), complement = real(), log_prob = real(), status = integer(),
               n_active = integer(), n_pivots = integer();
  a.prob = prob.mutable_data_ptr();
  a.complement = complement.mutable_data_ptr();
  a.log_prob = log_prob.mutable_data_ptr();
  a.status = status.mutable_data_ptr<int64_t>();
  a.n_active = n_active.mutable_data_ptr<int64_t>();
  a.n_pivots = n_pivots.mutable_data_ptr<int64_t>();
  run("mendell_elston", a, in);
  return {prob, complement, log_prob, status, n_active, n_pivots};
}

std::tuple<Tensor, Tensor, Tensor> mendell_elston_backward_cuda(const Tensor& grad_in,
                                                                const Tensor& upper,
                                                                const Tensor& cov,
                                                                std::optional<Tensor> lower,
                                                                bool wants_cov) {
  check_mendell_elston_backward(grad_in, upper, cov, lower);
  const torch::stable::accelerator::DeviceGuard guard(upper.get_device_index());
  const cuda::Rows in(upper, cov, lower);
  const Tensor grad = contiguous_of(grad_in);
  auto a = in.arguments<MendellElstonArgs>();
  const int64_t n = a.n;
  const Tensor to_upper = in.empty({a.rows, n});
  const Tensor to_lower = lower.has_value() ? in.empty({a.rows, n}) : in.empty({0});
  const Tensor to_cov = wants_cov ? in.empty({a.rows, n, n}) : in.empty({0});
  a.grad = grad.const_data_ptr<double>();
  a.to_upper = to_upper.mutable_data_ptr();
  a.to_lower = lower.has_value() ? to_lower.mutable_data_ptr() : nullptr;
  a.to_cov = wants_cov ? to_cov.mutable_data_ptr() : nullptr;
  if (n > 0) run("mendell_elston_backward", a, in);
  return {to_upper, to_lower, to_cov};
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CUDA, m) {
  MVNROB_IMPL(m, "mendell_elston", &mendell_elston_cuda);
  MVNROB_IMPL(m, "mendell_elston_backward", &mendell_elston_backward_cuda);
}

}  // namespace mvnrob
