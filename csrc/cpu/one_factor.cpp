#include "cpu/one_factor.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/closed_form.h"
#include "cpu/mvn_cdf_program.h"
#include "plan/variable.h"

namespace mvnrob {

plan::ExactBlocks OneFactor::recognise(const Problem& problem, const CovarianceView& cov) {
  problem_ = &problem;
  cov_ = cov;
  const int64_t m = int64_t(problem.variable.size());
  if (cov.is_factor()) read_rows();
  load_.resize(m);
  rest_.resize(m);
  density_.resize(m);
  order_.clear();
  parts_.clear();
  left_.resize(m);
  std::iota(left_.begin(), left_.end(), 0);
  bool any = false, all = true;
  while (!left_.empty()) {
    Part part{int64_t(order_.size()), 0, Form::one_factor, {0, 0}};
    collect();
    part.last = int64_t(order_.size());
    if (!fit(part)) {
      part.form = part.last - part.first <= 3 ? Form::few : Form::other;
      part.residuals = {0, 0};
    }
    parts_.push_back(part);
    any |= part.form != Form::other;
    all &= part.form != Form::other;
  }
  return all ? plan::ExactBlocks::all : any ? plan::ExactBlocks::some : plan::ExactBlocks::none;
}

void OneFactor::take_rest(Problem& rest) const {
  std::vector<int64_t> index;
  for (const Part& part : parts_)
    if (part.form == Form::other)
      index.insert(index.end(), order_.begin() + part.first, order_.begin() + part.last);
  std::sort(index.begin(), index.end());
  rest.clear(problem_->entry_error);
  rest.merged = problem_->merged;
  for (const int64_t i : index) {
    rest.add(problem_->variable[i], problem_->upper[i], problem_->lower[i],
             problem_->inverse_sd[i]);
    rest.mass.push_back(problem_->mass[i]);
  }
}

void OneFactor::read_rows() {
  const int64_t m = int64_t(problem_->variable.size());
  row_.assign(1, 0);
  column_.clear();
  entry_.clear();
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t l = 0; l < cov_.factor_columns; ++l) {
      const double x = cov_.stored(problem_->variable[i], l);
      if (x == 0) continue;
      column_.push_back(l);
      entry_.push_back(x * problem_->inverse_sd[i]);
    }
    row_.push_back(int64_t(entry_.size()));
  }
}

double OneFactor::correlation(int64_t i, int64_t j) const {
  if (!cov_.is_factor()) return problem_->correlation(cov_, i, j);
  int64_t a = row_[i], b = row_[j];
  const int64_t a_end = row_[i + 1], b_end = row_[j + 1];
  double sum = 0;
  if (a_end - a == cov_.factor_columns && b_end - b == cov_.factor_columns) {
    for (; a < a_end; ++a, ++b) sum += entry_[a] * entry_[b];
    return sum;
  }
  while (a < a_end && b < b_end) {
    const int64_t l = column_[a], k = column_[b];
    if (l == k) sum += entry_[a] * entry_[b];
    a += l <= k;
    b += k <= l;
  }
  return sum;
}

// The next connected component of the entries that are not zero.
void OneFactor::collect() {
  size_t at = order_.size();
  order_.push_back(left_.front());
  left_.erase(left_.begin());
  for (; at < order_.size() && !left_.empty(); ++at) {
    const auto apart = [&](int64_t j) { return correlation(order_[at], j) == 0; };
    const auto joined = std::stable_partition(left_.begin(), left_.end(), apart);
    order_.insert(order_.end(), joined, left_.end());
    left_.erase(joined, left_.end());
  }
}

bool OneFactor::fit(Part& part) {
  const int64_t first = part.first, last = part.last;
  const double error = problem_->entry_error;
  const auto r = [&](int64_t a, int64_t b) { return correlation(order_[a], order_[b]); };
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
  for (int64_t k = first + 1; k < last; ++k) load_[k] = r(first, k) / load_[first];
  double least = 1;
  int whole = 0;
  for (int64_t k = first; k < last; ++k) {
    const int64_t i = order_[k];
    if (!(std::abs(load_[k]) <= 1 + 8 * error)) return false;
    rest_[k] = plan::rest_of_load(load_[k], error);
    density_[k] = plan::density_of(problem_->upper[i], problem_->lower[i]);
    if (rest_[k] == 0) {
      // Two of them are multiples up to rounding; the factor says what that may cost.
      if (++whole > 1) return false;
      load_[k] = std::copysign(1.0, load_[k]);
      continue;
    }
    least = std::min(least, rest_[k]);
  }
  if (!plan::is_quick(least)) return false;
  const bool rounded = error > plan::entry_error(true);
  for (int64_t i = first + 1; i < last; ++i)
    for (int64_t k = first; k < i; ++k) {
      const double correlation = r(i, k), residual = correlation - load_[i] * load_[k];
      if (!plan::is_product(correlation, load_[i], load_[k], error)) return false;
      if (rounded) continue;
      part.residuals.largest = std::max(part.residuals.largest, std::abs(residual));
      part.residuals.moved +=
          plan::moved_by(residual, density_[i], density_[k], rest_[i], rest_[k]);
    }
  return true;
}

plan::OneFactorProbability OneFactor::integrate_part(const Part& part) {
  plan::Bounds range{-HUGE_VAL, HUGE_VAL};
  double largest = 0;
  upper_.clear();
  lower_.clear();
  slope_.clear();
  rest_of_.clear();
  for (int64_t k = part.first; k < part.last; ++k) {
    const int64_t i = order_[k];
    const double upper = problem_->upper[i], lower = problem_->lower[i];
    largest = std::max(largest, problem_->mass[i]);
    if (rest_[k] == 0) {
      range = plan::bounds_on_pivot(lower, upper, load_[k]);
      continue;
    }
    upper_.push_back(upper / rest_[k]);
    lower_.push_back(lower / rest_[k]);
    slope_.push_back(load_[k] / rest_[k]);
    rest_of_.push_back(rest_[k]);
  }
  const int64_t count = int64_t(upper_.size());
  const auto fails = [&](double y) {
    return simd_table().one_factor_fails(upper_.data(), lower_.data(), slope_.data(), y, count);
  };
  const auto log_holds = [&](double y) {
    return simd_table().one_factor_log(upper_.data(), lower_.data(), slope_.data(), y, count);
  };
  const auto slopes = [&](double y) {
    plan::Slopes sum{0, 0};
    for (int64_t k = 0; k < count; ++k) {
      const double move = slope_[k] * y;
      const plan::Slopes one = plan::slopes_of(lower_[k] - move, upper_[k] - move, move);
      sum.sum += one.sum / rest_of_[k];
      sum.rounding += one.rounding;
    }
    return sum;
  };
  return plan::integrate_one_factor(fails, log_holds, slopes, int(part.last - part.first), range,
                                    largest, part.residuals);
}

plan::ProductOfBlocks OneFactor::integrate() {
  plan::ProductOfBlocks product;
  for (const Part& part : parts_) {
    const int64_t i = order_[part.first];
    if (part.form == Form::other) continue;
    if (part.form == Form::few)
      product.add(box_of(*problem_, cov_, order_.data() + part.first, int(part.last - part.first)));
    else if (part.last - part.first > 1)
      product.add(integrate_part(part));
    else
      product.add(problem_->lower[i], problem_->upper[i], problem_->mass[i]);
  }
  return product;
}

}  // namespace mvnrob
