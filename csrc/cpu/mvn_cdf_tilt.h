// The tilt of a factor's pivots (plan/tilt.h). Torch-free.
#pragma once
#include <vector>

#include "cpu/mvn_cdf_factor.h"
#include "plan/tilt_newton.h"
#include "plan/tilt_search.h"

namespace mvnrob {

class Tilt {
 public:
  // The saddle point, or the tilt that is given for every pivot; `multipliers` of the variables at
  // the nearest point, where that made the factor's pivots.
  void find(const Factor& factor, const double* given = nullptr,
            const std::vector<double>* multipliers = nullptr);

  const double* of_pivots() const { return arrays_.data(); }
  const plan::FoundTilt& found() const { return found_; }

 private:
  friend class plan::TiltSearch<Tilt>;
  friend class plan::TiltNewton<Tilt>;
  const plan::FoundTilt& forward();
  double backward();  // the residual's norm

  int newton_direction() { return plan::TiltNewton<Tilt>(*this).solve(); }

  int pivots() const { return int(pivots_); }
  double* array(int which) { return arrays_.data() + which * pivots_; }
  double entry(int64_t i, int64_t l) const { return factor_->entry(i, l); }
  template <class F>
  void each(const F& f) const {
    for (int k = 0; k < pivots(); ++k) f(k);
  }
  template <class F>
  double sum(const F& f) const {
    double total = 0;
    for (int k = 0; k < pivots(); ++k) total += f(k);
    return total;
  }

  const Factor* factor_ = nullptr;
  int64_t pivots_ = 0;
  std::vector<double> arrays_, y_;
  plan::FoundTilt found_;
};

}  // namespace mvnrob
