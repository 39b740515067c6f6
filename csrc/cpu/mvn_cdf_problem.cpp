#include "cpu/mvn_cdf_problem.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/mvn_cdf_program.h"
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

}  // namespace

void Problem::clear(double error_of_entry) {
  variable.clear();
  upper.clear();
  lower.clear();
  inverse_sd.clear();
  mass.clear();
  rectangular = false;
  entry_error = error_of_entry;
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
  return m == 0 ? Prepared::one : Prepared::integrate;
}

bool Problem::read_all(const RowInput& input) {
  clear(plan::entry_error(input.cov.is_double));
  const uint32_t facts =
      read_variables(input, entry_error, [&](int64_t i, const plan::Variable& v) {
        if (v.active)
          add(i, v.upper, v.lower, v.inverse_sd);
        else
          add(i, kInfinity, -kInfinity, 1 / std::sqrt(input.cov.at(i, i)));
      });
  return !(facts & (plan::kNanInput | plan::kZeroVariance | plan::kImpossible));
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
  plan.dropped = plan::dropped_mass(tau, cut);
  plan.mass = plan.largest = 0;
  kept.clear(all.entry_error);
  const int64_t m = int64_t(all.variable.size());
  for (int64_t i = 0; i < m; ++i) {
    if (plan::screened_out(all.mass[i], tau, cut)) continue;
    kept.add(all.variable[i], all.upper[i], all.lower[i], all.inverse_sd[i]);
    kept.mass.push_back(all.mass[i]);
    plan.mass += all.mass[i];
    plan.largest = std::max(plan.largest, all.mass[i]);
  }
  plan.kept = int32_t(kept.variable.size());
}

}  // namespace mvnrob
