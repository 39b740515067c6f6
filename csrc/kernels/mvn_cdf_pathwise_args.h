// Arguments of mvn_cdf_pathwise's kernels. No device code: the torch side includes this too.
#pragma once
#include "kernels/mvn_cdf_args.h"

namespace mvnrob::kernels {

// Of more than 32 pivots the tiles of a shift are taken in turn by so many chunks, each with sums
// of its own: one row alone then has work for some dozens of blocks. A constant, so that the order
// of summation depends on nothing but the points.
constexpr int kPathwiseChunks = 8;

struct MvnCdfPathwiseArgs {
  MvnCdfArgs plan;                // its order is the forced plan; its forced_sums: see failed()
  const int64_t *first, *points;  // [rows]
  const double* weight;           // [rows, 8]
  // out: [rows, 8], [rows, 8, n] twice, [rows, n, n] twice or null, [rows]
  double *value, *upper, *lower, *cov, *cov_variance;
  int64_t* pivots;
  double* log_unit;  // [rows] of a tilt, else zero

  double* sums;            // [rows, 8, n, width]: see MvnCdfPathwise
  double* slots;           // of chunks: see pathwise_slot
  int32_t width;           // 2, or where cov is wanted 2 + n_order
  unsigned char* scratch;  // scratch_bytes for each block of samples
  int64_t scratch_bytes;
  double* inverses;  // of the factors' diagonal blocks: inverse_of()

  MVNROB_HD bool wants_cov() const { return cov != nullptr; }

  // Whether the row has no answer: the planning kernel has written NaN into sums that were zero.
  MVNROB_HD bool failed(int64_t row) const {
    const double x = plan.forced_sums[row * kShifts].value;
    return x != x;
  }
};

// The sums of a chunk: its value, then of each place f times the bars of its upper and lower limit.
MVNROB_HD int64_t pathwise_slot_size(int64_t n) { return 1 + 2 * n; }
MVNROB_HD double* pathwise_slot(const MvnCdfPathwiseArgs& a, int64_t row, int shift, int chunk) {
  return a.slots +
         ((row * kShifts + shift) * kPathwiseChunks + chunk) * pathwise_slot_size(a.plan.n);
}
// Of a shift.
MVNROB_HD int64_t pathwise_tiles(const MvnCdfPathwiseArgs& a, int64_t row) {
  return (a.points[row] + kTileSamples - 1) / kTileSamples;
}

// Rows first .. first + rows - 1. The plan's forced_sums, like all of the workspace, are the
// tile's.
inline MvnCdfPathwiseArgs tile_of(MvnCdfPathwiseArgs a, int64_t first, int64_t rows) {
  const int64_t n = a.plan.n;
  a.plan = tile_of(a.plan, first, rows);
  a.first += first;
  a.points += first;
  a.pivots += first;
  a.log_unit += first;
  a.weight += first * kShifts;
  a.value += first * kShifts;
  a.upper += first * kShifts * n;
  a.lower += first * kShifts * n;
  if (a.wants_cov()) {
    a.cov += first * n * n;
    a.cov_variance += first * n * n;
  }
  return a;
}

}  // namespace mvnrob::kernels
