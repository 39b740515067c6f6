// The products and triangular solves between derivatives to the factor and to the covariance
// (mvn_cdf_pathwise_cov.h), for rows of more than kMaxSmallPivots variables. All in place, where
// the sums lie, so that three launches follow one another:
//   kMultiply      bar(W) = F^T bar(F) - bar(L)^T L, both triangles, by strips of columns
//   kSolveRows     sym(bar(W)) F^-1 and bar(L) F^-1, by strips of rows
//   kSolveColumns  F^-T times that of the pivots, below the diagonal, by strips of columns
// A strip is kCovTile wide; what it reads of the bars no other strip of its launch writes.
//
// Mapping: a block of 128 threads takes a strip of one row and contrast, the contrasts of a strip
// after one another, as they read the same factor. It goes through the strip by tiles of 64 x 64,
// 32 x 32 of it in a warp, on the float64 tensor cores (tensor.h), by multiply-adds in float64. A
// slab of 16 of what is summed over comes to shared memory by asynchronous copies while the one
// before is multiplied. A solve takes the tiles it has found from the next, then multiplies that by
// the inverse of the factor's diagonal block.
//
// Limiter: the tensor cores, on which a slab is 16 instructions of 32 cycles in each of a block's
// warps, beside 405 in all (sm_90); a scheduler has a warp of each of three blocks. Where all
// n = k variables are pivots a contrast takes 5/6 k^3 multiply-adds, by whole tiles 3,808 products
// of tiles for n = 999. Predicted for an H100, not measured: 5 ms for 20 such rows at 32 cycles, 8
// at the 52 that the sampler of mvn_cdf_sample_tensor_double.h was seen to take, and 3 for what
// bars and results move.
#pragma once
#include "kernels/mvn_cdf_pathwise_cov.h"
#include "kernels/tensor.h"

namespace mvnrob::kernels {

enum class CovStep { kMultiply, kSolveRows, kSolveColumns };

template <CovStep step>
struct MvnCdfPathwiseSolve {
  using Args = MvnCdfPathwiseArgs;
  static constexpr int kThreads = 128;
  static constexpr int kResidentBlocks = 3;

 private:
  static constexpr int kTile = kCovTile, kSlab = 16, kStages = 2;
  static constexpr int kEach =
      kTile * kSlab / kThreads;  // numbers of an operand that a thread copies
  static constexpr int kSide = 32, kTiles = kSide / 16, kGroups = kSide / 8;  // of a warp
  // Either order of an operand: eight rows and four columns of it lie in different banks.
  static constexpr int kAlong = kSlab + 4, kAcross = kTile + 4;

  // An operand's numbers, by its rows (of the first) or columns (of the second).
  struct Operand {
    double v[kTile * kAlong];
  };
  static_assert(kSlab * kAcross <= kTile * kAlong, "either order fits");
  struct Shared {
    Operand left[kStages], right[kStages];
  };
  using Sums = double[kTiles][kGroups][4];

 public:
  static constexpr size_t kSharedBytes = sizeof(Shared);

  // Of a row.
  static MVNROB_HD int64_t strips(const Args& a) {
    return cov_tiles(step == CovStep::kSolveRows ? a.plan.n : a.plan.n_order);
  }
  static MVNROB_HD int64_t items(const Args& a) { return strips(a) * kShifts; }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    for (int64_t item = blockIdx.x; item < a.plan.rows * items(a); item += gridDim.x) {
      const int64_t row = item / items(a);
      if (a.failed(row)) continue;
      const MvnCdfPathwiseSolve work(a, row, int(item % kShifts));
      const int first = int(item % items(a)) / kShifts * kTile;
      if constexpr (step == CovStep::kMultiply)
        work.multiply(first);
      else if constexpr (step == CovStep::kSolveRows)
        work.solve_rows(first);
      else
        work.solve_columns(first);
    }
  }

 private:
  MVNROB_DEVICE MvnCdfPathwiseSolve(const Args& a, int64_t row, int contrast)
      : a_(a), row_(row), contrast_(contrast), r_(a, row), size_(r_.size()), pivots_(r_.pivots()) {}

  // ---- the strips ----

