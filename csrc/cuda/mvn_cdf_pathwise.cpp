// mvn_cdf_pathwise on CUDA tensors: check, device guard, stream, workspace, launch.
#include "cuda/mvn_cdf_pathwise.h"

#include <torch/csrc/stable/accelerator.h>

#include <tuple>

#include "checks.h"
#include "cuda/row_tiles.h"
#include "cuda/stream.h"
#include "mvn_cdf_options.h"

namespace mvnrob {

namespace {

using kernels::MvnCdfPathwiseArgs;

template <class scalar_t>
void run(const MvnCdfPathwiseArgs& a, const cuda::Rows& in) {
  const int32_t device = in.device();
  const cudaStream_t stream = cuda::stream_of(device);
  cuda::run_in_tiles(
      "mvn_cdf_pathwise", a.plan.rows, a.plan.n, in,
      [&](int64_t rows) {
        return cuda::pathwise_sizes<scalar_t>(kernels::tile_of(a, 0, rows), device);
      },
      [&](int64_t first, int64_t rows, const cuda::PathwiseSizes& sizes, void* memory) {
        return cuda::launch_pathwise<scalar_t>(kernels::tile_of(a, first, rows), sizes, memory,
                                               device, stream);
      });
}

}  // namespace

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// A row whose order, first or points is not what the CPU asks for is not refused, since that would
// wait for the device. An order that cannot be followed is a row of NaN, as where a pivot has no
// variance left.
Outputs mvn_cdf_pathwise_cuda(const Tensor& upper, const Tensor& cov, std::optional<Tensor> lower,
                              const Tensor& seed_in, const Tensor& order_in, const Tensor& first_in,
                              const Tensor& count_in, const Tensor& weight_in,
                              std::string compute_dtype, bool wants_cov, std::string points_name,
                              bool factored, std::optional<Tensor> tilt_in) {
  check_mvn_cdf_pathwise(upper, cov, lower, seed_in, order_in, first_in, count_in, weight_in,
                         compute_dtype, wants_cov, factored, tilt_in);
  const torch::stable::accelerator::DeviceGuard guard(upper.get_device_index());
  const cuda::Rows in(upper, cov, lower);
  const Tensor seed = contiguous_of(seed_in), order = contiguous_of(order_in),
               first = contiguous_of(first_in), points = contiguous_of(count_in),
               weight = contiguous_of(weight_in);
  const std::optional<Tensor> tilt = contiguous_of(tilt_in);
  MvnCdfPathwiseArgs a{};
  a.plan = in.arguments<kernels::MvnCdfArgs>();
  a.plan.factor_columns = factored ? int32_t(cov.size(2)) : -1;
  a.plan.seed = seed.const_data_ptr<int64_t>();
  a.plan.options = {0,
                    0,
                    kTileSamples,
                    Method::automatic,
                    compute_type_of(compute_dtype),
                    point_set_of("mvn_cdf_pathwise", points_name)};
  a.plan.order = order.const_data_ptr<int64_t>();
  a.plan.n_order = int32_t(order.size(1));
  a.plan.tilt = tilt ? tilt->const_data_ptr<double>() : nullptr;
  a.first = first.const_data_ptr<int64_t>();
  a.points = points.const_data_ptr<int64_t>();
  a.weight = weight.const_data_ptr<double>();
  a.width = 2 + (wants_cov ? a.plan.n_order : 0);
  const int64_t rows = a.plan.rows, n = a.plan.n;
  const auto real = [&](std::initializer_list<int64_t> shape) {
    return in.empty(shape, ScalarType::Double);
  };
  const Tensor value = real({rows, kShifts}), to_upper = real({rows, kShifts, n}),
               to_lower = real({rows, kShifts, n}),
               to_cov = wants_cov ? real({rows, n, n}) : real({0}),
               cov_variance = wants_cov ? real({rows, n, n}) : real({0}), log_unit = real({rows}),
               used = in.empty({rows}, ScalarType::Long);
  a.value = value.mutable_data_ptr<double>();
  a.upper = to_upper.mutable_data_ptr<double>();
  a.lower = to_lower.mutable_data_ptr<double>();
  if (wants_cov) {
    a.cov = to_cov.mutable_data_ptr<double>();
    a.cov_variance = cov_variance.mutable_data_ptr<double>();
  }
  a.pivots = used.mutable_data_ptr<int64_t>();
  a.log_unit = log_unit.mutable_data_ptr<double>();
  if (rows > 0) {
    if (a.plan.options.samples_float32())
      run<float>(a, in);
    else
      run<double>(a, in);
  }
  return {value, to_upper, to_lower, to_cov, cov_variance, used, log_unit};
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CUDA, m) {
  MVNROB_IMPL(m, "mvn_cdf_pathwise", &mvn_cdf_pathwise_cuda);
}

}  // namespace mvnrob
