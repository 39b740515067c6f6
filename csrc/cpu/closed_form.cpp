#include "cpu/closed_form.h"

#include "math/box.h"
#include "plan/ordering.h"

namespace mvnrob {

namespace {

// Whether all correlations are zero.
bool independent(const Problem& problem, const CovarianceView& cov) {
  const int64_t m = int64_t(problem.variable.size());
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < i; ++j)
      if (problem.correlation(cov, i, j) != 0) return false;
  return true;
}

// 1 - rho^2 of two rows of a factor, by what the first leaves of the second.
double rest_of_rows(const CovarianceView& cov, int64_t v, int64_t w) {
  const double part = cov.at(v, w) / cov.at(v, v);
  double square = 0;
  for (int64_t l = 0; l < cov.factor_columns; ++l) {
    const double rest = cov.stored(w, l) - part * cov.stored(v, l);
    square += rest * rest;
  }
  return square / cov.at(w, w);
}

}  // namespace

ClosedForm closed_form(const Problem& problem, const CovarianceView& cov) {
  const int64_t m = int64_t(problem.variable.size());
  if (independent(problem, cov)) {
    double p = 1, missing = 0, log_value = 0;
    for (int64_t i = 0; i < m; ++i) {
      const plan::IntervalProbability one = plan::interval(problem.lower[i], problem.upper[i]);
      missing += p * problem.mass[i];
      p *= one.value;
      log_value += one.log_value;
    }
    const double error = math::closed_form_error(4e-15 * double(m), missing);
    return {p, missing, log_value, error, Status::exact};
  }
  auto pair = [&](int64_t i, int64_t j) {
    const int64_t v = problem.variable[i], w = problem.variable[j];
    if (cov.is_factor())
      return math::pair_correlation_of_rows(problem.correlation(cov, i, j), rest_of_rows(cov, v, w),
                                            plan::first_factor_error(problem.entry_error));
    return math::pair_correlation(cov.at(v, v), cov.at(w, w), cov.at(v, w),
                                  problem.correlation(cov, i, j));
  };
  math::Box box{int(m), {}, {pair(1, 0), {0, 0}, {0, 0}}};
  if (m == 3) box.pairs[1] = pair(2, 0), box.pairs[2] = pair(2, 1);
  for (int64_t i = 0; i < m; ++i) box.limits[i] = {problem.lower[i], problem.upper[i]};
  const math::BoxProbability p = math::box_probability(box, 80 * problem.entry_error);
  if (p.nan) return {0, 0, 0, 0, Status::nan};
  if (!p.consistent) return {0, 0, 0, 0, Status::indefinite};
  return {p.value, p.complement, p.log_value, p.error, Status::exact};
}

}  // namespace mvnrob
