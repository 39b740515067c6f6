// Exact answers of variables that fall apart into independent blocks, each of one common factor or
// of three variables at most. Torch-free.
#pragma once
#include <vector>

#include "cpu/mvn_cdf_problem.h"
#include "plan/one_factor.h"

namespace mvnrob {

class OneFactor {
 public:
  // Whether the correlation is one of such blocks, R_ij = l_i l_j in those of one factor, and
  // quadrature is quick.
  bool recognise(const Problem& problem, const CovarianceView& cov);

  // Then the answer, where it is found.
  plan::ProductOfBlocks integrate();

 private:
  struct Part {
    int64_t first, last;  // of order_
    bool one_factor;
    plan::Residuals residuals;
  };

  void read_rows();
  double correlation(int64_t i, int64_t j) const;
  void collect();
  bool fit(Part& part);
  plan::OneFactorProbability integrate_part(const Part& part);

  const Problem* problem_ = nullptr;
  CovarianceView cov_{};
  std::vector<int64_t> left_, order_;  // variables that have no block yet, and block by block
  std::vector<Part> parts_;
  std::vector<double> load_, rest_, density_;
  std::vector<double> upper_, lower_, slope_, rest_of_;  // of one block, in units of rest
  // The rows of a factor of the covariance, of length one, without their zeros.
  std::vector<int64_t> row_, column_;
  std::vector<double> entry_;
};

}  // namespace mvnrob
