// One row by the recursion of Mendell and Elston (plan/mendell_elston.h), and its reverse.
// Torch-free.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/mvn_cdf_problem.h"
#include "plan/mendell_elston.h"
#include "plan/options.h"

namespace mvnrob {

struct SweepResult {
  double log_prob;
  Status status;
  int64_t n_active, n_pivots;
};

// Derivatives of log p, each of the row's n variables; cov [n, n] or null.
template <class scalar_t>
struct SweepGradient {
  scalar_t *upper, *lower, *cov;  // lower may be null as well
};

// Kept from row to row, so that its arrays are not allocated again.
class MendellElstonSweep {
 public:
  SweepResult run(const RowInput& input);

  // After run, which left log p above minus infinity, or NaN: writes `factor` times the gradient.
  // Not symmetric in cov's two triangles only by their order of rounding.
  template <class scalar_t>
  void reverse(double factor, const SweepGradient<scalar_t>& gradient);

 private:
  struct Pivot {
    double sd;
    plan::Bounds bounds;
    math::Truncated interval;
    int64_t end, end_after;  // rows live before its multiples left, and after
  };

  Status sweep(double entry_error);
  void begin(double entry_error);
  void swap(int64_t a, int64_t b);
  Status leave_multiples(Pivot& pivot, double growth);
  double* column(int64_t j) { return factor_.data() + j * m_; }
  plan::Bounds bounds(int64_t row, int64_t pivot) const;
  void to_bounds(int64_t j, double lower, double upper);
  template <class scalar_t>
  void write_cov(double factor, scalar_t* out);

  RowInput input_;
  Problem problem_;
  int64_t m_ = 0, end_ = 0;
  double log_prob_ = 0;
  // by position: pivots, rows live, rows that left, the last first
  std::vector<int64_t> position_;
  std::vector<double> upper_, lower_, mean_, variance_, error_;
  std::vector<double> factor_;  // column j at j m_: c_ij
  std::vector<double> weights_, priority_;
  std::vector<Pivot> pivots_;

  // Adjoints: of the limits, means; of S as a symmetric matrix, its diagonal twice. The adjoint of
  // the column of pivot j is -g_j times that matrix of the rows after j, times the column.
  std::vector<double> to_upper_, to_lower_, to_mean_, to_column_, to_cov_;
};

}  // namespace mvnrob
