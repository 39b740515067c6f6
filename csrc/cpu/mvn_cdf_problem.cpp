#include "cpu/mvn_cdf_problem.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/mvn_cdf_program.h"
#include "plan/multiples.h"
#include "plan/screening.h"
#include "plan/variable.h"

namespace mvnrob {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Calls take(i, variable) for each; returns what they say of the row together.
template <class Take>
uint32_t read_variables(const RowInput& input, double entry_error, const Take& take) {
  auto limit = [&](const void* p, int64_t i) {
    return input.is_double ? static_cast<const double*>(p)[i]
                           : double(static_cast<const float*>(p)[i]);
  };
  double largest = 0;
  for (int64_t i = 0; i < input.n; ++i) largest = std::max(largest, input.cov.at(i, i));
  uint32_t facts = 0;
  for (int64_t i = 0; i < input.n; ++i) {
    const double lower = input.lower ? limit(input.lower, i) : -kInfinity;
    const plan::Variable v =
        plan::read_variable(limit(input.upper, i), lower, input.cov.at(i, i), largest, entry_error);
    facts |= v.facts;
    take(i, v);
  }
  return facts;
}

// Finds the pairs, as csrc/kernels/mvn_cdf_multiples.h does.
class Multiples {
 public:
  Multiples(const Problem& problem, const RowInput& input)
      : p_(problem), cov_(input.cov), m_(int64_t(problem.variable.size())), marks_(m_) {
    for (int64_t i = 0; i < m_; ++i) marks_[i] = marks(i, input.n);
  }

  // Calls take(k, i, rest) where i is a multiple of k < i, and of none before, and k of none.
  template <class Take>
  void pairs(const Take& take) const {
    const double tolerance = plan::tolerance_of_marks(p_.entry_error, double(cov_.factor_columns));
    std::vector<int64_t> order;
    for (int64_t i = 0; i < m_; ++i)
      if (!std::isnan(marks_[i])) order.push_back(i);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return marks_[a] < marks_[b] || (marks_[a] == marks_[b] && a < b);
    });
    // Those with like marks are neighbours now; each looks for the first variable like itself.
    std::vector<int64_t> first(m_, -1);
    std::vector<double> rest(m_);
    for (size_t a = 0; a < order.size(); ++a)
      for (size_t b = a + 1; b < order.size(); ++b) {
        if (marks_[order[b]] - marks_[order[a]] > tolerance) break;
        const int64_t k = std::min(order[a], order[b]), i = std::max(order[a], order[b]);
        if (first[i] >= 0 && k >= first[i]) continue;
        double left;
        if (is_multiple(k, i, left)) first[i] = k, rest[i] = left;
      }
    for (int64_t i = 0; i < m_; ++i)
      if (first[i] >= 0 && first[first[i]] < 0 && agree(first[i], i, first))
        take(first[i], i, rest[i]);
  }

 private:
  double marks(int64_t i, int64_t n) const {
    const int64_t v = p_.variable[i];
    double sum = 0;
    if (cov_.is_factor()) {
      for (int64_t l = 0; l < cov_.factor_columns; ++l)
        sum += plan::weight_of_mark(l) * std::abs(cov_.stored(v, l));
    } else {
      for (int64_t l = 0; l < plan::kMarks; ++l) {
        const int64_t w = plan::mark(l, n);
        const double variance = cov_.at(w, w);
        if (variance > 0)
          sum += plan::weight_of_mark(l) * std::abs(cov_.at(w, v)) / std::sqrt(variance);
      }
    }
    return sum * p_.inverse_sd[i];
  }

  bool is_multiple(int64_t k, int64_t i, double& rest) const {
    const int64_t v = p_.variable[k], w = p_.variable[i];
    const double rho = p_.correlation(cov_, k, i);
    if (!(rho * rho >= 0.5)) return false;
    rest = cov_.is_factor() ? rest_of_rows(cov_, v, w)
                            : plan::rest_of_pair(cov_.at(v, v), cov_.at(w, w), cov_.at(v, w), rho);
    return plan::is_multiple(rest, p_.entry_error, cov_.is_factor());
  }

  // Whether i is a multiple of k beside all that are multiples of none, too.
  bool agree(int64_t k, int64_t i, const std::vector<int64_t>& first) const {
    if (cov_.is_factor()) return true;
    const double sign = p_.correlation(cov_, k, i) > 0 ? 1 : -1;
    for (int64_t j = 0; j < m_; ++j)
      if (first[j] < 0 && !plan::same_entry(p_.correlation(cov_, k, j), p_.correlation(cov_, i, j),
                                            sign, p_.entry_error))
        return false;
    return true;
  }

  const Problem& p_;
  const CovarianceView& cov_;
  const int64_t m_;
  std::vector<double> marks_;
};

}  // namespace

double rest_of_rows(const CovarianceView& cov, int64_t v, int64_t w) {
  const double part = cov.at(v, w) / cov.at(v, v);
  double square = 0;
  for (int64_t l = 0; l < cov.factor_columns; ++l) {
    const double rest = cov.stored(w, l) - part * cov.stored(v, l);
    square += rest * rest;
  }
  return square / cov.at(w, w);
}

void Problem::clear(double error_of_entry) {
  variable.clear();
  upper.clear();
  lower.clear();
  inverse_sd.clear();
  mass.clear();
  rectangular = false;
  entry_error = error_of_entry;
  merged = most = 0;
}

void Problem::add(int64_t i, double standard_upper, double standard_lower, double inverse) {
  variable.push_back(i);
  upper.push_back(standard_upper);
  lower.push_back(standard_lower);
  inverse_sd.push_back(inverse);
  rectangular |= standard_lower != -kInfinity;
}

