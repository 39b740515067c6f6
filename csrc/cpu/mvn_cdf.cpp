// mvn_cdf on the CPU: spreads the rows over the threads, or one row's samples when rows are few.
#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <tuple>

#include "checks.h"
#include "cpu/mvn_cdf_row.h"
#include "cpu/simd_dispatch.h"

namespace mvnrob {

extern const SimdTable mvn_cdf_table_generic;
#ifdef MVNROB_HAS_AVX2
extern const SimdTable mvn_cdf_table_avx2;
#endif
#ifdef MVNROB_HAS_AVX512
extern const SimdTable mvn_cdf_table_avx512;
#endif

const SimdTable& simd_table() {
  switch (simd_level()) {
#ifdef MVNROB_HAS_AVX512
    case SimdLevel::avx512:
      return mvn_cdf_table_avx512;
#endif
#ifdef MVNROB_HAS_AVX2
    case SimdLevel::avx2:
      return mvn_cdf_table_avx2;
#endif
    default:
      return mvn_cdf_table_generic;
  }
}

namespace {

Method method_of(const std::string& name) {
  if (name == "auto") return Method::automatic;
  if (name == "sov") return Method::sov;
  if (name == "closed_form") return Method::closed_form;
  throw std::runtime_error("mvn_cdf: method must be auto, sov or closed_form, got " + name);
}

ComputeType compute_type_of(const std::string& name) {
  if (name == "auto") return ComputeType::automatic;
  if (name == "float32") return ComputeType::float32;
  if (name == "float64") return ComputeType::float64;
  throw std::runtime_error("mvn_cdf: compute_dtype must be auto, float32 or float64, got " + name);
}

// Exceptions must not leave a worker thread: the first one waits here.
class FirstException {
 public:
  template <class F>
  void guard(const F& f) {
    try {
      f();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!first_) first_ = std::current_exception();
    }
  }
  void rethrow() {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr first_;
};

struct Workspace {
  RowWorkspace* row = new_row_workspace();
  ~Workspace() { delete_row_workspace(row); }
};

void run_on_threads(int64_t count, const std::function<void(int64_t)>& task) {
  FirstException failure;
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) failure.guard([&] { task(i); });
  });
  failure.rethrow();
}

}  // namespace

const Runner run_here = [](int64_t count, const std::function<void(int64_t)>& task) {
  for (int64_t i = 0; i < count; ++i) task(i);
};

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Outputs mvn_cdf_cpu(const Tensor& upper_in, const Tensor& cov, std::optional<Tensor> lower_in,
                    const Tensor& seed_in, double abs_tol, double rel_tol, int64_t max_points,
                    std::string method, std::string compute_dtype) {
  check_mvn_cdf(upper_in, cov, lower_in, seed_in);
  const int64_t batch = upper_in.size(0), n = upper_in.size(1);
  const Tensor upper = torch::stable::contiguous(upper_in),
               seed = torch::stable::contiguous(seed_in);
  Tensor lower;
  if (lower_in.has_value()) lower = torch::stable::contiguous(*lower_in);
  const bool is_double = upper.scalar_type() == ScalarType::Double;
  const int64_t element = is_double ? 8 : 4;
  const RowOptions options{abs_tol, rel_tol, max_points, method_of(method),
                           compute_type_of(compute_dtype)};

  auto real = [&] { return torch::stable::new_empty(upper, {batch}); };
  auto integer = [&] { return torch::stable::new_empty(upper, {batch}, ScalarType::Long); };
  Tensor prob = real(), complement = real(), error = real(), status = integer(), points = integer(),
         active = integer(), pivots = integer();
  auto store = [&](Tensor& t, int64_t b, double x) {
    if (is_double)
      t.mutable_data_ptr<double>()[b] = x;
    else
      t.mutable_data_ptr<float>()[b] = float(x);
  };

  auto solve = [&](int64_t b, RowWorkspace& workspace, const Runner& run) {
    auto at = [&](const Tensor& t, int64_t elements) -> const void* {
      return static_cast<const char*>(t.const_data_ptr()) + elements * element;
    };
    const RowInput input{n,
                         at(upper, b * n),
                         lower_in.has_value() ? at(lower, b * n) : nullptr,
                         is_double,
                         {at(cov, b * cov.stride(0)), is_double, cov.stride(1), cov.stride(2)}};
    const RowResult r =
        integrate_row(input, uint64_t(seed.const_data_ptr<int64_t>()[b]), options, workspace, run);
    // A float32 answer is rounded: half an ulp of it belongs to the error.
    const double rounding = is_double || r.error == 0 ? 0 : 6e-8 * std::max(r.prob, r.complement);
    store(prob, b, r.prob);
    store(complement, b, r.complement);
    store(error, b, r.error + rounding);
    status.mutable_data_ptr<int64_t>()[b] = int64_t(r.status);
    points.mutable_data_ptr<int64_t>()[b] = r.n_points;
    active.mutable_data_ptr<int64_t>()[b] = r.n_active;
    pivots.mutable_data_ptr<int64_t>()[b] = r.n_pivots;
  };

  const int64_t threads = int64_t(torch::stable::get_num_threads());
  if (threads > 1 && batch < 2 * threads) {
    Workspace workspace;
    for (int64_t b = 0; b < batch; ++b) solve(b, *workspace.row, run_on_threads);
  } else {
    // Rows differ in cost by orders of magnitude: each thread takes the next one.
    std::atomic<int64_t> next{0};
    FirstException failure;
    torch::stable::parallel_for(0, std::min(threads, batch), 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker)
        failure.guard([&] {
          Workspace workspace;
          for (int64_t b = next++; b < batch; b = next++) solve(b, *workspace.row, run_here);
        });
    });
    failure.rethrow();
  }
  return {prob, complement, error, status, points, active, pivots};
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CPU, m) { m.impl("mvn_cdf", TORCH_BOX(&mvn_cdf_cpu)); }

}  // namespace mvnrob
