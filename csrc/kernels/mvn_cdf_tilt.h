// The tilt of a row's pivots (plan/tilt.h); collective over a block. What csrc/cpu/mvn_cdf_tilt.cpp
// does: the sums of the forward pass grow column by column, so each pivot costs a barrier; the
// backward pass is a thread for each pivot.
#pragma once
#include "kernels/block.h"
#include "kernels/mvn_cdf_data.h"
#include "plan/ordering.h"
#include "plan/tilt.h"

namespace mvnrob::kernels {

template <class scalar_t, int threads>
class TiltFinder {
 public:
  MVNROB_DEVICE TiltFinder(const MvnCdfArgs& a, int64_t row, const Block<threads>& block,
                           RowState& s)
      : block_(block),
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
    for (int k = block_.thread(); k < pivots_; k += threads) m_.tilt()[k] = given_[k];
    block_.sync();
    const plan::FoundTilt found = forward();
    if (block_.thread() == 0) plan::tilt_found(s_.plan, found, true);
    block_.sync();
  }

  MVNROB_DEVICE_FN void search() {
    double *mu = m_.tilt(), *best = array(2), *direction = array(3);
    for (int k = block_.thread(); k < pivots_; k += threads) mu[k] = best[k] = direction[k] = 0;
    block_.sync();
    plan::TiltSearch search;
    for (int pass = 0; pass < plan::kTiltPasses && search.best > plan::kTiltResidual; ++pass) {
      forward();
      const bool better = search.accept(backward());
      for (int k = block_.thread(); k < pivots_; k += threads) {
        if (better) {
          best[k] = mu[k];
          direction[k] = residual()[k];
        }
        mu[k] = best[k] + search.step * direction[k];
      }
      block_.sync();
    }
    for (int k = block_.thread(); k < pivots_; k += threads) mu[k] = best[k];
    block_.sync();
    plan::FoundTilt found = forward();
    const bool has_saddle = plan::is_saddle(search.best, found.log_unit);
    if (!has_saddle) {
      for (int k = block_.thread(); k < pivots_; k += threads) mu[k] = 0;
      found = {};
    }
    if (block_.thread() == 0) plan::tilt_found(s_.plan, found, has_saddle);
    block_.sync();
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
    for (int i = block_.thread(); i < size_; i += threads) sums[i] = 0;
    block_.sync();
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
        for (int i = pivots_ + block_.thread(); i < size_; i += threads)
          if (m_.group()[i] == j) bound(i);
        upper = block_.first(upper);
        lower = block_.first(lower);
      }
      const double mu = m_.tilt()[j];
      const plan::IntervalSlopes s = plan::interval_slopes(-lower.key - mu, upper.key - mu);
      const double y = mu + plan::mean_from(s);
      found.log_unit += s.log_mass + mu * (0.5 * mu - y);
      found.by_rounding += s.sensitivity(-lower.key - mu, upper.key - mu);
      if (grouped_ || merged)
        found.by_groups += (!merged && upper.index == j && lower.index == j)
                               ? 0.0
                               : s.by_upper / ::fabs(entry(upper.index, j)) -
                                     s.by_lower / ::fabs(entry(lower.index, j));
      if (block_.thread() == 0) {
        slope(0)[j] = s.by_upper;
        slope(1)[j] = s.by_lower;
        active(0)[j] = upper.index;
        active(1)[j] = lower.index;
      }
      // A grouped row's entries end with its pivot; further ones are not used.
      for (int i = j + 1 + block_.thread(); i < size_; i += threads) sums[i] += entry(i, j) * y;
      block_.sync();
    }
    return found;
  }

  // The residual and its norm.
  MVNROB_DEVICE_FN double backward() {
    double square = 0;
    for (int k = block_.thread(); k < pivots_; k += threads) {
      double target = 0;
      for (int j = k + 1; j < pivots_; ++j) {
        for (int side = 0; side < 2; ++side) {
          const int i = active(side)[j];
          target -= slope(side)[j] * entry(i, k) / entry(i, j);
        }
      }
      const double r = target - m_.tilt()[k];
      residual()[k] = r;
      square += r * r;
    }
    return ::sqrt(block_.sum(square));
  }

  const Block<threads>& block_;
  RowState& s_;
  const RowMemory<scalar_t> m_;
  const int size_, pivots_;
  const bool grouped_;
  const double* given_;
};

}  // namespace mvnrob::kernels
