#include "cpu/mvn_cdf_batch.h"

#include <algorithm>
#include <atomic>

#include "cpu/parallel.h"

namespace mvnrob {

namespace {

void run_on_threads(int64_t count, const std::function<void(int64_t)>& task) {
  parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i);
  });
}

}  // namespace

Batch::Batch(const Tensor& upper, const Tensor& cov, const std::optional<Tensor>& lower,
             const Tensor& seed, bool factored)
    : upper_(contiguous_of(upper)),
      cov_(cov),
      lower_(contiguous_of(lower)),
      seed_(contiguous_of(seed)),
      is_double_(upper.scalar_type() == ScalarType::Double),
      factored_(factored) {}

Batch::Batch(const Tensor& upper, const Tensor& cov, const std::optional<Tensor>& lower,
             bool factored)
    : upper_(contiguous_of(upper)),
      cov_(cov),
      lower_(contiguous_of(lower)),
      is_double_(upper.scalar_type() == ScalarType::Double),
      factored_(factored) {}

RowInput Batch::row(int64_t b) const {
  const int64_t n = upper_.size(1), element = is_double_ ? 8 : 4;
  auto at = [&](const Tensor& t, int64_t elements) -> const void* {
    return static_cast<const char*>(t.const_data_ptr()) + elements * element;
  };
  return {n,
          at(upper_, b * n),
          lower_.has_value() ? at(*lower_, b * n) : nullptr,
          is_double_,
          {at(cov_, b * cov_.stride(0)), is_double_, cov_.stride(1), cov_.stride(2),
           factored_ ? cov_.size(2) : -1}};
}

void share_rows(int64_t count, const std::function<void(const NextRow& next)>& work) {
  const int64_t threads = int64_t(torch::stable::get_num_threads());
  // Rows differ in cost by orders of magnitude: each thread takes the next one.
  std::atomic<int64_t> next{0};
  parallel_for(0, std::min(threads, count), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) work([&] { return next++; });
  });
}

void solve_rows(int64_t count, const RowSolver& solve) {
  const int64_t threads = int64_t(torch::stable::get_num_threads());
  if (threads > 1 && count < 2 * threads) {
    RowWorkspace workspace;
    for (int64_t b = 0; b < count; ++b) solve(b, workspace, run_on_threads);
    return;
  }
  share_rows(count, [&](const NextRow& next) {
    RowWorkspace workspace;
    for (int64_t b = next(); b < count; b = next()) solve(b, workspace, run_here);
  });
}

}  // namespace mvnrob
