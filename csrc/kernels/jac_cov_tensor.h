// jac_cov of float32 and bfloat16 for many classes, on tensor cores: tiles of 128 x 128 entries.
//
// Each difference u, taken in float32, is split once, on its way to shared memory, into two
// float16: s u = hi + lo to 22 bits or more, s a power of two that brings the row's norm to 2^14 ..
// 2^15, so that nothing overflows and what falls below float16's range is 2^-39 of the norm.
// Products are hi hi + hi lo + lo hi; what is left out is 2^-22 of each. Sums of 16 columns come
// from the tensor core, which cuts off instead of rounding, and are added in float32 to those of
// the chunk.
//
// Mapping: a block of 256 threads takes one tile of one problem, and all chunks of columns, or (few
// tiles) one chunk; a warp 64 x 32 entries. A row of a stage is 128 bytes, hi then lo, in pieces of
// 16 that are permuted by row, so that neither stores nor ldmatrix meet in a bank. The columns of a
// stage are permuted too, alike in both factors: a word holds columns l and l + 16, which one lane
// has loaded. One stage is multiplied while the next is loaded into registers.
//
// Limiter, from the sm_90 code (bench/results/cuda_predicted_jac_cov.md): issue. Measured on an
// H100: .4 of that floor, with 8 warps a multiprocessor and a barrier every stage.
#pragma once
#include "kernels/jac_cov_args.h"
#include "kernels/tensor.h"
#include "math/jac_cov.h"

namespace mvnrob::kernels {

// The power of two, and its inverse, that brings a row of squared norm x to norms below 2^15; both
// x where that is not finite.
struct JacScale {
  float scale, inverse;

  MVNROB_HD explicit JacScale(double x) : scale(1), inverse(1) {
    if (!(x <= math::kJacLargest)) {
      scale = inverse = float(x);
    } else if (x > 0) {
      const int exponent = int(math::as_uint(x) >> 52) - 1023;  // a subnormal x has -1023
      const int half = (exponent - (exponent & 1)) / 2;         // downwards
      const int most = 126, k = 14 - half < most ? 14 - half : most;
      scale = math::as_real(uint32_t(127 + k) << 23);
      inverse = math::as_real(uint32_t(127 - k) << 23);
    }
  }
};

template <class in_t>
struct JacCovTensor {
  using Args = JacCovArgs;
  static constexpr int kSide = 128;
  static constexpr int kThreads = 256;
  static constexpr int kResidentBlocks = 1;

 private:
  static constexpr int kColumns = 32;
  static constexpr int kRows =
      2 * kSide * (kColumns / 2) / kThreads;  // of a thread: two columns of 16

  struct Shared {
    uint32_t halves[2][2 * kSide][kColumns];
    float scale[2 * kSide], inverse[2 * kSide];
  };

 public:
  static constexpr size_t kSharedBytes = sizeof(Shared);

  static MVNROB_DEVICE_FN void run(const Args& a) {
    Shared& shared = *dynamic_shared<Shared>();
    const int64_t tiles = JacTiles(a.jac.classes, kSide).count();
    const int64_t slices = a.sums == nullptr ? 1 : a.jac.chunks;
    const int64_t units = a.jac.problems * tiles * slices;
    // Tiles of one problem and chunk run side by side: they share rows.
    for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
      JacCovTensor(a, unit / tiles / slices, unit % tiles, unit / tiles % slices, tiles, slices)
          .work(shared);
      __syncthreads();
    }
  }

 private:
  MVNROB_DEVICE JacCovTensor(const Args& a, int64_t problem, int64_t tile, int64_t slice,
                             int64_t tiles, int64_t slices)
      : a_(a), problem_(a.jac.first_problem + problem), lane_(int(threadIdx.x) % kWarp) {
    JacTiles::place(tile, row_, column_);
    row_ *= kSide;
    column_ *= kSide;
    first_ = (a.jac.first_chunk + slice) * kJacChunk<in_t>;
    const int64_t end = first_ + (a.sums == nullptr ? a.jac.chunks : 1) * kJacChunk<in_t>;
    end_ = end < a.jac.columns ? end : a.jac.columns;
    sums_ =
        static_cast<float*>(a.sums) + ((problem * tiles + tile) * slices + slice) * kSide * kSide;
    const int warp = int(threadIdx.x) / kWarp;
    entry_row_ = warp % 2 * 64;
    entry_column_ = warp / 2 * 32;
    // A half warp loads a row: of each 8 rows of 64, rows i % 4 and i % 4 + 4.
    load_row_ = warp * 8 + lane_ / 16 * 4;
  }

