// Which rows of a factor hold the point of least norm within its limits (plan/nearest_point.h).
// Torch-free.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu/mvn_cdf_factor.h"
#include "plan/nearest_point.h"

namespace mvnrob {

class Nearest {
 public:
  plan::FoundNearest find(const Factor& factor);
  // Each variable's, in the problem's order; zero for what is rounding.
  const std::vector<double>& multipliers() const { return multipliers_; }

 private:
  friend class plan::NearestPoint<Nearest>;
  int rows() const { return int(rows_); }
  int columns() const { return int(columns_); }
  double upper(int i) const { return factor_->upper_[i]; }
  double lower(int i) const { return factor_->lower_[i]; }
  double entry(int i, int l) const { return entries_[i * columns_ + l]; }
  double* array(plan::NearestArray which) { return arrays_.data() + which * rows_; }
  template <class F>
  void each_row(const F& f) const {
    for (int i = 0; i < rows(); ++i) f(i);
  }
  template <class F>
  void each_column(const F& f) const {
    for (int k = 0; k < columns(); ++k) f(k);
  }
  template <class F>
  double sum_rows(const F& f) const {
    double total = 0;
    for (int i = 0; i < rows(); ++i) total += f(i);
    return total;
  }
  template <class F>
  double max_rows(const F& f) const {
    double largest = 0;
    for (int i = 0; i < rows(); ++i) largest = std::max(largest, f(i));
    return largest;
  }
  template <class F>
  double sum_columns(const F& f) const {
    double total = 0;
    for (int k = 0; k < columns(); ++k) total += f(k);
    return total;
  }

  const Factor* factor_ = nullptr;
  int64_t rows_ = 0, columns_ = 0;
  std::vector<double> entries_;  // row by row
  std::vector<double> arrays_, multipliers_;
};

}  // namespace mvnrob
