// What tiles of 128 x 128 entries of a block of 256 threads do with a chunk's sums, on tensor
// cores.
//
// A warp has 64 x 32 of them, a lane four by four by four: sum [m][n][e] is of row
// first_row + m * 16 + e / 2 * 8 and column first_column + n * 8 + e % 2 * 4, so that a sector of S
// lies in four lanes side by side.
#pragma once
#include "kernels/jac_cov_args.h"

namespace mvnrob::kernels {

struct JacTileEnd {
  static constexpr int kSide = 128;

  int64_t row, column;  // of the tile's first entry
  bool diagonal;
  int first_row, first_column;  // of the lane

  // Computed where it is used: between chunks the registers are the products'.
  MVNROB_DEVICE JacTileEnd(int64_t tile_row, int64_t tile_column)
      : row(anew(tile_row)), column(anew(tile_column)), diagonal(row == column) {
    const unsigned thread = unsigned(anew(int(threadIdx.x)));
    const int lane = int(thread % kWarp), warp = int(thread / kWarp);
    first_row = warp % 2 * 64 + lane / 4;
    first_column = warp / 2 * 32 + lane % 4;
  }

  // By themselves; sums_of(m, some) gives the sums of one m.
  template <class Sums>
  MVNROB_DEVICE void put(float* sums, const Sums& sums_of) const {
    float some[4][4];
    float* const out = sums + first_row * kSide + first_column;
    MVNROB_UNROLL
    for (int m = 0; m < 4; ++m) {
      sums_of(m, some);
      MVNROB_UNROLL
      for (int n = 0; n < 4; ++n) {
        MVNROB_UNROLL
        for (int e = 0; e < 4; ++e)
          out[(m * 16 + e / 2 * 8) * kSide + n * 8 + e % 2 * 4] = some[n][e];
      }
    }
  }

  // To S, and at the end to its mirror image; after(x, m, n, e) is what becomes of an entry.
  template <class Sums, class After>
  MVNROB_DEVICE void add(double* S, int64_t all_classes, bool mirror, const Sums& sums_of,
                         const After& after) const {
    const int64_t classes = anew(all_classes), i = row + first_row, j = column + first_column;
    double* own = S + i * classes + j;
    double* image = S + j * classes + i;
    // A lane's columns from `most` on are none of S, those before the diagonal are not kept.
    const int64_t left = classes - j;
    int most = left < kSide ? int(left) : kSide;
    int least = diagonal ? first_row - first_column : -kSide;
    const auto kept = [](int least, int most, int m, int n, int e) {
      const int r = m * 16 + e / 2 * 8, c = n * 8 + e % 2 * 4;
      return c - r >= least && c < most;
    };
    float some[4][4];
    MVNROB_UNROLL
    for (int m = 0; m < 4; ++m) {
      // All of them are read before one is written: each would wait for memory.
      double all[4][4];
      MVNROB_UNROLL
      for (int e = 0; e < 4; ++e) {
        const double* const p = own + e / 2 * 8 * classes;
        MVNROB_UNROLL
        for (int n = 0; n < 4; ++n) {
          const int c = n * 8 + e % 2 * 4;
          all[n][e] = kept(least, most, m, n, e) ? p[c] : 0.0;
        }
      }
      sums_of(m, some);
      least = anew(least);
      most = anew(most);
      MVNROB_UNROLL
      for (int e = 0; e < 4; ++e) {
        double* const p = own + e / 2 * 8 * classes;
        MVNROB_UNROLL
        for (int n = 0; n < 4; ++n) {
          all[n][e] = after(all[n][e] + double(some[n][e]), m, n, e);
          if (kept(least, most, m, n, e)) p[n * 8 + e % 2 * 4] = all[n][e];
        }
      }
      if (mirror) {
        MVNROB_UNROLL
        for (int n = 0; n < 4; ++n) {
          MVNROB_UNROLL
          for (int e = 0; e < 4; ++e) {
            if (kept(least, most, m, n, e))
              image[(n * 8 + e % 2 * 4) * classes + e / 2 * 8] = all[n][e];
          }
        }
      }
      own += 16 * classes;
      image += 16;
    }
  }
};

}  // namespace mvnrob::kernels