  // Row i of this thread among the 2 kSide of the tile.
  MVNROB_DEVICE int row_of(int i) const { return load_row_ + i / 4 * 64 + i % 4; }

  MVNROB_DEVICE int64_t class_of(int row) const {
    return row < kSide ? row_ + row : column_ + row - kSide;
  }

  MVNROB_DEVICE void work(Shared& shared) {
    const JacProblem<in_t> problem(a_.jac, problem_);
    const int row = int(threadIdx.x);  // one for each thread
    const int64_t own = class_of(row);
    const JacScale scale(own < a_.jac.classes ? a_.squares[problem_ * a_.jac.classes + own] : 0.0);
    shared.scale[row] = scale.scale;
    shared.inverse[row] = scale.inverse;
    there_ = 0;
    MVNROB_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const bool used = i < kRows / 2 || row_ != column_;
      there_ |= unsigned(used && class_of(row_of(i)) < a_.jac.classes) << i;
    }
    from_ = problem.rows + class_of(row_of(0)) * a_.jac.row_stride + lane_ % 16;
    clear();
    load(problem, first_);
    int buffer = 0;
    __syncthreads();
    for (int64_t at = first_; at < end_; at += kColumns) {
      store(shared, buffer);
      __syncthreads();
      const int64_t next = at + kColumns;
      // The end of a chunk wants the registers for itself.
      const bool ends = next % kJacChunk<in_t> == 0 || next >= end_;
      if (!ends) load(problem, next);
      multiply(shared, buffer);
      buffer ^= 1;
      if (ends) {
        finish(shared, next >= end_);
        clear();
        if (next < end_) load(problem, next);
      }
    }
  }

  MVNROB_DEVICE void clear() {
    MVNROB_UNROLL
    for (int m = 0; m < 4; ++m) {
      MVNROB_UNROLL
      for (int n = 0; n < 4; ++n) {
        MVNROB_UNROLL
        for (int e = 0; e < 4; ++e) sum_[m][n][e] = 0;
      }
    }
  }

  // Columns first .. first + kColumns - 1, those from end_ on as zeros.
  MVNROB_DEVICE void load(const JacProblem<in_t>& problem, int64_t first) {
    bool inside[2];
    MVNROB_UNROLL
    for (int c = 0; c < 2; ++c) {
      const int64_t column = first + lane_ % 16 + 16 * c;
      inside[c] = column < end_;
      target_[c] = inside[c] ? problem.target_value(column) : in_t{};
    }
    MVNROB_UNROLL
    for (int half = 0; half < 2; ++half) {
      const in_t* p = from_ + first;
      if (half == 1) p += anew(column_ - row_) * a_.jac.row_stride;
      MVNROB_UNROLL
      for (int j = 0; j < kRows / 2; ++j) {
        const int i = half * (kRows / 2) + j;
        const bool there = (there_ >> i & 1) != 0;
        MVNROB_UNROLL
        for (int c = 0; c < 2; ++c) value_[i][c] = there && inside[c] ? p[16 * c] : in_t{};
        p += (j % 4 == 3 ? 61 : 1) * a_.jac.row_stride;
      }
    }
  }

  // What was loaded, as differences in two parts. Rows that are not there hold anything: no product
  // of theirs is kept.
  MVNROB_DEVICE void store(Shared& shared, int buffer) const {
    MVNROB_UNROLL
    for (int i = 0; i < kRows; ++i) {
      if (i == kRows / 2 && row_ == column_) break;
      float u[2], high[2];
      const float scale = shared.scale[row_of(i)];
      MVNROB_UNROLL
      for (int c = 0; c < 2; ++c) u[c] = (widen(target_[c]) - widen(value_[i][c])) * scale;
      const uint32_t word = to_halves(u[0], u[1]);
      from_halves(word, high[0], high[1]);
      // As place() says, for the rows of this lane: row % 8 is i % 4 or, in the second half warp, 4
      // more.
      const int l = lane_ % 16, own = (l / 4 ^ lane_ / 16 * 4 ^ i % 4) * 4 + l % 4;
      uint32_t* const row = shared.halves[buffer][row_of(i)];
      row[own] = word;
      row[own ^ 16] = to_halves(u[0] - high[0], u[1] - high[1]);
    }
  }

  // First word of a piece of 16 bytes, 0 to 3 of hi, 4 to 7 of lo, in a row whose number is
  // row_in_8 modulo 8.
  static MVNROB_DEVICE int place(int row_in_8, int piece) { return (piece ^ row_in_8) * 4; }

  MVNROB_DEVICE void multiply(const Shared& shared, int buffer) {
    const auto& rows = shared.halves[buffer];
    const int columns = (row_ == column_ ? 0 : kSide) + entry_column_;
    MVNROB_ROLLED
    for (int k = 0; k < 2; ++k) {  // 16 columns each
      uint32_t b[2][4][2];         // hi and lo of 8 columns of entries
      MVNROB_UNROLL
      for (int part = 0; part < 2; ++part) {
        MVNROB_UNROLL
        for (int n = 0; n < 4; n += 2) {
          const int row = columns + n * 8 + lane_ / 16 * 8 + lane_ % 8;
          uint32_t words[4];
          load_matrices(words, &rows[row][place(lane_ % 8, part * 4 + k * 2 + lane_ / 8 % 2)]);
          MVNROB_UNROLL
          for (int w = 0; w < 4; ++w) b[part][n + w / 2][w % 2] = words[w];
        }
      }
      MVNROB_UNROLL
      for (int m = 0; m < 4; ++m) {
        const int row = entry_row_ + m * 16 + lane_ % 16;
        uint32_t a[2][4];
        MVNROB_UNROLL
        for (int part = 0; part < 2; ++part)
          load_matrices(a[part], &rows[row][place(lane_ % 8, part * 4 + k * 2 + lane_ / 16)]);
        float some[4][4];
        MVNROB_UNROLL
        for (int n = 0; n < 4; ++n) {
          MVNROB_UNROLL
          for (int e = 0; e < 4; ++e) some[n][e] = 0;
        }
        // The small products first.
        MVNROB_UNROLL
        for (int term = 0; term < 3; ++term) {
          MVNROB_UNROLL
          for (int n = 0; n < 4; ++n) multiply_matrices(some[n], a[term == 1], b[term == 0][n]);
        }
        MVNROB_UNROLL
        for (int n = 0; n < 4; ++n) {
          MVNROB_UNROLL
          for (int e = 0; e < 4; ++e) sum_[m][n][e] += some[n][e];
        }
      }
    }
  }

  // A chunk's sums by themselves, or to S and at the end to its mirror image. Entries of S are read
  // four at a time: one after another, each would wait for memory.
  MVNROB_DEVICE void finish(const Shared& shared, bool mirror) const {
    const int64_t classes = anew(a_.jac.classes), row = anew(row_), column = anew(column_);
    const int first_row = int(anew(entry_row_ + lane_ / 4));
    const int first_column = int(anew(entry_column_ + lane_ % 4 * 2));
    double* S = a_.S + problem_ * classes * classes;
    const float* inverse = shared.inverse + (row == column ? 0 : kSide);
    MVNROB_UNROLL
    for (int m = 0; m < 4; ++m) {
      MVNROB_UNROLL
      for (int n = 0; n < 4; ++n) {
        const int64_t i0 = row + first_row + m * 16, j0 = column + first_column + n * 8;
        double old[4];
        MVNROB_UNROLL
        for (int e = 0; e < 4; ++e) {
          const int64_t i = i0 + e / 2 * 8, j = j0 + e % 2;
          old[e] = a_.sums == nullptr && i <= j && j < classes ? S[i * classes + j] : 0.0;
        }
        MVNROB_UNROLL
        for (int e = 0; e < 4; ++e) {
          const int64_t i = i0 + e / 2 * 8, j = j0 + e % 2;
          if (i > j || j >= classes) continue;
          const int r = first_row + m * 16 + e / 2 * 8, c = first_column + n * 8 + e % 2;
          const float own = shared.inverse[r];
          // A norm that is not finite is the whole answer.
          const bool finite = own - own == 0.0f;
          const float some = i == j && !finite ? own : sum_[m][n][e] * own * inverse[c];
          if (a_.sums != nullptr) {
            sums_[r * kSide + c] = some;
            continue;
          }
          const double all = old[e] + double(some);
          S[i * classes + j] = all;
          if (mirror) S[j * classes + i] = all;
        }
      }
    }
  }

  const Args& a_;
  int64_t problem_, row_, column_, first_, end_;
  float* sums_;
  int lane_, entry_row_, entry_column_, load_row_;
  unsigned there_;
  const in_t* from_;
  // As they come: to widen bfloat16 on arrival would wait for it before the products.
  in_t target_[2], value_[kRows][2];
  float sum_[4][4][4];
};

}  // namespace mvnrob::kernels
