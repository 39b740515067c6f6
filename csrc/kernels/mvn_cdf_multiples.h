// Multiples of one another become one variable (plan/multiples.h), before anything else is decided.
// Collective over a block; the same pairs as csrc/cpu/mvn_cdf_problem.cpp finds.
#pragma once
#include "kernels/block.h"
#include "kernels/mvn_cdf_data.h"
#include "math/box.h"
#include "plan/multiples.h"

namespace mvnrob::kernels {

// 1 - rho^2 of two rows of a factor, by what the first leaves of the second; c is their product.
MVNROB_DEVICE_FN double rest_of_rows(const MvnCdfArgs& a, int64_t row, int32_t v, int32_t w,
                                     double c) {
  const double part = c / a.covariance(row, v, v);
  double square = 0;
  for (int32_t l = 0; l < a.factor_columns; ++l) {
    const double rest = a.stored(row, w, l) - part * a.stored(row, v, l);
    square += rest * rest;
  }
  return square / a.covariance(row, w, w);
}

// Standardised, as read.
MVNROB_DEVICE plan::Variable read_unmerged(const MvnCdfArgs& a, int64_t row, int32_t i,
                                           double largest_variance, double entry_error) {
  return plan::read_variable(a.limit(a.upper, row, i),
                             a.lower ? a.limit(a.lower, row, i) : -HUGE_VAL,
                             a.covariance(row, i, i), largest_variance, entry_error);
}

template <class scalar_t, int threads>
class Multiples {
 public:
  MVNROB_DEVICE Multiples(const MvnCdfArgs& a, int64_t row, const Block<threads>& block,
                          double entry_error)
      : a_(a), row_(row), block_(block), m_(a, row), entry_error_(entry_error) {}

  // Sets m.alike() to the variable that each one is merged into: itself, or one before it; and
  // where any are merged m.merged_upper() and m.merged_lower() of those that stay. Whether any are.
  // `most`: p at most where the limits of some contain nothing together, otherwise infinite;
  // `rest`: the largest variance taken as zero.
  MVNROB_DEVICE_FN bool merge(double& most, double& rest) {
    double* marks = m_.scratch();
    for (int32_t i = block_.thread(); i < a_.n; i += threads) marks[i] = marks_of(i);
    block_.sync();
    unsigned any = 0;
    for (int32_t i = block_.thread(); i < a_.n; i += threads) {
      double left;
      m_.alike()[i] = first_like(i, marks, left);
      any |= m_.alike()[i] != i;
    }
    any = block_.any_bits(any);
    if (!any) return false;
    // One that is like a variable that is merged itself stays: what is alike only nearly is no
    // class.
    rest = 0;
    any = 0;
    for (int32_t i = block_.thread(); i < a_.n; i += threads) {
      const int32_t k = m_.alike()[i];
      const bool merges = k != i && m_.alike()[k] == k && agree(k, i, marks);
      m_.group()[i] = merges;
      if (!merges) continue;
      double left = 0;
      is_multiple(k, i, left);
      any = 1;
      rest = math::max(left, rest);
    }
    rest = block_.max(rest);
    any = block_.any_bits(any);
    if (!any) return false;
    for (int32_t i = block_.thread(); i < a_.n; i += threads)
      if (!m_.group()[i]) m_.alike()[i] = i;
    block_.sync();
    double bound = HUGE_VAL;
    for (int32_t k = block_.thread(); k < a_.n; k += threads) bound = math::min(tighten(k), bound);
    most = block_.min(bound);
    if (most > 0 && most < HUGE_VAL && a_.n <= plan::kMostApart) {
      most = HUGE_VAL;
      rest = 0;
      return false;
    }
    return true;
  }

 private:
  MVNROB_DEVICE plan::Variable read(int32_t i) const {
    return read_unmerged(a_, row_, i, 0, entry_error_);
  }
  MVNROB_DEVICE double correlation(int32_t i, int32_t j) const {
    return a_.covariance(row_, i, j) / ::sqrt(a_.covariance(row_, i, i)) /
           ::sqrt(a_.covariance(row_, j, j));
  }

  // NaN where the variable does not take part.
  MVNROB_DEVICE_FN double marks_of(int32_t i) const {
    const plan::Variable v = read(i);
    if (!v.active) return NAN;
    double sum = 0;
    if (a_.is_factor()) {
      for (int32_t l = 0; l < a_.factor_columns; ++l)
        sum += plan::weight_of_mark(l) * ::fabs(a_.stored(row_, i, l));
    } else {
      for (int l = 0; l < plan::kMarks; ++l) {
        const int32_t w = int32_t(plan::mark(l, a_.n));
        const double variance = a_.stored(row_, w, w);
        if (variance > 0)
          sum += plan::weight_of_mark(l) * ::fabs(a_.stored(row_, w, i)) / ::sqrt(variance);
      }
    }
    return sum * v.inverse_sd;
  }

