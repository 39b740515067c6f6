// Exact answers of variables that fall apart into blocks of one common factor each. Torch-free.
#pragma once
#include <vector>

#include "cpu/mvn_cdf_problem.h"
#include "plan/one_factor.h"

namespace mvnrob {

class OneFactor {
 public:
  // Whether the correlation is one of blocks, independent of each other, in each of which
  // R_ij = l_i l_j, and quadrature is quick.
  bool recognise(const Problem& problem, const CovarianceView& cov);

  // Then the answer, where it is found.
  plan::ProductOfBlocks integrate(const Problem& problem);

  // P may move by so much because of what the loads do not explain.
  double moved() const { return moved_; }

 private:
  void split(const Problem& problem, const CovarianceView& cov);
  bool fit(const Problem& problem, const CovarianceView& cov, int64_t first, int64_t last);
  plan::OneFactorProbability integrate_block(const Problem& problem, int64_t first, int64_t last);

  std::vector<int64_t> order_, end_;  // variables, block by block, and where blocks end
  std::vector<double> load_, rest_, density_;
  std::vector<double> upper_, lower_, slope_;  // of one block, in units of rest
  double moved_ = 0;                           // P by what the loads do not explain, at most
};

}  // namespace mvnrob
