// pivoted_cholesky on the CPU: the factor of mvn_cdf_factor.h on its own, a row a thread.
#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "checks.h"
#include "cpu/mvn_cdf_batch.h"
#include "cpu/mvn_cdf_factor.h"
#include "plan/variable.h"

namespace mvnrob {

// Of one row after another.
class PivotedCholesky {
 public:
  Status run(const RowInput& input, int64_t columns) {
    const Prepared prepared = problem_.read_spread(input);
    if (prepared == Prepared::nan) return Status::nan;
    if (prepared == Prepared::indefinite) return Status::indefinite;
    Status status = grow(input, columns);
    // A float64 matrix that was computed in float32 is indefinite by float32 rounding: judge it as
    // one.
    const double single = plan::entry_error(false);
    if (status == Status::indefinite && problem_.entry_error < single) {
      problem_.entry_error = single;
      status = grow(input, columns);
    }
    return status;
  }

  // After run(), with its status: factor [n, columns], order and residual [n]; returns the rank.
  template <class scalar_t>
  int64_t write(Status status, int64_t n, int64_t columns, scalar_t* factor, int64_t* order,
                scalar_t* residual) {
    const bool failed = status == Status::nan || status == Status::indefinite;
    const scalar_t rest = failed ? std::numeric_limits<scalar_t>::quiet_NaN() : scalar_t(0);
    std::fill(residual, residual + n, rest);
    const int64_t variables = failed ? 0 : int64_t(problem_.variable.size());
    const int64_t rank = variables ? factor_.pivots() : 0;
    is_pivot_.assign(n, false);
    if (variables < n) std::fill(factor, factor + n * columns, rest);
    for (int64_t p = 0; p < variables; ++p) {
      const int64_t v = factor_.position_[p], i = problem_.variable[v];
      const double sd = 1 / problem_.inverse_sd[v];
      scalar_t* row = factor + i * columns;
      const int64_t end = std::min(p + 1, rank);
      for (int64_t l = 0; l < end; l += kStripe) {
        const double* entry = factor_.entries(p, l);
        for (int64_t k = l; k < std::min(l + kStripe, end); ++k, entry += kTileRows)
          row[k] = scalar_t(*entry * sd);
      }
      std::fill(row + end, row + columns, rest);
      if (p < rank) {
        order[p] = i;
        is_pivot_[i] = true;
      } else {
        residual[i] = scalar_t(factor_.variance_[p] * (sd * sd));
      }
    }
    int64_t* next = order + rank;
    for (int64_t i = 0; i < n; ++i)
      if (!is_pivot_[i]) *next++ = i;
    return rank;
  }

 private:
  Status grow(const RowInput& input, int64_t columns) {
    Advanced advanced = look_beside_zeros(input);
    if (advanced == Advanced::yes) {
      factor_.start(problem_, input.cov);
      advanced = factor_.advance(columns);
    }
    if (advanced == Advanced::nan) return Status::nan;
    if (advanced == Advanced::indefinite) return Status::indefinite;
    return factor_.facts().exhausted ? Status::exact : Status::truncated;
  }

  // A variable of zero variance has no covariance with any.
  Advanced look_beside_zeros(const RowInput& input) const {
    if (input.cov.is_factor() || int64_t(problem_.variable.size()) == input.n) return Advanced::yes;
    double largest = 0;
    for (int64_t i = 0; i < input.n; ++i) largest = std::max(largest, input.cov.at(i, i));
    bool valid = true;
    for (int64_t i = 0; i < input.n; ++i) {
      if (input.cov.at(i, i) > 0) continue;
      for (int64_t j = 0; j < input.n; ++j) {
        const double covariance = input.cov.at(i, j);
        if (std::isnan(covariance)) return Advanced::nan;
        valid &= i == j || plan::is_valid_beside_zero(covariance, input.cov.at(j, j), largest,
                                                      problem_.entry_error);
      }
    }
    return valid ? Advanced::yes : Advanced::indefinite;
  }

  Problem problem_;
  Factor factor_;
  std::vector<bool> is_pivot_;
};

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

namespace {

template <class scalar_t>
void factor_rows(const Batch& rows, int64_t n, int64_t columns, Outputs& out) {
  auto& [factor, order, rank, residual, status] = out;
  scalar_t* factors = factor.mutable_data_ptr<scalar_t>();
  scalar_t* residuals = residual.mutable_data_ptr<scalar_t>();
  int64_t* orders = order.mutable_data_ptr<int64_t>();
  int64_t* ranks = rank.mutable_data_ptr<int64_t>();
  int64_t* statuses = status.mutable_data_ptr<int64_t>();
  const int64_t batch = rows.size();
  share_rows(batch, [&](const NextRow& next) {
    PivotedCholesky one;
    for (int64_t b = next(); b < batch; b = next()) {
      const Status made = one.run(rows.row(b), columns);
      statuses[b] = int64_t(made);
      ranks[b] =
          one.write(made, n, columns, factors + b * n * columns, orders + b * n, residuals + b * n);
    }
  });
}

}  // namespace

Outputs pivoted_cholesky_cpu(const Tensor& upper, const Tensor& cov, std::optional<Tensor> lower,
                             int64_t columns, bool factored) {
  check_pivoted_cholesky(upper, cov, lower, columns, factored);
  const Batch rows(upper, cov, lower, factored);
  const int64_t batch = rows.size(), n = upper.size(1);
  auto integer = [&](std::initializer_list<int64_t> shape) {
    return new_tensor(upper, shape, ScalarType::Long);
  };
  Outputs out{new_tensor(upper, {batch, n, columns}), integer({batch, n}), integer({batch}),
              new_tensor(upper, {batch, n}), integer({batch})};
  if (upper.scalar_type() == ScalarType::Double)
    factor_rows<double>(rows, n, columns, out);
  else
    factor_rows<float>(rows, n, columns, out);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CPU, m) {
  MVNROB_IMPL(m, "pivoted_cholesky", &pivoted_cholesky_cpu);
}

}  // namespace mvnrob
