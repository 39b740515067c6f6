#include "cpu/mvn_cdf_tilt.h"

#include <algorithm>
#include <cmath>

namespace mvnrob {

using namespace plan;  // the names of its arrays

void Tilt::start(const Factor& factor) {
  factor_ = &factor;
  pivots_ = factor.pivots_;
  arrays_.assign(kTiltArrays * pivots_, 0.0);
  y_.assign(pivots_, 0.0);
  for (auto& rows : rows_) rows.assign(pivots_, 0);
  groups_.assign(pivots_, {});
  for (int64_t j = 0; j < pivots_; ++j) groups_[j].push_back(j);
  for (int64_t i = factor.live_end_; i < factor.m_; ++i) groups_[factor.group_[i]].push_back(i);
}

void Tilt::find(const Factor& factor, const double* given) {
  start(factor);
  found_ = TiltSearch<Tilt>(*this).run(given);
}

const FoundTilt& Tilt::forward() {
  const Factor& f = *factor_;
  const bool merged = f.problem_->merged > 0;
  const double* mu = array(kTiltMu);
  found_ = {};
  for (int64_t j = 0; j < pivots_; ++j) {
    Bounds all{-HUGE_VAL, HUGE_VAL};
    int32_t &upper = rows_[0][j], &lower = rows_[1][j];
    upper = lower = int32_t(j);
    for (int64_t i : groups_[j]) {
      double known = 0;
      for (int64_t l = 0; l < j; ++l) known += f.entry(i, l) * y_[l];
      const Bounds one = bounds_on_pivot(f.lower_[i] - known, f.upper_[i] - known, f.entry(i, j));
      if (one.upper < all.upper) all.upper = one.upper, upper = int32_t(i);
      if (one.lower > all.lower) all.lower = one.lower, lower = int32_t(i);
    }
    const double above = all.upper - mu[j], below = all.lower - mu[j];
    const IntervalSlopes s = interval_slopes(below, above);
    array(kTiltUpperSlope)[j] = s.by_upper;
    array(kTiltLowerSlope)[j] = s.by_lower;
    array(kTiltUpperLimit)[j] = above;
    array(kTiltLowerLimit)[j] = below;
    y_[j] = mu[j] + mean_from(s);
    found_.log_unit += s.log_mass + mu[j] * (0.5 * mu[j] - y_[j]);
    found_.by_rounding += s.sensitivity(below, above);
    if (merged || upper != j || lower != j)
      found_.by_groups +=
          s.by_upper / std::abs(f.entry(upper, j)) - s.by_lower / std::abs(f.entry(lower, j));
  }
  return found_;
}

double Tilt::backward() {
  const double *of_upper = array(kTiltUpperSlope), *of_lower = array(kTiltLowerSlope);
  double square = 0;
  for (int64_t k = 0; k < pivots_; ++k) {
    double target = 0;
    for (int64_t j = k + 1; j < pivots_; ++j) {
      target -= of_upper[j] * entry(row(0, j), k) / entry(row(0, j), j);
      target -= of_lower[j] * entry(row(1, j), k) / entry(row(1, j), j);
    }
    const double residual = target - array(kTiltMu)[k];
    array(kTiltResidual)[k] = residual;
    square += residual * residual;
  }
  return std::sqrt(square);
}

}  // namespace mvnrob
