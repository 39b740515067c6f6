// One row of mvn_cdf: choose the plan, sample until the tolerance is met, state the error.
#pragma once
#include <cstdint>
#include <functional>

#include "cpu/mvn_cdf_pack.h"

namespace mvnrob {

// The numbers of mvnrob.Status.
enum class Status : int64_t { converged = 0, exact = 1, max_points = 2, indefinite = 3, nan = 4 };

enum class Method { automatic, sov, closed_form };
enum class ComputeType { automatic, float32, float64 };

struct RowOptions {
  double abs_tol, rel_tol;
  int64_t max_points;
  Method method;
  ComputeType compute_type;
};

struct RowResult {
  double prob, complement, error;
  Status status;
  int64_t n_points, n_active, n_pivots;
};

// Runs task(0) .. task(count - 1), in any order, possibly at once.
using Runner = std::function<void(int64_t count, const std::function<void(int64_t)>& task)>;

// Runs them in order on the calling thread.
extern const Runner run_here;

struct RowWorkspace;
RowWorkspace* new_row_workspace();
void delete_row_workspace(RowWorkspace*);

// Throws std::invalid_argument when the method is closed_form and the row has none.
RowResult integrate_row(const RowInput& input, uint64_t seed, const RowOptions& options,
                        RowWorkspace& workspace, const Runner& run);

}  // namespace mvnrob
