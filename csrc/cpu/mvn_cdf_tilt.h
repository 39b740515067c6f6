// The tilt of a factor's pivots (plan/tilt.h). Torch-free.
#pragma once
#include <vector>

#include "cpu/mvn_cdf_factor.h"
#include "plan/tilt.h"

namespace mvnrob {

class Tilt {
 public:
  void find(const Factor& factor);

  // This one, given for every pivot, instead of the saddle point.
  void take(const Factor& factor, const double* mu);

  const std::vector<double>& of_pivots() const { return mu_; }
  const plan::FoundTilt& found() const { return found_; }
  bool is_tilted() const { return tilted_; }  // false: no saddle point, nothing is tilted

 private:
  // A row that bounds a pivot at the present y, and d ln P by that bound.
  struct Active {
    int64_t row;
    double slope;
  };
  void start(const Factor& factor);
  void forward(const Factor& factor);
  double backward(const Factor& factor);  // the residual's norm

  std::vector<double> mu_, y_, residual_;
  std::vector<Active> upper_, lower_;
  std::vector<std::vector<int64_t>> groups_;
  plan::FoundTilt found_;
  bool tilted_ = false;
};

}  // namespace mvnrob
