// mendell_elston and its reverse on CUDA tensors: check, device guard, stream, workspace, launch.
#include "cuda/mendell_elston.h"

#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <tuple>

#include "checks.h"
#include "cuda/errors.h"

namespace mvnrob {

namespace {

using kernels::MendellElstonArgs;

// Holds what the arguments point to.
struct SweepInput {
  Tensor upper, cov;
  std::optional<Tensor> lower;

  SweepInput(const Tensor& u, const Tensor& c, const std::optional<Tensor>& l)
      : upper(torch::stable::contiguous(u)), cov(c) {
    if (l.has_value()) lower = torch::stable::contiguous(*l);
  }
};

MendellElstonArgs arguments(const char* op, const SweepInput& in) {
  STD_TORCH_CHECK(in.upper.size(1) < (int64_t(1) << 31), op,
                  ": upper must have fewer than 2^31 variables, got ", in.upper.size(1));
  MendellElstonArgs a{};
  a.rows = in.upper.size(0);
  a.n = int32_t(in.upper.size(1));
  a.is_double = in.upper.scalar_type() == ScalarType::Double;
  a.upper = in.upper.const_data_ptr();
  a.lower = in.lower.has_value() ? in.lower->const_data_ptr() : nullptr;
  a.cov = in.cov.const_data_ptr();
  a.cov_strides = {in.cov.stride(0), in.cov.stride(1), in.cov.stride(2)};
  return a;
}

void run(const char* op, MendellElstonArgs a, const Tensor& like) {
  if (a.rows == 0) return;
  // More blocks at a time than this holds are no faster for rows so large.
  constexpr int64_t kMostBytes = int64_t(8) << 30;
  const int32_t device = like.get_device_index();
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  int64_t blocks = 0;
  cuda::check(op, cuda::mendell_elston_blocks(a, device, &blocks), "run its kernels");
  a.block_bytes = std::max<int64_t>(kernels::sweep_bytes(a), 128);
  blocks = std::max<int64_t>(1, std::min(blocks, kMostBytes / a.block_bytes));
  const Tensor memory = torch::stable::new_empty(like, {blocks * a.block_bytes}, ScalarType::Byte);
  a.memory = static_cast<unsigned char*>(memory.mutable_data_ptr());
  cuda::check(op, cuda::launch_mendell_elston(a, blocks, device, static_cast<cudaStream_t>(stream)),
              "take the launch");
}

}  // namespace

using SweepOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SweepOutputs mendell_elston_cuda(const Tensor& upper, const Tensor& cov,
                                 std::optional<Tensor> lower) {
  check_mendell_elston(upper, cov, lower);
  const torch::stable::accelerator::DeviceGuard guard(upper.get_device_index());
  const SweepInput in(upper, cov, lower);
  MendellElstonArgs a = arguments("mendell_elston", in);
  const auto real = [&] { return torch::stable::new_empty(in.upper, {a.rows}); };
  const auto integer = [&] {
    return torch::stable::new_empty(in.upper, {a.rows}, ScalarType::Long);
  };
  const Tensor prob = real(), complement = real(), log_prob = real(), status = integer(),
               n_active = integer(), n_pivots = integer();
  a.prob = prob.mutable_data_ptr();
  a.complement = complement.mutable_data_ptr();
  a.log_prob = log_prob.mutable_data_ptr();
  a.status = status.mutable_data_ptr<int64_t>();
  a.n_active = n_active.mutable_data_ptr<int64_t>();
  a.n_pivots = n_pivots.mutable_data_ptr<int64_t>();
  run("mendell_elston", a, in.upper);
  return {prob, complement, log_prob, status, n_active, n_pivots};
}

std::tuple<Tensor, Tensor, Tensor> mendell_elston_backward_cuda(const Tensor& grad_in,
                                                                const Tensor& upper,
                                                                const Tensor& cov,
                                                                std::optional<Tensor> lower,
                                                                bool wants_cov) {
  check_mendell_elston_backward(grad_in, upper, cov, lower);
  const torch::stable::accelerator::DeviceGuard guard(upper.get_device_index());
  const SweepInput in(upper, cov, lower);
  const Tensor grad = torch::stable::contiguous(grad_in);
  MendellElstonArgs a = arguments("mendell_elston_backward", in);
  const int64_t n = a.n;
  const Tensor to_upper = torch::stable::new_empty(in.upper, {a.rows, n});
  const Tensor to_lower = lower.has_value() ? torch::stable::new_empty(in.upper, {a.rows, n})
                                            : torch::stable::new_empty(in.upper, {0});
  const Tensor to_cov = wants_cov ? torch::stable::new_empty(in.upper, {a.rows, n, n})
                                  : torch::stable::new_empty(in.upper, {0});
  a.grad = grad.const_data_ptr<double>();
  a.to_upper = to_upper.mutable_data_ptr();
  a.to_lower = lower.has_value() ? to_lower.mutable_data_ptr() : nullptr;
  a.to_cov = wants_cov ? to_cov.mutable_data_ptr() : nullptr;
  if (n > 0) run("mendell_elston_backward", a, in.upper);
  return {to_upper, to_lower, to_cov};
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CUDA, m) {
  m.impl("mendell_elston", TORCH_BOX(&mendell_elston_cuda));
  m.impl("mendell_elston_backward", TORCH_BOX(&mendell_elston_backward_cuda));
}

}  // namespace mvnrob
