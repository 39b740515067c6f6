// One row of the input, standardised and screened. Torch-free.
#pragma once
#include <cstdint>
#include <vector>

namespace mvnrob {

// One covariance of the batch, float32 or float64, any strides.
struct CovarianceView {
  const void* data;
  bool is_double;
  int64_t row_stride;
  int64_t column_stride;

  double at(int64_t i, int64_t j) const {
    const int64_t k = i * row_stride + j * column_stride;
    return is_double ? static_cast<const double*>(data)[k]
                     : double(static_cast<const float*>(data)[k]);
  }
};

// Limits in units of the standard deviation.
struct RowInput {
  int64_t n;
  const void* upper;
  const void* lower;  // null: minus infinity
  bool is_double;
  CovarianceView cov;
};

// Error of one entry of the correlation: the input's own rounding for float32, that of the
// arithmetic for float64.
double entry_error(bool is_double);

enum class Prepared { integrate, one, zero, nan, indefinite };

// The variables that matter, standardised.
struct Problem {
  std::vector<int64_t> variable;  // index into the input
  std::vector<double> upper, lower, inverse_sd, mass;
  bool rectangular = false;  // some lower limit is finite
  double entry_error = 0;    // of one entry of the correlation, from rounding

  // Reads limits and variances, drops what holds with probability one.
  Prepared read(const RowInput& input);

  double correlation(const CovarianceView& cov, int64_t i, int64_t j) const {
    return cov.at(variable[i], variable[j]) * inverse_sd[i] * inverse_sd[j];
  }
};

// Drops the variables least likely to fail while the sum of their probabilities of failing stays
// within tau. P_kept - dropped <= P <= P_kept (Bonferroni). Returns that sum; keeps `all` as it is.
double screen(const Problem& all, double tau, Problem& kept);

}  // namespace mvnrob
