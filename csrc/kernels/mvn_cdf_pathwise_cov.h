// From the sums of MvnCdfPathwise to derivatives of the covariance, for each of the eight contrasts
// of the shifts.
//
// With F the factor's rows of the pivots and L all others, and bars for derivatives to the factor
// (halved: PathwiseRow::make_bars), a reversed factorisation is (Murray 2016, section 4)
//   to the pivots' columns of the others:  bar(L) F^-1
//   to the covariance of the pivots:       F^-T sym(bar(W)) F^-1,
//     bar(W) = lower triangle of F^T bar(F) - bar(L)^T L,
// where sym fills the upper triangle; derivatives to both of a pair of entries, each its half. A
// row of a group has no columns beyond its pivot's: its bar is zero there, and so is what follows.
//
// Mapping: one launch makes the bars, a warp for each row of the factor. Of up to kMaxSmallPivots
// variables a block then takes a row of the batch and a warp each contrast, column after column, in
// shared memory. Otherwise the three products of mvn_cdf_pathwise_solve.h and what is written are a
// launch each, spread over the device however few rows there are.
//
// Limiter: latency of the small ones' chain; bars and what is written move 128 and 64 bytes for
// each entry of the factor. Share reached: not measured.
#pragma once
#include "kernels/mvn_cdf_pathwise_row.h"

namespace mvnrob::kernels {

// Rows and columns of a tile of the products.
constexpr int kCovTile = 64;
MVNROB_HD int cov_tiles(int numbers) { return (numbers + kCovTile - 1) / kCovTile; }

// The inverse of a diagonal block of the factor, [kCovTile][kCovTile], zeros beyond the pivots.
MVNROB_DEVICE double* inverse_of(const MvnCdfPathwiseArgs& a, int64_t row, int tile) {
  return a.inverses + (row * cov_tiles(a.plan.n_order) + tile) * (kCovTile * kCovTile);
}

MVNROB_HD bool has_products(const MvnCdfPathwiseArgs& a) {
  return a.wants_cov() && a.plan.n > kMaxSmallPivots;
}

// From bars to what is written, of rows of at most kMaxSmallPivots variables.
struct MvnCdfPathwiseSmallCov {
  using Args = MvnCdfPathwiseArgs;
  static constexpr int kThreads = kShifts * kWarp;
  static constexpr int kResidentBlocks = 2;

  // The factor and the bars of each contrast, [column][row]; rows of all columns in all banks.
  static MVNROB_HD int pitch(int n) { return n | 1; }
  static MVNROB_HD size_t shared_bytes(int n) {
    return sizeof(double) * size_t(1 + kShifts) * size_t(n * pitch(n));
  }
  static constexpr size_t kSharedBytes =
      sizeof(double) * (1 + kShifts) * kMaxSmallPivots * (kMaxSmallPivots + 1);

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    for (int64_t row = blockIdx.x; row < a.plan.rows; row += gridDim.x) {
      if (a.failed(row)) continue;
      const PathwiseRow r(a, row);
      const int size = r.size(), pivots = r.pivots(), step = pitch(size);
      double* const factor = dynamic_shared<double>();
      double* const bar = factor + (1 + warp) * size * step;
      __syncthreads();  // the row before is done with the factor
      for (int l = warp; l < pivots; l += kShifts)
        if (lane < size) factor[l * step + lane] = l < r.end(lane) ? r.factor(l)[lane] : 0.0;
      __syncthreads();
      for (int i = 0; i < size; ++i)
        if (lane < pivots) bar[lane * step + i] = r.bar(warp, i)[lane];
      __syncwarp();
      reverse(factor, bar, step, size, pivots, lane);
      for (int i = 0; i < size; ++i)
        if (lane < pivots) r.bar(warp, i)[lane] = bar[lane * step + i];
      __syncthreads();
      MVNROB_ROLLED
      for (int i = warp; i < size; i += kShifts) r.write_cov(i, lane);
    }
  }

