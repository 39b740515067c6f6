// bvn_cdf on CUDA tensors: check, device guard, stream, launch.
#include "cuda/bvn_cdf.h"

#include <torch/csrc/stable/accelerator.h>

#include "checks.h"
#include "cuda/errors.h"
#include "cuda/stream.h"

namespace mvnrob {

Tensor bvn_cdf_cuda(const Tensor& h_in, const Tensor& k_in, const Tensor& rho_in) {
  check_bvn_cdf(h_in, k_in, rho_in);
  const torch::stable::accelerator::DeviceGuard guard(h_in.get_device_index());
  const Tensor h = torch::stable::contiguous(h_in), k = torch::stable::contiguous(k_in),
               rho = torch::stable::contiguous(rho_in);
  Tensor out = torch::stable::empty_like(h);
  const int32_t device = h.get_device_index();
  cuda::check("bvn_cdf",
              cuda::launch_bvn_cdf(h.const_data_ptr<double>(), k.const_data_ptr<double>(),
                                   rho.const_data_ptr<double>(), out.mutable_data_ptr<double>(),
                                   h.numel(), device, cuda::stream_of(device)),
              "take the launch");
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CUDA, m) { m.impl("bvn_cdf", TORCH_BOX(&bvn_cdf_cuda)); }

}  // namespace mvnrob
