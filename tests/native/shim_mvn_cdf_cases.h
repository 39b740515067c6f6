// mvn_cdf's kernels on problems with known answers, for the sanitizers; a wrong answer throws.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "shim_mvn_cdf.h"

namespace shim_tests {

// One call of mvn_cdf and its results; every row has the same limits and covariance.
template <class T>
struct Call {
  std::vector<T> upper, lower, cov, prob, complement, error, log_prob, log_error;
  std::vector<int64_t> seed, status, points, active, pivots;
  mvnrob::kernels::MvnCdfArgs args{};

  Call(int64_t rows, int64_t n)
      : upper(rows * n),
        lower(rows * n),
        cov(n * n),
        prob(rows),
        complement(rows),
        error(rows),
        log_prob(rows),
        log_error(rows),
        seed(rows),
        status(rows),
        points(rows),
        active(rows),
        pivots(rows) {
    for (int64_t b = 0; b < rows; ++b) seed[b] = b;
    args.rows = rows;
    args.n = int32_t(n);
    args.is_double = sizeof(T) == 8;
    args.upper = upper.data();
    args.cov = cov.data();
    args.cov_strides = {0, n, 1};
    args.factor_columns = -1;
    args.tensor_pivots = mvnrob::kernels::kTensorPivotsOfOneBlock;
    args.seed = seed.data();
    args.prob = prob.data();
    args.complement = complement.data();
    args.error = error.data();
    args.log_prob = log_prob.data();
    args.log_error = log_error.data();
    args.status = status.data();
    args.n_points = points.data();
    args.n_active = active.data();
    args.n_pivots = pivots.data();
  }
  Call(const Call&) = delete;  // args points into it
};

// Moves one pair by far less than the tolerances: what is exactly of one factor is not sampled.
template <class T>
void knock(std::vector<T>& cov, int64_t n) {
  if (n > 3) cov[1] = cov[n] = cov[1] * T(1 - (sizeof(T) == 8 ? 1e-11 : 1e-5));
}

// P(X <= 0) = 1 / (n + 1) for n standard normal variables with correlation 1/2; each of them comes
// `copies` times (sov keeps them apart, each in the group of a pivot), and between limits only if
// `rectangular`: the lower ones are far out.
struct Orthants {
  int64_t rows, n, copies;
  bool rectangular;
  mvnrob::PointSet points = mvnrob::PointSet::lattice;

