#include "cpu/closed_form.h"

#include "plan/ordering.h"

namespace mvnrob {

math::BoxProbability box_of(const Problem& problem, const CovarianceView& cov, const int64_t* index,
                            int size) {
  const auto pair = [&](int a, int b) {
    if (a >= size) return math::PairCorrelation{0, 0};
    const int64_t i = index[a], j = index[b], v = problem.variable[i], w = problem.variable[j];
    if (cov.is_factor())
      return math::pair_correlation_of_rows(problem.correlation(cov, i, j), rest_of_rows(cov, v, w),
                                            plan::first_factor_error(problem.entry_error));
    return math::pair_correlation(cov.at(v, v), cov.at(w, w), cov.at(v, w),
                                  problem.correlation(cov, i, j));
  };
  math::Box box{size, {}, {pair(1, 0), pair(2, 0), pair(2, 1)}};
  for (int a = 0; a < size; ++a) box.limits[a] = {problem.lower[index[a]], problem.upper[index[a]]};
  return math::box_probability(box, 80 * problem.entry_error);
}

math::BoxProbability closed_form(const Problem& problem, const CovarianceView& cov) {
  const int64_t index[3] = {0, 1, 2};
  return box_of(problem, cov, index, int(problem.variable.size()));
}

}  // namespace mvnrob
