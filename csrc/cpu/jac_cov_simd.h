// The inner kernels of jac_cov, one table per instruction set. Torch-free.
#pragma once
#include <cstdint>

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
// to 64 bytes, scratch_bytes(...) of the larger side.
template <class out_t>
using JacTileFn = void (*)(const JacRows& rows, const JacTile& tile, out_t* S, void* scratch);

// out[i] = ||J_t - J_i||^2 for i in [begin, end).
using JacNormsFn = void (*)(const JacRows& rows, int64_t begin, int64_t end, double* out);

struct JacCovKernels {
  int64_t group;  // rows of a register block
  int64_t (*scratch_bytes)(int64_t tile_rows);
  JacTileFn<float> tile_float[kJacTypes];
  JacTileFn<double> tile_double[kJacTypes];
  JacNormsFn norms[kJacTypes];
};

extern const JacCovKernels jac_cov_kernels_generic;
extern const JacCovKernels jac_cov_kernels_avx2;
extern const JacCovKernels jac_cov_kernels_avx512;

}  // namespace mvnrob
