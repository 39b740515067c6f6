// From one row of the input to what the sampler executes: standardise, screen, factorise in the
// order of Gibson, Glasbey and Elston (1994), pack. Torch-free; scalar code and its own
// allocations.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/mvn_cdf_program.h"

namespace mvnrob {

// One covariance of the batch, float32 or float64, any strides.
struct CovarianceView {
  const void* data;
  bool is_double;
  int64_t row_stride;
  int64_t column_stride;

  double at(int64_t i, int64_t j) const {
    const int64_t k = i * row_stride + j * column_stride;
    return is_double ? static_cast<const double*>(data)[k]
                     : double(static_cast<const float*>(data)[k]);
  }
};

// Limits in units of the standard deviation.
struct RowInput {
  int64_t n;
  const void* upper;
  const void* lower;  // null: minus infinity
  bool is_double;
  CovarianceView cov;
};

// Error of one entry of the correlation: the input's own rounding for float32, that of the
// arithmetic for float64.
double entry_error(bool is_double);

enum class Prepared { integrate, one, zero, nan, indefinite };

// The variables that matter, standardised.
struct Problem {
  std::vector<int64_t> variable;  // index into the input
  std::vector<double> upper, lower, inverse_sd, mass;
  bool rectangular = false;  // some lower limit is finite
  double entry_error = 0;    // of one entry of the correlation, from rounding

  // Reads limits and variances, drops what holds with probability one.
  Prepared read(const RowInput& input);

  double correlation(const CovarianceView& cov, int64_t i, int64_t j) const {
    return cov.at(variable[i], variable[j]) * inverse_sd[i] * inverse_sd[j];
  }
};

// Drops the variables least likely to fail while the sum of their probabilities of failing stays
// within tau. P_kept - dropped <= P <= P_kept (Bonferroni). Returns that sum; keeps `all` as it is.
double screen(const Problem& all, double tau, Problem& kept);

// Whether the factor could be continued: `indefinite` is a variance negative beyond rounding, `nan`
// an entry of the matrix.
enum class Advanced { yes, indefinite, nan };

// Partial rank-revealing Cholesky factor of the correlation, in greedy order: at each step the
// variable least likely to hold given the expected values of those before it. No jitter: a variable
// whose variance given the pivots is within its rounding leaves the live rows and joins the
// group of the last pivot, which it bounds.
class Factor {
 public:
  void start(const Problem& problem, const CovarianceView& cov);

  // Adds pivots until there are `target` or none is left.
  Advanced advance(int64_t target);

  int64_t size() const { return m_; }
  int64_t pivots() const { return pivots_; }
  bool exhausted() const { return live_end_ == pivots_; }
  // Product over the pivots of the probabilities given the expected values: a guess of P.
  double guess() const { return guess_; }
  // Largest variance that was within its rounding and taken as zero.
  double neglected() const { return neglected_; }

 private:
  friend class Packer;
  double entry(int64_t row, int64_t column) const { return L_[column * m_ + row]; }
  int64_t choose() const;
  void swap(int64_t a, int64_t b);

  const Problem* problem_ = nullptr;
  CovarianceView cov_{};
  int64_t m_ = 0, pivots_ = 0, live_end_ = 0;
  double guess_ = 1, neglected_ = 0;
  // By position: pivots, then live rows, then rows with no variance left.
  std::vector<int64_t> position_;  // index into the problem
  std::vector<double> upper_, lower_, variance_, mean_, variance_error_;
  std::vector<int64_t> group_;
  std::vector<double> expected_;  // by pivot: E[y | limits] at the expected values before it
  std::vector<double> L_;         // column-major, m_ rows
  std::vector<double> row_;       // scratch
  mutable std::vector<double> scratch_a_, scratch_b_;
};

// Owns the arrays of a Program.
template <class scalar_t>
class PackedProgram {
 public:
  // One stage when first == last or first == 0: all rows up to `last` pivots, completed there.
  // Two stages otherwise, completed at `first` and at `last`.
  void pack(const Factor& factor, int64_t first, int64_t last, double skip_limit);
  const Program<scalar_t>& program() const { return program_; }
  double cost() const { return cost_; }  // per sample, in units of one multiply-add

 private:
  struct List {
    std::vector<Block> blocks;
    std::vector<scalar_t> coef, upper, lower;
    std::vector<uint8_t> flags;
    RowList<scalar_t> view() const {
      return {blocks.data(), int64_t(blocks.size()), coef.data(),
              upper.data(),  lower.data(),           flags.data()};
    }
  };
  List lists_[4];
  Program<scalar_t> program_{};
  double cost_ = 0;
  friend class Packer;
};

}  // namespace mvnrob
