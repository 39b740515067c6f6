// pivoted_cholesky on CUDA tensors: check, device guard, stream, workspace, launch.
#include "cuda/pivoted_cholesky.h"

#include <torch/csrc/stable/accelerator.h>

#include <tuple>

#include "checks.h"
#include "cuda/row_tiles.h"
#include "cuda/stream.h"

namespace mvnrob {

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Outputs pivoted_cholesky_cuda(const Tensor& upper, const Tensor& cov, std::optional<Tensor> lower,
                              int64_t columns, bool factored) {
  check_pivoted_cholesky(upper, cov, lower, columns, factored);
  const torch::stable::accelerator::DeviceGuard guard(upper.get_device_index());
  const cuda::Rows in(upper, cov, lower);
  kernels::PivotedCholeskyArgs a{};
  a.plan = in.arguments<kernels::MvnCdfArgs>();
  a.plan.factor_columns = factored ? int32_t(cov.size(2)) : -1;
  a.columns = int32_t(columns);
  const int64_t batch = a.plan.rows, n = a.plan.n;
  const Tensor factor = in.empty({batch, n, columns}), residual = in.empty({batch, n}),
               order = in.empty({batch, n}, ScalarType::Long),
               rank = in.empty({batch}, ScalarType::Long),
               status = in.empty({batch}, ScalarType::Long);
  a.factor = factor.mutable_data_ptr();
  a.residual = residual.mutable_data_ptr();
  a.order = order.mutable_data_ptr<int64_t>();
  a.rank = rank.mutable_data_ptr<int64_t>();
  a.status = status.mutable_data_ptr<int64_t>();
  const int32_t device = in.device();
  const cudaStream_t stream = cuda::stream_of(device);
  struct Sizes {
    cudaError_t error;
    int64_t bytes;
  };
  if (batch > 0)
    cuda::run_in_tiles(
        "pivoted_cholesky", batch, n, in,
        [&](int64_t rows) {
          return Sizes{cudaSuccess, cuda::pivoted_cholesky_bytes(kernels::tile_of(a, 0, rows))};
        },
        [&](int64_t first, int64_t rows, const Sizes&, void* memory) {
          return cuda::launch_pivoted_cholesky(kernels::tile_of(a, first, rows), memory, device,
                                               stream);
        });
  return {factor, order, rank, residual, status};
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CUDA, m) {
  MVNROB_IMPL(m, "pivoted_cholesky", &pivoted_cholesky_cuda);
}

}  // namespace mvnrob
