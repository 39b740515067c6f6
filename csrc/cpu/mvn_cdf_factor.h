// The ordered, rank-revealing Cholesky factor (Gibson, Glasbey and Elston 1994). Torch-free.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/mvn_cdf_factor_simd.h"
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
  Factor();
  void start(const Problem& problem, const CovarianceView& cov);

  // Adds pivots until there are `target` or none is left.
  Advanced advance(int64_t target);

  // Begins anew. Variables of a weight, in the problem's order, are the first pivots, those of the
  // largest size first, as far as they have variance left at their turn.
  void start_again(const std::vector<double>& weights);

  // Makes these variables the pivots, in this order. False when one of them has no variance left at
  // its turn or the matrix is not semidefinite.
  bool follow(const int64_t* variables, int64_t count);

  int64_t pivots() const { return pivots_; }
  // Whether rows without variance bound the pivots beside their own.
  bool has_groups() const { return live_end_ < m_; }
  plan::FactorFacts facts() const;

  // Where one pivot is all: the interval of it in which every variable holds.
  plan::Bounds interval() const;

 private:
  friend class Nearest;
  friend class Packer;
  friend class Pathwise;
  friend class PivotedCholesky;
  friend class Tilt;
  friend class Union;
  int64_t index(int64_t row, int64_t column) const {
    return (column / kStripe * tiles_ + row / kTileRows) * kTileSize +
           column % kStripe * kTileRows + row % kTileRows;
  }
  // Of a row from `column` on, in steps of kTileRows to the end of the stripe.
  const double* entries(int64_t row, int64_t column) const {
    return L_.data() + index(row, column);
  }
  double* entries(int64_t row, int64_t column) { return L_.data() + index(row, column); }
  // Above the diagonal nothing is stored.
  double entry(int64_t row, int64_t column) const {
    return column > row ? 0 : *entries(row, column);
  }
  // A row's entries end with the pivot that it bounds.
  bool has_entry(int64_t row, int64_t column) const {
    return column <= (row < pivots_ ? row : row < live_end_ ? pivots_ - 1 : group_[row]);
  }
  FactorRows rows_from(int64_t i);
  int64_t choose();
  int64_t choose_by_weight() const;
  Advanced add_pivot(int64_t position);
  void swap(int64_t a, int64_t b);
  bool is_spent(int64_t i) const;
  Advanced check_rest();
  void read_column(int64_t i, int64_t first, int64_t end, double* column) const;
  void eliminate(const int64_t* rows, double* const* columns, int64_t count, int64_t from);
  double* column_of_pivot();
  void fill_pool();
  double* pooled(int64_t slot) { return pool_.data() + slot * tiles_ * kTileRows; }
  void read_rows();
  double add_direction(int64_t j);
  double rest_of_row(int64_t i) const;

  const FactorKernels& kernels_;
  const Problem* problem_ = nullptr;
  CovarianceView cov_{};
  int64_t m_ = 0, pivots_ = 0, live_end_ = 0;
  int64_t tiles_ = 0;   // of a stripe
  int64_t wanted_ = 0;  // pivots in the end
  double neglected_ = 0;
  // By position: pivots, then live rows, then rows with no variance left.
  std::vector<int64_t> position_;  // index into the problem
  std::vector<double> upper_, lower_, variance_, mean_, variance_error_, priority_;
  std::vector<int64_t> group_;
  std::vector<double> weight_;   // or none
  std::vector<int64_t> source_;  // of an entry in its row of the covariance
  std::vector<double> scale_;    // its inverse standard deviation
  std::vector<double> L_;        // in tiles (mvn_cdf_factor_simd.h)

  // Columns of the rows that are likely to be the next pivots, brought to as many pivots together:
  // L is read once for all of them.
  std::vector<double> pool_;          // [kPool + 1] columns, the last of a row that is not in it
  std::vector<int64_t> slot_;         // of a row, or -1
  std::vector<int64_t> row_of_slot_;  // the inverse
  int64_t pool_pivots_ = 0;           // that are eliminated from the pool's columns
  int64_t pool_size_ = 0;             // slots that may have a row
  int64_t hits_ = 0;                  // pivots that the present pool has served

  std::vector<int64_t> candidates_;
  std::vector<double> weights_;
  // Of a factor: its rows, of length one, column by column; the directions of the pivots;
  // the variances from which the present ones were subtracted.
  std::vector<double> rows_, directions_, reference_;
};

}  // namespace mvnrob
