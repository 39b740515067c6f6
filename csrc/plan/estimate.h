// From sums over samples to an estimate and its error.
#pragma once
#include <cmath>
#include <cstdint>

#include "math/pack.h"

namespace mvnrob {

constexpr int kShifts = 8;        // independent random shifts of the lattice
constexpr int kSums = 5;          // numbers of a SampleSums
constexpr int kTileSamples = 64;  // points of one shift come in multiples of this

// Sums over samples, in float64.
struct SampleSums {
  double value;       // f: the (completed) integrand
  double complement;  // 1 - f, accumulated without cancellation
  double below;       // upper bound on how far the truth given y may lie below f
  double above;       // and above it
  double square;      // f^2, or (1 - f)^2 of samples of the union

  MVNROB_HD void add(const SampleSums& other) {
    value += other.value;
    complement += other.complement;
    below += other.below;
    above += other.above;
    square += other.square;
  }
};

namespace plan {

// What is known after a look: the estimates, and how far the truth may be above and below.
struct Estimate {
  double value = 0, complement = 0;
  double error = HUGE_VAL;  // sampling and completion together
  double sampling = 0;      // the part that more points make smaller
  double bias = 0;          // the part that more pivots make smaller
  double effective = 0;     // effective number of samples; 0 where their squares do not tell
};

// Squares of less are no numbers, or have lost digits.
constexpr double kLeastSquare = 1e-280;

// Mean over the shifts and its standard error.
struct Spread {
  double mean, error;
};

template <class Get>
MVNROB_HD_FN Spread spread(const Get& get) {
  double mean = 0, square = 0;
  for (int s = 0; s < kShifts; ++s) mean += get(s);
  mean /= kShifts;
  const double scale = mean * mean < kLeastSquare ? 0x1p600 : 1.0;
  for (int s = 0; s < kShifts; ++s) {
    const double away = (get(s) - mean) * scale;
    square += away * away;
  }
  return {mean, ::sqrt(square / (kShifts * (kShifts - 1))) / scale};
}

// The interval at t standard errors after n points of each shift. The truth lies between
// value - below and value + above in expectation, so the ends' own spreads count. Samples of the
// union (plan.unites) have their squares of 1 - f.
MVNROB_HD_FN Estimate estimate(const SampleSums* sums, double n, double t, bool unites,
                               bool tilted) {
  Estimate e;
  for (int s = 0; s < kShifts; ++s) {
    e.value += sums[s].value / (n * kShifts);
    e.complement += sums[s].complement / (n * kShifts);
  }
  // The smaller of the two has the digits.
  const bool near_one = !tilted && e.complement < e.value;
  const auto centre = [&](int s) { return near_one ? -sums[s].complement : sums[s].value; };
  const Spread middle = spread([&](int s) { return centre(s) / n; });
  const Spread low = spread([&](int s) { return (centre(s) - sums[s].below) / n; });
  const Spread high = spread([&](int s) { return (centre(s) + sums[s].above) / n; });
  double square = 0;
  for (int s = 0; s < kShifts; ++s) square += sums[s].square;
  const double sum = n * kShifts * (unites ? e.complement : e.value);
  e.error =
      math::max(middle.mean - low.mean + t * low.error, high.mean - middle.mean + t * high.error);
  e.sampling = t * middle.error;
  e.bias = math::max(e.error - e.sampling, 0.0);
  e.effective = square > kLeastSquare ? sum * sum / square : 0;
  return e;
}

}  // namespace plan
}  // namespace mvnrob
