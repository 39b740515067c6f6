// The closed forms of mvn_cdf: a thread for each row of at most three variables. A launch of its
// own where no row has more, otherwise part of another (mvn_cdf_one_factor.h).
//
// Limiter: double-precision arithmetic of the adaptive quadrature (n = 3), whose length differs
// between the rows of a warp: of the 20712 instructions of sm_90, all branches together, 7548 are
// FP64 and 5940 are on the uniform datapath (share reached: not measured). After screening most
// rows of confident inputs end here.
#pragma once
#include "kernels/mvn_cdf_data.h"
#include "kernels/mvn_cdf_multiples.h"
#include "math/box.h"
#include "plan/ordering.h"
#include "plan/variable.h"

namespace mvnrob::kernels {

// One to three of a row's variables.
template <class scalar_t>
MVNROB_DEVICE_FN math::Box box_of(const MvnCdfArgs& a, int64_t row, const RowMemory<scalar_t>& m,
                                  double entry_error, const int32_t* index, int size) {
  const auto limits = [&](int i) {
    return i < size ? math::Interval{m.lower()[index[i]], m.upper()[index[i]]}
                    : math::Interval{0, 0};
  };
  const auto correlation = [&](int i, int j) {
    if (i >= size) return math::PairCorrelation{0, 0};
    const int32_t p = index[i], q = index[j], v = m.variable()[p], w = m.variable()[q];
    const double c = a.covariance(row, v, w), rho = c * m.inverse_sd()[p] * m.inverse_sd()[q];
    if (a.is_factor())
      return math::pair_correlation_of_rows(rho, rest_of_rows(a, row, v, w, c),
                                            plan::first_factor_error(entry_error));
    return math::pair_correlation(a.covariance(row, v, v), a.covariance(row, w, w), c, rho);
  };
  return {size,
          {limits(0), limits(1), limits(2)},
          {correlation(1, 0), correlation(2, 0), correlation(2, 1)}};
}

template <class scalar_t>
struct MvnCdfClosedForm {
  using Args = MvnCdfArgs;
  static constexpr int kThreads = 64;
  static constexpr int kResidentBlocks = 4;
  static constexpr size_t kSharedBytes = 0;

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const int64_t rows = a.counters[a.round()].closed;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < rows;
         i += int64_t(gridDim.x) * blockDim.x)
      integrate(a, a.closed[i]);
  }

 private:
  static MVNROB_DEVICE_FN void integrate(const Args& a, int64_t row) {
    const RowMemory<scalar_t> m(a, row);
    RowState& s = *m.state();
    const int32_t index[3] = {0, 1, 2};
    const math::Box box = box_of(a, row, m, s.facts.entry_error, index, s.plan.kept);
    const math::BoxProbability p = math::box_probability(box, 80 * s.facts.entry_error);
    if (p.nan)
      s.plan.step = plan::failed(s.plan, Status::nan);
    else if (!p.consistent)
      judge_again(a.options, s);
    else
      s.plan.step = plan::closed(s.plan, a.options, p.value, p.complement, p.error, p.log_value,
                                 p.log_error, p.log_slope);
  }
};

}  // namespace mvnrob::kernels
