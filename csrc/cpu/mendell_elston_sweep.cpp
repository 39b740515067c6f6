#include "cpu/mendell_elston_sweep.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "cpu/mendell_elston_simd.h"
#include "cpu/mvn_cdf_program.h"
#include "cpu/simd_dispatch.h"
#include "plan/variable.h"

namespace mvnrob {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

const MendellElstonKernels& kernels() { return MVNROB_SIMD_TABLE(mendell_elston_kernels); }

}  // namespace

SweepResult MendellElstonSweep::run(const RowInput& input) {
  input_ = input;
  pivots_.clear();
  log_prob_ = 0;
  m_ = 0;
  switch (problem_.read(input)) {
    case Prepared::nan:
      log_prob_ = kNaN;
      return {kNaN, Status::nan, 0, 0};
    case Prepared::indefinite:
      log_prob_ = kNaN;
      return {kNaN, Status::indefinite, 0, 0};
    case Prepared::zero:
      log_prob_ = -kInfinity;
      return {-kInfinity, Status::exact, 0, 0};
    case Prepared::one:
      return {0, Status::exact, 0, 0};
    case Prepared::integrate:
      break;
  }
  Status status = sweep(problem_.entry_error);
  // A float64 matrix that was computed in float32 is indefinite by no more than that rounding.
  if (status == Status::indefinite && problem_.entry_error < plan::entry_error(false))
    status = sweep(plan::entry_error(false));
  if (status == Status::nan || status == Status::indefinite) log_prob_ = kNaN;
  return {log_prob_, status, m_, int64_t(pivots_.size())};
}

void MendellElstonSweep::begin(double entry_error) {
  problem_.entry_error = entry_error;
  m_ = end_ = int64_t(problem_.variable.size());
  log_prob_ = 0;
  pivots_.clear();
  position_.resize(m_);
  std::iota(position_.begin(), position_.end(), 0);
  upper_ = problem_.upper;
  lower_ = problem_.lower;
  mean_.assign(m_, 0.0);
  variance_.assign(m_, 1.0);
  error_.assign(m_, plan::first_variance_error(entry_error));
  weights_.resize(m_);
  priority_.resize(m_);
}

void MendellElstonSweep::swap(int64_t a, int64_t b) {
  if (a == b) return;
  for (auto* v : {&upper_, &lower_, &mean_, &variance_, &error_}) std::swap((*v)[a], (*v)[b]);
  std::swap(position_[a], position_[b]);
  const int64_t columns = int64_t(factor_.size()) / m_;
  for (int64_t l = 0; l < columns; ++l) std::swap(column(l)[a], column(l)[b]);
}

plan::Bounds MendellElstonSweep::bounds(int64_t row, int64_t pivot) const {
  const double c = row == pivot ? pivots_[pivot].sd : factor_[pivot * m_ + row];
  return plan::bounds_on_pivot(lower_[row] - mean_[row], upper_[row] - mean_[row], c);
}

Status MendellElstonSweep::sweep(double entry_error) {
  begin(entry_error);
  factor_.clear();
  const MendellElstonKernels& simd = kernels();
  for (int64_t j = 0; j < end_; ++j) {
    const SweepState left{&mean_[j], &variance_[j], &error_[j]};
    swap(j + simd.choose(&upper_[j], problem_.rectangular ? &lower_[j] : nullptr, left,
                         priority_.data(), end_ - j),
         j);
    const double sd = std::sqrt(variance_[j]), growth = error_[j] / variance_[j];
    Pivot pivot{sd, {(lower_[j] - mean_[j]) / sd, (upper_[j] - mean_[j]) / sd}, {}, end_, end_};
    if (pivot.bounds.lower != pivot.bounds.lower || pivot.bounds.upper != pivot.bounds.upper)
      return Status::nan;
    pivot.interval = math::truncated(pivot.bounds.lower, pivot.bounds.upper);
    if (plan::is_settled(log_prob_, pivot.interval.log_mass, end_ - j)) break;

    factor_.resize((j + 1) * m_);
    double* c = column(j);
    const int64_t p = position_[j], first = j + 1, rest = end_ - first;
    std::fill(c, c + m_, 0.0);
    for (int64_t i = first; i < end_; ++i) c[i] = problem_.correlation(input_.cov, p, position_[i]);
    for (int64_t l = 0; l < j; ++l) weights_[l] = pivots_[l].interval.shrink * column(l)[j];
    simd_table().eliminate(c + first, factor_.data() + first, m_, weights_.data(), j, rest);
    const SweepState after{mean_.data() + first, variance_.data() + first, error_.data() + first};
    if (simd.scale(c + first, after, 1 / sd, growth, rest)) {
      const Status status = leave_multiples(pivot, growth);
      if (status != Status::converged) return status;
    }
    pivots_.push_back(pivot);
    if (!(pivot.bounds.lower < pivot.bounds.upper)) {  // multiples that contradict each other
      log_prob_ = -kInfinity;
      break;
    }
    log_prob_ += pivot.interval.log_mass;
    const double shrink = pivot.interval.shrink;
    simd.update(c + first, after, {pivot.interval.mean, shrink, growth * shrink}, end_ - first);
  }
  return pivots_.size() > 1 ? Status::approximate : Status::exact;
}

