// The loops over variables of the sweep, one table per instruction set. Torch-free.
#pragma once
#include <cstdint>

#include "cpu/simd_dispatch.h"

namespace mvnrob {

// Conditional means and variances of the variables left, and rounding of the latter.
struct SweepState {
  double *mean, *variance, *error;
};

// What a pivot changes: m += c mean, V -= c^2 shrink (never below its rounding), and that grows by
// c^2 growth.
struct SweepPivot {
  double mean, shrink, growth;
};

struct MendellElstonKernels {
  // column *= inverse; whether any variable but ordinary ones may be among them (plan::relation)
  bool (*scale)(double* column, const SweepState& state, double inverse, double growth, int64_t n);
  void (*update)(const double* column, const SweepState& state, const SweepPivot& pivot, int64_t n);
  // priority[i] as plan::sweep_priority; returns the first of the smallest. lower is null where
  // nothing has a lower limit.
  int64_t (*choose)(const double* upper, const double* lower, const SweepState& state,
                    double* priority, int64_t n);
};

MVNROB_SIMD_TABLES(MendellElstonKernels, mendell_elston_kernels);

}  // namespace mvnrob
