#include "cpu/mvn_cdf_factor.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/mvn_cdf_program.h"
#include "cpu/simd_dispatch.h"
#include "plan/variable.h"

namespace mvnrob {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

constexpr int64_t kPool = 32;  // most columns
// A column alone reads all of L: that is as fast while L is in the nearer caches.
constexpr int64_t kEntriesToPool = 1 << 15;

const FactorKernels& kernels() { return MVNROB_SIMD_TABLE(factor_kernels); }

}  // namespace

Factor::Factor() : kernels_(kernels()) {}

void Factor::start(const Problem& problem, const CovarianceView& cov) {
  weight_.clear();
  problem_ = &problem;
  cov_ = cov;
  m_ = live_end_ = int64_t(problem.variable.size());
  pivots_ = 0;
  neglected_ = problem.merged;
  tiles_ = (m_ + kTileRows - 1) / kTileRows;
  const int64_t padded = tiles_ * kTileRows;
  position_.resize(m_);
  std::iota(position_.begin(), position_.end(), 0);
  // The kernels read a tile beyond the last row, of variance one, and write some of it.
  upper_ = problem.upper;
  lower_ = problem.lower;
  upper_.resize(padded + kTileRows);
  lower_.resize(padded + kTileRows);
  priority_.resize(padded + kTileRows);
  variance_.assign(padded + kTileRows, 1.0);
  mean_.assign(padded + kTileRows, 0.0);
  variance_error_.assign(padded, 0.0);
  std::fill_n(variance_error_.begin(), m_,
              cov.is_factor() ? plan::first_factor_error(problem.entry_error)
                              : plan::first_variance_error(problem.entry_error));
  group_.assign(m_, -1);
  slot_.assign(m_, -1);
  row_of_slot_.assign(kPool, -1);
  hits_ = pool_pivots_ = pool_size_ = 0;
  pool_.resize(padded * (kPool + 1));
  weights_.resize(kPool * kStripe);
  if (cov.is_factor()) {
    read_rows();
    return;
  }
  source_.resize(m_);
  for (int64_t i = 0; i < m_; ++i) source_[i] = problem.variable[i] * cov.column_stride;
  scale_ = problem.inverse_sd;
}

