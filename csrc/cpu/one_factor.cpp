#include "cpu/one_factor.h"

#include <algorithm>
#include <cmath>

#include "cpu/mvn_cdf_program.h"

namespace mvnrob {

bool OneFactor::recognise(const Problem& problem, const CovarianceView& cov) {
  const int64_t m = int64_t(problem.variable.size());
  split(problem, cov);
  load_.resize(m);
  rest_.resize(m);
  density_.resize(m);
  moved_ = 0;
  int64_t first = 0;
  for (int64_t last : end_) {
    if (!fit(problem, cov, first, last)) return false;
    first = last;
  }
  return true;
}

// Connected components of the entries that are not zero.
void OneFactor::split(const Problem& problem, const CovarianceView& cov) {
  const int64_t m = int64_t(problem.variable.size());
  order_.clear();
  end_.clear();
  std::vector<int64_t> left(m);
  for (int64_t i = 0; i < m; ++i) left[i] = i;
  while (!left.empty()) {
    size_t at = order_.size();
    order_.push_back(left.front());
    left.erase(left.begin());
    for (; at < order_.size() && !left.empty(); ++at) {
      const auto apart = [&](int64_t j) { return problem.correlation(cov, order_[at], j) == 0; };
      const auto joined = std::stable_partition(left.begin(), left.end(), apart);
      order_.insert(order_.end(), joined, left.end());
      left.erase(joined, left.end());
    }
    end_.push_back(int64_t(order_.size()));
  }
}

bool OneFactor::fit(const Problem& problem, const CovarianceView& cov, int64_t first,
                    int64_t last) {
  const int64_t* v = order_.data();
  const double error = problem.entry_error;
  const auto r = [&](int64_t a, int64_t b) { return problem.correlation(cov, v[a], v[b]); };
  load_[first] = 0;
  if (last - first == 2) load_[first] = std::sqrt(std::abs(r(first, first + 1)));
  if (last - first > 2) {
    int64_t a = first + 1, b = -1;
    for (int64_t k = a; k < last; ++k)
      if (std::abs(r(first, k)) > std::abs(r(first, a))) a = k;
    double most = 0;
    for (int64_t k = first + 1; k < last; ++k) {
      const double size = std::abs(r(first, k) * r(a, k));
      if (k != a && size > most) most = size, b = k;
    }
    if (b < 0) return false;
    load_[first] = plan::load_from(r(first, a), r(first, b), r(a, b), error);
  }
  if (last - first > 1 && !(load_[first] > 0)) return false;
  double halvings = 0, least = 1;
  int hard = 0;
  for (int64_t k = first; k < last; ++k) {
    if (k > first) load_[k] = r(first, k) / load_[first];
    if (!(std::abs(load_[k]) <= 1 + 8 * error)) return false;
    rest_[k] = plan::rest_of_load(load_[k], error);
    density_[k] = plan::density_of(problem.upper[v[k]], problem.lower[v[k]]);
    if (rest_[k] == 0) {
      // Two of them are multiples up to rounding; the factor says what that may cost.
      if (++hard > 1) return false;
      continue;
    }
    halvings += plan::halvings(rest_[k]);
    least = std::min(least, rest_[k]);
  }
  if (!plan::is_quick(halvings, least)) return false;
  for (int64_t i = first + 1; i < last; ++i)
    for (int64_t k = first + 1; k < i; ++k) {
      const double correlation = r(i, k);
      if (!plan::is_product(correlation, load_[i], load_[k], error)) return false;
      moved_ += plan::moved_by(correlation - load_[i] * load_[k], density_[i], density_[k],
                               rest_[i], rest_[k]);
    }
  return true;
}

plan::OneFactorProbability OneFactor::integrate_block(const Problem& problem, int64_t first,
                                                      int64_t last) {
  plan::Bounds range{-HUGE_VAL, HUGE_VAL};
  double largest = 0;
  upper_.clear();
  lower_.clear();
  slope_.clear();
  for (int64_t k = first; k < last; ++k) {
    const double upper = problem.upper[order_[k]], lower = problem.lower[order_[k]];
    largest = std::max(largest, problem.mass[order_[k]]);
    if (rest_[k] == 0) {
      const plan::Bounds one = plan::bounds_on_pivot(lower, upper, load_[k] > 0 ? 1.0 : -1.0);
      range.lower = std::max(range.lower, one.lower);
      range.upper = std::min(range.upper, one.upper);
      continue;
    }
    upper_.push_back(upper / rest_[k]);
    lower_.push_back(lower / rest_[k]);
    slope_.push_back(load_[k] / rest_[k]);
  }
  const int64_t count = int64_t(upper_.size());
  const auto fails = [&](double y) {
    return simd_table().one_factor_fails(upper_.data(), lower_.data(), slope_.data(), y, count);
  };
  const auto log_holds = [&](double y) {
    return simd_table().one_factor_log(upper_.data(), lower_.data(), slope_.data(), y, count);
  };
  return plan::integrate_one_factor(fails, log_holds, int(last - first), range, largest);
}

plan::ProductOfBlocks OneFactor::integrate(const Problem& problem) {
  plan::ProductOfBlocks product;
  int64_t first = 0;
  for (int64_t last : end_) {
    if (last - first == 1) {
      const int64_t i = order_[first];
      product.add(plan::interval(problem.lower[i], problem.upper[i]), problem.mass[i]);
    } else {
      product.add(integrate_block(problem, first, last));
    }
    first = last;
  }
  return product;
}

}  // namespace mvnrob
