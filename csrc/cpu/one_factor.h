// Exact answers of independent blocks, each of one common factor or of three variables at most,
// into which variables fall apart, and the rest of them. Torch-free.
#pragma once
#include <vector>

#include "cpu/mvn_cdf_problem.h"
#include "plan/one_factor.h"
#include "plan/row_plan.h"

namespace mvnrob {

class OneFactor {
 public:
  // Which of the correlation's blocks are such, R_ij = l_i l_j in those of one factor, with a
  // quadrature that is quick.
  plan::ExactBlocks recognise(const Problem& problem, const CovarianceView& cov);

  // Then their product, where it is found.
  plan::ProductOfBlocks integrate();

  // And the variables of the other blocks, in the problem's order.
  void take_rest(Problem& rest) const;

 private:
  enum class Form { one_factor, few, other };
  struct Part {
    int64_t first, last;  // of order_
    Form form;
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
