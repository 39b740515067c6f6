// The ordered, rank-revealing Cholesky factor (Gibson, Glasbey and Elston 1994), one column at a
// time; collective over a team, which is a block or a grid. The decisions are those of
// csrc/cpu/mvn_cdf_factor.cpp.
//
// Pivots move to the front. A row that a pivot leaves without variance joins that pivot's group and
// stays where it is. Left-looking: a new column reads the columns before it once, coalesced, and
// the choice of the next pivot needs only the running means and variances. Of a large row a panel
// of columns is subtracted from all entries to come (mvn_cdf_trailing.h), so that a new column
// reads those of its panel only. Each entry is the same chain of multiply-adds, fma() by name, and
// the same number. A block with rows enough makes a stretch of columns at a time
// (mvn_cdf_stretch.h), which are the same too. Where a factor of the covariance is given, its rows
// are orthogonalised (Gram-Schmidt, twice for every pivot), a thread for each row, read as they
// are.
#pragma once
#include "kernels/block.h"
#include "kernels/mvn_cdf_data.h"
#include "kernels/mvn_cdf_stretch.h"
#include "kernels/mvn_cdf_trailing.h"
#include "plan/ordering.h"

namespace mvnrob::kernels {

template <class scalar_t, class Team>
class FactorKernel {
  using Trailing = TrailingEntries<scalar_t, Team>;

 public:
  MVNROB_DEVICE FactorKernel(const MvnCdfArgs& a, int64_t row, const Team& team, RowState& s)
      : a_(a),
        row_(row),
        team_(team),
        s_(s),
        m_(a, row),
        size_(s.facts.variables),
        trailing_(a, row, team, size_) {}

  // Adds pivots until there are plan.target or none is left, and asks the plan what is next.
  MVNROB_DEVICE_FN void advance() {
    const Status failure = grow();
    if (thread() == 0) settle(failure);
    team_.sync();
  }

  // Adds pivots until there are plan.target or none is left. Says what the matrix is where it is no
  // covariance, and `converged` otherwise. One thread writes the row's state: a barrier has to
  // follow.
  MVNROB_DEVICE_FN Status grow() {
    Status failure = Status::converged;
    int pivots = s_.facts.pivots, live = s_.live;
    trailing_.resume(pivots, pivots == 0 ? 0 : s_.trailing);
    while (pivots < s_.plan.target && live > 0) {
      const int target = s_.plan.target;
      const int left = live < target - pivots ? live : target - pivots;
      trailing_.advance(pivots, left);
      const bool weighed = sizeof(scalar_t) == 8 && s_.plan.order == plan::PivotOrder::nearest;
      if constexpr (kStretches) {
        StretchMaker<scalar_t, Team> maker(a_, row_, team_, s_, size_, trailing_.subtracted());
        if (!weighed && maker.fits(pivots)) {
          const Stretch made = maker.make(pivots, left);
          failure = made.failure;
          pivots += made.columns;
          live -= made.columns + made.retired;
          if (made.retired > 0 && thread() == 0)
            s_.facts.neglected = math::max(made.largest, s_.facts.neglected);
          if (failure != Status::converged || made.ends) break;
          continue;
        }
      }
      const int64_t wanted = a_.order ? a_.order[row_ * a_.n_order + pivots] : -1;
      if (wanted < -1) break;
      int chosen = -1;
      if (wanted >= 0) {
        chosen = find(anew(pivots), wanted);
      } else {
        if (weighed) chosen = choose_by_multiplier(anew(pivots));
        if (chosen < 0) chosen = choose(anew(pivots));
      }
      if (chosen < 0) {  // forced, but it has no variance left
        failure = Status::nan;
        break;
      }
      swap(chosen, pivots);
      // A grid's code has no register for what the compiler would take out of the loop.
      const unsigned found =
          add_column(Team::kThreads == kGrowThreads ? anew(pivots) : pivots, chosen);
      if (found & (kNegative | kNotANumber)) {
        failure = found & kNotANumber ? Status::nan : Status::indefinite;
        break;
      }
      ++pivots;
      --live;
      // No direction is left beyond the columns of a factor, whatever rounding says.
      const bool full = a_.is_factor() && pivots == a_.factor_columns;
      if (full || (found & kExhausts)) {
        double largest = 0;
        live -= retire(pivots, full, largest);
        if (thread() == 0) s_.facts.neglected = math::max(largest, s_.facts.neglected);
      }
    }
    const bool grew = pivots > s_.facts.pivots;
    team_.sync();
    if (failure == Status::converged && live == 0 && grew && !a_.order && !a_.is_factor()) {
      const unsigned found = check_rest(pivots);
      if (found) failure = found & kNotANumber ? Status::nan : Status::indefinite;
    }
    if (thread() == 0) {
      s_.live = live;
      s_.trailing = trailing_.subtracted();
      s_.facts.pivots = pivots;
      s_.facts.exhausted = live == 0;
    }
    return failure;
  }

