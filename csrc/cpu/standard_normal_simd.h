// The inner loop of standard_normal, one table per instruction set. Torch-free.
#pragma once
#include <cstdint>

#include "cpu/simd_dispatch.h"

namespace mvnrob {

struct StandardNormalKernels {
  // Words first .. first + count - 1 of a draw's key: low[i] from the lower halves, high[i] from
  // the upper ones, these for the first high_count words alone.
  void (*fill)(uint64_t key, int64_t first, int64_t count, int64_t high_count, float* low,
               float* high);
};

MVNROB_SIMD_TABLES(StandardNormalKernels, standard_normal_kernels);

}  // namespace mvnrob