  template <class T, class scalar_t>
  void check(double tolerance, int64_t tile_rows, int64_t resident) const {
    const int64_t size = n * copies;
    Call<T> call(rows, size);
    std::fill(call.lower.begin(), call.lower.end(), T(-8));
    for (int64_t i = 0; i < size; ++i)
      for (int64_t j = 0; j < size; ++j) call.cov[i * size + j] = i % n == j % n ? T(1) : T(0.5);
    knock(call.cov, size);
    if (rectangular) call.args.lower = call.lower.data();
    call.args.options = {
        tolerance,
        0,
        1 << 16,
        copies > 1 ? mvnrob::Method::sov : mvnrob::Method::automatic,
        sizeof(scalar_t) == 4 ? mvnrob::ComputeType::float32 : mvnrob::ComputeType::float64,
        points};
    mvnrob::shim::run_mvn_cdf<scalar_t>(call.args, tile_rows, resident);
    for (int64_t b = 0; b < rows; ++b) {
      const double wrong = std::abs(double(call.prob[b]) - 1.0 / double(n + 1));
      if (!(wrong <= double(call.error[b])) || !(double(call.error[b]) <= tolerance) ||
          call.status[b] > 1)
        throw std::runtime_error("wrong probability, n = " + std::to_string(size) + ": " +
                                 std::to_string(double(call.prob[b])) + " +- " +
                                 std::to_string(double(call.error[b])));
    }
  }
};

inline void check_small() {
  for (const int64_t n : {1, 2, 3, 4, 8, 9, 31, 32}) {
    Orthants{3, n, 1, false}.check<double, float>(0.02, 2, 2);
    Orthants{2, n, 1, true}.check<float, float>(0.02, 2, 3);
  }
  Orthants{2, 9, 1, false}.check<double, double>(0.02, 2, 1);
  for (const auto points : {mvnrob::PointSet::richtmyer, mvnrob::PointSet::sobol})
    Orthants{2, 9, 1, false, points}.check<double, float>(0.02, 2, 2);
}

inline void check_groups() {
  Orthants{2, 5, 3, false}.check<double, float>(0.02, 2, 2);
  Orthants{1, 1, 7, true}.check<float, float>(0.02, 1, 2);
  Orthants{1, 34, 2, false}.check<double, float>(0.02, 1, 2);
}

inline void check_blocked() {
  for (const int64_t n : {33, 47}) Orthants{2, n, 1, false}.check<double, float>(0.02, 2, 2);
  Orthants{1, 40, 1, true}.check<double, double>(0.02, 1, 2);
  Orthants{1, 40, 1, true, mvnrob::PointSet::sobol}.check<double, float>(0.02, 1, 2);
}

// The products of a forced plan of all pivots on the tensor cores' stand-in, with samples of type
// S; with `completed` rows beyond, which complete. Every sample of every shift must be a
// probability, and the mean the orthant's.
template <class S>
void check_tensor_plan(int64_t pivots, int64_t completed, int64_t points = 128) {
  const int64_t n = pivots + completed;
  Call<double> call(1, n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) call.cov[i * n + j] = i == j ? 1 : 0.5;
  std::vector<int64_t> order(pivots);
  for (int64_t i = 0; i < pivots; ++i) order[i] = i;
  mvnrob::SampleSums sums[mvnrob::kShifts];
  call.args.options = {0,
                       0,
                       points,
                       mvnrob::Method::automatic,
                       sizeof(S) == 4 ? mvnrob::ComputeType::float32 : mvnrob::ComputeType::float64,
                       mvnrob::PointSet::lattice};
  call.args.tensor_pivots = mvnrob::kernels::kTensorPivots;
  call.args.double_tensor = true;
  if (!mvnrob::kernels::is_tensor<S>(call.args, int(pivots), int(completed)))
    throw std::runtime_error("no plan for the tensor sampler");
  call.args.order = order.data();
  call.args.n_order = int32_t(pivots);
  call.args.forced_points = points;
  call.args.forced_sums = sums;
  mvnrob::shim::run_mvn_cdf<S>(call.args, 1, 2);
  double mean = 0;
  for (const mvnrob::SampleSums& one : sums) {
    if (!(std::abs(one.value + one.complement - double(points)) <= 1e-5 * double(points)))
      throw std::runtime_error("value and complement are not 1");
    mean += one.value / double(points * mvnrob::kShifts);
  }
  if (!(std::abs(mean - 1.0 / double(n + 1)) <= 0.2 / double(n + 1)))
    throw std::runtime_error("wrong mean, n = " + std::to_string(n) + ": " + std::to_string(mean));
}

inline void check_tensor() {
  check_tensor_plan<float>(130, 0, 64);
  check_tensor_plan<float>(97, 40);
  check_tensor_plan<float>(33, 0, 64 * 65);  // no product, two tiles of a stream or one
}

inline void check_tensor_double() {
  check_tensor_plan<double>(193, 33, 64);
  check_tensor_plan<double>(97, 81);  // two tiles of points
}

// More variables than are all sampled: some complete, and the plan deepens.
inline void check_completed() {
  Orthants{1, 66, 1, false}.check<double, float>(0.004, 1, 2);
  Orthants{1, 70, 1, true}.check<float, double>(0.004, 1, 2);
}

// The same orthants by a factor, X_i = (Z_i + Z_0) / sqrt 2, also where its columns are fewer than
// the variables. The last variable's row is turned a little: see knock.
inline void check_factor(int64_t n, int64_t copies) {
  const int64_t size = n * copies;
  Call<double> call(2, size);
  call.cov.assign(size * (n + 1), 0);
  for (int64_t i = 0; i < size; ++i) call.cov[i * (n + 1)] = call.cov[i * (n + 1) + 1 + i % n] = 1;
  if (size > 3) call.cov[1] = 1e-6;  // three have a closed form, whose error is rounding
  call.args.cov = call.cov.data();
  call.args.cov_strides = {0, n + 1, 1};
  call.args.factor_columns = int32_t(n + 1);
  call.args.options = {0.02,
                       0,
                       1 << 16,
                       copies > 1 ? mvnrob::Method::sov : mvnrob::Method::automatic,
                       mvnrob::ComputeType::automatic,
                       mvnrob::PointSet::lattice};
  mvnrob::shim::run_mvn_cdf<float>(call.args, 1, 2);
  for (int64_t b = 0; b < 2; ++b)
    if (!(std::abs(call.prob[b] - 1.0 / double(n + 1)) <= call.error[b]) || call.error[b] > 0.02)
      throw std::runtime_error("wrong probability by a factor, n = " + std::to_string(size));
}

// Exactly of one factor, and two blocks of it.
inline void check_one_factor(int64_t n, int64_t blocks) {
  const int64_t size = n * blocks;
  Call<double> call(3, size);
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j < size; ++j)
      call.cov[i * size + j] = i == j ? 1 : i / n == j / n ? 0.5 : 0;
  call.args.options = {1e-3,
                       0,
                       1 << 16,
                       mvnrob::Method::automatic,
                       mvnrob::ComputeType::automatic,
                       mvnrob::PointSet::lattice};
  mvnrob::shim::run_mvn_cdf<float>(call.args, 2, 2);
  const double truth = std::pow(1.0 / double(n + 1), double(blocks));
  for (int64_t b = 0; b < 3; ++b)
    if (!(std::abs(call.prob[b] - truth) <= call.error[b]) || call.error[b] > 1e-11 ||
        call.status[b] != int64_t(mvnrob::Status::exact))
      throw std::runtime_error("wrong probability of one factor, n = " + std::to_string(size));
}

