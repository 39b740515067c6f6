// nearest_ends on CUDA tensors: check, device guard, stream, launches.
#include "cuda/nearest_ends.h"

#include <torch/csrc/stable/accelerator.h>

#include <tuple>

#include "checks.h"
#include "cuda/errors.h"
#include "cuda/stream.h"
#include "out_of_memory.h"

namespace mvnrob {

std::tuple<Tensor, Tensor, Tensor, Tensor> nearest_ends_cuda(const Tensor& limit_in,
                                                             const Tensor& table_in,
                                                             const Tensor& draws_in, int64_t rising,
                                                             int64_t exact, int64_t split,
                                                             bool wants_rows) {
  check_nearest_ends(limit_in, table_in, draws_in, rising, exact, split);
  const int32_t device = limit_in.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor limit = contiguous_of(limit_in), table = contiguous_of(table_in);
  const Tensor draws = draws_in.stride(1) == 1 ? draws_in : contiguous_of(draws_in);
  const int64_t inputs = limit.size(0), count = draws.size(0), signs = split < 0 ? 2 : 4;
  Tensor upper = new_tensor(limit, {signs, count, inputs}, ScalarType::Float);
  Tensor lower = new_tensor(limit, {signs, count, inputs}, ScalarType::Float);
  const int64_t kept = wants_rows ? signs : 0;
  Tensor above = new_tensor(limit, {kept, count, inputs}, ScalarType::Long);
  Tensor below = new_tensor(limit, {kept, count, inputs}, ScalarType::Long);

  kernels::NearestEndsArgs args{};
  args.limit = limit.const_data_ptr<float>();
  args.table = table.const_data_ptr<float>();
  args.draws = draws.const_data_ptr<float>();
  args.upper = upper.mutable_data_ptr<float>();
  args.lower = lower.mutable_data_ptr<float>();
  args.above = wants_rows ? above.mutable_data_ptr<int64_t>() : nullptr;
  args.below = wants_rows ? below.mutable_data_ptr<int64_t>() : nullptr;
  args.stride = draws.stride(0);
  args.inputs = int32_t(inputs);
  args.rows = int32_t(limit.size(1));
  args.rising = int32_t(rising);
  args.columns = int32_t(table.size(2));
  args.exact = int32_t(exact);
  args.count = int32_t(count);
  // All columns with one sign; then, if there are two parts, with opposite ones.
  for (int32_t pass = 0; 2 * pass < signs; ++pass) {
    args.flipped = pass == 0 ? args.columns : int32_t(exact + split);
    args.slot[0] = pass;
    args.slot[1] = int32_t(signs) - 1 - pass;
    cuda::check("nearest_ends", cuda::launch_nearest_ends(args, device, cuda::stream_of(device)),
                "take the launch");
  }
  return {upper, lower, above, below};
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CUDA, m) { MVNROB_IMPL(m, "nearest_ends", &nearest_ends_cuda); }

}  // namespace mvnrob
