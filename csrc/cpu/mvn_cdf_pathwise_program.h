// What differentiating the sampler takes and gives for one problem. Torch-free; run by
// mvn_cdf_pathwise_simd.cpp over the Program of mvn_cdf_program.h.
#pragma once
#include <cstdint>

#include "cpu/mvn_cdf_program.h"
#include "cpu/simd_dispatch.h"

namespace mvnrob {

// Sums over samples, in float64. Rows are the program's: those sampled, then the completion's. A
// row's limit is upper[row] + sum_l coef[row][l] y_l, or the same with lower.
struct PathwiseSums {
  double* value;     // of the integrand
  double* upper;     // [rows] its derivative to a row's upper limit
  double* lower;     // [rows] and to its lower one
  double* products;  // [rows][stride] to coef[row][l]; null: not wanted
  int64_t stride;    // the pivots, rounded up to kPathwiseUnit
};

constexpr int64_t kPathwiseUnit = 32;  // two packs of any instruction set

inline int64_t pathwise_stride(int64_t pivots) {
  return (pivots + kPathwiseUnit - 1) / kPathwiseUnit * kPathwiseUnit;
}

// Samples points first .. first + 64 * tiles - 1 of one shift, differentiates and adds.
template <class scalar_t>
using PathwiseFn = void (*)(const Program<scalar_t>& program, int64_t sampled_rows,
                            int64_t completion_rows, const ShiftedPoints& points, uint32_t first,
                            int64_t tiles, scalar_t* workspace, const PathwiseSums& sums);

// Elements of the `workspace`: of a tile, whatever the number of points.
inline int64_t pathwise_workspace_size(int64_t pivots, int64_t sampled_rows,
                                       int64_t completion_rows) {
  return int64_t(kTileSamples) * (6 * pivots + pathwise_stride(pivots) + 2 * sampled_rows +
                                  2 * completion_rows + 2 * kMaxBlockRows + 3) +
         pivots;
}

struct PathwiseTable {
  PathwiseFn<float> run_float;
  PathwiseFn<double> run_double;
  PathwiseFn<double> run_tilted;  // of a program with a tilt, in units of exp(its log_unit)
};

MVNROB_SIMD_TABLES(PathwiseTable, mvn_cdf_pathwise_table);
const PathwiseTable& pathwise_table();

}  // namespace mvnrob
