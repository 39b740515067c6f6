// nearest_ends' kernel for the sanitizers; a wrong answer throws.
#pragma once
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "kernels/nearest_ends.h"
#include "shim/launch.h"

namespace shim_tests {

// Two inputs, more draws, rows and columns than a tile has, and fewer rows than another one that
// fall.
inline void check_nearest_ends() {
  using Body = mvnrob::kernels::NearestEnds;
  constexpr int kInputs = 2, kRising = 66, kRows = 71, kExact = 3, kColumns = 20, kCount = 67;
  std::vector<float> limit(kInputs * kRows), table(limit.size() * kColumns);
  std::vector<float> draws(kCount * kColumns), upper(2 * kCount * kInputs), lower(upper.size());
  std::vector<int64_t> above(upper.size()), below(upper.size());
  const auto fill = [](std::vector<float>& numbers, float step) {
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = std::sin(step * float(i * i % 1009));
  };
  fill(limit, 1.3f);
  fill(table, 0.7f);
  fill(draws, 2.1f);
  mvnrob::kernels::NearestEndsArgs a{};
  a.limit = limit.data();
  a.table = table.data();
  a.draws = draws.data();
  a.upper = upper.data();
  a.lower = lower.data();
  a.above = above.data();
  a.below = below.data();
  a.stride = a.columns = a.flipped = kColumns;
  a.inputs = kInputs;
  a.rows = kRows;
  a.rising = kRising;
  a.exact = kExact;
  a.count = kCount;
  a.slot[1] = 1;
  mvnrob::shim::launch<Body>(3, Body::kSharedBytes, a);
  for (int at = 0; at < 2 * kCount * kInputs; ++at) {
    const int input = at % kInputs, draw = at / kInputs % kCount;
    const double sign = at < kCount * kInputs ? 1 : -1;
    double least = INFINITY, most = -INFINITY;
    for (int row = 0; row < kRows; ++row) {
      double end = limit[input * kRows + row];
      for (int k = 0; k < kColumns; ++k)
        end -= (k < kExact ? 1 : sign) * draws[draw * kColumns + k] *
               double(table[(input * kRows + row) * kColumns + k]);
      if (row < kRising)
        least = std::min(least, end);
      else
        most = std::max(most, end);
    }
    if (!(std::fabs(upper[at] - least) < 1e-5 && std::fabs(lower[at] - most) < 1e-5) ||
        above[at] >= kRising || below[at] < kRising)
      throw std::runtime_error("nearest_ends: wrong end");
  }
}

}  // namespace shim_tests