 private:
  // Rows that a thread takes side by side, and their columns whose loads are then under way at
  // once: it has few others beside it, which would hide how long each takes.
  static constexpr int kMostRows = Team::kIsGrid || Team::kThreads < kGrowThreads ? 1 : 4;
  static constexpr int kLoads = 16;
  static constexpr bool kStretches =
      kHasRegisters && !Team::kIsGrid && Team::kThreads == kGrowThreads;

  // What follows from it is computed where it is used: mvn_cdf_stretch.h wants the registers.
  MVNROB_DEVICE int thread() const { return anew(team_.thread()); }

  MVNROB_DEVICE void settle(Status failure) {
    if (failure != Status::converged && s_.plan.order == plan::PivotOrder::nearest) {
      s_.plan.step = plan::nearest_failed(s_.plan);
      s_.restarts = true;
      return;
    }
    if (failure == Status::converged) {
      s_.plan.step = plan::factored(s_.plan, a_.options, s_.facts);
      if (a_.order && !(s_.plan.step == plan::Step::nearest && is_free())) {
        s_.plan.step = plan::Step::sample;
        s_.plan.next = a_.forced_points;
      }
      return;
    }
    if (failure == Status::indefinite && !a_.names_pivots(row_))
      judge_again(a_.options, s_);
    else
      s_.plan.step = plan::failed(s_.plan, failure);
  }

  // Whether a forced plan leaves it open which variables are the pivots.
  MVNROB_DEVICE bool is_free() const { return !a_.names_pivots(row_) && !given_tilt(a_, row_); }

  // The row of the variable least likely to hold, of equals the first in the input.
  MVNROB_DEVICE_FN int choose(int begin) const {
    Placed best{{HUGE_VAL, INT_MAX}, 0};
    if (kMostRows > 1 && size_ - begin > team_.size())
      find_least<kMostRows>(begin, best);
    else
      find_least<1>(begin, best);
    return team_.first(best).place;
  }

  template <int rows>
  MVNROB_DEVICE void find_least(int begin, Placed& best) const {
    for (int i = begin + thread(); i < size_; i += rows * team_.size()) {
      int32_t variable[rows];
      double key[rows];
      MVNROB_UNROLL
      for (int k = 0; k < rows; ++k) {
        const int at = i + k * team_.size();
        const bool here = at < size_ && m_.group()[at] < 0;
        variable[k] = here ? m_.variable()[at] : INT_MAX;
        const double x = plan::priority(here ? m_.upper()[at] : 0.0, here ? m_.lower()[at] : 0.0,
                                        here ? m_.mean()[at] : 0.0, here ? m_.variance()[at] : 1.0,
                                        s_.rectangular);
        key[k] = here && x == x ? x : HUGE_VAL;
      }
      MVNROB_UNROLL
      for (int k = 0; k < rows; ++k) {
        const Placed candidate{{key[k], variable[k]}, i + k * team_.size()};
        if (goes_before(candidate, best)) best = candidate;
      }
    }
  }

  // The live row of the largest multiplier (mvn_cdf_nearest.h), then the least likely one that is
  // not thin, of equals the first in the input; -1 where there is neither.
  MVNROB_DEVICE_FN int choose_by_multiplier(int begin) const {
    const double* multipliers = m_.multipliers(a_.n);
    Placed best{{HUGE_VAL, INT_MAX}, -1};
    MVNROB_ROLLED
    for (int heavy = 1; heavy >= 0; --heavy) {
      MVNROB_ROLLED
      for (int i = begin + thread(); i < size_; i += team_.size()) {
        if (m_.group()[i] >= 0) continue;
        const int32_t variable = m_.variable()[i];
        double key = -::fabs(multipliers[variable]);
        if (heavy ? key == 0 : !(m_.variance()[i] > plan::kThin)) continue;
        if (!heavy)
          key = plan::priority(m_.upper()[i], m_.lower()[i], m_.mean()[i], m_.variance()[i],
                               s_.rectangular);
        const Placed candidate{{key, variable}, i};
        if (goes_before(candidate, best)) best = candidate;
      }
      best = team_.first(best);
      if (best.place >= 0) break;
    }
    return best.place;
  }

