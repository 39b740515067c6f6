// Compiled once per instruction set (setup.py).
#include "cpu/mendell_elston_simd.h"

#include "cpu/simd_dispatch.h"
#include "math/pack.h"
#include "plan/mendell_elston.h"

namespace mvnrob {
namespace MVNROB_ISA {
namespace {

using V = math::Pack<double, math::native_width<double>>;
constexpr int kWidth = math::native_width<double>;

bool scale(double* __restrict column, const SweepState& state, double inverse, double growth,
           int64_t n) {
  const double *variance = state.variance, *error = state.error;
  int suspicious = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double c = column[i] * inverse, square = c * c;
    column[i] = c;
    suspicious |= !(variance[i] - square > error[i] + square * growth);
  }
  return suspicious;
}

void update(const double* __restrict column, const SweepState& state, const SweepPivot& pivot,
            int64_t n) {
  double* __restrict mean = state.mean;
  double* __restrict variance = state.variance;
  double* __restrict error = state.error;
  for (int64_t i = 0; i < n; ++i) {
    const double c = column[i], square = c * c;
    const double e = error[i] + square * pivot.growth, v = variance[i] - square * pivot.shrink;
    mean[i] += c * pivot.mean;
    error[i] = e;
    variance[i] = v < e ? e : v;
  }
}

template <bool rectangular>
int64_t choose_one(const double* upper, const double* lower, const SweepState& state,
                   double* priority, int64_t n) {
  const double infinity = __builtin_inf();
  auto at = [&](auto load, int64_t i) {
    using T = decltype(load(upper));
    return plan::sweep_priority<rectangular, T>(load(upper + i),
                                                rectangular ? load(lower + i) : T(-infinity),
                                                load(state.mean + i), load(state.variance + i));
  };
  int64_t i = 0;
  V smallest(infinity);
  for (; i + kWidth <= n; i += kWidth) {
    const V p = at([](const double* x) { return V::load(x); }, i);
    p.store(priority + i);
    smallest = math::min(p, smallest);
  }
  double least = math::reduce_min(smallest);
  for (; i < n; ++i) {
    priority[i] = at([](const double* x) { return *x; }, i);
    if (priority[i] < least) least = priority[i];
  }
  for (int64_t k = 0; k < n; ++k)
    if (priority[k] == least) return k;
  return 0;
}

int64_t choose(const double* upper, const double* lower, const SweepState& state, double* priority,
               int64_t n) {
  return lower ? choose_one<true>(upper, lower, state, priority, n)
               : choose_one<false>(upper, lower, state, priority, n);
}

}  // namespace
}  // namespace MVNROB_ISA

extern const MendellElstonKernels MVNROB_SIMD_SYMBOL(mendell_elston_kernels) = {
    &MVNROB_ISA::scale, &MVNROB_ISA::update, &MVNROB_ISA::choose};

}  // namespace mvnrob
