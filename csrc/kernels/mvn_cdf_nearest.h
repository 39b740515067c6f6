// Which rows of a row's factor hold the point of least norm within its limits
// (plan/nearest_point.h); collective over a team. Apart from the kernel, which has no registers to
// spare: rare, and bound by the barriers between products of the factor and a vector, some thousand
// of them at worst.
#pragma once
#include "kernels/block.h"
#include "kernels/mvn_cdf_data.h"
#include "plan/nearest_point.h"

namespace mvnrob::kernels {

// Pointers, which a function apart from the kernel takes as they are.
struct NearestMemory {
  double* arrays;       // of the tilt, which is not looked for yet
  double* multipliers;  // behind them, of each variable of the input
  const double *factor, *lower, *upper;
  const int32_t *group, *variable;
  int32_t size, pivots, variables;

  template <class scalar_t>
  MVNROB_DEVICE NearestMemory(const MvnCdfArgs& a, const RowMemory<scalar_t>& m, const RowState& s)
      : arrays(m.tilt()),
        multipliers(m.multipliers(a.n)),
        factor(m.factor()),
        lower(m.lower()),
        upper(m.upper()),
        group(m.group()),
        variable(m.variable()),
        size(s.facts.variables),
        pivots(s.facts.pivots),
        variables(a.n) {}
};

template <class Team>
class NearestFinder {
 public:
  MVNROB_DEVICE NearestFinder(const NearestMemory& m, const Team& team) : m_(m), team_(team) {}

  // Leaves each variable's multiplier, zero for what is rounding. A barrier.
  MVNROB_DEVICE plan::FoundNearest find() const {
    const plan::FoundNearest found = plan::NearestPoint<const NearestFinder>(*this).find();
    for (int i = team_.thread(); i < m_.variables; i += team_.size()) m_.multipliers[i] = 0;
    team_.sync();
    each_row([&](int i) {
      const double multiplier = array(plan::kMultiplier)[i];
      if (::fabs(multiplier) > plan::kLeastMultiplier * found.largest)
        m_.multipliers[m_.variable[i]] = multiplier;
    });
    return found;
  }

  MVNROB_DEVICE int rows() const { return m_.size; }
  MVNROB_DEVICE int columns() const { return m_.pivots; }
  MVNROB_DEVICE double* array(int which) const { return m_.arrays + int64_t(which) * m_.size; }
  MVNROB_DEVICE double upper(int i) const { return m_.upper[i]; }
  MVNROB_DEVICE double lower(int i) const { return m_.lower[i]; }
  // A row's entries end with the pivot that it bounds: no row is live.
  MVNROB_DEVICE double entry(int i, int l) const {
    const int last = i < m_.pivots ? i : m_.group[i];
    return l <= last ? m_.factor[int64_t(l) * m_.size + i] : 0.0;
  }

  template <class F>
  MVNROB_DEVICE void each_row(const F& f) const {
    MVNROB_ROLLED
    for (int i = team_.thread(); i < m_.size; i += team_.size()) f(i);
    team_.sync();
  }
  template <class F>
  MVNROB_DEVICE void each_column(const F& f) const {
    MVNROB_ROLLED
    for (int k = team_.thread(); k < m_.pivots; k += team_.size()) f(k);
    team_.sync();
  }
  template <class F>
  MVNROB_DEVICE double sum_rows(const F& f) const {
    return sum(m_.size, f);
  }
  template <class F>
  MVNROB_DEVICE double sum_columns(const F& f) const {
    return sum(m_.pivots, f);
  }
  template <class F>
  MVNROB_DEVICE double max_rows(const F& f) const {
    const auto& block = team_.block();
    double largest = 0;
    MVNROB_ROLLED
    for (int i = block.thread(); i < m_.size; i += block.size()) largest = math::max(f(i), largest);
    return seen_by_all(block.max(largest));
  }

 private:
  template <class F>
  MVNROB_DEVICE double sum(int count, const F& f) const {
    const auto& block = team_.block();
    double total = 0;
    MVNROB_ROLLED
    for (int i = block.thread(); i < count; i += block.size()) total += f(i);
    return seen_by_all(block.sum(total));
  }

  // Each block adds up for itself: all have read before one goes on to write.
  MVNROB_DEVICE double seen_by_all(double x) const {
    if constexpr (Team::kIsGrid) team_.sync();
    return x;
  }

  const NearestMemory m_;
  const Team team_;
};

template <class Team>
MVNROB_DEVICE_ONCE plan::FoundNearest find_nearest(const NearestFinder<Team> finder) {
  return finder.find();
}

}  // namespace mvnrob::kernels
