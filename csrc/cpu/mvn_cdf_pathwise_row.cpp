#include "cpu/mvn_cdf_pathwise_row.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "math/lattice.h"
#include "plan/ordering.h"

namespace mvnrob {

namespace {

PathwiseFn<float> pick(const PathwiseTable& table, const Program<float>&) {
  return table.run_float;
}
PathwiseFn<double> pick(const PathwiseTable& table, const Program<double>& program) {
  return program.tilt ? table.run_tilted : table.run_double;
}

}  // namespace

template <class scalar_t>
void Pathwise::run(const Factor& factor, uint64_t seed, PointSet set, int64_t first, int64_t points,
                   bool wants_cov, const Runner& runner) {
  PackedProgram<scalar_t> packed;
  packed.pack(factor, std::numeric_limits<double>::infinity());
  sample(factor, packed, seed, set, first, points, wants_cov, runner);
}

void Pathwise::run_tilted(const Factor& factor, const Tilt& tilt, uint64_t seed, PointSet set,
                          int64_t first, int64_t points, bool wants_cov, const Runner& runner) {
  PackedProgram<double> packed;
  packed.pack(factor, std::numeric_limits<double>::infinity());
  packed.set_tilt(tilt.of_pivots(), tilt.found().log_unit);
  sample(factor, packed, seed, set, first, points, wants_cov, runner);
}

template <class scalar_t>
void Pathwise::sample(const Factor& factor, const PackedProgram<scalar_t>& packed, uint64_t seed,
                      PointSet set, int64_t first, int64_t points, bool wants_cov,
                      const Runner& runner) {
  f_ = &factor;
  const int64_t pivots = factor.pivots_;
  position_ = packed.sampled_rows();
  sampled_ = int64_t(position_.size());
  position_.insert(position_.end(), packed.completion_rows().begin(),
                   packed.completion_rows().end());
  const int64_t rows = int64_t(position_.size());
  stride_ = pathwise_stride(pivots);
  columns_.resize(rows);
  divisor_.resize(rows);
  bounds_.resize(rows);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t i = position_[r];
    const bool completes = r >= sampled_;
    columns_[r] = completes ? pivots : i < pivots ? i : factor.group_[i];
    divisor_[r] = completes ? std::sqrt(factor.variance_[i]) : factor.entry(i, columns_[r]);
    bounds_[r] = plan::bounds_on_pivot(factor.lower_[i], factor.upper_[i], divisor_[r]);
  }

  const Generators generators = generators_of(set, pivots);
  const Program<scalar_t>& program = packed.program();
  const PathwiseFn<scalar_t> differentiate = pick(pathwise_table(), program);
  runner(kShifts, [&](int64_t s) {
    std::vector<uint32_t> shift(pivots);
    for (int64_t j = 0; j < pivots; ++j)
      shift[j] = math::hash_shift(seed, uint32_t(s), uint32_t(j));
    Sums& sums = shifts_[s];
    sums.value = 0;
    sums.upper.assign(rows, 0);
    sums.lower.assign(rows, 0);
    sums.products.assign(wants_cov ? rows * stride_ : 0, 0);
    differentiate(
        program, sampled_, rows - sampled_, {set, generators->data(), shift.data()},
        uint32_t(first), points / kTileSamples,
        aligned_scratch<scalar_t>(pathwise_workspace_size(pivots, sampled_, rows - sampled_)),
        {&sums.value, sums.upper.data(), sums.lower.data(),
         wants_cov ? sums.products.data() : nullptr, stride_});
  });
  find_ties();
  for (Sums& sums : shifts_) share_ties(sums);
}

template void Pathwise::run<float>(const Factor&, uint64_t, PointSet, int64_t, int64_t, bool,
                                   const Runner&);
template void Pathwise::run<double>(const Factor&, uint64_t, PointSet, int64_t, int64_t, bool,
                                    const Runner&);

