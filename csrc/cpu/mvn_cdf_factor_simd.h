// The loops over rows of the factor, one table per instruction set. Torch-free.
#pragma once
#include <cstdint>

#include "cpu/simd_dispatch.h"

namespace mvnrob {

// L is kept in tiles of eight rows and 64 columns, each tile column by column: what a column needs
// of those before it is then read in the order of memory. A stripe is all tiles of its 64 columns.
constexpr int64_t kTileRows = 8;
constexpr int64_t kStripe = 64;
constexpr int64_t kTileSize = kTileRows * kStripe;

// Limits, conditional means and variances of rows, and the rounding of the latter. lower is null
// where nothing has a lower limit.
struct FactorRows {
  const double *upper, *lower;
  double *mean, *variance, *error;
};

// What a new pivot changes: c = column inverse; m += c mean, V -= c^2, and its error grows by
// c^2 growth.
struct NewPivot {
  double inverse, mean, growth;
};

// What plan::is_zero_variance and plan::is_valid_variance say of some row.
enum RowFinding : unsigned { kSpent = 1, kInvalid = 2 };

struct FactorKernels {
  // priority[i] as plan::priority; returns the row of the smallest, of equals that of the smallest
  // position. Reads up to a tile beyond n, and writes so much of `priority`.
  int64_t (*choose)(const FactorRows& rows, const int64_t* position, double* priority, int64_t n);
  // columns[c][i] += sum_l tiles(i, l) weights[l * n + c] over n columns, the rows of `n_tiles`
  // tiles of one stripe and `depth` of its columns. One sum after the other, by fma, whatever n is.
  void (*eliminate)(double* const* columns, int64_t n, const double* weights, const double* tiles,
                    int64_t n_tiles, int64_t depth);
  // Writes c as the next column of L, its first at `tiles`, and updates the rows, from `rows` on;
  // both are n_tiles whole tiles. Returns a RowFinding.
  unsigned (*add)(const double* column, const NewPivot& pivot, const FactorRows& rows,
                  double* tiles, int64_t n_tiles);
};

MVNROB_SIMD_TABLES(FactorKernels, factor_kernels);

}  // namespace mvnrob
