#include "cpu/mvn_cdf_factor.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/mvn_cdf_program.h"
#include "math/normal.h"

namespace mvnrob {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double phi(double x) { return 0.3989422804014327 * std::exp(-0.5 * x * x); }

// Mean of a standard normal truncated to [a, b].
double truncated_mean(double a, double b) {
  if (a == -kInfinity) {
    // -phi(b) / Phi(b), by its asymptotic series where both underflow.
    if (b < -30) return b - 1 / std::abs(b) + 2 / std::pow(std::abs(b), 3);
    return -phi(b) / math::ndtr<double>(b);
  }
  if (b == kInfinity) return -truncated_mean(-kInfinity, -a);
  if (a + b > 0) return -truncated_mean(-b, -a);
  const double mass = math::ndtr<double>(b) - math::ndtr<double>(a);
  // A narrow or a very far interval: between its ends, next to the one nearer to zero.
  if (!(mass > 1e-280) || b - a < 1e-8) return b < -30 ? std::max(a, b + 1 / b) : 0.5 * (a + b);
  return std::min(b, std::max(a, (phi(a) - phi(b)) / mass));
}

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
  // A few entries' worth, so that rows equal up to rounding count as equal.
  variance_error_.assign(m_, 8 * problem.entry_error);
  group_.assign(m_, -1);
  L_.clear();
}

int64_t Factor::choose() const {
  const int64_t begin = pivots_, end = live_end_;
  int64_t best = begin;
  double lowest = kInfinity;
  if (!problem_->rectangular) {  // Phi is monotone: the smallest limit
    for (int64_t i = begin; i < end; ++i) {
      const double t = (upper_[i] - mean_[i]) / std::sqrt(variance_[i]);
      if (t < lowest) lowest = t, best = i;
    }
    return best;
  }
  const int64_t count = end - begin;
  scratch_.resize(4 * count);
  double *u = scratch_.data(), *l = u + count, *pu = l + count, *pl = pu + count;
  for (int64_t i = 0; i < count; ++i) {
    const double scale = 1 / std::sqrt(variance_[begin + i]);
    u[i] = (upper_[begin + i] - mean_[begin + i]) * scale;
    l[i] = (lower_[begin + i] - mean_[begin + i]) * scale;
    if (u[i] + l[i] > 0) {  // reflect: the difference keeps its digits in the lower tail
      const double t = u[i];
      u[i] = -l[i];
      l[i] = -t;
    }
  }
  simd_table().ndtr(u, pu, count);
  simd_table().ndtr(l, pl, count);
  for (int64_t i = 0; i < count; ++i)
    if (pu[i] - pl[i] < lowest) lowest = pu[i] - pl[i], best = begin + i;
  return best;
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

Advanced Factor::advance(int64_t target) {
  row_.resize(std::max<int64_t>(int64_t(row_.size()), m_));
  while (pivots_ < target && pivots_ < live_end_) {
    const int64_t j = pivots_;
    swap(choose(), j);
    const double d = std::sqrt(variance_[j]);
    const double t_upper = (upper_[j] - mean_[j]) / d, t_lower = (lower_[j] - mean_[j]) / d;
    const double y = truncated_mean(t_lower, t_upper);
    L_.resize((j + 1) * m_);
    double* column = L_.data() + j * m_;
    std::fill(column, column + j, 0.0);
    column[j] = d;
    const int64_t p = position_[j];
    for (int64_t i = j + 1; i < m_; ++i) column[i] = problem_->correlation(cov_, p, position_[i]);
    for (int64_t l = 0; l < j; ++l) row_[l] = entry(j, l);
    simd_table().eliminate(column + j + 1, L_.data() + j + 1, m_, row_.data(), j, m_ - j - 1);
    // Rounding of the entries, taken as independent, makes the variance given the pivots wrong by
    // about entry_error (1 + |w|^2), w the regression on the pivots (the derivative of a Schur
    // complement); its growth by this pivot is c^2 / d^2 times the pivot's own. A variance within
    // its error is zero.
    const double inverse = 1 / d, growth = variance_error_[j] / variance_[j];
    bool exhausts = false;
    for (int64_t i = j + 1; i < m_; ++i) {
      const double c = column[i] * inverse;
      column[i] = c;
      variance_[i] -= c * c;
      mean_[i] += c * y;
      variance_error_[i] += c * c * growth;
      exhausts |= variance_[i] <= variance_error_[i];
      if (!(variance_[i] > -10 * variance_error_[i]))
        return std::isnan(variance_[i]) ? Advanced::nan : Advanced::indefinite;
    }
    ++pivots_;
    if (!exhausts) continue;
    for (int64_t i = pivots_; i < live_end_;) {
      if (variance_[i] > variance_error_[i]) {
        ++i;
        continue;
      }
      group_[i] = j;
      neglected_ = std::max(neglected_, variance_[i]);
      swap(i, --live_end_);
    }
  }
  return Advanced::yes;
}

}  // namespace mvnrob
