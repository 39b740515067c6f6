// Sampling the union of the events that a variable fails (Owen, Maximov and Chertkov 2019, "ALOE").
//
// Event h, X_i > u_i or X_i < l_i, has mass q_h; M is their sum. Draw h with probability q_h / M,
// then X given that h happens; with S the number of events that happen, E[M / S] = 1 - P. A sample
// lies in [M / events, M], so 1 - P keeps its digits however small it is.
#pragma once
#include <cstdint>

#include "math/pack.h"

namespace mvnrob::plan {

// The event whose share contains w: the first with share[h] > w. share is increasing to 1.
MVNROB_HD int64_t find_event(const double* share, int64_t events, double w) {
  int64_t low = 0, high = events - 1;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (share[middle] > w)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

// P(event, and farther out than where w falls within the event's share): uniform on (0, its mass).
MVNROB_HD double tail_within_event(const double* share, const double* mass, double whole_mass,
                                   int64_t event, double w) {
  const double before = event == 0 ? 0.0 : share[event - 1];
  const double inside = (w - before) * whole_mass / mass[event];
  return mass[event] * math::min(1.0, math::max(inside, 0x1p-40));
}

}  // namespace mvnrob::plan