inline void check_one_factors() {
  check_one_factor(4, 1);
  check_one_factor(9, 2);
  check_one_factor(40, 1);
}

// A block of one factor beside one that has none: the first is exact, the second is sampled.
inline void check_separated(int64_t n, int64_t rest) {
  const int64_t size = n + rest;
  Call<double> call(3, size);
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j < size; ++j)
      call.cov[i * size + j] = i == j                                                   ? 1
                               : (i % 2 == 0 && i < 2 * n) == (j % 2 == 0 && j < 2 * n) ? 0.5
                                                                                        : 0;
  // Variables 1 and 3 are of the second block.
  call.cov[1 * size + 3] = call.cov[3 * size + 1] = 0.5 - 1e-6;
  call.args.options = {2e-2,
                       0,
                       1 << 16,
                       mvnrob::Method::automatic,
                       mvnrob::ComputeType::automatic,
                       mvnrob::PointSet::lattice};
  mvnrob::shim::run_mvn_cdf<float>(call.args, 2, 2);
  const double truth = 1.0 / double(n + 1) / double(rest + 1);
  for (int64_t b = 0; b < 3; ++b)
    if (!(std::abs(call.prob[b] - truth) <= call.error[b] + 1e-6) || !(call.error[b] < 2e-2) ||
        call.status[b] != int64_t(mvnrob::Status::converged) || call.active[b] != size)
      throw std::runtime_error("wrong product of blocks, n = " + std::to_string(size));
}

inline void check_all_separated() {
  check_separated(4, 5);
  check_separated(5, 40);
  check_separated(40, 66);
}

// Every variable three times, the second time as its negative and the third in other units: the
// orthant becomes a rectangle of n variables, by a covariance or a factor of it.
inline void check_multiples(int64_t n, bool factored) {
  const int64_t size = 3 * n;
  Call<double> call(1, size), once(1, n);
  const double scale[3] = {1, -1, 3};
  call.lower.assign(size, -HUGE_VAL);
  call.args.lower = call.lower.data();
  once.lower.assign(n, -0.5);
  once.args.lower = once.lower.data();
  for (int64_t i = 0; i < size; ++i) call.upper[i] = i / n == 0 ? 1 : i / n == 1 ? 0.5 : 9;
  once.upper.assign(n, 1);
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j < size; ++j)
      call.cov[i * size + j] = scale[i / n] * scale[j / n] *
                               (i % n == j % n           ? 1
                                : i % n % 3 == j % n % 3 ? 0.5
                                                         : 0.3);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) once.cov[i * n + j] = call.cov[i * size + j];
  std::vector<double> rows(size * n);
  if (factored) {
    for (int64_t i = 0; i < size; ++i)
      for (int64_t l = 0; l < n; ++l)
        rows[i * n + l] = scale[i / n] * (l == i % n ? 1 : l < i % n ? 0.4 / double(1 + l) : 0);
    call.args.cov = rows.data();
    call.args.cov_strides = {0, n, 1};
    once.args.cov = rows.data();
    once.args.cov_strides = {0, n, 1};
    call.args.factor_columns = once.args.factor_columns = int32_t(n);
  }
  for (Call<double>* one : {&call, &once}) {
    one->args.options = {1e-2,
                         0,
                         1 << 16,
                         mvnrob::Method::automatic,
                         mvnrob::ComputeType::automatic,
                         mvnrob::PointSet::lattice};
    mvnrob::shim::run_mvn_cdf<float>(one->args, 1, 2);
  }
  if (call.prob[0] != once.prob[0] || call.active[0] != n || !(call.error[0] < 1e-2))
    throw std::runtime_error("multiples are not one variable, n = " + std::to_string(size));
}

inline void check_all_multiples() {
  check_multiples(7, false);
  check_multiples(7, true);
  check_multiples(35, false);
}