// Multiples of one another whose limits meet: rows of one group that bound its pivot alike. Which
// of them attains the limit is rounding's choice, and they share the slope of the minimum equally.
void Pathwise::find_ties() {
  ties_.clear();
  const double tolerance = 64 * f_->problem_->entry_error;
  const auto equal = [&](double a, double b, double scale) {
    return a == b || std::abs(a - b) <= tolerance * scale * (1 + std::abs(a));
  };
  const auto scale_of = [&](int64_t a, int64_t b) {
    return 1 / std::min({1.0, std::abs(divisor_[a]), std::abs(divisor_[b])});
  };
  const auto limits_meet = [&](int64_t a, int64_t b, bool lower) {
    const plan::Bounds &x = bounds_[a], &y = bounds_[b];
    return equal(lower ? x.lower : x.upper, lower ? y.lower : y.upper, scale_of(a, b));
  };
  const auto multiples = [&](int64_t a, int64_t b) {
    for (int64_t l = 0; l < columns_[a]; ++l)
      if (!equal(f_->entry(position_[a], l) / divisor_[a], f_->entry(position_[b], l) / divisor_[b],
                 scale_of(a, b)))
        return false;
    return true;
  };
  for (const bool lower : {false, true}) {
    std::vector<char> taken(sampled_, 0);
    for (int64_t first = 0; first < sampled_; ++first) {
      if (taken[first] || !std::isfinite(lower ? bounds_[first].lower : bounds_[first].upper))
        continue;
      Tie tie{{first}, lower, true};
      for (int64_t r = first + 1; r < sampled_ && columns_[r] == columns_[first]; ++r) {
        if (!limits_meet(first, r, lower) || !multiples(first, r)) continue;
        tie.rows.push_back(r);
        taken[r] = 1;
        tie.products = tie.products && limits_meet(first, r, !lower);
      }
      if (tie.rows.size() == 1) continue;
      tie.products = tie.products && !(lower && std::isfinite(bounds_[first].upper));
      ties_.push_back(tie);
    }
  }
}

void Pathwise::share_ties(Sums& sums) const {
  for (const Tie& tie : ties_) {
    const auto share = [&](std::vector<double>& values, int64_t stride, int64_t column) {
      double mean = 0;
      for (int64_t r : tie.rows) mean += values[r * stride + column];
      mean /= double(tie.rows.size());
      for (int64_t r : tie.rows) values[r * stride + column] = mean;
    };
    share(tie.lower ? sums.lower : sums.upper, 1, 0);
    if (tie.products && !sums.products.empty())
      for (int64_t l = 0; l < columns_[tie.rows[0]]; ++l) share(sums.products, stride_, l);
  }
}

void Pathwise::to_limits(int s, double* upper, double* lower) const {
  const Problem& problem = *f_->problem_;
  for (size_t r = 0; r < position_.size(); ++r) {
    const int64_t variable = f_->position_[position_[r]];
    // A negative divisor has exchanged the limits.
    const bool exchanged = divisor_[r] < 0;
    const double scale = problem.inverse_sd[variable] / divisor_[r];
    const double up = shifts_[s].upper[r] * scale, low = shifts_[s].lower[r] * scale;
    upper[problem.variable[variable]] = exchanged ? low : up;
    lower[problem.variable[variable]] = exchanged ? up : low;
  }
}

void Pathwise::combine(const double* weight) {
  const size_t rows = position_.size(), products = shifts_[0].products.size();
  all_.upper.assign(rows, 0);
  all_.lower.assign(rows, 0);
  all_.products.assign(products, 0);
  for (int s = 0; s < kShifts; ++s) {
    for (size_t r = 0; r < rows; ++r) {
      all_.upper[r] += weight[s] * shifts_[s].upper[r];
      all_.lower[r] += weight[s] * shifts_[s].lower[r];
    }
    for (size_t e = 0; e < products; ++e) all_.products[e] += weight[s] * shifts_[s].products[e];
  }
}

