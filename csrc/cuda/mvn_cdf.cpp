// mvn_cdf and mvn_cdf_sums on CUDA tensors: check, device guard, stream, workspace, launch.
#include "cuda/mvn_cdf.h"

#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <exception>
#include <tuple>

#include "checks.h"
#include "cuda/errors.h"
#include "mvn_cdf_options.h"

namespace mvnrob {

namespace {

using kernels::MvnCdfArgs;

// Holds what the arguments point to.
struct Input {
  Tensor upper, cov, seed;
  std::optional<Tensor> lower;
};

Input input_of(const Tensor& upper, const Tensor& cov, const std::optional<Tensor>& lower,
               const Tensor& seed) {
  Input in{torch::stable::contiguous(upper), cov, torch::stable::contiguous(seed), std::nullopt};
  if (lower.has_value()) in.lower = torch::stable::contiguous(*lower);
  return in;
}

MvnCdfArgs arguments(const Input& in, bool factored) {
  MvnCdfArgs a{};
  a.rows = in.upper.size(0);
  a.n = int32_t(in.upper.size(1));
  a.is_double = in.upper.scalar_type() == ScalarType::Double;
  a.upper = in.upper.const_data_ptr();
  a.lower = in.lower.has_value() ? in.lower->const_data_ptr() : nullptr;
  a.cov = in.cov.const_data_ptr();
  a.cov_strides = {in.cov.stride(0), in.cov.stride(1), in.cov.stride(2)};
  a.factor_columns = factored ? int32_t(in.cov.size(2)) : -1;
  a.seed = in.seed.const_data_ptr<int64_t>();
  return a;
}

double gib(double bytes) { return bytes / (1 << 30); }

// Runs all rows, as many at a time as memory lets; a row's result does not depend on that.
template <class scalar_t>
void run(const char* op, const MvnCdfArgs& all, const Tensor& like) {
  // More at a time is no faster, and leaves less to others.
  constexpr int64_t kMostBytes = int64_t(8) << 30;
  const int32_t device = like.get_device_index();
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const auto sizes_of = [&](int64_t rows) {
    const auto sizes = cuda::mvn_cdf_sizes<scalar_t>(kernels::tile_of(all, 0, rows), device);
    cuda::check(op, sizes.error, "run its kernels");
    return sizes;
  };
  int64_t rows = all.rows;
  cuda::MvnCdfSizes sizes = sizes_of(rows);
  const auto halve = [&] {
    rows = (rows + 1) / 2;
    sizes = sizes_of(rows);
  };
  while (rows > 1 && sizes.bytes > kMostBytes) halve();
  std::optional<Tensor> memory;
  while (!memory.has_value()) {
    try {
      memory = torch::stable::new_empty(like, {sizes.bytes}, ScalarType::Byte);
    } catch (const std::exception&) {  // which only names the call that failed
      if (rows == 1) {
        size_t free = 0, total = 0;
        cuda::check(op, cudaMemGetInfo(&free, &total), "tell its free memory");
        STD_TORCH_CHECK(false, op, ": the device must have ", gib(sizes.bytes),
                        " GiB free for one row of ", all.n, " variables, got ", gib(free), " of ",
                        gib(total), " GiB outside torch's allocator");
      }
      halve();
    }
  }
  for (int64_t first = 0; first < all.rows; first += rows) {
    const MvnCdfArgs tile = kernels::tile_of(all, first, std::min(rows, all.rows - first));
    cuda::check(op,
                cuda::launch_mvn_cdf<scalar_t>(tile, sizes, memory->mutable_data_ptr(), device,
                                               static_cast<cudaStream_t>(stream)),
                "take the launches");
  }
}

void run(const char* op, const MvnCdfArgs& a, const Tensor& like) {
  if (a.rows == 0) return;
  if (a.options.samples_float32())
    run<float>(op, a, like);
  else
    run<double>(op, a, like);
}

}  // namespace

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Outputs mvn_cdf_cuda(const Tensor& upper, const Tensor& cov, std::optional<Tensor> lower,
                     const Tensor& seed, double abs_tol, double rel_tol, int64_t max_points,
                     std::string method, std::string compute_dtype, std::string points,
                     bool factored) {
  check_mvn_cdf(upper, cov, lower, seed, factored);
  const torch::stable::accelerator::DeviceGuard guard(upper.get_device_index());
  const Input in = input_of(upper, cov, lower, seed);
  MvnCdfArgs a = arguments(in, factored);
  a.options = {abs_tol,
               rel_tol,
               max_points,
               method_of(method),
               compute_type_of(compute_dtype),
               point_set_of("mvn_cdf", points)};
  const auto real = [&] { return torch::stable::new_empty(in.upper, {a.rows}); };
  const auto integer = [&] {
    return torch::stable::new_empty(in.upper, {a.rows}, ScalarType::Long);
  };
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
  run("mvn_cdf", a, in.upper);
  return {prob, complement, error, status, n_points, n_active, n_pivots, log_prob, log_error};
}

Tensor mvn_cdf_sums_cuda(const Tensor& upper, const Tensor& cov, std::optional<Tensor> lower,
                         const Tensor& seed, const Tensor& order_in, int64_t n_points,
                         std::string compute_dtype, std::string points, bool factored) {
  check_mvn_cdf_sums(upper, cov, lower, seed, order_in, n_points, compute_dtype, factored);
  const torch::stable::accelerator::DeviceGuard guard(upper.get_device_index());
  const Input in = input_of(upper, cov, lower, seed);
  const Tensor order = torch::stable::contiguous(order_in);
  MvnCdfArgs a = arguments(in, factored);
  a.options = {0,
               0,
               n_points,
               Method::automatic,
               compute_type_of(compute_dtype),
               point_set_of("mvn_cdf_sums", points)};
  a.order = order.const_data_ptr<int64_t>();
  a.n_order = int32_t(order.size(1));
  a.forced_points = n_points;
  const Tensor sums =
      torch::stable::new_empty(in.upper, {a.rows, kShifts, kSums}, ScalarType::Double);
  a.forced_sums = static_cast<SampleSums*>(sums.mutable_data_ptr());
  run("mvn_cdf_sums", a, in.upper);
  return sums;
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CUDA, m) {
  m.impl("mvn_cdf", TORCH_BOX(&mvn_cdf_cuda));
  m.impl("mvn_cdf_sums", TORCH_BOX(&mvn_cdf_sums_cuda));
}

}  // namespace mvnrob
