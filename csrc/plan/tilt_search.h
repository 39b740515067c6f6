// The search for the saddle point of psi (plan/tilt.h).
//
// First iteration along the residual, which is cheap and does as a rule. Where it comes no nearer
// Newton's method goes on (plan/tilt_newton.h), which climbs psi.
//
// `Tilt` is a backend's: array(TiltArray), forward() and backward(); newton_direction() leaves in
// kTiltDirection how mu moves, and says how many products it took; each(f) does f(k) for every
// pivot, which everyone sees then.
#pragma once
#include "math/config.h"
#include "plan/tilt.h"

namespace mvnrob::plan {

// Iteration goes on while the residual halves in so many passes.
constexpr int kTiltWindow = 12;
constexpr int kTiltPasses = 16 * kTiltWindow;
constexpr double kTiltEnough = 1e-2;  // residual below which the weights no longer change
// Products of H and a vector that Newton's method may take, a step beside its own counted as some.
constexpr int kNewtonWork = 4000, kNewtonStepWork = 64;
constexpr double kLeastNewtonStep = 1e-9;
constexpr double kPsiRounding = 1e-9;  // relative: a gain below it is looked for in the residual

#if defined(__CUDACC__)
#pragma nv_diagnostic push
#pragma nv_diag_suppress 20011, 20014  // a Tilt is of the device or of the host
#endif

template <class Tilt>
class TiltSearch {
 public:
  MVNROB_HD explicit TiltSearch(Tilt& tilt) : t_(tilt) {}

  // From the mu that is there: leaves the saddle point in it, or what is there if that is `given`,
  // or zero where none was found.
  MVNROB_HD_FN FoundTilt run(bool given) {
    t_.each([&](int k) { best(k) = mu(k), direction(k) = 0; });
    double residual = 0;
    FoundTilt found = search(given, residual);
    found.tilts = given || is_saddle(residual, found.log_unit);
    if (found.tilts) return found;
    t_.each([&](int k) { mu(k) = 0; });
    FoundTilt plain;
    plain.log_unit = kPlainLogUnit;
    return plain;
  }

 private:
  // From mu to the best, where it `ends` at once that is mu; its residual.
  MVNROB_HD_FN FoundTilt search(bool ends, double& residual) {
    // `mark`: the least residual when it was last looked at, then psi at `best`. `work`: passes,
    // then what Newton's method has spent.
    double least = HUGE_VAL, mark = HUGE_VAL, size = 0.5;
    int work = 0;
    for (bool newton = false, starts = false;;) {
      const FoundTilt found = t_.forward();  // at one place: it is long
      residual = t_.backward();
      if (ends) return found;
      if (!newton) {
        const bool better = residual < least;
        size = better ? math::min(1.0, 1.3 * size) : 0.4 * size;
        if (better) least = residual;
        if (least <= kTiltEnough) return found;
        if (++work % kTiltWindow == 0) {
          newton = starts = work == kTiltPasses || least > 0.5 * mark;
          mark = least;
        }
        t_.each([&](int k) {
          if (better) {
            best(k) = mu(k);
            direction(k) = t_.array(kTiltResidual)[k];
          }
          mu(k) = newton ? best(k) : ::fma(size, direction(k), best(k));
        });
        if (newton) work = 0;
        continue;
      }
      const double gain = found.log_unit - mark;
      if (starts || gain > kPsiRounding * ::fabs(mark) ||
          (gain >= -kPsiRounding * ::fabs(mark) && residual < least)) {
        mark = found.log_unit;
        least = residual;
        starts = false;
        if (residual <= kTiltEnough || work >= kNewtonWork) return found;
        work += kNewtonStepWork + t_.newton_direction();
        size = 1;
        t_.each([&](int k) {
          best(k) = mu(k);
          mu(k) += direction(k);
        });
      } else {
        size *= 0.5;
        ends = size < kLeastNewtonStep;
        t_.each([&](int k) { mu(k) = ends ? best(k) : ::fma(size, direction(k), best(k)); });
      }
    }
  }

  MVNROB_HD double& mu(int k) const { return t_.array(kTiltMu)[k]; }
  MVNROB_HD double& best(int k) const { return t_.array(kTiltBest)[k]; }
  MVNROB_HD double& direction(int k) const { return t_.array(kTiltDirection)[k]; }

  Tilt& t_;
};

#if defined(__CUDACC__)
#pragma nv_diagnostic pop
#endif

}  // namespace mvnrob::plan
