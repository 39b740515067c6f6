// Confidence of the reported error: 99 %, spent over the looks at the interval.
#pragma once
#include <algorithm>
#include <cmath>

#include "plan/student_t.h"

namespace mvnrob::plan {

constexpr double kMissProbability = 0.01;  // of the reported error
constexpr int kPilotLooks = 6;
constexpr int kLaterLooks = 17;  // the last one's weight is used by all that follow

// t-quantiles of the looks. Looks at the pilot are cheap and seldom decide, so they get 3 % of the
// miss probability each; those after it get 40 %, 20 %, 10 % and so on.
struct Quantiles {
  double pilot;
  double later[kLaterLooks];
};

// Found once: they take 35 us.
inline const Quantiles& quantiles() {
  static const Quantiles found = [] {
    Quantiles q;
    q.pilot = student_t7_quantile(0.03 * kMissProbability);
    for (int i = 0; i < kLaterLooks; ++i)
      q.later[i] = student_t7_quantile(kMissProbability * std::max(0.4 * std::pow(0.5, i), 1e-5));
    return q;
  }();
  return found;
}

}  // namespace mvnrob::plan