 private:
  // Through the factorisation, from its last column on:
  //   L_jj = sqrt(R_jj - sum_l L_jl^2),  L_ij = (R_ij - sum_l L_il L_jl) / L_jj.
  static MVNROB_DEVICE void reverse(const double* factor, double* bar, int step, int size,
                                    int pivots, int lane) {
    for (int j = pivots - 1; j >= 0; --j) {
      const double *const L = factor + j * step, d = L[j];
      double* const own = bar + j * step;
      const bool below = lane > j && lane < size;
      const double t = below ? own[lane] / d : 0.0;
      const double to_variance = (own[j] - warp_sum(below ? t * L[lane] : 0.0)) / d;
      for (int l = 0; l < j; ++l)
        if (below) bar[l * step + lane] -= t * factor[l * step + j];
      // A lane for each of the pivot's own entries.
      const double* const other = factor + (lane < j ? lane : 0) * step;
      double sum = to_variance * other[j];
      for (int i = j + 1; i < size; ++i) sum += __shfl_sync(kFullWarp, t, i) * other[i];
      if (lane < j) bar[lane * step + j] -= sum;
      if (below) own[lane] = t;
      __syncwarp();  // all have read the diagonal
      if (lane == j) own[j] = to_variance;
      __syncwarp();
    }
  }
};

// Bars, a warp for each place, and the inverses of the diagonal blocks that products take, a block
// for each.
struct MvnCdfPathwiseBars {
  using Args = MvnCdfPathwiseArgs;
  static constexpr int kThreads = 128;
  static constexpr int kResidentBlocks = 3;
  static constexpr int kPlaces = kThreads / kWarp;
  static constexpr int kPitch = kCovTile + 1;
  static constexpr size_t kSharedBytes = sizeof(double) * kCovTile * kPitch;

  // Of a row.
  static MVNROB_HD int blocks(const Args& a) {
    return has_products(a) ? cov_tiles(a.plan.n_order) : 0;
  }
  static MVNROB_HD int64_t items(const Args& a) {
    return blocks(a) + (a.plan.n + kPlaces - 1) / kPlaces;
  }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    for (int64_t item = blockIdx.x; item < a.plan.rows * items(a); item += gridDim.x) {
      const int64_t row = item / items(a);
      if (a.failed(row)) continue;
      const PathwiseRow r(a, row);
      const int tiles = blocks(a), mine = int(item % items(a));
      if (mine < tiles) {
        if (mine * kCovTile < r.pivots()) invert(r, mine * kCovTile, inverse_of(a, row, mine));
        continue;
      }
      const int place = (mine - tiles) * kPlaces + int(threadIdx.x) / kWarp;
      if (place < r.size()) r.make_bars(place, int(threadIdx.x) % kWarp);
    }
  }

 private:
  // A thread for each column of the inverse, which lies above the diagonal block, transposed.
  static MVNROB_DEVICE_FN void invert(const PathwiseRow& r, int first, double* out) {
    double* const block = dynamic_shared<double>();
    const int thread = int(threadIdx.x);
    const int count = r.pivots() - first < kCovTile ? r.pivots() - first : kCovTile;
    __syncthreads();  // the block before is done with
    for (int e = thread; e < count * count; e += kThreads) {
      const int l = e / count, i = e % count;
      if (i >= l) block[i * kPitch + l] = r.factor(first + l)[first + i];
    }
    __syncthreads();
    if (thread < count) {
      double* const column = block + thread * kPitch + 1;
      for (int i = thread; i < count; ++i) {
        const double* const L = block + i * kPitch;
        double even = i == thread ? 1.0 : 0.0, odd = 0;
        int l = thread;
        for (; l + 1 < i; l += 2) {
          even -= L[l] * column[l];
          odd -= L[l + 1] * column[l + 1];
        }
        if (l < i) even -= L[l] * column[l];
        column[i] = (even + odd) / L[i];
      }
    }
    __syncthreads();
    for (int e = thread; e < kCovTile * kCovTile; e += kThreads) {
      const int i = e / kCovTile, l = e % kCovTile;
      out[e] = l <= i && i < count ? block[l * kPitch + 1 + i] : 0.0;
    }
  }
};

// What is found, a warp for each row of the covariance.
struct MvnCdfPathwiseWriteCov {
  using Args = MvnCdfPathwiseArgs;
  static constexpr int kThreads = 128;
  static constexpr int kResidentBlocks = 6;
  static constexpr int kRows = kThreads / kWarp;
  static constexpr size_t kSharedBytes = 0;

  // Of a row of the batch.
  static MVNROB_HD int64_t items(const Args& a) { return (a.plan.n + kRows - 1) / kRows; }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    for (int64_t item = blockIdx.x; item < a.plan.rows * items(a); item += gridDim.x) {
      const int64_t row = item / items(a);
      if (a.failed(row)) continue;
      const PathwiseRow r(a, row);
      const int i = int(item % items(a)) * kRows + int(threadIdx.x) / kWarp;
      if (i < r.size()) r.write_cov(i, int(threadIdx.x) % kWarp);
    }
  }
};

}  // namespace mvnrob::kernels