Prepared Problem::read(const RowInput& input) {
  clear(plan::entry_error(input.cov.is_double));
  const uint32_t facts =
      read_variables(input, entry_error, [&](int64_t i, const plan::Variable& v) {
        if (v.active) add(i, v.upper, v.lower, v.inverse_sd);
      });
  if (facts & plan::kNanInput) return Prepared::nan;
  if (facts & plan::kIndefinite) return Prepared::indefinite;
  if (facts & plan::kImpossible) return Prepared::zero;
  add_masses();
  return variable.empty() ? Prepared::one : Prepared::integrate;
}

void Problem::add_masses() {
  const int64_t m = int64_t(variable.size());
  mass.resize(m);
  std::vector<double> negated(m);
  for (int64_t i = 0; i < m; ++i) negated[i] = -upper[i];
  simd_table().ndtr(negated.data(), mass.data(), m);
  if (rectangular) {
    std::vector<double> below(m);
    simd_table().ndtr(lower.data(), below.data(), m);
    for (int64_t i = 0; i < m; ++i) mass[i] += below[i];
  }
}

Prepared Problem::merge(const RowInput& input) {
  if (input.n > plan::kMostToMerge) return Prepared::integrate;
  const Multiples multiples(*this, input);
  const int64_t m = int64_t(variable.size());
  std::vector<int64_t> alike(m);  // the first variable of which this one is a multiple, or itself
  std::vector<double> rest_of(m);
  double largest_rest = 0;
  bool any = false;
  for (int64_t i = 0; i < m; ++i) alike[i] = i;
  multiples.pairs([&](int64_t k, int64_t i, double rest) {
    alike[i] = k;
    rest_of[i] = std::max(rest, 0.0);
    largest_rest = std::max(largest_rest, rest);
    any = true;
  });
  if (!any) return Prepared::integrate;
  struct Limit {
    double at, sd;
  };
  std::vector<Limit> above(m), below(m);
  for (int64_t i = 0; i < m; ++i) above[i] = {upper[i], 0}, below[i] = {lower[i], 0};
  for (int64_t i = 0; i < m; ++i) {
    const int64_t k = alike[i];
    if (k == i) continue;
    const bool same = correlation(input.cov, k, i) > 0;
    const double high = same ? upper[i] : -lower[i], low = same ? lower[i] : -upper[i];
    const double sd = std::sqrt(rest_of[i]);
    if (high < above[k].at) above[k] = {high, sd};
    if (low > below[k].at) below[k] = {low, sd};
  }
  double bound = kInfinity;
  for (int64_t k = 0; k < m; ++k)
    if (alike[k] == k && below[k].at >= above[k].at)
      bound = std::min(
          bound, plan::most_of_contradiction(below[k].at, above[k].at, below[k].sd + above[k].sd));
  if (bound < kInfinity) {
    if (bound > 0 && input.n <= plan::kMostApart) return Prepared::integrate;
    most = bound;
    return Prepared::zero;
  }
  const Problem all = *this;
  clear(all.entry_error);
  merged = largest_rest;
  for (int64_t i = 0; i < m; ++i)
    if (alike[i] == i) add(all.variable[i], above[i].at, below[i].at, all.inverse_sd[i]);
  add_masses();
  return Prepared::integrate;
}

uint32_t Problem::read_spread_but(const RowInput& input, uint32_t left_out) {
  clear(plan::entry_error(input.cov.is_double));
  return read_variables(input, entry_error, [&](int64_t i, const plan::Variable& v) {
    if (v.active)
      add(i, v.upper, v.lower, v.inverse_sd);
    else if (!(v.facts & left_out))
      add(i, kInfinity, -kInfinity, 1 / std::sqrt(input.cov.at(i, i)));
  });
}

Prepared Problem::read_spread(const RowInput& input) {
  const uint32_t facts = read_spread_but(input, plan::kZeroVariance | plan::kNanInput);
  if (facts & (plan::kNanInput | plan::kEmpty)) return Prepared::nan;
  if (facts & plan::kIndefinite) return Prepared::indefinite;
  return variable.empty() ? Prepared::one : Prepared::integrate;
}

bool Problem::read_all(const RowInput& input) {
  return !(read_spread_but(input, 0) & (plan::kNanInput | plan::kZeroVariance | plan::kImpossible));
}

void screen(const Problem& all, plan::RowPlan& plan, Problem& kept) {
  const double tau = plan.tau;
  plan::ScreenCut cut{0, 0};
  if (tau > 0) {
    uint64_t units[plan::kScreenBuckets] = {};
    for (double mass : all.mass)
      if (mass <= tau) units[plan::screen_bucket(mass, tau)] += plan::screen_units(mass, tau);
    cut = plan::screen_cut(units);
  }
  bool underflown = false;
  plan.mass = plan.largest = 0;
  kept.clear(all.entry_error);
  kept.merged = all.merged;
  const int64_t m = int64_t(all.variable.size());
  for (int64_t i = 0; i < m; ++i) {
    const bool beyond = plan::is_beyond(all.upper[i], all.lower[i]);
    if (plan::screened_out(all.mass[i], tau, cut, beyond)) {
      underflown |= all.mass[i] == 0 && !beyond;
      continue;
    }
    kept.add(all.variable[i], all.upper[i], all.lower[i], all.inverse_sd[i]);
    kept.mass.push_back(all.mass[i]);
    plan.mass += all.mass[i];
    plan.largest = std::max(plan.largest, all.mass[i]);
  }
  plan.kept = int32_t(kept.variable.size());
  plan.dropped = plan::dropped_mass(tau, cut, underflown);
}

}  // namespace mvnrob