inline void check_factors() {
  check_factor(3, 1);
  check_factor(9, 2);
  check_factor(40, 1);
}

// Digits of the small side: samples of the union near 1, tilted ones near 0. The truths are by
// quadrature over the common factor.
inline void check_relative(int64_t n, double limit, double log_truth) {
  Call<double> call(1, n);
  for (int64_t i = 0; i < n; ++i) {
    call.upper[i] = limit;
    for (int64_t j = 0; j < n; ++j) call.cov[i * n + j] = i == j ? 1 : 0.5;
  }
  knock(call.cov, n);
  call.args.options = {0,
                       0.1,
                       1 << 16,
                       mvnrob::Method::automatic,
                       mvnrob::ComputeType::automatic,
                       mvnrob::PointSet::lattice};
  mvnrob::shim::run_mvn_cdf<double>(call.args, 1, 2);
  if (!(std::abs(call.log_prob[0] - log_truth) <= call.log_error[0]) || call.status[0] != 0)
    throw std::runtime_error("wrong logarithm: " + std::to_string(call.log_prob[0] * 1e6) + "e-6");
}

inline void check_union() { check_relative(40, 4, std::log1p(-0.0010566603590)); }

inline void check_tilted() {
  check_relative(12, -4, -24.358131035);
  check_relative(40, -4, -29.471753591);
}

// Slopes of the samples. P does not change where limits and standard deviations grow alike, and so
// for every sample: sum_i u_i dP/du_i + l_i dP/dl_i + 2 sum_ij cov_ij dP/dcov_ij = 0.
template <class T, class scalar_t>
void check_slopes(int64_t n, int64_t copies, int64_t pivots, bool rectangular, bool tilted = false,
                  int64_t rows = 2) {
  constexpr int64_t kPoints = 128;
  const int64_t size = n * copies, shifts = mvnrob::kShifts;
  Call<T> call(rows, size);
  std::fill(call.upper.begin(), call.upper.end(), T(0.5));
  std::fill(call.lower.begin(), call.lower.end(), T(-2));
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j < size; ++j) call.cov[i * size + j] = i % n == j % n ? T(1) : T(0.5);
  const std::vector<int64_t> order(rows * pivots, -1), first(rows, 64), points(rows, kPoints);
  const std::vector<double> weight(rows * shifts, 1);
  std::vector<double> value(rows * shifts), upper(value.size() * size), lower(upper.size()),
      cov(rows * size * size), variance(cov.size()), log_unit(rows),
      tilt(size_t(rows * pivots), std::numeric_limits<double>::quiet_NaN());
  std::vector<int64_t> used(rows);
  mvnrob::kernels::MvnCdfPathwiseArgs a{};
  a.plan = call.args;
  if (rectangular) a.plan.lower = call.lower.data();
  a.plan.options = {
      0,
      0,
      kPoints,
      mvnrob::Method::automatic,
      sizeof(scalar_t) == 4 ? mvnrob::ComputeType::float32 : mvnrob::ComputeType::float64,
      mvnrob::PointSet::lattice};
  a.plan.order = order.data();
  a.plan.n_order = int32_t(pivots);
  a.first = first.data();
  a.points = points.data();
  a.weight = weight.data();
  a.width = int32_t(2 + pivots);
  a.value = value.data();
  a.upper = upper.data();
  a.lower = lower.data();
  a.cov = cov.data();
  a.cov_variance = variance.data();
  a.pivots = used.data();
  a.log_unit = log_unit.data();
  if (tilted) a.plan.tilt = tilt.data();
  mvnrob::shim::run_mvn_cdf_pathwise<scalar_t>(a, 1, 2);
  for (int64_t b = 0; b < rows; ++b) {
    double sum = 0, scale = 0;
    for (int64_t e = b * shifts * size; e < (b + 1) * shifts * size; ++e) {
      sum += 0.5 * upper[e] - 2 * lower[e];
      scale += 0.5 * upper[e];
    }
    for (int64_t e = 0; e < size * size; ++e)
      sum += 2 * double(call.cov[e]) * cov[b * size * size + e];
    if (!(std::abs(sum) <= 1e-4 * scale) || !(scale > 0))
      throw std::runtime_error("wrong slopes, n = " + std::to_string(size) + ": " +
                               std::to_string(sum) + " of " + std::to_string(scale));
  }
}