  MVNROB_DEVICE void multiply(int first) const {
    for (int row = first; row < pivots_; row += kTile) {
      Sums sum;
      clear(sum);
      product<false, true>(
          pivots_, size_, sum,
          [&](int x, int i) { return bar_where(row + x < pivots_, i, row + x); },
          [&](int x, int i) { return first + x < r_.end(i) ? r_.factor(first + x) + i : nullptr; });
      negate(sum);
      product<true, false>(
          row, pivots_, sum,
          [&](int x, int i) { return row + x <= i ? r_.factor(row + x) + i : nullptr; },
          [&](int x, int i) { return bar_where(first + x < pivots_, i, first + x); });
      // The next tiles read bars of later rows, other strips none above their diagonal blocks.
      for_each(sum, [&](int y, int x, double value) {
        const int i = row + y, j = first + x;
        if (i >= pivots_ || j > i) return;
        r_.bar(contrast_, i)[j] = value;
        r_.bar(contrast_, j)[i] = value;
      });
      __syncthreads();
    }
  }

  MVNROB_DEVICE void solve_rows(int first) const {
    if (first >= size_) return;
    for (int tile = cov_tiles(pivots_) - 1; tile >= 0; --tile) {
      const int column = tile * kTile, next = column + kTile;
      const auto strip = [&](int y, int i) { return bar_where(first + y < size_, first + y, i); };
      Sums sum;
      if (next < pivots_) {
        clear(sum);
        product<true, true>(next, pivots_, sum, strip,
                            [&](int x, int i) { return r_.factor(column + x) + i; });
        subtract(first, size_, column, pivots_, sum);
      }
      clear(sum);
      const double* const inverse = inverse_of(a_, row_, tile);
      product<true, false>(column, next < pivots_ ? next : pivots_, sum, strip,
                           [&](int x, int i) { return inverse + (i - column) * kTile + x; });
      put(first, size_, column, pivots_, sum);
    }
  }

  MVNROB_DEVICE void solve_columns(int first) const {
    for (int tile = cov_tiles(pivots_) - 1; tile * kTile >= first; --tile) {
      const int row = tile * kTile, next = row + kTile;
      const auto strip = [&](int x, int i) { return bar_where(first + x < pivots_, i, first + x); };
      Sums sum;
      if (next < pivots_) {
        clear(sum);
        product<true, false>(
            next, pivots_, sum, [&](int y, int i) { return r_.factor(row + y) + i; }, strip);
        subtract(row, pivots_, first, pivots_, sum);
      }
      clear(sum);
      const double* const inverse = inverse_of(a_, row_, tile);
      product<false, false>(
          row, next < pivots_ ? next : pivots_, sum,
          [&](int y, int i) { return inverse + (i - row) * kTile + y; }, strip);
      put(row, pivots_, first, pivots_, sum);
    }
  }

  MVNROB_DEVICE const double* bar_where(bool there, int i, int l) const {
    return there ? r_.bar(contrast_, i) + l : nullptr;
  }

  // ---- sums of a tile ----

  static MVNROB_DEVICE void clear(Sums& sum) {
    MVNROB_UNROLL
    for (int m = 0; m < kTiles; ++m) MVNROB_UNROLL
    for (int n = 0; n < kGroups; ++n) MVNROB_UNROLL
    for (int e = 0; e < 4; ++e) sum[m][n][e] = 0;
  }

  static MVNROB_DEVICE void negate(Sums& sum) {
    MVNROB_UNROLL
    for (int m = 0; m < kTiles; ++m) MVNROB_UNROLL
    for (int n = 0; n < kGroups; ++n) MVNROB_UNROLL
    for (int e = 0; e < 4; ++e) sum[m][n][e] = -sum[m][n][e];
  }

  // use(row, column, sum) for this thread's numbers.
  template <class Use>
  static MVNROB_DEVICE void for_each(const Sums& sum, const Use& use) {
    const int row = first_row() + lane() / 4, column = first_column() + lane() % 4 * 2;
    MVNROB_UNROLL
    for (int m = 0; m < kTiles; ++m) MVNROB_UNROLL
    for (int half = 0; half < 2; ++half) MVNROB_UNROLL
    for (int n = 0; n < kGroups; ++n) MVNROB_UNROLL
    for (int e = 0; e < 2; ++e)
      use(row + m * 16 + half * 8, column + n * 8 + e, sum[m][n][half * 2 + e]);
  }