  // The row of the variable that the forced order names; -1 when it has left.
  MVNROB_DEVICE_FN int find(int begin, int64_t wanted) const {
    Indexed best{0, INT_MAX};
    for (int i = begin + thread(); i < size_; i += team_.size())
      if (m_.variable()[i] == wanted && m_.group()[i] < 0) best.index = i;
    best = team_.first(best);
    return best.index == INT_MAX ? -1 : best.index;
  }

  template <class T>
  static MVNROB_DEVICE void exchange(T* p, int i, int j) {
    const T x = p[i];
    p[i] = p[j];
    p[j] = x;
  }

  // Exchanges two rows and copies the upper one's part of the factor to the scratch.
  MVNROB_DEVICE_FN void swap(int from, int to) {
    if (from != to) {  // an array for each of the first threads, all under way at once
      const int k = thread();
      double* const numbers = k == 0   ? m_.inverse_sd()
                              : k == 1 ? m_.upper()
                              : k == 2 ? m_.lower()
                              : k == 3 ? m_.variance()
                              : k == 4 ? m_.mean()
                              : k == 5 ? m_.variance_error()
                                       : m_.reference();
      if (k < (a_.is_factor() ? 7 : 6)) exchange(numbers, from, to);
      if (k < 2) exchange(k == 0 ? m_.variable() : m_.group(), from, to);
    }
    constexpr int kAhead = 4;  // columns whose loads are under way at once
    for (int first = thread(); first < to; first += kAhead * team_.size()) {
      double own[kAhead], other[kAhead];
      MVNROB_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        const int l = first + k * team_.size();
        const double* column = m_.factor() + int64_t(l) * size_;
        if (l < to) own[k] = column[from], other[k] = column[to];
      }
      MVNROB_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        const int l = first + k * team_.size();
        double* column = m_.factor() + int64_t(l) * size_;
        if (l >= to) break;
        column[from] = other[k];
        column[to] = own[k];
        m_.scratch()[l] = own[k];
      }
    }
    team_.sync();
  }

  // What a new column does to the rows after its pivot.
  struct Column {
    double* entries;
    double inverse;  // of the pivot's standard deviation
    double mean, growth, scale;
    int32_t variable;
    int pivot, from;  // the latter: the row that the pivot came from
  };

  MVNROB_DEVICE_FN unsigned add_column(int j, int from) {
    const bool factored = a_.is_factor();
    const double d = factored ? add_direction(j) : ::sqrt(m_.variance()[j]), inverse = 1 / d;
    const double mean = m_.mean()[j];
    const double y =
        mean_of_pivot((m_.lower()[j] - mean) * inverse, (m_.upper()[j] - mean) * inverse);
    const Column column{m_.factor() + int64_t(j) * size_,
                        inverse,
                        y,
                        m_.variance_error()[j] / (d * d),
                        m_.inverse_sd()[j],
                        m_.variable()[j],
                        j,
                        from};
    unsigned found = 0;
    if (kMostRows > 1 && size_ - j - 1 > team_.size())
      fill_column<kMostRows>(column, found);
    else
      fill_column<1>(column, found);
    if (thread() == 0) column.entries[j] = d;
    return team_.any_bits(found);
  }

  template <int rows>
  MVNROB_DEVICE void fill_column(const Column& column, unsigned& found) {
    const bool factored = a_.is_factor();
    const int stride = team_.size();
    for (int i = column.pivot + 1 + thread(); i < size_; i += rows * stride) {
      double c[rows];
      if (factored) {
        MVNROB_UNROLL
        for (int k = 0; k < rows; ++k)
          c[k] = i + k * stride < size_ ? coordinate(i + k * stride, column.pivot) : 0;
      } else {
        first_entries(column, i, c);
        subtract_products(i, column.pivot, c);
        MVNROB_UNROLL
        for (int k = 0; k < rows; ++k) c[k] *= column.inverse;
      }
      double variance[rows], mean[rows], error[rows];
      bool live[rows];
      MVNROB_UNROLL
      for (int k = 0; k < rows; ++k) {
        const int at = i + k * stride;
        const bool here = at < size_;
        variance[k] = here ? m_.variance()[at] : 1;
        mean[k] = here ? m_.mean()[at] : 0;
        error[k] = here ? m_.variance_error()[at] : 0;
        live[k] = here && m_.group()[at] < 0;
      }
      MVNROB_UNROLL
      for (int k = 0; k < rows; ++k) {
        const int at = i + k * stride;
        if (at >= size_) break;
        column.entries[at] = c[k];
        variance[k] -= c[k] * c[k];
        if (factored && live[k] && !(variance[k] > plan::kRefresh * m_.reference()[at]))
          m_.reference()[at] = variance[k] = rest_of_row(at, column.pivot + 1);
        error[k] += c[k] * c[k] * column.growth;
        m_.variance()[at] = variance[k];
        m_.mean()[at] = mean[k] + c[k] * column.mean;
        m_.variance_error()[at] = error[k];
        // A row that has left is followed on: its variance turns negative where it contradicts a
        // later pivot.
        if (live[k] && plan::is_zero_variance(variance[k], error[k])) found |= kExhausts;
        if (!factored && !plan::is_valid_variance(variance[k], error[k]))
          found |= variance[k] != variance[k] ? kNotANumber : kNegative;
      }
    }
  }

  // The covariances of rows i, i + size of the team, ... with the pivot, or what the panels
  // subtracted so far leave of them.
  template <int rows>
  MVNROB_DEVICE void first_entries(const Column& column, int i, double (&c)[rows]) {
    const int stride = team_.size();
    if (trailing_.subtracted() > 0) {
      typename Trailing::Entry entry[rows]{};
      MVNROB_UNROLL
      for (int k = 0; k < rows; ++k)
        if (i + k * stride < size_)
          entry[k] = trailing_.look(i + k * stride, column.pivot, column.from);
      MVNROB_UNROLL
      for (int k = 0; k < rows; ++k)
        c[k] = i + k * stride < size_
                   ? trailing_.take(entry[k], i + k * stride, column.pivot, column.from)
                   : 0;
      return;
    }
    int32_t variable[rows];
    double inverse_sd[rows];
    MVNROB_UNROLL
    for (int k = 0; k < rows; ++k) {
      const bool here = i + k * stride < size_;
      variable[k] = here ? m_.variable()[i + k * stride] : -1;
      inverse_sd[k] = here ? m_.inverse_sd()[i + k * stride] : 0;
    }
    a_.stored(row_, column.variable, variable, c);
    MVNROB_UNROLL
    for (int k = 0; k < rows; ++k) c[k] = c[k] * column.scale * inverse_sd[k];
  }

  // The products of those rows with the scratch, of the columns that no panel has subtracted, in
  // their order; zeros at the end.
  template <int rows>
  MVNROB_DEVICE void subtract_products(int i, int end, double (&c)[rows]) const {
    constexpr int kAhead = kLoads / rows;
    const int stride = team_.size(), first = trailing_.subtracted();
    const double* entry = m_.factor() + int64_t(first) * size_ + i;
    MVNROB_ROLLED
    for (int l = first; l < end; l += kAhead, entry += int64_t(kAhead) * size_) {
      double own[kAhead][rows], pivots[kAhead];
      MVNROB_UNROLL
      for (int m = 0; m < kAhead; ++m) {
        const bool before = l + m < end;
        pivots[m] = before ? m_.scratch()[l + m] : 0;
        MVNROB_UNROLL
        for (int k = 0; k < rows; ++k)
          own[m][k] = before && i + k * stride < size_ ? entry[int64_t(m) * size_ + k * stride] : 0;
      }
      MVNROB_UNROLL
      for (int m = 0; m < kAhead; ++m) {
        MVNROB_UNROLL
        for (int k = 0; k < rows; ++k) c[k] = ::fma(-own[m][k], pivots[m], c[k]);
      }
    }
  }

  // The part of row j that is orthogonal to the directions before; returns its length. The scratch
  // has the row's coordinates along them.
  MVNROB_DEVICE_FN double add_direction(int j) {
    const int columns = a_.factor_columns;
    double* q = m_.directions() + int64_t(j) * columns;
    const double scale = m_.inverse_sd()[j];
    const int32_t variable = m_.variable()[j];
    for (int k = thread(); k < columns; k += team_.size()) {
      double x = a_.stored(row_, variable, k) * scale;
      for (int l = 0; l < j; ++l) x -= m_.scratch()[l] * m_.directions()[int64_t(l) * columns + k];
      q[k] = x;
    }
    team_.sync();
    // What rounding has left of them.
    for (int l = thread(); l < j; l += team_.size()) {
      const double* before = m_.directions() + int64_t(l) * columns;
      double c = 0;
      for (int k = 0; k < columns; ++k) c += q[k] * before[k];
      m_.rest()[l] = c;
    }
    team_.sync();
    for (int k = thread(); k < columns; k += team_.size()) {
      double x = q[k];
      for (int l = 0; l < j; ++l) x -= m_.rest()[l] * m_.directions()[int64_t(l) * columns + k];
      q[k] = x;
    }
    team_.sync();
    const auto& block = team_.block();
    double square = 0;
    for (int k = block.thread(); k < columns; k += block.size()) square += q[k] * q[k];
    const double length = ::sqrt(block.sum(square)), inverse = 1 / length;
    team_.sync();  // all have read
    for (int k = thread(); k < columns; k += team_.size()) q[k] *= inverse;
    team_.sync();
    return length;
  }

  // Of row i along direction j.
  MVNROB_DEVICE double coordinate(int i, int j) const {
    const double* q = m_.directions() + int64_t(j) * a_.factor_columns;
    const int32_t variable = m_.variable()[i];
    double sum = 0;
    for (int k = 0; k < a_.factor_columns; ++k) sum += a_.stored(row_, variable, k) * q[k];
    return sum * m_.inverse_sd()[i];
  }

  // The variance of row i that `count` directions leave, formed anew.
  MVNROB_DEVICE_FN double rest_of_row(int i, int count) const {
    const int columns = a_.factor_columns;
    double square = 0;
    for (int k = 0; k < columns; ++k) {
      double rest = a_.stored(row_, m_.variable()[i], k) * m_.inverse_sd()[i];
      for (int l = 0; l < count; ++l)
        rest -= m_.factor()[int64_t(l) * size_ + i] * m_.directions()[int64_t(l) * columns + k];
      square += rest * rest;
    }
    return square;
  }

  // Rows that the last pivot has left without variance join its group. How many, and the largest
  // variance among them.
  MVNROB_DEVICE_FN int retire(int pivots, bool full, double& largest) {
    int count = 0;
    for (int i = pivots + thread(); i < size_; i += team_.size()) {
      if (m_.group()[i] >= 0) continue;
      if (!full && !plan::is_zero_variance(m_.variance()[i], m_.variance_error()[i])) continue;
      m_.group()[i] = pivots - 1;
      largest = math::max(m_.variance()[i], largest);
      ++count;
    }
    largest = team_.max(largest);
    return team_.sum(count);
  }

  // Rows without variance must have none together.
  MVNROB_DEVICE_FN unsigned check_rest(int pivots) {
    const auto sign = [&](int i) { return plan::sign_of(m_.variable()[i]); };
    for (int l = thread(); l < pivots; l += team_.size()) {
      const double* column = m_.factor() + int64_t(l) * size_;
      double sum = 0;
      for (int i = pivots; i < size_; ++i) sum += column[i] * sign(i);
      m_.scratch()[l] = sum;
    }
    const auto& block = team_.block();
    double sum_of_errors = 0;
    for (int i = pivots + block.thread(); i < size_; i += block.size())
      sum_of_errors += plan::error_of_rest(m_.variance_error()[i]);
    sum_of_errors = block.sum(sum_of_errors);
    team_.sync();
    unsigned found = 0;
    for (int i = pivots + thread(); i < size_; i += team_.size()) {
      double rest = 0;
      for (int j = pivots; j < size_; ++j)
        rest += a_.stored(row_, m_.variable()[j], m_.variable()[i]) * m_.inverse_sd()[j] * sign(j);
      rest *= m_.inverse_sd()[i];
      const double* entry = m_.factor() + i;
      for (int l = 0; l < pivots; ++l, entry += size_) rest -= *entry * m_.scratch()[l];
      if (!plan::is_zero_rest(rest, plan::error_of_rest(m_.variance_error()[i]), sum_of_errors))
        found |= rest != rest ? kNotANumber : kNegative;
    }
    return team_.any_bits(found);
  }

  const MvnCdfArgs& a_;
  const int64_t row_;
  const Team& team_;
  RowState& s_;
  const RowMemory<scalar_t> m_;
  const int size_;
  Trailing trailing_;
};

}  // namespace mvnrob::kernels
