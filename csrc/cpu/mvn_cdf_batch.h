// A batch of mvn_cdf's rows on the CPU, and how its rows are spread over the threads.
#pragma once
#include <functional>
#include <optional>

#include "cpu/mvn_cdf_row.h"
#include "out_of_memory.h"

namespace mvnrob {

// Holds the tensors whose memory its rows point to.
class Batch {
 public:
  Batch(const Tensor& upper, const Tensor& cov, const std::optional<Tensor>& lower,
        const Tensor& seed, bool factored);

  // Rows without a seed.
  Batch(const Tensor& upper, const Tensor& cov, const std::optional<Tensor>& lower,
        bool factored = false);

  int64_t size() const { return upper_.size(0); }
  RowInput row(int64_t b) const;
  uint64_t seed(int64_t b) const { return uint64_t(seed_.const_data_ptr<int64_t>()[b]); }

 private:
  const Tensor upper_, cov_;
  const std::optional<Tensor> lower_;
  const Tensor seed_;
  const bool is_double_, factored_;
};

// Calls work(next) once on each thread; next() is a row that no other thread has, until it is at
// least `count`. An exception of `work` is thrown again here.
using NextRow = std::function<int64_t()>;
void share_rows(int64_t count, const std::function<void(const NextRow& next)>& work);

// Solves rows 0 .. count - 1: a row a thread, or one row's samples over the threads when rows are
// few. An exception of `solve` is thrown again here.
using RowSolver = std::function<void(int64_t b, RowWorkspace& workspace, const Runner& run)>;
void solve_rows(int64_t count, const RowSolver& solve);

}  // namespace mvnrob
