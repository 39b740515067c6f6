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
  neglected_ = problem.merged;
  position_.resize(m_);
  std::iota(position_.begin(), position_.end(), 0);
  upper_ = problem.upper;
  lower_ = problem.lower;
  variance_.assign(m_, 1.0);
  mean_.assign(m_, 0.0);
  variance_error_.assign(m_, cov.is_factor() ? plan::first_factor_error(problem.entry_error)
                                             : plan::first_variance_error(problem.entry_error));
  group_.assign(m_, -1);
  L_.clear();
  if (cov.is_factor()) read_rows();
}

void Factor::read_rows() {
  const int64_t columns = cov_.factor_columns;
  rows_.resize(m_ * columns);
  for (int64_t i = 0; i < m_; ++i)
    for (int64_t l = 0; l < columns; ++l)
      rows_[l * m_ + i] = cov_.stored(problem_->variable[i], l) * problem_->inverse_sd[i];
  directions_.clear();
  reference_.assign(m_, 1.0);
}

int64_t Factor::choose() const {
  const int64_t begin = pivots_, count = live_end_ - begin;
  int64_t best = 0;
  double lowest = kInfinity;
  // Rows that have left change places: of equals the first in the input goes first.
  const int64_t* position = position_.data() + begin;
  auto offer = [&](int64_t i, double priority) {
    if (priority < lowest || (priority == lowest && position[i] < position[best]))
      lowest = priority, best = i;
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
  if (!cov_.is_factor()) return;
  std::swap(reference_[a], reference_[b]);
  for (int64_t l = 0; l < cov_.factor_columns; ++l) std::swap(rows_[l * m_ + a], rows_[l * m_ + b]);
}

// No direction is left beyond the columns of a factor, whatever rounding says.
bool Factor::is_spent(int64_t i) const {
  return plan::is_zero_variance(variance_[i], variance_error_[i]) ||
         (cov_.is_factor() && pivots_ == cov_.factor_columns);
}

// The part of row j that is orthogonal to the directions before; returns its length.
double Factor::add_direction(int64_t j) {
  const int64_t columns = cov_.factor_columns;
  directions_.resize((j + 1) * columns);
  double* q = directions_.data() + j * columns;
  for (int64_t k = 0; k < columns; ++k) q[k] = rows_[k * m_ + j];
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t l = 0; l < j; ++l) {
      const double* before = directions_.data() + l * columns;
      double c = entry(j, l);  // known already; what rounding has left is not
      if (pass == 1) {
        c = 0;
        for (int64_t k = 0; k < columns; ++k) c += q[k] * before[k];
      }
      for (int64_t k = 0; k < columns; ++k) q[k] -= c * before[k];
    }
  }
  double square = 0;
  for (int64_t k = 0; k < columns; ++k) square += q[k] * q[k];
  const double length = std::sqrt(square), inverse = 1 / length;
  for (int64_t k = 0; k < columns; ++k) q[k] *= inverse;
  return length;
}

// The variance of row i that all directions leave, formed anew.
double Factor::rest_of_row(int64_t i) const {
  const int64_t columns = cov_.factor_columns, count = int64_t(directions_.size()) / columns;
  double square = 0;
  for (int64_t k = 0; k < columns; ++k) {
    double rest = rows_[k * m_ + i];
    for (int64_t l = 0; l < count; ++l) rest -= entry(i, l) * directions_[l * columns + k];
    square += rest * rest;
  }
  return square;
}

Advanced Factor::add_pivot(int64_t position) {
  const int64_t j = pivots_;
  const bool factored = cov_.is_factor();
  swap(position, j);
  const double d = factored ? add_direction(j) : std::sqrt(variance_[j]);
  const double y = plan::truncated_mean((lower_[j] - mean_[j]) / d, (upper_[j] - mean_[j]) / d);
  L_.resize((j + 1) * m_);
  double* column = L_.data() + j * m_;
  std::fill(column, column + j, 0.0);
  column[j] = d;
  if (factored) {
    std::fill(column + j + 1, column + m_, 0.0);
    simd_table().eliminate(column + j + 1, rows_.data() + j + 1, m_,
                           directions_.data() + j * cov_.factor_columns, cov_.factor_columns,
                           m_ - j - 1);
  } else {
    const int64_t p = position_[j];
    for (int64_t i = j + 1; i < m_; ++i) column[i] = problem_->correlation(cov_, p, position_[i]);
    row_.resize(m_);
    for (int64_t l = 0; l < j; ++l) row_[l] = entry(j, l);
    simd_table().eliminate(column + j + 1, L_.data() + j + 1, m_, row_.data(), j, m_ - j - 1);
  }
  const double inverse = factored ? -1 : 1 / d, growth = variance_error_[j] / (d * d);
  bool exhausts = false;
  for (int64_t i = j + 1; i < m_; ++i) {
    const double c = column[i] * inverse;
    column[i] = c;
    variance_[i] -= c * c;
    mean_[i] += c * y;
    variance_error_[i] += c * c * growth;
    if (factored && i < live_end_ && !(variance_[i] > plan::kRefresh * reference_[i]))
      variance_[i] = reference_[i] = rest_of_row(i);
    exhausts |= is_spent(i);
    if (!factored && !plan::is_valid_variance(variance_[i], variance_error_[i]))
      return std::isnan(variance_[i]) ? Advanced::nan : Advanced::indefinite;
  }
  ++pivots_;
  exhausts |= factored && pivots_ == cov_.factor_columns;
  if (!exhausts) return Advanced::yes;
  for (int64_t i = pivots_; i < live_end_;) {
    if (!is_spent(i)) {
      ++i;
      continue;
    }
    group_[i] = j;
    neglected_ = std::max(neglected_, variance_[i]);
    swap(i, --live_end_);
  }
  return Advanced::yes;
}

// Rows without variance must have none together.
Advanced Factor::check_rest() const {
  const int64_t rows = m_ - pivots_;
  std::vector<double> sign(rows), error(rows), rest(rows, 0.0);
  double sum_of_errors = 0;
  for (int64_t i = 0; i < rows; ++i) {
    sign[i] = plan::sign_of(problem_->variable[position_[pivots_ + i]]);
    error[i] = plan::error_of_rest(variance_error_[pivots_ + i]);
    sum_of_errors += error[i];
  }
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t p = position_[pivots_ + i];
    double sum = problem_->correlation(cov_, p, p) * sign[i];
    for (int64_t j = 0; j < i; ++j) {
      const double correlation = problem_->correlation(cov_, p, position_[pivots_ + j]);
      sum += correlation * sign[j];
      rest[j] += correlation * sign[i];
    }
    rest[i] += sum;
  }
  for (int64_t l = 0; l < pivots_; ++l) {
    const double* column = L_.data() + l * m_ + pivots_;
    double sum = 0;
    for (int64_t i = 0; i < rows; ++i) sum += column[i] * sign[i];
    for (int64_t i = 0; i < rows; ++i) rest[i] -= column[i] * sum;
  }
  for (int64_t i = 0; i < rows; ++i)
    if (!plan::is_zero_rest(rest[i], error[i], sum_of_errors))
      return std::isnan(rest[i]) ? Advanced::nan : Advanced::indefinite;
  return Advanced::yes;
}

Advanced Factor::advance(int64_t target) {
  bool grows = false;
  while (pivots_ < target && pivots_ < live_end_) {
    const Advanced advanced = add_pivot(choose());
    if (advanced != Advanced::yes) return advanced;
    grows = true;
  }
  return grows && live_end_ == pivots_ && !cov_.is_factor() ? check_rest() : Advanced::yes;
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
