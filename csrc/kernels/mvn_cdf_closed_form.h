// The closed forms of mvn_cdf: a thread for each row of at most three variables.
//
// Limiter: double-precision arithmetic of the adaptive quadrature (n = 3), whose length differs
// between the rows of a warp: of the 20712 instructions of sm_90, all branches together, 7548 are
// FP64 and 5940 are on the uniform datapath (share reached: not measured). After screening most
// rows of confident inputs end here.
#pragma once
#include "kernels/mvn_cdf_data.h"
#include "math/box.h"
#include "plan/ordering.h"
#include "plan/variable.h"

namespace mvnrob::kernels {

template <class scalar_t>
struct MvnCdfClosedForm {
  using Args = MvnCdfArgs;
  static constexpr int kThreads = 64;
  static constexpr int kResidentBlocks = 4;
  static constexpr size_t kSharedBytes = 0;

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const int64_t rows = a.counters[a.round].closed;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < rows;
         i += int64_t(gridDim.x) * blockDim.x)
      integrate(a, a.closed[i]);
  }

 private:
  // 1 - rho^2 of two rows of a factor, by what the first leaves of the second; c is their product.
  static MVNROB_DEVICE_FN double rest_of_rows(const Args& a, int64_t row, int32_t v, int32_t w,
                                              double c) {
    const double part = c / a.covariance(row, v, v);
    double square = 0;
    for (int32_t l = 0; l < a.factor_columns; ++l) {
      const double rest = a.stored(row, w, l) - part * a.stored(row, v, l);
      square += rest * rest;
    }
    return square / a.covariance(row, w, w);
  }

  static MVNROB_DEVICE_FN void integrate(const Args& a, int64_t row) {
    const RowMemory<scalar_t> m(a, row);
    RowState& s = *m.state();
    const int size = s.plan.kept;
    const auto limits = [&](int i) {
      return i < size ? math::Interval{m.lower()[i], m.upper()[i]} : math::Interval{0, 0};
    };
    const auto correlation = [&](int i, int j) {
      if (i >= size) return math::PairCorrelation{0, 0};
      const int32_t v = m.variable()[i], w = m.variable()[j];
      const double c = a.covariance(row, v, w);
      if (a.is_factor())
        return math::pair_correlation_of_rows(c * m.inverse_sd()[i] * m.inverse_sd()[j],
                                              rest_of_rows(a, row, v, w, c),
                                              plan::first_factor_error(s.facts.entry_error));
      return math::pair_correlation(a.covariance(row, v, v), a.covariance(row, w, w), c,
                                    c * m.inverse_sd()[i] * m.inverse_sd()[j]);
    };
    const math::Box box{size,
                        {limits(0), limits(1), limits(2)},
                        {correlation(1, 0), correlation(2, 0), correlation(2, 1)}};
    const math::BoxProbability p = math::box_probability(box, 80 * s.facts.entry_error);
    if (p.nan)
      s.plan.step = plan::failed(s.plan, Status::nan);
    else if (!p.consistent)
      judge_again(a.options, s);
    else
      s.plan.step = plan::closed(s.plan, a.options, p.value, p.complement, p.error, p.log_value);
  }
};

}  // namespace mvnrob::kernels
