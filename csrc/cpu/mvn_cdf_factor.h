// The ordered, rank-revealing Cholesky factor (Gibson, Glasbey and Elston 1994). Torch-free.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/mvn_cdf_problem.h"
#include "plan/ordering.h"

namespace mvnrob {

// Whether the factor could be continued: `indefinite` is a variance negative beyond rounding, `nan`
// an entry of the matrix.
enum class Advanced { yes, indefinite, nan };

// Partial rank-revealing Cholesky factor of the correlation, in greedy order: at each step the
// variable least likely to hold given the expected values of those before it. No jitter: a variable
// whose variance given the pivots is within its rounding leaves the live rows and joins the
// group of the last pivot, which it bounds.
//
// Where a factor of the covariance is given its rows are orthogonalised instead (Gram-Schmidt,
// twice for every pivot; L holds their coordinates), which keeps the digits of standard deviations
// down to rounding, where those of a covariance end at its square root. Pivot j costs O(m r + j r).
class Factor {
 public:
  void start(const Problem& problem, const CovarianceView& cov);

  // Adds pivots until there are `target` or none is left.
  Advanced advance(int64_t target);

  // Makes these variables the pivots, in this order. False when one of them has no variance left at
  // its turn or the matrix is not semidefinite.
  bool follow(const int64_t* variables, int64_t count);

  int64_t pivots() const { return pivots_; }
  plan::FactorFacts facts() const;

  // Where one pivot is all: the interval of it in which every variable holds.
  plan::Bounds interval() const;

 private:
  friend class Packer;
  friend class Pathwise;
  friend class PivotedCholesky;
  friend class Tilt;
  friend class Union;
  double entry(int64_t row, int64_t column) const { return L_[column * m_ + row]; }
  int64_t choose() const;
  Advanced add_pivot(int64_t position);
  void swap(int64_t a, int64_t b);
  bool is_spent(int64_t i) const;
  Advanced check_rest() const;
  void read_rows();
  double add_direction(int64_t j);
  double rest_of_row(int64_t i) const;

  const Problem* problem_ = nullptr;
  CovarianceView cov_{};
  int64_t m_ = 0, pivots_ = 0, live_end_ = 0;
  double neglected_ = 0;
  // By position: pivots, then live rows, then rows with no variance left.
  std::vector<int64_t> position_;  // index into the problem
  std::vector<double> upper_, lower_, variance_, mean_, variance_error_;
  std::vector<int64_t> group_;
  std::vector<double> L_;    // column-major, m_ rows
  std::vector<double> row_;  // scratch
  // Of a factor: its rows, of length one, column by column like L_; the directions of the pivots;
  // the variances from which the present ones were subtracted.
  std::vector<double> rows_, directions_, reference_;
  mutable std::vector<double> scratch_;
};

}  // namespace mvnrob