// Multiples of the newest pivot narrow its interval and leave.
Status MendellElstonSweep::leave_multiples(Pivot& pivot, double growth) {
  const int64_t j = int64_t(pivots_.size());
  const double* c = column(j);
  bool narrower = false;
  for (int64_t i = j + 1; i < end_;) {
    const plan::Relation is = plan::relation(variance_[i], error_[i], c[i], growth);
    if (is == plan::Relation::nan) return Status::nan;
    if (is == plan::Relation::indefinite) return Status::indefinite;
    if (is == plan::Relation::ordinary) {
      ++i;
      continue;
    }
    const plan::Bounds one = bounds(i, j);
    narrower |= one.lower > pivot.bounds.lower || one.upper < pivot.bounds.upper;
    pivot.bounds.lower = std::max(pivot.bounds.lower, one.lower);
    pivot.bounds.upper = std::min(pivot.bounds.upper, one.upper);
    swap(i, --end_);
  }
  pivot.end_after = end_;
  if (narrower && pivot.bounds.lower < pivot.bounds.upper)
    pivot.interval = math::truncated(pivot.bounds.lower, pivot.bounds.upper);
  return Status::converged;
}

// The slopes of pivot j's interval, handed on to the limits that it is made of.
void MendellElstonSweep::to_bounds(int64_t j, double lower, double upper) {
  const Pivot& pivot = pivots_[j];
  const double e = problem_.entry_error;
  const auto each = [&](auto&& take) {
    take(j, pivot.sd);
    for (int64_t i = pivot.end_after; i < pivot.end; ++i) take(i, column(j)[i]);
  };
  double lowers = 0, uppers = 0;
  each([&](int64_t i, double) {
    const plan::Bounds one = bounds(i, j);
    lowers += plan::bounds_meet(one.lower, pivot.bounds.lower, e);
    uppers += plan::bounds_meet(one.upper, pivot.bounds.upper, e);
  });
  each([&](int64_t i, double c) {
    const plan::Bounds one = bounds(i, j);
    double to_coefficient = 0;
    // The bound is (limit - mean) / c.
    const auto hand_on = [&](double bound, double slope, bool from_upper) {
      if (slope == 0) return;
      (from_upper ? to_upper_ : to_lower_)[i] += slope / c;
      to_mean_[i] -= slope / c;
      to_coefficient -= slope * bound / c;
    };
    if (plan::bounds_meet(one.lower, pivot.bounds.lower, e))
      hand_on(one.lower, lower / lowers, c < 0);
    if (plan::bounds_meet(one.upper, pivot.bounds.upper, e))
      hand_on(one.upper, upper / uppers, c > 0);
    to_column_[i] += to_coefficient;  // of the pivot itself: its standard deviation
  });
}

