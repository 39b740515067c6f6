// mvn_cdf and mvn_cdf_sums on CUDA tensors: check, device guard, stream, workspace, launch.
#include "cuda/mvn_cdf.h"

#include <torch/csrc/stable/accelerator.h>

#include <tuple>

#include "checks.h"
#include "cuda/errors.h"
#include "cuda/row_tiles.h"
#include "cuda/stream.h"
#include "mvn_cdf_options.h"

namespace mvnrob {

namespace {

using kernels::MvnCdfArgs;

MvnCdfArgs arguments(const cuda::Rows& in, const Tensor& cov, const Tensor& seed, bool factored) {
  auto a = in.arguments<MvnCdfArgs>();
  a.factor_columns = factored ? int32_t(cov.size(2)) : -1;
  a.seed = seed.const_data_ptr<int64_t>();
  return a;
}

template <class scalar_t>
void run(const char* op, const MvnCdfArgs& a, const cuda::Rows& in) {
  const int32_t device = in.device();
  const cudaStream_t stream = cuda::stream_of(device);
  cuda::run_in_tiles(
      op, a.rows, a.n, in,
      [&](int64_t rows) {
        return cuda::mvn_cdf_sizes<scalar_t>(kernels::tile_of(a, 0, rows), device);
      },
      [&](int64_t first, int64_t rows, const cuda::MvnCdfSizes& sizes, void* memory) {
        return cuda::launch_mvn_cdf<scalar_t>(kernels::tile_of(a, first, rows), sizes, memory,
                                              device, stream);
      });
}

void run(const char* op, MvnCdfArgs a, const cuda::Rows& in) {
  if (a.rows == 0) return;
  cuda::check(op, cuda::find_tensor_cores(in.device(), a), "tell its compute capability");
  if (a.options.samples_float32())
    run<float>(op, a, in);
  else
    run<double>(op, a, in);
}

}  // namespace

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Outputs mvn_cdf_cuda(const Tensor& upper, const Tensor& cov, std::optional<Tensor> lower,
                     const Tensor& seed_in, double abs_tol, double rel_tol, int64_t max_points,
                     std::string method, std::string compute_dtype, std::string points,
                     bool factored, double log_tol) {
  check_mvn_cdf(upper, cov, lower, seed_in, factored);
  const torch::stable::accelerator::DeviceGuard guard(upper.get_device_index());
  const cuda::Rows in(upper, cov, lower);
  const Tensor seed = contiguous_of(seed_in);
  MvnCdfArgs a = arguments(in, cov, seed, factored);
  a.options = {abs_tol,
               rel_tol,
               max_points,
               method_of(method),
               compute_type_of(compute_dtype),
               point_set_of("mvn_cdf", points),
               log_tol};
  const auto real = [&] { return in.empty({a.rows}); };
  const auto integer = [&] { return in.empty({a.rows}, ScalarType::Long); };
  const Tensor prob = real(), complement = real(), error = real(), status = integer(),
               n_points = integer(), n_active = integer(), n_pivots = integer(), log_prob = real(),
               log_error = real();
  a.prob = prob.mutable_data_ptr();
  a.complement = complement.mutable_data_ptr();
  a.error = error.mutable_data_ptr();
  a.log_prob = log_prob.mutable_data_ptr();
  a.log_error = log_error.mutable_data_ptr();
  a.status = status.mutable_data_ptr<int64_t>();
  a.n_points = n_points.mutable_data_ptr<int64_t>();
  a.n_active = n_active.mutable_data_ptr<int64_t>();
  a.n_pivots = n_pivots.mutable_data_ptr<int64_t>();
  run("mvn_cdf", a, in);
  return {prob, complement, error, status, n_points, n_active, n_pivots, log_prob, log_error};
}

Tensor mvn_cdf_sums_cuda(const Tensor& upper, const Tensor& cov, std::optional<Tensor> lower,
                         const Tensor& seed_in, const Tensor& order_in, int64_t n_points,
                         std::string compute_dtype, std::string points, bool factored) {
  check_mvn_cdf_sums(upper, cov, lower, seed_in, order_in, n_points, compute_dtype, factored);
  const torch::stable::accelerator::DeviceGuard guard(upper.get_device_index());
  const cuda::Rows in(upper, cov, lower);
  const Tensor seed = contiguous_of(seed_in);
  const Tensor order = contiguous_of(order_in);
  MvnCdfArgs a = arguments(in, cov, seed, factored);
  a.options = {0,
               0,
               n_points,
               Method::automatic,
               compute_type_of(compute_dtype),
               point_set_of("mvn_cdf_sums", points)};
  a.order = order.const_data_ptr<int64_t>();
  a.n_order = int32_t(order.size(1));
  a.forced_points = n_points;
  const Tensor sums = in.empty({a.rows, kShifts, kSums}, ScalarType::Double);
  a.forced_sums = static_cast<SampleSums*>(sums.mutable_data_ptr());
  run("mvn_cdf_sums", a, in);
  return sums;
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CUDA, m) {
  MVNROB_IMPL(m, "mvn_cdf", &mvn_cdf_cuda);
  MVNROB_IMPL(m, "mvn_cdf_sums", &mvn_cdf_sums_cuda);
}

}  // namespace mvnrob
