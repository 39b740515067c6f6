// One row of the input, standardised and screened. Torch-free.
#pragma once
#include <cstdint>
#include <vector>

#include "plan/row_plan.h"

namespace mvnrob {

// One covariance of the batch, or a factor of it (cov = factor factor^T, never formed), float32 or
// float64, any strides.
struct CovarianceView {
  const void* data;
  bool is_double;
  int64_t row_stride;
  int64_t column_stride;
  int64_t factor_columns = -1;  // not a factor

  bool is_factor() const { return factor_columns >= 0; }

  // As stored.
  double stored(int64_t i, int64_t j) const {
    const int64_t k = i * row_stride + j * column_stride;
    return is_double ? static_cast<const double*>(data)[k]
                     : double(static_cast<const float*>(data)[k]);
  }

  // Of the covariance.
  double at(int64_t i, int64_t j) const {
    if (!is_factor()) return stored(i, j);
    double sum = 0;
    for (int64_t l = 0; l < factor_columns; ++l) sum += stored(i, l) * stored(j, l);
    return sum;
  }
};

// 1 - rho^2 of two rows of a factor, by what the first leaves of the second.
double rest_of_rows(const CovarianceView& cov, int64_t v, int64_t w);

// Limits in units of the standard deviation.
struct RowInput {
  int64_t n;
  const void* upper;
  const void* lower;  // null: minus infinity
  bool is_double;
  CovarianceView cov;
};

enum class Prepared { integrate, one, zero, nan, indefinite };

// The variables that matter, standardised.
struct Problem {
  std::vector<int64_t> variable;  // index into the input
  std::vector<double> upper, lower, inverse_sd, mass;
  bool rectangular = false;  // some lower limit is finite
  double entry_error = 0;    // of one entry of the correlation, from rounding
  double merged = 0;         // largest variance that merge() took as zero
  double most = 0;  // where limits contain nothing: p at most, by what merge() takes as zero

  // Reads limits and variances, drops what holds with probability one.
  Prepared read(const RowInput& input);

  // After read(): multiples of one another become one variable (plan/multiples.h).
  Prepared merge(const RowInput& input);

  // Keeps every variable that has a variance, also one without limits; no masses. Limits that
  // contain nothing are as good as NaN.
  Prepared read_spread(const RowInput& input);

  // Keeps every variable, also one without limits; no masses. False when the row needs no integral:
  // a NaN, a variance that is not positive, limits that contain nothing.
  bool read_all(const RowInput& input);

  double correlation(const CovarianceView& cov, int64_t i, int64_t j) const {
    return cov.at(variable[i], variable[j]) * inverse_sd[i] * inverse_sd[j];
  }

  void clear(double error_of_entry);
  void add_masses();
  // Variables that matter, and the others but for those that have one of the facts `left_out`.
  // Returns all facts.
  uint32_t read_spread_but(const RowInput& input, uint32_t left_out);
  void add(int64_t i, double standard_upper, double standard_lower, double inverse);
};

// Drops variables within plan.tau (plan/screening.h), keeping `all` as it is, and tells the plan.
void screen(const Problem& all, plan::RowPlan& plan, Problem& kept);

}  // namespace mvnrob
