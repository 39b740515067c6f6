#include "cpu/mvn_cdf_tilt.h"

#include <cmath>

#include "plan/tilt.h"

namespace mvnrob {

void Tilt::start(const Factor& factor) {
  const int64_t pivots = factor.pivots_;
  mu_.assign(pivots, 0.0);
  y_.assign(pivots, 0.0);
  upper_.assign(pivots, {});
  lower_.assign(pivots, {});
  groups_.assign(pivots, {});
  for (int64_t j = 0; j < pivots; ++j) groups_[j].push_back(j);
  for (int64_t i = factor.live_end_; i < factor.m_; ++i) groups_[factor.group_[i]].push_back(i);
}

void Tilt::take(const Factor& factor, const double* mu) {
  start(factor);
  mu_.assign(mu, mu + factor.pivots_);
  forward(factor);
  tilted_ = true;
}

void Tilt::find(const Factor& factor) {
  start(factor);
  const int64_t pivots = factor.pivots_;
  plan::TiltSearch search;
  std::vector<double> best = mu_, direction(pivots, 0.0);
  for (int pass = 0; pass < plan::kTiltPasses && search.best > plan::kTiltResidual; ++pass) {
    forward(factor);
    if (search.accept(backward(factor))) {
      best = mu_;
      direction = residual_;
    }
    for (int64_t k = 0; k < pivots; ++k) mu_[k] = best[k] + search.step * direction[k];
  }
  mu_ = best;
  forward(factor);
  tilted_ = plan::is_saddle(search.best, found_.log_unit);
  if (tilted_) return;
  mu_.assign(pivots, 0.0);
  found_ = {};
  found_.log_unit = plan::kPlainLogUnit;
}

void Tilt::forward(const Factor& f) {
  const bool merged = f.problem_->merged > 0;
  found_ = {};
  for (size_t j = 0; j < mu_.size(); ++j) {
    plan::Bounds all{-HUGE_VAL, HUGE_VAL};
    upper_[j].row = lower_[j].row = int64_t(j);
    for (int64_t i : groups_[j]) {
      double known = 0;
      for (size_t l = 0; l < j; ++l) known += f.entry(i, int64_t(l)) * y_[l];
      const plan::Bounds one =
          plan::bounds_on_pivot(f.lower_[i] - known, f.upper_[i] - known, f.entry(i, int64_t(j)));
      if (one.upper < all.upper) all.upper = one.upper, upper_[j].row = i;
      if (one.lower > all.lower) all.lower = one.lower, lower_[j].row = i;
    }
    const double mu = mu_[j];
    const plan::IntervalSlopes s = plan::interval_slopes(all.lower - mu, all.upper - mu);
    upper_[j].slope = s.by_upper;
    lower_[j].slope = s.by_lower;
    y_[j] = mu + plan::mean_from(s);
    found_.log_unit += s.log_mass + mu * (0.5 * mu - y_[j]);
    found_.by_rounding += s.sensitivity(all.lower - mu, all.upper - mu);
    if (merged || upper_[j].row != int64_t(j) || lower_[j].row != int64_t(j))
      found_.by_groups += s.by_upper / std::abs(f.entry(upper_[j].row, int64_t(j))) -
                          s.by_lower / std::abs(f.entry(lower_[j].row, int64_t(j)));
  }
}

double Tilt::backward(const Factor& f) {
  const int64_t pivots = int64_t(mu_.size());
  residual_.assign(pivots, 0.0);
  double square = 0;
  for (int64_t k = 0; k < pivots; ++k) {
    double target = 0;
    for (int64_t j = k + 1; j < pivots; ++j)
      for (const Active& a : {upper_[j], lower_[j]})
        target -= a.slope * f.entry(a.row, k) / f.entry(a.row, j);
    residual_[k] = target - mu_[k];
    square += residual_[k] * residual_[k];
  }
  return std::sqrt(square);
}

}  // namespace mvnrob