void Factor::start_again(const std::vector<double>& weights) {
  start(*problem_, cov_);
  weight_ = weights;
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

FactorRows Factor::rows_from(int64_t i) {
  return {upper_.data() + i, problem_->rectangular ? lower_.data() + i : nullptr, mean_.data() + i,
          variance_.data() + i, variance_error_.data() + i};
}

// Rows that have left change places: of equals the first in the input goes first.
int64_t Factor::choose() {
  if (!weight_.empty()) {
    const int64_t chosen = choose_by_weight();
    if (chosen >= 0) return chosen;
  }
  return pivots_ + kernels_.choose(rows_from(pivots_), position_.data() + pivots_,
                                   priority_.data() + pivots_, live_end_ - pivots_);
}

// The heaviest of the live rows, then the least likely one that is not thin, of equals the first in
// the input; -1 where there is neither.
int64_t Factor::choose_by_weight() const {
  int64_t best = -1;
  double least = kInfinity;
  const auto take = [&](int64_t i, double key) {
    if (key < least || (best >= 0 && key == least && position_[i] < position_[best]))
      best = i, least = key;
  };
  for (int64_t i = pivots_; i < live_end_; ++i) {
    const double weight = std::abs(weight_[position_[i]]);
    if (weight > 0) take(i, -weight);
  }
  if (best >= 0) return best;
  for (int64_t i = pivots_; i < live_end_; ++i)
    if (variance_[i] > plan::kThin)
      take(i, plan::priority(upper_[i], lower_[i], mean_[i], variance_[i], problem_->rectangular));
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
  std::swap(priority_[a], priority_[b]);
  std::swap(group_[a], group_[b]);
  for (int64_t first = 0; first < pivots_; first += kStripe) {
    double *x = entries(a, first), *y = entries(b, first);
    for (int64_t l = first; l < std::min(first + kStripe, pivots_);
         ++l, x += kTileRows, y += kTileRows)
      std::swap(*x, *y);
  }
  if (cov_.is_factor()) {
    std::swap(reference_[a], reference_[b]);
    for (int64_t l = 0; l < cov_.factor_columns; ++l)
      std::swap(rows_[l * m_ + a], rows_[l * m_ + b]);
    return;
  }
  std::swap(source_[a], source_[b]);
  std::swap(scale_[a], scale_[b]);
  std::swap(slot_[a], slot_[b]);
  for (const int64_t i : {a, b})
    if (slot_[i] >= 0) row_of_slot_[slot_[i]] = i;
  for (int64_t slot = 0; slot < pool_size_; ++slot)
    if (row_of_slot_[slot] >= 0) std::swap(pooled(slot)[a], pooled(slot)[b]);
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

// Of rows first to end - 1.
void Factor::read_column(int64_t i, int64_t first, int64_t end, double* column) const {
  const int64_t row = problem_->variable[position_[i]] * cov_.row_stride;
  const double scale = scale_[i];
  const auto read = [&](const auto* entries) {
    for (int64_t k = first; k < end; ++k)
      column[k] = double(entries[source_[k]]) * scale * scale_[k];
  };
  if (cov_.is_double)
    read(static_cast<const double*>(cov_.data) + row);
  else
    read(static_cast<const float*>(cov_.data) + row);
}

// Takes the pivots from `from` on out of the columns of these rows, from the present tile on.
void Factor::eliminate(const int64_t* rows, double* const* columns, int64_t count, int64_t from) {
  const int64_t first = pivots_ / kTileRows;
  double* column[kPool];
  for (int64_t c = 0; c < count; ++c) column[c] = columns[c] + first * kTileRows;
  while (from < pivots_) {
    const int64_t end = std::min(pivots_, (from / kStripe + 1) * kStripe);
    for (int64_t c = 0; c < count; ++c) {
      const double* entry = entries(rows[c], from);
      for (int64_t l = 0; l < end - from; ++l) weights_[l * count + c] = -entry[l * kTileRows];
    }
    kernels_.eliminate(column, count, weights_.data(), entries(first * kTileRows, from),
                       tiles_ - first, end - from);
    from = end;
  }
}

// Column of row pivots_, what the pivots before say of it taken out.
double* Factor::column_of_pivot() {
  const int64_t j = pivots_;
  const bool pools = j * (m_ - j) >= kEntriesToPool && std::min(wanted_, live_end_) - j > 1;
  if (slot_[j] < 0 && pools) fill_pool();
  if (slot_[j] < 0) {
    double* column = pooled(kPool);
    read_column(j, j, m_, column);
    eliminate(&j, &column, 1, 0);
    return column;
  }
  double* column = pooled(slot_[j]);
  eliminate(&j, &column, 1, pool_pivots_);
  row_of_slot_[slot_[j]] = -1;
  slot_[j] = -1;
  ++hits_;
  return column;
}

// With row pivots_ and those that are the least likely after it. The pool is as large as its hits
// warrant.
void Factor::fill_pool() {
  const int64_t j = pivots_;
  const int64_t count =
      std::min({std::max<int64_t>(4, 2 * hits_), kPool, wanted_ - j, live_end_ - j});
  candidates_.resize(live_end_ - j);
  std::iota(candidates_.begin(), candidates_.end(), j);
  std::nth_element(candidates_.begin() + 1, candidates_.begin() + (count - 1), candidates_.end(),
                   [&](int64_t a, int64_t b) { return priority_[a] < priority_[b]; });
  candidates_.resize(count);
  // Those in the pool already go first.
  const auto fresh = std::partition(candidates_.begin(), candidates_.end(),
                                    [&](int64_t i) { return slot_[i] >= 0; });
  const int64_t kept = fresh - candidates_.begin();
  int64_t slots[kPool];
  for (int64_t c = 0; c < kept; ++c) slots[c] = slot_[candidates_[c]];
  for (int64_t& row : row_of_slot_) {
    if (row >= 0) slot_[row] = -1;
    row = -1;
  }
  for (int64_t c = 0; c < kept; ++c) row_of_slot_[slots[c]] = candidates_[c];
  for (int64_t c = kept, slot = 0; c < count; ++c) {
    while (row_of_slot_[slot] >= 0) ++slot;
    slots[c] = slot;
    row_of_slot_[slot] = candidates_[c];
    read_column(candidates_[c], j, m_, pooled(slot));
  }
  double* columns[kPool];
  for (int64_t c = 0; c < count; ++c) {
    slot_[candidates_[c]] = slots[c];
    columns[c] = pooled(slots[c]);
  }
  if (kept > 0) eliminate(candidates_.data(), columns, kept, pool_pivots_);
  if (kept < count) eliminate(candidates_.data() + kept, columns + kept, count - kept, 0);
  pool_pivots_ = j;
  pool_size_ = kPool;
  hits_ = 0;
}

Advanced Factor::add_pivot(int64_t position) {
  const int64_t j = pivots_;
  const bool factored = cov_.is_factor();
  swap(position, j);
  const int64_t stripe_end = (j / kStripe + 1) * tiles_ * kTileSize;
  if (int64_t(L_.size()) < stripe_end) L_.resize(stripe_end);
  const double d = factored ? add_direction(j) : std::sqrt(variance_[j]);
  const double y = plan::truncated_mean((lower_[j] - mean_[j]) / d, (upper_[j] - mean_[j]) / d);
  double* column = factored ? pooled(kPool) : column_of_pivot();
  if (factored) {
    std::fill(column + j + 1, column + m_, 0.0);
    simd_table().eliminate(column + j + 1, rows_.data() + j + 1, m_,
                           directions_.data() + j * cov_.factor_columns, cov_.factor_columns,
                           m_ - j - 1);
  }
  // Of rows that are no rows or pivots already nothing changes.
  const int64_t first = j / kTileRows * kTileRows;
  std::fill(column + first, column + j + 1, 0.0);
  std::fill(column + m_, column + tiles_ * kTileRows, 0.0);
  const double growth = variance_error_[j] / (d * d);
  unsigned found = kernels_.add(column + first, {factored ? -1 : 1 / d, y, growth},
                                rows_from(first), entries(first, j), tiles_ - first / kTileRows);
  *entries(j, j) = d;
  if (!factored && (found & kInvalid)) {
    int64_t i = j + 1;
    while (plan::is_valid_variance(variance_[i], variance_error_[i])) ++i;
    return std::isnan(variance_[i]) ? Advanced::nan : Advanced::indefinite;
  }
  ++pivots_;
  if (factored) {
    for (int64_t i = pivots_; i < live_end_; ++i)
      if (!(variance_[i] > plan::kRefresh * reference_[i]))
        variance_[i] = reference_[i] = rest_of_row(i);
    found |= kSpent;
  }
  if (!(found & kSpent)) return Advanced::yes;
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
Advanced Factor::check_rest() {
  if (pivots_ == m_) return Advanced::yes;
  const int64_t first = pivots_ / kTileRows * kTileRows, padded = tiles_ * kTileRows - first;
  // From the first tile on that has such a row; what else is in the tiles does not count.
  std::vector<double> sign(padded, 0.0), error(padded, 0.0), rest(padded, 0.0), row(m_);
  double sum_of_errors = 0;
  for (int64_t i = pivots_; i < m_; ++i) {
    sign[i - first] = plan::sign_of(problem_->variable[position_[i]]);
    error[i - first] = plan::error_of_rest(variance_error_[i]);
    sum_of_errors += error[i - first];
  }
  for (int64_t i = pivots_; i < m_; ++i) {
    read_column(i, pivots_, i + 1, row.data());
    const double sign_of_row = sign[i - first];
    double sum = row[i] * sign_of_row;
    for (int64_t j = pivots_; j < i; ++j) {
      sum += row[j] * sign[j - first];
      rest[j - first] += row[j] * sign_of_row;
    }
    rest[i - first] += sum;
  }
  for (int64_t begin = 0; begin < pivots_; begin += kStripe) {
    const int64_t columns = std::min(kStripe, pivots_ - begin);
    double sums[kStripe] = {};
    const double* tiles = entries(first, begin);
    for (int64_t i = 0; i < padded; ++i) {
      const double* entry = tiles + i / kTileRows * kTileSize + i % kTileRows;
      for (int64_t l = 0; l < columns; ++l) sums[l] += entry[l * kTileRows] * sign[i];
    }
    for (int64_t i = 0; i < padded; ++i) {
      const double* entry = tiles + i / kTileRows * kTileSize + i % kTileRows;
      for (int64_t l = 0; l < columns; ++l) rest[i] -= entry[l * kTileRows] * sums[l];
    }
  }
  for (int64_t i = pivots_ - first; i < m_ - first; ++i)
    if (!plan::is_zero_rest(rest[i], error[i], sum_of_errors))
      return std::isnan(rest[i]) ? Advanced::nan : Advanced::indefinite;
  return Advanced::yes;
}

Advanced Factor::advance(int64_t target) {
  bool grows = false;
  wanted_ = target;
  L_.reserve((std::min(target, live_end_) + kStripe - 1) / kStripe * tiles_ * kTileSize);
  while (pivots_ < target && pivots_ < live_end_) {
    const Advanced advanced = add_pivot(choose());
    if (advanced != Advanced::yes) return advanced;
    grows = true;
  }
  return grows && live_end_ == pivots_ && !cov_.is_factor() ? check_rest() : Advanced::yes;
}

bool Factor::follow(const int64_t* variables, int64_t count) {
  wanted_ = pivots_;  // nobody chooses
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
