#include "cpu/mvn_cdf_factor.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/mvn_cdf_program.h"
#include "plan/variable.h"

namespace mvnrob {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

void Factor::start(const Problem& problem, const CovarianceView& cov) {
  problem_ = &problem;
  cov_ = cov;
  m_ = live_end_ = int64_t(problem.variable.size());
  pivots_ = 0;
  neglected_ = 0;
  position_.resize(m_);
  std::iota(position_.begin(), position_.end(), 0);
  upper_ = problem.upper;
  lower_ = problem.lower;
  variance_.assign(m_, 1.0);
  mean_.assign(m_, 0.0);
  variance_error_.assign(m_, plan::first_variance_error(problem.entry_error));
  group_.assign(m_, -1);
  L_.clear();
}

int64_t Factor::choose() const {
  const int64_t begin = pivots_, count = live_end_ - begin;
  int64_t best = 0;
  double lowest = kInfinity;
  auto offer = [&](int64_t i, double priority) {
    if (priority < lowest) lowest = priority, best = i;
  };
  if (!problem_->rectangular) {
    for (int64_t i = 0; i < count; ++i)
      offer(i, plan::priority(upper_[begin + i], -kInfinity, mean_[begin + i], variance_[begin + i],
                              false));
    return begin + best;
  }
  // plan::priority, the intervals' probabilities vectorised.
  scratch_.resize(3 * count);
  double *u = scratch_.data(), *l = u + count, *p = l + count;
  for (int64_t i = 0; i < count; ++i) {
    const double scale = 1 / std::sqrt(variance_[begin + i]);
    u[i] = (upper_[begin + i] - mean_[begin + i]) * scale;
    l[i] = (lower_[begin + i] - mean_[begin + i]) * scale;
  }
  simd_table().interval(l, u, p, count);
  for (int64_t i = 0; i < count; ++i) offer(i, p[i]);
  return begin + best;
}

void Factor::swap(int64_t a, int64_t b) {
  if (a == b) return;
  std::swap(position_[a], position_[b]);
  std::swap(upper_[a], upper_[b]);
  std::swap(lower_[a], lower_[b]);
  std::swap(variance_[a], variance_[b]);
  std::swap(mean_[a], mean_[b]);
  std::swap(variance_error_[a], variance_error_[b]);
  std::swap(group_[a], group_[b]);
  const int64_t columns = int64_t(L_.size()) / m_;
  for (int64_t l = 0; l < columns; ++l) std::swap(L_[l * m_ + a], L_[l * m_ + b]);
}

Advanced Factor::add_pivot(int64_t position) {
  const int64_t j = pivots_;
  swap(position, j);
  const double d = std::sqrt(variance_[j]);
  const double y = plan::truncated_mean((lower_[j] - mean_[j]) / d, (upper_[j] - mean_[j]) / d);
  L_.resize((j + 1) * m_);
  double* column = L_.data() + j * m_;
  std::fill(column, column + j, 0.0);
  column[j] = d;
  const int64_t p = position_[j];
  for (int64_t i = j + 1; i < m_; ++i) column[i] = problem_->correlation(cov_, p, position_[i]);
  row_.resize(m_);
  for (int64_t l = 0; l < j; ++l) row_[l] = entry(j, l);
  simd_table().eliminate(column + j + 1, L_.data() + j + 1, m_, row_.data(), j, m_ - j - 1);
  const double inverse = 1 / d, growth = variance_error_[j] / variance_[j];
  bool exhausts = false;
  for (int64_t i = j + 1; i < m_; ++i) {
    const double c = column[i] * inverse;
    column[i] = c;
    variance_[i] -= c * c;
    mean_[i] += c * y;
    variance_error_[i] += c * c * growth;
    exhausts |= plan::is_zero_variance(variance_[i], variance_error_[i]);
    if (!plan::is_valid_variance(variance_[i], variance_error_[i]))
      return std::isnan(variance_[i]) ? Advanced::nan : Advanced::indefinite;
  }
  ++pivots_;
  if (!exhausts) return Advanced::yes;
  for (int64_t i = pivots_; i < live_end_;) {
    if (!plan::is_zero_variance(variance_[i], variance_error_[i])) {
      ++i;
      continue;
    }
    group_[i] = j;
    neglected_ = std::max(neglected_, variance_[i]);
    swap(i, --live_end_);
  }
  return Advanced::yes;
}

Advanced Factor::advance(int64_t target) {
  while (pivots_ < target && pivots_ < live_end_) {
    const Advanced advanced = add_pivot(choose());
    if (advanced != Advanced::yes) return advanced;
  }
  return Advanced::yes;
}

bool Factor::follow(const int64_t* variables, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    int64_t i = pivots_;
    while (i < live_end_ && problem_->variable[position_[i]] != variables[k]) ++i;
    if (i == live_end_ || add_pivot(i) != Advanced::yes) return false;
  }
  return true;
}

plan::FactorFacts Factor::facts() const {
  return {int32_t(m_), int32_t(pivots_),      live_end_ == pivots_,
          neglected_,  problem_->entry_error, plan::entry_error(true)};
}

plan::Bounds Factor::interval() const {
  plan::Bounds all{-kInfinity, kInfinity};
  for (int64_t i = 0; i < m_; ++i) {
    const plan::Bounds one = plan::bounds_on_pivot(lower_[i], upper_[i], entry(i, 0));
    all.lower = std::max(all.lower, one.lower);
    all.upper = std::min(all.upper, one.upper);
  }
  return all;
}

}  // namespace mvnrob
