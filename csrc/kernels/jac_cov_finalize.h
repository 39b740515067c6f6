// From S to standardised margins and correlations; the formulas are in math/jac_cov.h. Both kernels
// are limited by memory.
#pragma once
#include "kernels/device.h"
#include "math/jac_cov.h"

namespace mvnrob::kernels {

// Results have the type of the logits.
struct JacFinalizeArgs {
  const void* S;  // [batch, classes, classes]
  const void* logits;
  const int64_t* target;
  const double* sigma;
  void *z, *norms;  // [batch, classes - 1]
  void* corr;       // [batch, classes - 1, classes - 1]
  double* inverse;  // [batch, classes - 1], between the two
  int64_t batch, classes;
  bool double_S, double_out;

  MVNROB_HD double sum(int64_t problem, int64_t i, int64_t j) const {
    return value(S, double_S, (problem * classes + i) * classes + j);
  }
  static MVNROB_HD double value(const void* p, bool is_double, int64_t k) {
    return is_double ? static_cast<const double*>(p)[k] : double(static_cast<const float*>(p)[k]);
  }
  MVNROB_HD void put(void* p, int64_t k, double x) const {
    if (double_out)
      static_cast<double*>(p)[k] = x;
    else
      static_cast<float*>(p)[k] = float(x);
  }
  // Index k of the classes other than t; a class whatever t is.
  static MVNROB_HD int64_t other(int64_t k, int64_t t) { return k + (k >= t); }
};

// z and norms, a thread for each. Values that a call on the CPU refuses (a target that is no class,
// a sigma that is not positive and finite) give NaN.
struct JacCovLimits {
  using Args = JacFinalizeArgs;
  static constexpr int kThreads = 128;
  static constexpr int kResidentBlocks = 8;

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const int64_t n = a.classes - 1, step = int64_t(gridDim.x) * kThreads;
    for (int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x; e < a.batch * n; e += step) {
      const int64_t problem = e / n, t = a.target[problem], i = Args::other(e % n, t);
      const auto logit = [&](int64_t k) {
        return Args::value(a.logits, a.double_out, problem * a.classes + k);
      };
      const bool valid = t >= 0 && t < a.classes;
      const double sigma = a.sigma[problem];
      const double norm = valid ? sqrt(a.sum(problem, i, i)) : double(NAN);
      const double margin =
          valid && sigma > 0 && sigma < HUGE_VAL ? logit(t) - logit(i) : double(NAN);
      a.put(a.z, e, math::jac_cov_limit(margin, norm, sigma));
      a.put(a.norms, e, norm);
      a.inverse[e] = math::jac_cov_inverse(norm);
    }
  }
};

// Correlations, a block for some kThreads kEach in a row: a thread divides once to find its first
// entry, and goes on from there digit by digit of (problem, row, column).
struct JacCovCorr {
  using Args = JacFinalizeArgs;
  static constexpr int kThreads = 256;
  static constexpr int kResidentBlocks = 4;

  static int64_t blocks(int64_t entries) {
    return (entries + kThreads * kEach - 1) / (kThreads * kEach);
  }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const int64_t n = a.classes - 1, entries = a.batch * n * n;
    for (int64_t first = int64_t(blockIdx.x) * kThreads * kEach; first < entries;
         first += int64_t(gridDim.x) * kThreads * kEach) {
      int64_t e = first + threadIdx.x;
      int64_t l = e % n, k = e / n % n, problem = e / n / n;
      const int64_t step_l = kThreads % n, step_k = kThreads / n % n, step = kThreads / n / n;
      for (int each = 0; each < kEach && e < entries; ++each, e += kThreads) {
        put(a, e, problem, k, l, n);
        l += step_l;
        k += step_k;
        problem += step;
        if (l >= n) l -= n, ++k;
        if (k >= n) k -= n, ++problem;
      }
    }
  }

 private:
  static constexpr int kEach = 8;

  static MVNROB_DEVICE void put(const Args& a, int64_t e, int64_t problem, int64_t k, int64_t l,
                                int64_t n) {
    const int64_t t = a.target[problem];
    const double product = a.sum(problem, Args::other(k, t), Args::other(l, t));
    const double* inverse = a.inverse + problem * n;
    a.put(a.corr, e, k == l ? 1.0 : math::jac_cov_corr(product, inverse[k], inverse[l]));
  }
};

}  // namespace mvnrob::kernels
