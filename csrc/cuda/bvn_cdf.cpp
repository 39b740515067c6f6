// bvn_cdf on CUDA tensors: check, device guard, stream, launch.
#include "cuda/bvn_cdf.h"

#include <torch/csrc/stable/accelerator.h>

#include "checks.h"
#include "cuda/errors.h"
#include "cuda/stream.h"
#include "out_of_memory.h"

namespace mvnrob {

Tensor bvn_cdf_cuda(const Tensor& h_in, const Tensor& k_in, const Tensor& rho_in) {
  check_bvn_cdf(h_in, k_in, rho_in);
  const torch::stable::accelerator::DeviceGuard guard(h_in.get_device_index());
  const Tensor h = contiguous_of(h_in), k = contiguous_of(k_in), rho = contiguous_of(rho_in);
  Tensor out = tensor_like(h);
  const int32_t device = h.get_device_index();
  cuda::check("bvn_cdf",
              cuda::launch_bvn_cdf(h.const_data_ptr<double>(), k.const_data_ptr<double>(),
                                   rho.const_data_ptr<double>(), out.mutable_data_ptr<double>(),
                                   h.numel(), device, cuda::stream_of(device)),
              "take the launch");
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CUDA, m) { MVNROB_IMPL(m, "bvn_cdf", &bvn_cdf_cuda); }

}  // namespace mvnrob
