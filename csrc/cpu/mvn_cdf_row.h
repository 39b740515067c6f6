// One row of mvn_cdf: carries out what its plan (plan/row_plan.h) asks for. Torch-free.
#pragma once
#include <cstdint>

#include "cpu/mvn_cdf_nearest.h"
#include "cpu/mvn_cdf_series.h"
#include "cpu/mvn_cdf_union.h"
#include "cpu/one_factor.h"
#include "plan/options.h"

namespace mvnrob {

// Kept from row to row, so that its arrays are not allocated again.
struct RowWorkspace {
  Problem all, kept, rest;
  Factor factor;
  Series<float> series_float;
  Series<double> series_double;
  Union samples_of_union;
  Nearest nearest;
  Tilt tilt;
  OneFactor one_factor;
};

// Throws std::invalid_argument when the method is closed_form and the row has none.
RowResult integrate_row(const RowInput& input, uint64_t seed, const RowOptions& options,
                        RowWorkspace& workspace, const Runner& run);

}  // namespace mvnrob
