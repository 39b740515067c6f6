#include "cpu/mvn_cdf_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

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

double entry_error(bool is_double) {
  return is_double ? 4 * std::numeric_limits<double>::epsilon()
                   : double(std::numeric_limits<float>::epsilon());
}

Prepared Problem::read(const RowInput& input) {
  variable.clear();
  upper.clear();
  lower.clear();
  inverse_sd.clear();
  rectangular = false;
  entry_error = mvnrob::entry_error(input.cov.is_double);
  bool zero = false, negative = false;
  double largest = 0;
  for (int64_t i = 0; i < input.n; ++i) largest = std::max(largest, input.cov.at(i, i));
  for (int64_t i = 0; i < input.n; ++i) {
    auto limit = [&](const void* p) {
      return input.is_double ? static_cast<const double*>(p)[i]
                             : double(static_cast<const float*>(p)[i]);
    };
    const double u = limit(input.upper), l = input.lower ? limit(input.lower) : -kInfinity;
    const double variance = input.cov.at(i, i);
    if (std::isnan(u) || std::isnan(l) || !std::isfinite(variance)) return Prepared::nan;
    if (variance < -10 * entry_error * largest) negative = true;
    if (l > u || u == -kInfinity || l == kInfinity) zero = true;
    if (u == kInfinity && l == -kInfinity) continue;
    if (variance <= 0) {  // a constant zero; the limits include their ends
      if (u < 0 || l > 0) zero = true;
      continue;
    }
    if (l == u) zero = true;
    const double scale = 1 / std::sqrt(variance);
    variable.push_back(i);
    inverse_sd.push_back(scale);
    upper.push_back(u * scale);
    lower.push_back(l * scale);
    rectangular |= l != -kInfinity;
  }
  if (negative) return Prepared::indefinite;
  if (zero) return Prepared::zero;
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

double screen(const Problem& all, double tau, Problem& kept) {
  const int64_t m = int64_t(all.variable.size());
  // Masses far below tau go without being sorted.
  std::vector<int64_t> small;
  double dropped = 0;
  std::vector<char> drop(m, 0);
  for (int64_t i = 0; i < m; ++i) {
    if (all.mass[i] <= tau / double(2 * m)) {
      drop[i] = 1;
      dropped += all.mass[i];
    } else if (all.mass[i] <= tau) {
      small.push_back(i);
    }
  }
  std::sort(small.begin(), small.end(), [&](int64_t a, int64_t b) {
    return all.mass[a] != all.mass[b] ? all.mass[a] < all.mass[b] : a < b;
  });
  for (int64_t i : small) {
    if (dropped + all.mass[i] > tau) break;
    dropped += all.mass[i];
    drop[i] = 1;
  }
  kept.variable.clear();
  kept.upper.clear();
  kept.lower.clear();
  kept.inverse_sd.clear();
  kept.mass.clear();
  kept.rectangular = false;
  kept.entry_error = all.entry_error;
  for (int64_t i = 0; i < m; ++i) {
    if (drop[i]) continue;
    kept.variable.push_back(all.variable[i]);
    kept.upper.push_back(all.upper[i]);
    kept.lower.push_back(all.lower[i]);
    kept.inverse_sd.push_back(all.inverse_sd[i]);
    kept.mass.push_back(all.mass[i]);
    kept.rectangular |= all.lower[i] != -kInfinity;
  }
  return dropped;
}

void Factor::start(const Problem& problem, const CovarianceView& cov) {
  problem_ = &problem;
  cov_ = cov;
  m_ = live_end_ = int64_t(problem.variable.size());
  pivots_ = 0;
  guess_ = 1;
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
  expected_.clear();
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
  scratch_a_.resize(4 * count);
  double *u = scratch_a_.data(), *l = u + count, *pu = l + count, *pl = pu + count;
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
    expected_.push_back(y);
    guess_ *= std::max(0.0, math::ndtr<double>(t_upper) - math::ndtr<double>(t_lower));
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

// Turns rows of a Factor into the sampler's blocks.
class Packer {
 public:
  Packer(const Factor& factor, int block_rows) : f_(factor), block_rows_(block_rows) {}

  // Pivots begin .. end - 1, each followed by its group.
  template <class List>
  void sampled(int64_t begin, int64_t end, List& list) {
    std::vector<int64_t> rows;
    std::vector<uint8_t> closes;
    std::vector<std::vector<int64_t>> groups(end - begin);
    for (int64_t i = f_.live_end_; i < f_.m_; ++i)
      if (f_.group_[i] >= begin && f_.group_[i] < end) groups[f_.group_[i] - begin].push_back(i);
    for (int64_t j = begin; j < end; ++j) {
      rows.push_back(j);
      closes.push_back(0);
      for (int64_t i : groups[j - begin]) rows.push_back(i), closes.push_back(0);
      closes.back() = 1;
    }
    clear(list);
    int64_t known = begin;
    for (size_t first = 0; first < rows.size(); first += block_rows_) {
      const int64_t count = std::min<int64_t>(block_rows_, int64_t(rows.size() - first));
      int64_t after = known;
      for (int64_t r = 0; r < count; ++r) after += closes[first + r];
      open(list, first, count, known, after);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t i = rows[first + r];
        const int64_t pivot = i < f_.pivots_ ? i : f_.group_[i];
        limits(list, i, f_.entry(i, pivot), closes[first + r] ? kClosesPivot : 0);
        put(list, i, pivot, f_.entry(i, pivot), r);
      }
      known = after;
    }
  }

  // Every row not sampled once `k` pivots are, nearest limit first, so that whole tiles of far rows
  // are recognised as such early.
  template <class List>
  void completion(int64_t k, List& list) {
    struct Row {
      double t, sd;
      int64_t i;
    };
    std::vector<Row> rows;
    for (int64_t i = k; i < f_.m_; ++i) {
      if (i >= f_.live_end_ && f_.group_[i] < k) continue;
      double variance = i < f_.live_end_ && i >= f_.pivots_ ? f_.variance_[i] : 0, mean = 0;
      const int64_t last = i < f_.pivots_     ? i + 1
                           : i < f_.live_end_ ? f_.pivots_
                                              : f_.group_[i] + 1;
      for (int64_t l = k; l < last; ++l) variance += f_.entry(i, l) * f_.entry(i, l);
      for (int64_t l = 0; l < k; ++l) mean += f_.entry(i, l) * f_.expected_[l];
      const double sd = std::sqrt(variance);
      rows.push_back({std::min(f_.upper_[i] - mean, mean - f_.lower_[i]) / sd, sd, i});
    }
    std::sort(rows.begin(), rows.end(),
              [](const Row& a, const Row& b) { return a.t != b.t ? a.t < b.t : a.i < b.i; });
    clear(list);
    for (size_t first = 0; first < rows.size(); first += block_rows_) {
      const int64_t count = std::min<int64_t>(block_rows_, int64_t(rows.size() - first));
      open(list, first, count, k, k);
      for (int64_t r = 0; r < count; ++r) {
        limits(list, rows[first + r].i, rows[first + r].sd, 0);
        put(list, rows[first + r].i, k, rows[first + r].sd, r);
      }
    }
  }

 private:
  template <class List>
  void clear(List& list) {
    list.blocks.clear();
    list.coef.clear();
    list.upper.clear();
    list.lower.clear();
    list.flags.clear();
  }

  template <class List>
  void open(List& list, size_t first, int64_t count, int64_t known, int64_t after) {
    list.blocks.push_back(
        {int64_t(list.coef.size()), int32_t(first), int32_t(count), int32_t(known)});
    list.coef.resize(list.coef.size() + after * count, 0);
  }

  // Dividing by a negative coefficient exchanges the limits.
  template <class List>
  void limits(List& list, int64_t i, double divisor, int flags) {
    const double upper = (divisor > 0 ? f_.upper_[i] : f_.lower_[i]) / divisor;
    const double lower = (divisor > 0 ? f_.lower_[i] : f_.upper_[i]) / divisor;
    using scalar_t = typename decltype(list.coef)::value_type;
    list.upper.push_back(scalar_t(upper));
    list.lower.push_back(scalar_t(lower));
    if (upper < kInfinity) flags |= kHasUpper;
    if (lower > -kInfinity) flags |= kHasLower;
    list.flags.push_back(uint8_t(flags));
  }

  template <class List>
  void put(List& list, int64_t i, int64_t columns, double divisor, int64_t r) {
    using scalar_t = typename decltype(list.coef)::value_type;
    const Block& block = list.blocks.back();
    const int64_t stored = (int64_t(list.coef.size()) - block.coef) / block.rows;
    for (int64_t l = 0; l < std::min(columns, stored); ++l)
      list.coef[block.coef + l * block.rows + r] = scalar_t(-f_.entry(i, l) / divisor);
  }

  const Factor& f_;
  const int block_rows_;
};

template <class scalar_t>
void PackedProgram<scalar_t>::pack(const Factor& factor, int64_t first, int64_t last,
                                   double skip_limit) {
  Packer packer(factor, simd_table().block_rows);
  const bool two = first > 0 && first < last;
  program_.n_stages = two ? 2 : 1;
  program_.n_pivots = int(last);
  program_.skip_limit = scalar_t(skip_limit);
  const int64_t ends[2] = {two ? first : last, last};
  int64_t begin = 0;
  cost_ = 0;
  for (int s = 0; s < program_.n_stages; ++s) {
    packer.sampled(begin, ends[s], lists_[2 * s]);
    packer.completion(ends[s], lists_[2 * s + 1]);
    program_.stages[s] = {lists_[2 * s].view(), lists_[2 * s + 1].view()};
    begin = ends[s];
    // Phi counts about as 20 multiply-adds, a draw as 60 (bench_math).
    cost_ += double(lists_[2 * s].coef.size() + lists_[2 * s + 1].coef.size()) +
             20.0 * double(lists_[2 * s + 1].flags.size());
  }
  cost_ += 60.0 * double(last);
}

template class PackedProgram<float>;
template class PackedProgram<double>;

}  // namespace mvnrob