// From the program's rows to the factor, and through the factorisation
//   L_jj = sqrt(R_jj - sum_l L_jl^2),  L_ij = (R_ij - sum_l L_il L_jl) / L_jj,
// of which a row in a group has the columns up to its pivot, and a row that completes all of them
// and its standard deviation sqrt(R_ii - sum_l L_il^2). Reverse of it, from the last pivot on.
void Pathwise::pull_back() {
  const int64_t m = f_->m_, k = f_->pivots_;
  L_.assign(m * k, 0);
  bar_.assign(m * k, 0);
  diagonal_.assign(m, 0);
  std::vector<int64_t> end(m, 0);  // columns that a row has
  for (size_t r = 0; r < position_.size(); ++r) {
    const int64_t i = position_[r], columns = columns_[r];
    const bool completes = int64_t(r) >= sampled_;
    end[i] = completes ? k : columns + 1;
    double* L = L_.data() + i * k;
    double* bar = bar_.data() + i * k;
    for (int64_t l = 0; l < end[i]; ++l) L[l] = f_->entry(i, l);
    const double divisor = divisor_[r];
    const double* products = all_.products.data() + r * stride_;
    double to_divisor = 0;
    if (all_.upper[r] != 0) to_divisor += all_.upper[r] * bounds_[r].upper;
    if (all_.lower[r] != 0) to_divisor += all_.lower[r] * bounds_[r].lower;
    for (int64_t l = 0; l < columns; ++l) {
      bar[l] = -products[l] / divisor;
      to_divisor -= products[l] * L[l] / divisor;
    }
    to_divisor /= -divisor;
    if (!completes) {
      bar[columns] = to_divisor;
      continue;
    }
    const double to_variance = to_divisor / (2 * divisor);
    diagonal_[i] = to_variance;
    for (int64_t l = 0; l < k; ++l) bar[l] -= 2 * to_variance * L[l];
  }
  for (int64_t j = k - 1; j >= 0; --j) {
    const double* Lj = L_.data() + j * k;
    double* bar_j = bar_.data() + j * k;
    const double d = Lj[j];
    double to_d = bar_j[j];
    for (int64_t i = j + 1; i < m; ++i) {
      if (end[i] <= j) continue;
      const double* Li = L_.data() + i * k;
      double* bar_i = bar_.data() + i * k;
      const double t = bar_i[j] / d;
      bar_i[j] = t;  // to R_ij
      to_d -= t * Li[j];
      for (int64_t l = 0; l < j; ++l) bar_i[l] -= t * Lj[l];
      for (int64_t l = 0; l < j; ++l) bar_j[l] -= t * Li[l];
    }
    const double to_variance = to_d / (2 * d);
    bar_j[j] = 0;
    diagonal_[j] = to_variance;
    for (int64_t l = 0; l < j; ++l) bar_j[l] -= 2 * to_variance * Lj[l];
  }
}

// add(a, b, derivative) for the entries that are read, in the input's numbers and units.
template <class Add>
void Pathwise::for_each_entry(const Add& add) const {
  const Problem& problem = *f_->problem_;
  const int64_t m = f_->m_, k = f_->pivots_;
  for (int64_t i = 0; i < m; ++i) {
    const int64_t row = f_->position_[i];
    const double scale = problem.inverse_sd[row];
    add(problem.variable[row], problem.variable[row], diagonal_[i] * scale * scale);
    for (int64_t j = 0; j < std::min(i, k); ++j) {
      const int64_t column = f_->position_[j];
      add(problem.variable[row], problem.variable[column],
          0.5 * bar_[i * k + j] * scale * problem.inverse_sd[column]);
    }
  }
}

void Pathwise::to_cov(const double* weight, int64_t n, double* out, double* variance) {
  // The rows of a Hadamard matrix but its first: seven independent estimates of the error.
  for (int contrast = 1; contrast < kShifts; ++contrast) {
    double signed_weight[kShifts];
    for (int s = 0; s < kShifts; ++s)
      signed_weight[s] = __builtin_parity(unsigned(s & contrast)) ? -weight[s] : weight[s];
    combine(signed_weight);
    pull_back();
    for_each_entry([&](int64_t a, int64_t b, double x) {
      const double square = x * x / (kShifts - 1);
      variance[a * n + b] += square;
      if (a != b) variance[b * n + a] += square;
    });
  }
  combine(weight);
  pull_back();
  for_each_entry([&](int64_t a, int64_t b, double x) {
    out[a * n + b] += x;
    if (a != b) out[b * n + a] += x;
  });
}

}  // namespace mvnrob