inline void check_pathwise() {
  check_slopes<double, float>(2, 1, 2, true);
  check_slopes<double, double>(9, 1, 7, false);  // some complete
  check_slopes<float, float>(5, 3, 15, false);   // groups that share ties
  // Outer blocks: some complete; with groups; tilted. The last has two rows, which cost as much
  // each.
  check_slopes<double, float>(70, 1, 66, true, false, 1);
  check_slopes<double, double>(35, 2, 70, false, false, 1);
  check_slopes<double, double>(40, 1, 36, true, true);
  check_slopes<float, double>(9, 1, 9, false, true);
}

// What one block plans and what a grid plans of `size` variables, of `rank` and with limits about
// `limit`, are the same to the bit: by the factor, or by its product. With `rel_tol` samples are
// tilted, or those of the union, otherwise all variables are sampled.
template <class T, class scalar_t>
void check_grid_of(int64_t size, int64_t rank, double limit, double rel_tol, bool factored) {
  std::vector<T> root(size * rank);
  for (int64_t i = 0; i < size; ++i)
    for (int64_t l = 0; l < rank; ++l)
      root[i * rank + l] = T(l == i % rank ? 2 : double((7 * i + 5 * l) % 11) / 11);
  const auto run = [&](Call<T>& call, int64_t together) {
    for (int64_t i = 0; i < size; ++i) {
      double square = 0;
      for (int64_t l = 0; l < rank; ++l)
        square += double(root[i * rank + l]) * double(root[i * rank + l]);
      call.upper[i] = T((limit + double(i * 37 % 101) / 200) * std::sqrt(square));
    }
    if (factored) {
      call.args.cov = root.data();
      call.args.cov_strides = {0, rank, 1};
      call.args.factor_columns = int32_t(rank);
    } else {
      for (int64_t i = 0; i < size; ++i)
        for (int64_t j = 0; j < size; ++j) {
          double sum = 0;
          for (int64_t l = 0; l < rank; ++l)
            sum += double(root[i * rank + l]) * double(root[j * rank + l]);
          call.cov[i * size + j] = T(sum);
        }
    }
    call.args.grow_from = 1;
    call.args.options = {
        rel_tol > 0 ? 0 : 0.1,
        rel_tol,
        rel_tol > 0 ? 1 << 10 : 1 << 9,
        rel_tol > 0 ? mvnrob::Method::automatic : mvnrob::Method::sov,
        sizeof(scalar_t) == 4 ? mvnrob::ComputeType::float32 : mvnrob::ComputeType::float64,
        mvnrob::PointSet::lattice};
    mvnrob::shim::run_mvn_cdf<scalar_t>(call.args, 1, 1, false, together);
  };
  Call<T> by_block(1, size), by_grid(1, size);
  run(by_block, 0);
  const int64_t before = mvnrob::shim::grown();
  run(by_grid, 2);
  const std::string what = "n = " + std::to_string(size) + ", rank " + std::to_string(rank);
  if (mvnrob::shim::grown() == before) throw std::runtime_error("no grid for " + what);
  if (by_block.prob != by_grid.prob || by_block.error != by_grid.error ||
      by_block.log_prob != by_grid.log_prob || by_block.points != by_grid.points ||
      by_block.pivots != by_grid.pivots || by_block.points[0] == 0)
    throw std::runtime_error("a grid's answer is another, " + what);
}

inline void check_grid() {
  check_grid_of<double, float>(257, 140, 2, 0, false);  // panels are subtracted; groups
  check_grid_of<float, float>(257, 40, 2, 0, true);     // by a factor
}
inline void check_grid_tilted() { check_grid_of<double, double>(257, 3, -1.5, 0.5, false); }
inline void check_grid_union() { check_grid_of<double, double>(257, 3, 3.5, 0.5, false); }

struct MvnCdfCase {
  const char* name;
  void (*run)();
};

const MvnCdfCase kMvnCdfCases[] = {
    {"mvn_cdf_small", check_small},
    {"mvn_cdf_groups", check_groups},
    {"mvn_cdf_blocked", check_blocked},
    {"mvn_cdf_completed", check_completed},
    {"mvn_cdf_union", check_union},
    {"mvn_cdf_tilted", check_tilted},
    {"mvn_cdf_factors", check_factors},
    {"mvn_cdf_grid", check_grid},
    {"mvn_cdf_grid_tilted", check_grid_tilted},
    {"mvn_cdf_grid_union", check_grid_union},
    {"mvn_cdf_pathwise", check_pathwise},
    {"mvn_cdf_tensor", check_tensor},
    {"mvn_cdf_tensor_double", check_tensor_double},
    {"mvn_cdf_one_factor", check_one_factors},
    {"mvn_cdf_separated", check_all_separated},
    {"mvn_cdf_multiples", check_all_multiples},
};

}  // namespace shim_tests
