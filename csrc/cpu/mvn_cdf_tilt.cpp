#include "cpu/mvn_cdf_tilt.h"

#include <algorithm>
#include <cmath>

namespace mvnrob {

using namespace plan;  // the names of its arrays

void Tilt::find(const Factor& factor, const double* given, const std::vector<double>* multipliers) {
  factor_ = &factor;
  pivots_ = factor.pivots_;
  arrays_.assign(kTiltArrays * pivots_, 0.0);
  y_.assign(pivots_, 0.0);
  double* mu = array(kTiltMu);
  if (given) std::copy_n(given, pivots_, mu);
  if (multipliers)
    for (int64_t k = 0; k < pivots_; ++k)
      for (int64_t j = k + 1; j < pivots_; ++j)
        mu[k] -= (*multipliers)[factor.position_[j]] * entry(j, k);
  found_ = TiltSearch<Tilt>(*this).run(given != nullptr);
}

const FoundTilt& Tilt::forward() {
  const Factor& f = *factor_;
  const bool moves = f.problem_->merged > 0 || f.has_groups();
  const double* mu = array(kTiltMu);
  found_ = {};
  for (int64_t j = 0; j < pivots_; ++j) {
    double known = 0;
    for (int64_t l = 0; l < j; ++l) known += f.entry(j, l) * y_[l];
    const double pivot = f.entry(j, j);
    const double above = (f.upper_[j] - known) / pivot - mu[j];
    const double below = (f.lower_[j] - known) / pivot - mu[j];
    const IntervalSlopes s = interval_slopes(below, above);
    array(kTiltUpperSlope)[j] = s.by_upper;
    array(kTiltLowerSlope)[j] = s.by_lower;
    array(kTiltUpperLimit)[j] = above;
    array(kTiltLowerLimit)[j] = below;
    y_[j] = mu[j] + mean_from(s);
    found_.log_unit += s.log_mass + mu[j] * (0.5 * mu[j] - y_[j]);
    found_.by_rounding += s.sensitivity(below, above);
    if (moves) found_.by_groups += (s.by_upper - s.by_lower) / pivot;
  }
  return found_;
}

double Tilt::backward() {
  const double *of_upper = array(kTiltUpperSlope), *of_lower = array(kTiltLowerSlope);
  double square = 0;
  for (int64_t k = 0; k < pivots_; ++k) {
    double target = 0;
    for (int64_t j = k + 1; j < pivots_; ++j)
      target -= (of_upper[j] + of_lower[j]) * entry(j, k) / entry(j, j);
    const double residual = target - array(kTiltMu)[k];
    array(kTiltResidual)[k] = residual;
    square += residual * residual;
  }
  return std::sqrt(square);
}

}  // namespace mvnrob