template <class scalar_t>
void MendellElstonSweep::reverse(double factor, const SweepGradient<scalar_t>& gradient) {
  const int64_t n = input_.n, pivots = int64_t(pivots_.size());
  const bool nan = log_prob_ != log_prob_;
  const scalar_t all = nan && factor != 0 ? scalar_t(kNaN) : scalar_t(0);
  std::fill(gradient.upper, gradient.upper + n, all);
  if (gradient.lower) std::fill(gradient.lower, gradient.lower + n, all);
  if (gradient.cov) std::fill(gradient.cov, gradient.cov + n * n, all);
  if (nan || factor == 0 || pivots == 0 || log_prob_ == -kInfinity) return;

  for (auto* v : {&to_upper_, &to_lower_, &to_mean_}) v->assign(m_, 0.0);
  to_column_.resize(m_);
  to_cov_.assign(m_ * m_, 0.0);
  for (int64_t j = pivots - 1; j >= 0; --j) {
    const Pivot& pivot = pivots_[j];
    const math::Truncated& t = pivot.interval;
    const double* c = column(j);
    const int64_t first = j + 1, count = pivot.end - first;
    double* to_c = to_column_.data();
    std::fill(to_c + j, to_c + pivot.end, 0.0);
    // -(matrix) c over the rows after j
    simd_table().eliminate(to_c + first, to_cov_.data() + first * (m_ + 1), m_, c + first, count,
                           count);
    double to_mean = 0, to_shrink = 0;
    for (int64_t i = first; i < pivot.end_after; ++i) {
      to_mean += c[i] * to_mean_[i];
      to_shrink += c[i] * to_c[i];
      to_c[i] = t.shrink * to_c[i] + t.mean * to_mean_[i];
    }
    const math::TruncatedSlopes slopes = math::truncated_slopes(t, 1, to_mean, 0.5 * to_shrink);
    to_bounds(j, slopes.lower, slopes.upper);
    // c = S_j / sd, sd^2 = S_jj
    double to_sd = to_c[j];
    double* row = to_cov_.data() + j * m_;
    for (int64_t i = first; i < pivot.end; ++i) {
      to_sd -= to_c[i] * c[i] / pivot.sd;
      row[i] = to_cov_[i * m_ + j] = to_c[i] / pivot.sd;
    }
    // A variance kept at its rounding depends on nothing.
    row[j] = variance_[j] > error_[j] ? to_sd / pivot.sd : 0;
  }
  for (int64_t i = 0; i < m_; ++i) {
    const int64_t at = position_[i], variable = problem_.variable[at];
    const double scale = factor * problem_.inverse_sd[at];
    gradient.upper[variable] = scalar_t(scale * to_upper_[i]);
    if (gradient.lower) gradient.lower[variable] = scalar_t(scale * to_lower_[i]);
  }
  if (gradient.cov) write_cov(factor, gradient.cov);
}

// From R to cov. Scaling a variable is scaling its limits back, which gives the diagonal.
template <class scalar_t>
void MendellElstonSweep::write_cov(double factor, scalar_t* out) {
  const int64_t n = input_.n;
  for (int64_t i = 0; i < m_; ++i) {
    const int64_t a = position_[i], va = problem_.variable[a];
    const double scale = problem_.inverse_sd[a];
    double sum = 0;
    if (to_upper_[i] != 0) sum += upper_[i] * to_upper_[i];
    if (to_lower_[i] != 0) sum += lower_[i] * to_lower_[i];
    for (int64_t k = 0; k < m_; ++k) {
      const double slope = to_cov_[i * m_ + k];
      if (k == i || slope == 0) continue;
      const int64_t b = position_[k], vb = problem_.variable[b];
      // As it was read: of a pair only the entry in the row of the earlier pivot.
      sum += slope * (i < k ? problem_.correlation(input_.cov, a, b)
                            : problem_.correlation(input_.cov, b, a));
      out[va * n + vb] = scalar_t(0.5 * factor * slope * (scale * problem_.inverse_sd[b]));
    }
    out[va * n + va] = scalar_t(-0.5 * factor * sum * (scale * scale));
  }
}

template void MendellElstonSweep::reverse(double, const SweepGradient<float>&);
template void MendellElstonSweep::reverse(double, const SweepGradient<double>&);

}  // namespace mvnrob
