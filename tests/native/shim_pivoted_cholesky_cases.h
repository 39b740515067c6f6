// pivoted_cholesky's kernel for the sanitizers; a wrong answer throws.
#pragma once
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "shim_pivoted_cholesky.h"

namespace shim_tests {

// n independent variables of variance 4, each `copies` times, and one without variance: the first
// n are the pivots, in falling order of their limits, and the columns are 2 of their copies. As a
// matrix and as a factor of it.
template <class T>
void check_pivoted_cholesky(int64_t rows, int64_t n, int64_t copies, int64_t columns,
                            bool factored) {
  const int64_t m = n * copies + 1, width = factored ? n : m;
  std::vector<T> upper(rows * m), lower(rows * m, T(-9)), matrix(m * width);
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t i = 0; i < m; ++i) upper[b * m + i] = T(9) - T(i % n) / T(n);
  for (int64_t i = 0; i + 1 < m; ++i)
    for (int64_t k = 0; k < width - !factored; ++k)
      matrix[i * width + k] = i % n == k % n ? (factored ? T(2) : T(4)) : T(0);
  mvnrob::kernels::PivotedCholeskyArgs a{};
  a.plan.rows = rows;
  a.plan.n = int32_t(m);
  a.plan.is_double = sizeof(T) == 8;
  a.plan.upper = upper.data();
  a.plan.lower = lower.data();
  a.plan.cov = matrix.data();
  a.plan.cov_strides = {0, width, 1};
  a.plan.factor_columns = factored ? int32_t(n) : -1;
  a.columns = int32_t(columns);
  std::vector<T> factor(rows * m * columns), residual(rows * m);
  std::vector<int64_t> order(rows * m), rank(rows), status(rows);
  a.factor = factor.data();
  a.residual = residual.data();
  a.order = order.data();
  a.rank = rank.data();
  a.status = status.data();
  mvnrob::shim::run_pivoted_cholesky(a, 2, 2);
  const int64_t found = std::min(n, columns);
  for (int64_t b = 0; b < rows; ++b) {
    bool right = rank[b] == found && status[b] == (found == n ? 1 : 7);
    for (int64_t i = 0; i < m; ++i) {
      // The last of the limits' cycle is the least.
      const int64_t pivot = n - 1 - i % n;
      if (i < found) right = right && order[b * m + i] == n - 1 - i;
      const bool spread = i + 1 < m, seen = spread && pivot < found;
      right = right && std::fabs(residual[b * m + i] - (spread && !seen ? 4 : 0)) < 1e-5;
      for (int64_t l = 0; l < columns; ++l) {
        const double expected = seen && l == pivot ? 2 : 0;
        right = right && std::fabs(factor[(b * m + i) * columns + l] - expected) < 1e-6;
      }
    }
    if (!right)
      throw std::runtime_error("pivoted_cholesky: row " + std::to_string(b) + " has rank " +
                               std::to_string(rank[b]) + ", status " + std::to_string(status[b]));
  }
}

struct PivotedCholeskyCase {
  const char* name;
  void (*run)();
};

inline constexpr PivotedCholeskyCase kPivotedCholeskyCases[] = {
    {"pivoted_cholesky_warp", [] { check_pivoted_cholesky<double>(5, 7, 3, 22, false); }},
    {"pivoted_cholesky_block", [] { check_pivoted_cholesky<float>(3, 40, 2, 17, false); }},
    {"pivoted_cholesky_factor", [] { check_pivoted_cholesky<double>(3, 21, 2, 21, true); }},
};

}  // namespace shim_tests
