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
  double square;      // f^2

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
  double effective = 0;     // effective number of samples
};

// Mean over the shifts and its standard error.
struct Spread {
  double mean, error;
};

template <class Get>
MVNROB_HD_FN Spread spread(const Get& get) {
  double mean = 0, square = 0;
  for (int s = 0; s < kShifts; ++s) mean += get(s);
  mean /= kShifts;
  for (int s = 0; s < kShifts; ++s) square += (get(s) - mean) * (get(s) - mean);
  return {mean, ::sqrt(square / (kShifts * (kShifts - 1)))};
}

// The interval at t standard errors after n points of each shift. The truth lies between
// value - below and value + above in expectation, so the ends' own spreads count.
MVNROB_HD_FN Estimate estimate(const SampleSums* sums, double n, double t) {
  const Spread value = spread([&](int s) { return sums[s].value / n; });
  const Spread low = spread([&](int s) { return (sums[s].value - sums[s].below) / n; });
  const Spread high = spread([&](int s) { return (sums[s].value + sums[s].above) / n; });
  Estimate e;
  e.value = value.mean;
  double sum = 0, square = 0;
  for (int s = 0; s < kShifts; ++s) {
    e.complement += sums[s].complement / (n * kShifts);
    sum += sums[s].value;
    square += sums[s].square;
  }
  e.error =
      math::max(value.mean - low.mean + t * low.error, high.mean + t * high.error - value.mean);
  e.sampling = t * value.error;
  e.bias = math::max(e.error - e.sampling, 0.0);
  e.effective = square > 0 ? sum * sum / square : 0;
  return e;
}

}  // namespace plan
}  // namespace mvnrob
