// The tilt of a row's pivots (plan/tilt.h); collective over a team. What csrc/cpu/mvn_cdf_tilt.cpp
// does: the sums of the forward pass grow column by column, so each pivot costs a barrier; the
// backward pass is a thread for each pivot. Multiply-adds say that they are one operation: blocks
// and grids are to agree to the bit.
#pragma once
#include <type_traits>

#include "kernels/block.h"
#include "kernels/mvn_cdf_data.h"
#include "plan/ordering.h"
#include "plan/tilt_newton.h"
#include "plan/tilt_search.h"

namespace mvnrob::kernels {

MVNROB_DEVICE_ONCE plan::IntervalSlopes slopes_of_pivot(double lower, double upper,
                                                        double& by_rounding) {
  const plan::IntervalSlopes s = plan::interval_slopes(lower, upper);
  by_rounding = s.sensitivity(lower, upper);
  return s;
}

// Of a row's memory what finding its tilt takes: in pointers, which a function apart from the
// kernel takes as they are.
class TiltMemory {
 public:
  template <class scalar_t>
  MVNROB_DEVICE explicit TiltMemory(const RowMemory<scalar_t>& m)
      : tilt_(m.tilt()),
        scratch_(m.scratch()),
        factor_(m.factor()),
        lower_(m.lower()),
        upper_(m.upper()),
        variable_(m.variable()) {}

  MVNROB_DEVICE double* tilt() const { return tilt_; }
  MVNROB_DEVICE double* scratch() const { return scratch_; }
  MVNROB_DEVICE const double* factor() const { return factor_; }
  MVNROB_DEVICE const double* lower() const { return lower_; }
  MVNROB_DEVICE const double* upper() const { return upper_; }
  MVNROB_DEVICE const int32_t* variable() const { return variable_; }

 private:
  double *tilt_, *scratch_;
  const double *factor_, *lower_, *upper_;
  const int32_t* variable_;
};

// Memory: RowMemory or TiltMemory.
template <class Memory, class Team>
class TiltFinder {
 public:
  MVNROB_DEVICE TiltFinder(const Memory& m, const RowState& s, const Team& team)
      : m_(m),
        team_(team),
        size_(s.facts.variables),
        pivots_(s.facts.pivots),
        moves_(size_ > pivots_ || s.plan.merged > 0) {}

  MVNROB_DEVICE int pivots() const { return pivots_; }
  // Of one number for each variable.
  MVNROB_DEVICE double* array(int which) const { return m_.tilt() + int64_t(which) * size_; }
  MVNROB_DEVICE double entry(int i, int l) const { return m_.factor()[int64_t(l) * size_ + i]; }

  template <class F>
  MVNROB_DEVICE void each(const F& f) const {
    MVNROB_ROLLED
    for (int k = team_.thread(); k < pivots_; k += team_.size()) f(k);
    team_.sync();
  }
  template <class F>
  MVNROB_DEVICE double sum(const F& f) const {
    const auto& block = team_.block();
    double total = 0;
    MVNROB_ROLLED
    for (int k = block.thread(); k < pivots_; k += block.size()) total += f(k);
    return block.sum(total);
  }

  // The tilt from which the search starts: one that is given for every pivot, or that of each
  // variable's multiplier at the nearest point.
  MVNROB_DEVICE void start(const double* given, const double* multipliers) const {
    each([&](int k) {
      double mu = given ? given[k] : 0.0;
      if (multipliers) {
        MVNROB_ROLLED
        for (int j = k + 1; j < pivots_; ++j) mu -= multipliers[m_.variable()[j]] * entry(j, k);
      }
      array(plan::kTiltMu)[k] = mu;
    });
  }

  // psi at the present mu; slopes and limits of every pivot.
  MVNROB_DEVICE_FN plan::FoundTilt forward() const {
    double* sums = m_.scratch();  // of each pivot's row, over the y's known
    each([&](int i) { sums[i] = 0; });
    plan::FoundTilt found;
    for (int j = 0; j < pivots_; ++j) {
      const double mu = array(plan::kTiltMu)[j], pivot = entry(j, j);
      const double below = (m_.lower()[j] - sums[j]) / pivot - mu;
      const double above = (m_.upper()[j] - sums[j]) / pivot - mu;
      double by_rounding;
      const plan::IntervalSlopes s = slopes_of_pivot(below, above, by_rounding);
      const double y = mu + plan::mean_from(s);
      found.log_unit += ::fma(mu, 0.5 * mu - y, s.log_mass);
      found.by_rounding += by_rounding;
      if (moves_) found.by_groups += (s.by_upper - s.by_lower) / pivot;
      if (team_.thread() == 0) {
        array(plan::kTiltUpperSlope)[j] = s.by_upper;
        array(plan::kTiltLowerSlope)[j] = s.by_lower;
        array(plan::kTiltUpperLimit)[j] = above;
        array(plan::kTiltLowerLimit)[j] = below;
      }
      for (int i = j + 1 + team_.thread(); i < pivots_; i += team_.size())
        sums[i] = ::fma(entry(i, j), y, sums[i]);
      team_.sync();
    }
    return found;
  }

  // The residual and its norm.
  MVNROB_DEVICE_FN double backward() const {
    each([&](int k) {
      double target = 0;
      for (int j = k + 1; j < pivots_; ++j)
        target -= (array(plan::kTiltUpperSlope)[j] + array(plan::kTiltLowerSlope)[j]) *
                  entry(j, k) / entry(j, j);
      array(plan::kTiltResidual)[k] = target - array(plan::kTiltMu)[k];
    });
    return ::sqrt(sum([&](int k) {
      const double residual = array(plan::kTiltResidual)[k];
      return residual * residual;
    }));
  }

  MVNROB_DEVICE int newton_direction() const {
    return plan::TiltNewton<const TiltFinder>(*this).solve();
  }

 private:
  const Memory m_;
  // A copy where all are: by reference the kernel's own would have to be in memory.
  std::conditional_t<std::is_same_v<Memory, TiltMemory>, const Team, const Team&> team_;
  const int size_, pivots_;
  const bool moves_;
};

template <class Tilt>
MVNROB_DEVICE plan::FoundTilt find_tilt(const Tilt& tilt, const double* given,
                                        const double* multipliers) {
  tilt.start(given, multipliers);
  return plan::TiltSearch<const Tilt>(tilt).run(given != nullptr);
}

// Apart from a kernel that has no registers to spare.
template <class Team>
MVNROB_DEVICE_ONCE plan::FoundTilt find_tilt_apart(const TiltFinder<TiltMemory, Team> tilt,
                                                   const double* given, const double* multipliers) {
  return find_tilt(tilt, given, multipliers);
}

// The saddle point, unless a tilt is given. A barrier.
template <class scalar_t, class Team>
MVNROB_DEVICE void tilt_row(const MvnCdfArgs& a, int64_t row, const Team& team, RowState& s) {
  const double* given = given_tilt(a, row);
  const RowMemory<scalar_t> m(a, row);
  const double* multipliers =
      s.plan.order == plan::PivotOrder::nearest ? m.multipliers(a.n) : nullptr;
  plan::FoundTilt found;
  if constexpr (!Team::kIsGrid && Team::kThreads == kGrowThreads)
    found =
        find_tilt_apart(TiltFinder<TiltMemory, Team>(TiltMemory(m), s, team), given, multipliers);
  else
    found = find_tilt(TiltFinder<RowMemory<scalar_t>, Team>(m, s, team), given, multipliers);
  if (team.thread() == 0) plan::tilt_found(s.plan, found);
  team.sync();
}

}  // namespace mvnrob::kernels