  // To the bars of rows and columns from `row` and `column` on, before `rows` and `columns`; then
  // all threads see them.
  MVNROB_DEVICE void put(int row, int rows, int column, int columns, const Sums& sum) const {
    for_each(sum, [&](int y, int x, double value) {
      if (row + y < rows && column + x < columns) r_.bar(contrast_, row + y)[column + x] = value;
    });
    __syncthreads();
  }
  // From them.
  MVNROB_DEVICE void subtract(int row, int rows, int column, int columns, const Sums& sum) const {
    for_each(sum, [&](int y, int x, double value) {
      if (row + y < rows && column + x < columns) r_.bar(contrast_, row + y)[column + x] -= value;
    });
    __syncthreads();
  }

  static MVNROB_DEVICE int lane() { return int(threadIdx.x) % kWarp; }
  static MVNROB_DEVICE int first_row() { return int(threadIdx.x) / kWarp / 2 * kSide; }
  static MVNROB_DEVICE int first_column() { return int(threadIdx.x) / kWarp % 2 * kSide; }

  // ---- products ----

  // Where number i of row or column x lies in shared memory. `along`: those of one x lie together,
  // in global memory and here.
  template <bool along>
  static MVNROB_DEVICE constexpr int at(int x, int i) {
    return along ? x * kAlong + i : i * kAcross + x;
  }

  // sum += left right, over first .. end - 1; left(row, i) and right(column, i) say where a number
  // lies, null where it is zero. Afterwards no thread reads any of them.
  template <bool left_along, bool right_along, class Left, class Right>
  MVNROB_DEVICE void product(int first, int end, Sums& sum, const Left& left,
                             const Right& right) const {
    Shared& shared = *dynamic_shared<Shared>();
    const auto fetch = [&](int from, int stage) {
      copy<left_along>(shared.left[stage], from, end, left);
      copy<right_along>(shared.right[stage], from, end, right);
      copy_async_commit();
    };
    if (first >= end) return;
    fetch(first, 0);
    MVNROB_ROLLED
    for (int slab = 0; first < end; ++slab, first += kSlab) {
      copy_async_wait<0>();
      __syncthreads();
      if (first + kSlab < end) fetch(first + kSlab, (slab + 1) % kStages);
      multiply_slab<left_along, right_along>(shared.left[slab % kStages].v,
                                             shared.right[slab % kStages].v, sum);
    }
    __syncthreads();
  }

  template <bool along, class Of>
  MVNROB_DEVICE void copy(Operand& to, int first, int end, const Of& of) const {
    const int thread = anew(int(threadIdx.x));
    MVNROB_UNROLL
    for (int m = 0; m < kEach; ++m) {
      const int x = along ? thread / kSlab + m * (kThreads / kSlab) : thread % kTile;
      const int i = along ? thread % kSlab : thread / kTile + m * (kThreads / kTile);
      const double* const from = first + i < end ? of(x, first + i) : nullptr;
      copy_async8(&to.v[at<along>(x, i)], from ? from : a_.sums, from != nullptr);
    }
  }

  template <bool left_along, bool right_along>
  static MVNROB_DEVICE void multiply_slab(const double* left, const double* right, Sums& sum) {
    const int row = first_row() + lane() / 4, column = first_column() + lane() / 4;
    MVNROB_UNROLL
    for (int k = 0; k < kSlab; k += 8) {
      const int i = k + lane() % 4;
      double b[kGroups][2];
      MVNROB_UNROLL
      for (int n = 0; n < kGroups; ++n) MVNROB_UNROLL
      for (int e = 0; e < 2; ++e) b[n][e] = right[at<right_along>(column + n * 8, i + e * 4)];
      MVNROB_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        double a[4];
        MVNROB_UNROLL
        for (int e = 0; e < 4; ++e)
          a[e] = left[at<left_along>(row + m * 16 + e % 2 * 8, i + e / 2 * 4)];
        MVNROB_UNROLL
        for (int n = 0; n < kGroups; ++n) multiply_matrices(sum[m][n], a, b[n]);
      }
    }
  }

  const Args& a_;
  const int64_t row_;
  const int contrast_;
  const PathwiseRow r_;
  const int size_, pivots_;
};

}  // namespace mvnrob::kernels