  MVNROB_DEVICE_FN int32_t first_like(int32_t i, const double* marks, double& rest) const {
    const double tolerance = plan::tolerance_of_marks(entry_error_, double(a_.factor_columns)),
                 own = marks[i];
    constexpr int kAhead = 16;  // marks whose loads are under way at once; hardly any is near
    int32_t k = 0;
    for (; k + kAhead <= i; k += kAhead) {
      double other[kAhead];
      bool near = false;
      MVNROB_UNROLL
      for (int m = 0; m < kAhead; ++m) other[m] = marks[k + m];
      MVNROB_UNROLL
      for (int m = 0; m < kAhead; ++m) near |= ::fabs(other[m] - own) <= tolerance;
      if (!near) continue;
      MVNROB_ROLLED
      for (int m = 0; m < kAhead; ++m)
        if (::fabs(marks[k + m] - own) <= tolerance && is_multiple(k + m, i, rest)) return k + m;
    }
    MVNROB_ROLLED
    for (; k < i; ++k)
      if (::fabs(marks[k] - own) <= tolerance && is_multiple(k, i, rest)) return k;
    return i;
  }

  MVNROB_DEVICE_FN bool is_multiple(int32_t k, int32_t i, double& rest) const {
    const double c = a_.covariance(row_, k, i), rho = correlation(k, i);
    if (!(rho * rho >= 0.5)) return false;
    rest = a_.is_factor()
               ? rest_of_rows(a_, row_, k, i, c)
               : plan::rest_of_pair(a_.stored(row_, k, k), a_.stored(row_, i, i), c, rho);
    return plan::is_multiple(rest, entry_error_, a_.is_factor());
  }

  // Whether i is a multiple of k beside all that are multiples of none, too.
  MVNROB_DEVICE_FN bool agree(int32_t k, int32_t i, const double* marks) const {
    if (a_.is_factor()) return true;
    const double sign = correlation(k, i) > 0 ? 1 : -1;
    for (int32_t j = 0; j < a_.n; ++j)
      if (m_.alike()[j] == j && marks[j] == marks[j] &&
          !plan::same_entry(correlation(k, j), correlation(i, j), sign, entry_error_))
        return false;
    return true;
  }

  // p at most where the limits of all that are merged into k contain nothing, otherwise infinite.
  MVNROB_DEVICE_FN double tighten(int32_t k) {
    if (m_.alike()[k] != k) return HUGE_VAL;
    const plan::Variable v = read(k);
    double upper = v.upper, lower = v.lower, upper_sd = 0, lower_sd = 0;
    bool any = false;
    for (int32_t i = k + 1; i < a_.n; ++i) {
      if (m_.alike()[i] != k) continue;
      const plan::Variable other = read(i);
      const bool same = a_.covariance(row_, k, i) > 0;
      const double high = same ? other.upper : -other.lower,
                   low = same ? other.lower : -other.upper;
      double rest = 0;
      is_multiple(k, i, rest);
      const double sd = ::sqrt(math::max(rest, 0.0));
      if (high < upper) upper = high, upper_sd = sd;
      if (low > lower) lower = low, lower_sd = sd;
      any = true;
    }
    m_.merged_upper()[k] = upper;
    m_.merged_lower()[k] = lower;
    return any && lower >= upper ? plan::most_of_contradiction(lower, upper, lower_sd + upper_sd)
                                 : HUGE_VAL;
  }

  const MvnCdfArgs& a_;
  const int64_t row_;
  const Block<threads>& block_;
  const RowMemory<scalar_t> m_;
  const double entry_error_;
};

// Standardised, multiples merged.
template <class scalar_t>
MVNROB_DEVICE plan::Variable read_variable(const MvnCdfArgs& a, int64_t row, int32_t i,
                                           double entry_error, bool merged) {
  plan::Variable v = read_unmerged(a, row, i, 0, entry_error);
  if (!merged || !v.active) return v;
  const RowMemory<scalar_t> m(a, row);
  if (m.alike()[i] != i) {
    v.active = false;
    return v;
  }
  v.upper = m.merged_upper()[i];
  v.lower = m.merged_lower()[i];
  if (v.lower != -HUGE_VAL) v.facts |= plan::kRectangular;
  return v;
}

}  // namespace mvnrob::kernels
