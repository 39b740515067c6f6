// The tilt of a row's pivots (plan/tilt.h); collective over a team. What csrc/cpu/mvn_cdf_tilt.cpp
// does: the sums of the forward pass grow column by column, so each pivot costs a barrier; the
// backward pass is a thread for each pivot. Multiply-adds say that they are one operation: blocks
// and grids are to agree to the bit.
#pragma once
#include "kernels/block.h"
#include "kernels/mvn_cdf_data.h"
#include "plan/ordering.h"
#include "plan/tilt.h"

namespace mvnrob::kernels {

MVNROB_DEVICE_ONCE plan::IntervalSlopes slopes_of_pivot(double lower, double upper,
                                                        double& by_rounding) {
  const plan::IntervalSlopes s = plan::interval_slopes(lower, upper);
  by_rounding = s.sensitivity(lower, upper);
  return s;
}

template <class scalar_t, class Team>
class TiltFinder {
 public:
  MVNROB_DEVICE TiltFinder(const MvnCdfArgs& a, int64_t row, const Team& team, RowState& s)
      : team_(team),
        s_(s),
        m_(a, row),
        size_(s.facts.variables),
        pivots_(s.facts.pivots),
        grouped_(size_ - s.live > pivots_),
        given_(a.tilt ? a.tilt + row * a.n_order : nullptr) {}

  // The saddle point, unless a tilt is given.
  MVNROB_DEVICE_FN void find() {
    if (given_ && given_[0] == given_[0])
      take();
    else
      search();
  }

 private:
  MVNROB_DEVICE_FN void take() {
    for (int k = team_.thread(); k < pivots_; k += team_.size()) m_.tilt()[k] = given_[k];
    team_.sync();
    const plan::FoundTilt found = forward();
    if (team_.thread() == 0) plan::tilt_found(s_.plan, found, true);
    team_.sync();
  }

  MVNROB_DEVICE_FN void search() {
    double *mu = m_.tilt(), *best = array(2), *direction = array(3);
    for (int k = team_.thread(); k < pivots_; k += team_.size()) mu[k] = best[k] = direction[k] = 0;
    team_.sync();
    plan::TiltSearch search;
    for (int pass = 0; pass < plan::kTiltPasses && search.best > plan::kTiltResidual; ++pass) {
      forward();
      const bool better = search.accept(backward());
      for (int k = team_.thread(); k < pivots_; k += team_.size()) {
        if (better) {
          best[k] = mu[k];
          direction[k] = residual()[k];
        }
        mu[k] = ::fma(search.step, direction[k], best[k]);
      }
      team_.sync();
    }
    for (int k = team_.thread(); k < pivots_; k += team_.size()) mu[k] = best[k];
    team_.sync();
    plan::FoundTilt found = forward();
    const bool has_saddle = plan::is_saddle(search.best, found.log_unit);
    if (!has_saddle) {
      for (int k = team_.thread(); k < pivots_; k += team_.size()) mu[k] = 0;
      found = {};
      found.log_unit = plan::kPlainLogUnit;
    }
    if (team_.thread() == 0) plan::tilt_found(s_.plan, found, has_saddle);
    team_.sync();
  }

  // Arrays of one number for each variable, in the memory of the tilt.
  MVNROB_DEVICE double* array(int k) const { return m_.tilt() + int64_t(k) * size_; }
  MVNROB_DEVICE double* residual() const { return array(1); }
  MVNROB_DEVICE double* slope(int side) const { return array(4 + side); }
  MVNROB_DEVICE int32_t* active(int side) const {
    return reinterpret_cast<int32_t*>(array(6)) + int64_t(side) * size_;
  }
  MVNROB_DEVICE double entry(int i, int l) const { return m_.factor()[int64_t(l) * size_ + i]; }

  // psi at the present mu; slopes and active rows of every pivot.
  MVNROB_DEVICE_FN plan::FoundTilt forward() {
    double* sums = m_.scratch();  // of each row, over the y's known
    for (int i = team_.thread(); i < size_; i += team_.size()) sums[i] = 0;
    team_.sync();
    plan::FoundTilt found;
    const bool merged = s_.plan.merged > 0;
    for (int j = 0; j < pivots_; ++j) {
      Indexed upper{HUGE_VAL, j}, lower{HUGE_VAL, j};  // of the lower bounds: their negatives
      const auto bound = [&](int i) {
        const plan::Bounds b =
            plan::bounds_on_pivot(m_.lower()[i] - sums[i], m_.upper()[i] - sums[i], entry(i, j));
        if (b.upper < upper.key) upper = {b.upper, i};
        if (-b.lower < lower.key) lower = {-b.lower, i};
      };
      bound(j);
      if (grouped_) {
        for (int i = pivots_ + team_.thread(); i < size_; i += team_.size())
          if (m_.group()[i] == j) bound(i);
        upper = team_.first(upper);
        lower = team_.first(lower);
      }
      const double mu = m_.tilt()[j];
      double by_rounding;
      const plan::IntervalSlopes s = slopes_of_pivot(-lower.key - mu, upper.key - mu, by_rounding);
      const double y = mu + plan::mean_from(s);
      found.log_unit += ::fma(mu, 0.5 * mu - y, s.log_mass);
      found.by_rounding += by_rounding;
      if (grouped_ || merged)
        found.by_groups += (!merged && upper.index == j && lower.index == j)
                               ? 0.0
                               : s.by_upper / ::fabs(entry(upper.index, j)) -
                                     s.by_lower / ::fabs(entry(lower.index, j));
      if (team_.thread() == 0) {
        slope(0)[j] = s.by_upper;
        slope(1)[j] = s.by_lower;
        active(0)[j] = upper.index;
        active(1)[j] = lower.index;
      }
      // A grouped row's entries end with its pivot; further ones are not used.
      for (int i = j + 1 + team_.thread(); i < size_; i += team_.size())
        sums[i] = ::fma(entry(i, j), y, sums[i]);
      team_.sync();
    }
    return found;
  }

  // The residual and its norm.
  MVNROB_DEVICE_FN double backward() {
    for (int k = team_.thread(); k < pivots_; k += team_.size()) {
      double target = 0;
      for (int j = k + 1; j < pivots_; ++j) {
        for (int side = 0; side < 2; ++side) {
          const int i = active(side)[j];
          target -= slope(side)[j] * entry(i, k) / entry(i, j);
        }
      }
      residual()[k] = target - m_.tilt()[k];
    }
    team_.sync();
    const auto& block = team_.block();
    double square = 0;
    for (int k = block.thread(); k < pivots_; k += block.size())
      square = ::fma(residual()[k], residual()[k], square);
    return ::sqrt(block.sum(square));
  }

  const Team& team_;
  RowState& s_;
  const RowMemory<scalar_t> m_;
  const int size_, pivots_;
  const bool grouped_;
  const double* given_;
};

}  // namespace mvnrob::kernels
