// mendell_elston's kernels for the sanitizers; a wrong answer throws.
#pragma once
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "shim_mendell_elston.h"

namespace shim_tests {

// n independent standard normal variables below 0, each `copies` times, and half of the copies also
// above -9: P = 2^-n to rounding, d log P / d upper = phi(0) / Phi(0) shared by the copies.
template <class T>
void check_mendell_elston(int64_t rows, int64_t n, int64_t copies) {
  const int64_t m = n * copies;
  std::vector<T> upper(rows * m, T(0)), lower(rows * m), cov(m * m);
  for (int64_t i = 0; i < rows * m; ++i) lower[i] = i % 2 ? T(-9) : -T(HUGE_VAL);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t k = 0; k < m; ++k) cov[i * m + k] = T(i % n == k % n);
  mvnrob::kernels::MendellElstonArgs a{};
  a.rows = rows;
  a.n = int32_t(m);
  a.is_double = sizeof(T) == 8;
  a.upper = upper.data();
  a.lower = lower.data();
  a.cov = cov.data();
  a.cov_strides = {0, m, 1};
  std::vector<T> prob(rows), complement(rows), log_prob(rows);
  std::vector<int64_t> status(rows), n_active(rows), n_pivots(rows);
  a.prob = prob.data();
  a.complement = complement.data();
  a.log_prob = log_prob.data();
  a.status = status.data();
  a.n_active = n_active.data();
  a.n_pivots = n_pivots.data();
  mvnrob::shim::run_mendell_elston(a, 2);
  std::vector<double> grad(rows, 1.0);
  std::vector<T> to_upper(rows * m), to_lower(rows * m), to_cov(rows * m * m);
  a.grad = grad.data();
  a.to_upper = to_upper.data();
  a.to_lower = to_lower.data();
  a.to_cov = to_cov.data();
  mvnrob::shim::run_mendell_elston(a, 2);
  const double tolerance = sizeof(T) == 8 ? 1e-12 : 1e-5;
  const double slope = 0.7978845608028654 / double(copies);
  for (int64_t b = 0; b < rows; ++b) {
    bool right = std::fabs(log_prob[b] / (double(n) * -0.6931471805599453) - 1) < tolerance &&
                 n_active[b] == m && n_pivots[b] == n;
    for (int64_t i = 0; i < m; ++i)
      right = right && std::fabs(to_upper[b * m + i] - slope) < tolerance;
    if (!right)
      throw std::runtime_error("mendell_elston: row " + std::to_string(b) + " has log p " +
                               std::to_string(log_prob[b]) + ", slope " +
                               std::to_string(to_upper[b * m]));
  }
}

struct MendellElstonCase {
  const char* name;
  void (*run)();
};

inline constexpr MendellElstonCase kMendellElstonCases[] = {
    {"mendell_elston_warp", [] { check_mendell_elston<double>(5, 7, 3); }},
    {"mendell_elston_block", [] { check_mendell_elston<float>(3, 40, 2); }},
};

}  // namespace shim_tests
