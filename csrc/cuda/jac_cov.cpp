// jac_cov's ops on CUDA tensors: check, device guard, stream, memory, launch.
#include "cuda/jac_cov.h"

#include <torch/csrc/stable/accelerator.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "cuda/errors.h"
#include "cuda/stream.h"
#include "out_of_memory.h"

namespace mvnrob {

namespace {

using cuda::stream_of;
using kernels::BFloat16;
using kernels::JacArgs;

// The rows may be strided (an expanded or sliced Jacobian), their elements may not.
Tensor with_unit_columns(const Tensor& J) {
  return J.size(2) <= 1 || J.stride(2) == 1 ? J : contiguous_of(J);
}

JacArgs arguments(const Tensor& J, const Tensor& target) {
  JacArgs a{};
  a.J = J.const_data_ptr();
  a.batch_stride = J.stride(0);
  a.row_stride = J.stride(1);
  a.classes = J.size(1);
  a.columns = J.size(2);
  a.target = target.const_data_ptr<int64_t>();
  return a;
}

// Device memory, empty where none is asked for.
Tensor bytes(const Tensor& like, int64_t count) {
  return new_tensor(like, {count}, ScalarType::Byte);
}

// Calls run with an element of the type of J.
template <class Run>
void with_type(const Tensor& J, const Run& run) {
  switch (J.scalar_type()) {
    case ScalarType::Double:
      return run(double());
    case ScalarType::BFloat16:
      return run(BFloat16());
    default:
      return run(float());
  }
}

void accumulate(const Tensor& S, const Tensor& J, const Tensor& target) {
  const char* op = "jac_cov_accumulate";
  const int32_t device = J.get_device_index();
  kernels::JacCovArgs a{};
  a.jac = arguments(J, target);
  a.S = S.mutable_data_ptr<double>();
  with_type(J, [&](auto element) {
    using in_t = decltype(element);
    const auto planned = cuda::plan_jac_cov<in_t>(a.jac, J.size(0), device);
    cuda::check(op, planned.error, "run its kernels");
    const Tensor memory = bytes(J, planned.plan.bytes());
    cuda::check(op,
                cuda::launch_jac_cov<in_t>(a, J.size(0), planned.plan, memory.mutable_data_ptr(),
                                           device, stream_of(device)),
                "take the launches");
  });
}

}  // namespace

void jac_cov_accumulate_cuda(Tensor& S, const Tensor& J_in, const Tensor& target_in) {
  check_jac_cov_accumulate(S, J_in, target_in);
  if (J_in.numel() == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(J_in.get_device_index());
  const Tensor J = with_unit_columns(J_in), target = contiguous_of(target_in);
  if (S.scalar_type() == ScalarType::Double) return accumulate(S, J, target);
  const int32_t device = J.get_device_index();
  const Tensor wide = new_tensor(S, {S.numel()}, ScalarType::Double);
  cuda::check("jac_cov_accumulate",
              cuda::launch_jac_convert(S.const_data_ptr<float>(), wide.mutable_data_ptr<double>(),
                                       S.numel(), device, stream_of(device)),
              "take the launches");
  accumulate(wide, J, target);
  cuda::check("jac_cov_accumulate",
              cuda::launch_jac_convert(wide.const_data_ptr<double>(), S.mutable_data_ptr<float>(),
                                       S.numel(), device, stream_of(device)),
              "take the launches");
}

std::tuple<Tensor, Tensor, Tensor> jac_cov_finalize_cuda(const Tensor& S, const Tensor& logits_in,
                                                         const Tensor& target_in,
                                                         const Tensor& sigma_in) {
  check_jac_cov_finalize(S, logits_in, target_in, sigma_in);
  const int32_t device = S.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int64_t batch = logits_in.size(0), n = logits_in.size(1) - 1;
  const Tensor logits = contiguous_of(logits_in);
  const Tensor target = contiguous_of(target_in);
  const Tensor sigma = contiguous_of(sigma_in);
  const Tensor z = new_tensor(logits, {batch, n});
  const Tensor corr = new_tensor(logits, {batch, n, n});
  const Tensor norms = new_tensor(logits, {batch, n});
  if (batch * n == 0) return {z, corr, norms};
  const Tensor inverse = new_tensor(logits, {batch, n}, ScalarType::Double);
  kernels::JacFinalizeArgs a{};
  a.S = S.const_data_ptr();
  a.logits = logits.const_data_ptr();
  a.target = target.const_data_ptr<int64_t>();
  a.sigma = sigma.const_data_ptr<double>();
  a.z = z.mutable_data_ptr();
  a.norms = norms.mutable_data_ptr();
  a.corr = corr.mutable_data_ptr();
  a.inverse = inverse.mutable_data_ptr<double>();
  a.batch = batch;
  a.classes = n + 1;
  a.double_S = S.scalar_type() == ScalarType::Double;
  a.double_out = logits.scalar_type() == ScalarType::Double;
  cuda::check("jac_cov_finalize", cuda::launch_jac_finalize(a, device, stream_of(device)),
              "take the launches");
  return {z, corr, norms};
}

Tensor jac_cov_norms_cuda(const Tensor& J_in, const Tensor& target_in) {
  check_jac_cov_rows("jac_cov_norms", J_in, target_in);
  const int32_t device = J_in.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int64_t batch = J_in.size(0), classes = J_in.size(1);
  const Tensor J = with_unit_columns(J_in), target = contiguous_of(target_in);
  const Tensor norms = new_tensor(J, {batch, classes}, ScalarType::Double);
  if (batch == 0) return norms;
  kernels::JacNormsArgs a{};
  a.jac = arguments(J, target);
  a.norms = norms.mutable_data_ptr<double>();
  with_type(J, [&](auto element) {
    using in_t = decltype(element);
    const kernels::JacPlan plan = kernels::jac_norms_plan<in_t>(a.jac, batch);
    const Tensor memory = bytes(J, plan.bytes);
    cuda::check("jac_cov_norms",
                cuda::launch_jac_norms<in_t>(a, batch, plan, memory.mutable_data_ptr(), device,
                                             stream_of(device)),
                "take the launches");
  });
  return norms;
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CUDA, m) {
  MVNROB_IMPL(m, "jac_cov_accumulate_", &jac_cov_accumulate_cuda);
  MVNROB_IMPL(m, "jac_cov_finalize", &jac_cov_finalize_cuda);
  MVNROB_IMPL(m, "jac_cov_norms", &jac_cov_norms_cuda);
}

}  // namespace mvnrob
