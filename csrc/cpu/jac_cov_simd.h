// The inner kernels of jac_cov, one table per instruction set. Torch-free.
#pragma once
#include <cstdint>

#include "cpu/simd_dispatch.h"

namespace mvnrob {

enum JacType { kJacFloat, kJacDouble, kJacBFloat16, kJacTypes };

// The Jacobian of one problem: `classes` rows of `columns` elements, row_stride elements apart.
struct JacRows {
  const void* data;
  int64_t row_stride;
  int64_t classes;
  int64_t columns;
  int64_t target;
};

// Entries [row_begin, row_end) x [col_begin, col_end) of S: the same range twice (a tile on the
// diagonal) or a column range that starts at or after row_end. Both begin at a multiple of `group`.
struct JacTile {
  int64_t row_begin, row_end;
  int64_t col_begin, col_end;
};

// Adds the tile's sums to S [classes, classes] and writes the mirror image too. `scratch`: aligned
// to 64 bytes, of scratch_bytes(...).
template <class out_t>
using JacTileFn = void (*)(const JacRows& rows, const JacTile& tile, out_t* S, void* scratch);

// out[i] = ||J_t - J_i||^2 for i in [begin, end).
using JacNormsFn = void (*)(const JacRows& rows, int64_t begin, int64_t end, double* out);

// Row k of corr [classes - 1] from that class's row of S [classes] and the inverse norms of the
// classes other than the target.
template <class in_t, class out_t>
using JacCorrFn = void (*)(const in_t* S, int64_t classes, int64_t target, int64_t k,
                           const double* inverse, out_t* corr);

struct JacCovKernels {
  int64_t group;  // rows of a register block
  // For tiles of at most that many rows and columns, or only for those on the diagonal.
  int64_t (*scratch_bytes)(int64_t tile_rows, bool only_diagonal);
  JacTileFn<float> tile_float[kJacTypes];
  JacTileFn<double> tile_double[kJacTypes];
  JacNormsFn norms[kJacTypes];
  JacCorrFn<float, float> corr_float_float;
  JacCorrFn<float, double> corr_float_double;
  JacCorrFn<double, float> corr_double_float;
  JacCorrFn<double, double> corr_double_double;
};

MVNROB_SIMD_TABLES(JacCovKernels, jac_cov_kernels);

}  // namespace mvnrob
