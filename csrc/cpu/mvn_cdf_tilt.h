// The tilt of a factor's pivots (plan/tilt.h). Torch-free.
#pragma once
#include <vector>

#include "cpu/mvn_cdf_factor.h"

namespace mvnrob {

class Tilt {
 public:
  void find(const Factor& factor);

  const std::vector<double>& of_pivots() const { return mu_; }
  double log_unit() const { return log_unit_; }  // psi at the saddle point

 private:
  // A row that bounds a pivot at the present y, and d ln P by that bound.
  struct Active {
    int64_t row;
    double slope;
  };
  void forward(const Factor& factor);
  double backward(const Factor& factor);  // the residual's norm

  std::vector<double> mu_, y_, residual_;
  std::vector<Active> upper_, lower_;
  std::vector<std::vector<int64_t>> groups_;
  double log_unit_ = 0;
};

}  // namespace mvnrob
