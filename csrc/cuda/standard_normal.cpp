// standard_normal on CUDA tensors: check, device guard, stream, launch.
#include "cuda/standard_normal.h"

#include <torch/csrc/stable/accelerator.h>

#include "checks.h"
#include "cuda/errors.h"
#include "cuda/stream.h"
#include "out_of_memory.h"

namespace mvnrob {

Tensor standard_normal_cuda(const Tensor& keys_in, int64_t first, int64_t count, int64_t dim) {
  check_standard_normal(keys_in, first, count, dim);
  const torch::stable::accelerator::DeviceGuard guard(keys_in.get_device_index());
  const Tensor keys = contiguous_of(keys_in);
  const int64_t rows = keys.size(0);
  Tensor out = new_tensor(keys, {rows, count, dim}, ScalarType::Float);
  const int32_t device = keys.get_device_index();
  cuda::check(
      "standard_normal",
      cuda::launch_standard_normal(keys.const_data_ptr<int64_t>(), out.mutable_data_ptr<float>(),
                                   rows, first, count, dim, device, cuda::stream_of(device)),
      "take the launch");
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CUDA, m) {
  MVNROB_IMPL(m, "standard_normal", &standard_normal_cuda);
}

}  // namespace mvnrob
