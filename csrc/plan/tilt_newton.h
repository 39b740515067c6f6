// Newton's method for the saddle point of psi (plan/tilt_search.h).
//
// For given y the least psi over mu is concave in y, since the masses of intervals are log-concave,
// and its gradient is the residual; -H dy = residual is solved by conjugate gradients (truncated
// Newton: Nocedal and Wright (2006), Numerical Optimization, 7.1). A step moves mu, and y follows
// within its limits.
//
// `Vectors` are a backend's: pivots(), array(TiltArray) and entry(i, l) of the factor; each(f) does
// f(k) for every pivot, which everyone sees then, and sum(f) adds f(k) up.
#pragma once
#include "math/config.h"
#include "plan/tilt.h"

namespace mvnrob::plan {

constexpr double kNewtonResidual = 1e-8;  // of the linear equations, squared

#if defined(__CUDACC__)
#pragma nv_diagnostic push
#pragma nv_diag_suppress 20011, 20014  // vectors are of the device or of the host
#endif

template <class Vectors>
class TiltNewton {
 public:
  MVNROB_HD explicit TiltNewton(Vectors& vectors) : v_(vectors) {}

  // dy in kTiltStep and how mu moves with it in kTiltDirection; the number of products.
  MVNROB_HD int solve() const {
    v_.each([&](int k) { v_.array(kTiltBy)[k] = 1 / variance(k) - 1; });
    v_.each([&](int k) {
      const double left = v_.array(kTiltResidual)[k], diagonal = diagonal_of(k);
      v_.array(kTiltDiagonal)[k] = diagonal;
      v_.array(kTiltStep)[k] = 0;
      v_.array(kTiltLeft)[k] = left;
      v_.array(kTiltConjugate)[k] = left / diagonal;
    });
    double size = size_of_left();
    const double enough = kNewtonResidual * size;
    for (int products = 1;; ++products) {
      const bool ends = !(size > enough) || products > 3 * v_.pivots();
      multiply(ends ? kTiltStep : kTiltConjugate);
      if (ends) return products;
      const double bend =
          v_.sum([&](int k) { return v_.array(kTiltConjugate)[k] * v_.array(kTiltProduct)[k]; });
      const double far = bend > 0 ? size / bend : 0.0;
      v_.each([&](int k) {
        double &x = v_.array(kTiltStep)[k], &left = v_.array(kTiltLeft)[k];
        x = ::fma(far, v_.array(kTiltConjugate)[k], x);
        left = ::fma(-far, v_.array(kTiltProduct)[k], left);
      });
      const double before = size;
      size = far > 0 ? size_of_left() : 0.0;
      const double share = size / before;
      v_.each([&](int k) {
        double& conjugate = v_.array(kTiltConjugate)[k];
        conjugate = ::fma(share, conjugate, v_.array(kTiltLeft)[k] / v_.array(kTiltDiagonal)[k]);
      });
    }
  }

 private:
  MVNROB_HD double size_of_left() const {
    return v_.sum([&](int k) {
      const double left = v_.array(kTiltLeft)[k];
      return left * left / v_.array(kTiltDiagonal)[k];
    });
  }

  MVNROB_HD double variance(int j) const {
    return interval_variance(v_.array(kTiltLowerLimit)[j], v_.array(kTiltUpperLimit)[j],
                             {0, v_.array(kTiltUpperSlope)[j], v_.array(kTiltLowerSlope)[j]});
  }

  // Of -H.
  MVNROB_HD double diagonal_of(int k) const {
    double total = 1 + v_.array(kTiltBy)[k];
    MVNROB_ROLLED
    for (int j = k + 1; j < v_.pivots(); ++j) {
      const double moves = v_.entry(j, k) / v_.entry(j, j);
      total = ::fma(moves * moves, v_.array(kTiltBy)[j], total);
    }
    return total;
  }

  // -H times a vector, in kTiltProduct; in kTiltDirection how mu moves along it.
  MVNROB_HD void multiply(TiltArray in) const {
    v_.each([&](int j) {
      double sum = 0;
      MVNROB_ROLLED
      for (int l = 0; l < j; ++l) sum = ::fma(v_.entry(j, l), v_.array(in)[l], sum);
      const double pivot = v_.entry(j, j), moved = -sum / pivot;  // the limits
      const double own = variance(j), others = 1 - own;
      const double move = ::fma(-others, moved, v_.array(in)[j]) / own;
      v_.array(kTiltDirection)[j] = move;
      v_.array(kTiltBy)[j] = others * (move - moved) / pivot;
    });
    v_.each([&](int k) {
      double total = v_.array(kTiltDirection)[k];
      MVNROB_ROLLED
      for (int j = k + 1; j < v_.pivots(); ++j)
        total = ::fma(v_.array(kTiltBy)[j], v_.entry(j, k), total);
      v_.array(kTiltProduct)[k] = total;
    });
  }

  Vectors& v_;
};

#if defined(__CUDACC__)
#pragma nv_diagnostic pop
#endif

}  // namespace mvnrob::plan
