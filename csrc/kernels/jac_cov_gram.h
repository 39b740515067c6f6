// jac_cov of bfloat16 for many classes, on tensor cores, where J itself can be multiplied: tiles of
// 128 x 128 entries of <J_i, J_j>, from which
//
//   <J_t - J_i, J_t - J_j> = <J_i, J_j> - (m_i + m_j),   m_i = <J_t, J_i> - |J_t|^2 / 2.
//
// Products of two bfloat16 are exact in float32: one of them instead of the three that differences
// in two parts take (jac_cov_tensor.h), nothing to convert, and rows go from memory to shared
// memory without passing registers. What it costs is the digits of what the rows have in common, so
// JacGramChoice lets only those problems come here whose differences are not small beside J.
//
// Mapping: a block of 256 threads takes one tile of one problem, and all chunks of columns, or (few
// tiles) one chunk; a warp 64 x 32 entries. A row of a stage is 64 columns, 128 bytes, in pieces of
// 16 that are permuted by row, so that neither copies nor ldmatrix meet in a bank. Two stages are
// on their way while one is multiplied. Sums of 16 columns come from the tensor core, which cuts
// off instead of rounding; those of a stage are added in float32, and to those of the chunk.
//
// Limiter, reckoned: the L2 cache, of which a multiprocessor takes 32 KB in the 1,350 cycles of a
// stage. bench/cuda_latency.py predicts 1,530 cycles for the stage, 820 of them for its products; a
// chunk's end takes some 7,000 of 50,000.
#pragma once
#include "kernels/jac_cov_end.h"
#include "kernels/jac_cov_stage.h"
#include "kernels/tensor.h"

namespace mvnrob::kernels {

// Whether the sums of <J_i, J_j> have the digits of those of differences. They err by some 1e-7 of
// (|J_i| + |J_t|) (|J_j| + |J_t|), where those would of |u_i| |u_j|. Rows may have
//
//   |J_i|^2 + |J_t|^2 = |u_i|^2 + 2 <J_t, J_i> <= 9 |u_i|^2,
//
// so that the error of a correlation is at most 18 times that (emulated: 1e-7 for independent rows,
// 1.1e-6 at that limit, where the tests allow 1.9e-6). Squares and products must be far
// from the ends of float32's range. Rows of which two have the same norm, to the bit, are
// subtracted, too: equal rows, opposite rows and rows of zeros have, and their correlations are
// exact. A norm that is not finite is a matter of its own row. A warp takes a row of a problem, and
// what it finds is the same for every grid.
struct JacGramChoice {
  struct Args {
    const int64_t* target;
    const double *squares, *products;  // [batch, classes]
    uint32_t* subtracts;               // [batch], zeros before
    int64_t batch, classes;
  };
  static constexpr int kThreads = 128;
  static constexpr int kResidentBlocks = 8;

  static int64_t blocks(int64_t batch, int64_t classes) {
    return (batch * classes + kWarps - 1) / kWarps;
  }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const int lane = int(threadIdx.x % kWarp);
    for (int64_t e = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; e < a.batch * a.classes;
         e += int64_t(gridDim.x) * kWarps) {
      const int64_t problem = e / a.classes, i = e % a.classes, t = a.target[problem];
      const double* const squares = a.squares + problem * a.classes;
      const double square = squares[i], product = a.products[e];
      constexpr double kLeast = 0x1p-100, kMost = 0x1p120;
      const bool is_finite = square <= math::kJacLargest;
      bool subtracts = false;
      if (i == t)
        subtracts = !(product <= 8 * kMost);
      else if (is_finite)
        subtracts = !(square >= kLeast && square <= kMost && product <= 4 * square);
      if (t < 0 || t >= a.classes) subtracts = true;
      if (is_finite)
        for (int64_t j = lane; j < i; j += kWarp) subtracts |= squares[j] == square;
      if (__any_sync(kFullWarp, subtracts) && lane == 0) atomicAdd(&a.subtracts[problem], 1u);
    }
  }

 private:
  static constexpr int kWarps = kThreads / kWarp;
};

struct JacCovGram {
  using Args = JacCovArgs;
  static constexpr int kSide = JacTileEnd::kSide;
  static constexpr int kThreads = 256;
  static constexpr int kResidentBlocks = 1;

 private:
  static constexpr int kColumns = 64;
  static constexpr int kStages = 3;
  static constexpr int kPitch = 2 * kColumns;               // bytes of a row of a stage
  static constexpr int kPiece = 8;                          // columns of 16 bytes
  static constexpr int kAtOnce = kThreads / (kPitch / 16);  // rows that a block copies at a time
  static constexpr int kRows = kSide / kAtOnce;             // of a thread, in each half
  static constexpr int kChunk = kJacGramChunk / kColumns;   // stages of a chunk

  // 99 KB, as much as a block can have on every card.
  struct Shared {
    alignas(16) unsigned char rows[kStages][2 * kSide * kPitch];
    double middle[2 * kSide];
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
      if (a.subtracts[a.jac.first_problem + unit / tiles / slices]) continue;
      JacCovGram(a, unit / tiles / slices, unit % tiles, unit / tiles % slices, tiles, slices)
          .work(shared);
      __syncthreads();
    }
  }

 private:
  MVNROB_DEVICE JacCovGram(const Args& a, int64_t problem, int64_t tile, int64_t slice,
                           int64_t tiles, int64_t slices)
      : a_(a), problem_(a.jac.first_problem + problem) {
    int64_t row, column;
    JacTiles::place(tile, row, column);
    row_ = int(row) * kSide;
    column_ = int(column) * kSide;
    const int64_t first = (a.jac.first_chunk + slice) * kJacGramChunk;
    int64_t end = first + (a.sums == nullptr ? a.jac.chunks : 1) * kJacGramChunk;
    if (end > a.jac.columns) end = a.jac.columns;
    stages_ = int((end - first + kColumns - 1) / kColumns);
    const int64_t classes = a.jac.classes;
    if (a.sums == nullptr)
      out_ = a.S + problem_ * classes * classes;
    else
      out_ =
          static_cast<float*>(a.sums) + ((problem * tiles + tile) * slices + slice) * kSide * kSide;
    const int thread = int(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
    // Eight threads copy a row of a stage.
    const int piece = thread % (kPitch / 16);
    copy_row_ = thread / (kPitch / 16);
    copies_ = place(copy_row_, piece);
    left_ = end - first - piece * kPiece;
    const BFloat16* const rows =
        static_cast<const BFloat16*>(a.jac.J) + problem_ * a.jac.batch_stride;
    from_ = rows + (row_ + copy_row_) * a.jac.row_stride + first + piece * kPiece;
    aligned_ = ((reinterpret_cast<uintptr_t>(rows) | uintptr_t(a.jac.row_stride) * 2) & 15) == 0;
    const int entry_row = warp % 2 * 64, entry_column = warp / 2 * 32;
    const int in_8 = lane % 2 * 4 + lane % 8 / 2;
    reads_rows_ = place(entry_row + lane % 16, lane / 16);
    reads_columns_ =
        place((row_ == column_ ? 0 : kSide) + entry_column + lane / 16 * 8 + in_8, lane / 8 % 2);
  }

  MVNROB_DEVICE void work(Shared& shared) {
    MVNROB_ROLLED
    for (int stage = 0; stage < kStages - 1; ++stage) copy(shared, stage);
    const int row = int(threadIdx.x);  // one for each thread
    const int own = row < kSide ? row_ + row : column_ + row - kSide;
    shared.middle[row] =
        own < a_.jac.classes ? JacMiddle(a_, problem_, a_.jac.target[problem_]).of(own) : 0.0;
    clear();
    int buffer = 0;
    for (int stage = 0; stage < stages_; ++stage) {
      copy_async_wait<kStages - 2>();
      __syncthreads();
      multiply(shared, shared.rows[buffer], stage + kStages - 1);
      buffer = buffer + 1 < kStages ? buffer + 1 : 0;
      const bool last = stage + 1 == stages_;
      if (last || (stage + 1) % kChunk == 0) {
        finish(shared, last);
        clear();
      }
    }
    copy_async_wait<0>();
  }

  // Where a piece of 16 bytes lies in a buffer. Both a row's number modulo 8 and the piece's are
  // bits of it of their own: what these are changed by is an exclusive or with what place() has for
  // the change.
  static MVNROB_DEVICE int place(int row, int piece) {
    return row * kPitch + (piece ^ row % 8) * 16;
  }

  // A thread's pieces of a stage, zeros where there are no columns or no rows. On the diagonal the
  // second half of the rows is the first. Rows that are not aligned take the same way through
  // registers.
  MVNROB_DEVICE void copy(Shared& shared, int stage) {
    if (stage < stages_) {
      unsigned char* const to = shared.rows[stage % kStages] + copies_;
      copy_half(to, from_, left_, row_);
      if (row_ != column_)
        copy_half(to + kSide * kPitch, from_ + (column_ - row_) * a_.jac.row_stride, left_,
                  column_);
    }
    copy_async_commit();
    from_ += kColumns;
    left_ -= kColumns;
  }

  // The rows of the tile from `first` on; `left` columns are there from where a thread copies.
  MVNROB_DEVICE void copy_half(unsigned char* to, const BFloat16* from, int64_t left,
                               int first) const {
    const int there = int(a_.jac.classes) - first - copy_row_;
    const int64_t step = kAtOnce * a_.jac.row_stride;
    if (aligned_ && (left >= kPiece || left <= 0)) {
      MVNROB_UNROLL
      for (int i = 0; i < kRows; ++i) {
        copy_async16(to + i * kAtOnce * kPitch, from, i * kAtOnce < there && left > 0);
        from += step;
      }
    } else {
      MVNROB_ROLLED
      for (int i = 0; i < kRows; ++i) {
        copy_elements(to + i * kAtOnce * kPitch, from, i * kAtOnce < there ? left : 0);
        from += step;
      }
    }
  }

  static MVNROB_DEVICE void copy_elements(void* to, const BFloat16* from, int64_t left) {
    JacVec<uint32_t> words;
    MVNROB_UNROLL
    for (int w = 0; w < JacVec<uint32_t>::kCount; ++w) {
      const uint32_t low = 2 * w < left ? from[2 * w].bits : 0;
      const uint32_t high = 2 * w + 1 < left ? from[2 * w + 1].bits : 0;
      words.v[w] = low | high << 16;
    }
    *static_cast<JacVec<uint32_t>*>(to) = words;
  }

  // 16 rows of entries, in 16 columns of the stage.
  MVNROB_DEVICE void load_rows(const unsigned char* rows, int k, int m, uint32_t (&a)[4]) const {
    load_matrices(a, rows + m * 16 * kPitch + (reads_rows_ ^ place(0, k * 2)));
  }

  // The same of 32 columns of entries. Of eight of them the tensor core's columns 2 t and 2 t + 1
  // are t and t + 4, as jac_cov_end.h wants them.
  MVNROB_DEVICE void load_columns(const unsigned char* rows, int k, uint32_t (&b)[4][2]) const {
    MVNROB_UNROLL
    for (int n = 0; n < 4; n += 2) {
      uint32_t words[4];
      load_matrices(words, rows + n * 8 * kPitch + (reads_columns_ ^ place(0, k * 2)));
      MVNROB_UNROLL
      for (int w = 0; w < 4; ++w) b[n + w / 2][w % 2] = words[w];
    }
  }

  // One stage, while another is copied: 16 rows of entries and 16 columns of the stage at a time;
  // the next of these rows are loaded meanwhile. Without __syncwarp() the compiler would begin more
  // than there are registers for.
  MVNROB_DEVICE void multiply(Shared& shared, const unsigned char* rows, int copied) {
    constexpr int kSteps = kColumns / 16;
    uint32_t a[2][4], b[kSteps][4][2];
    load_rows(rows, 0, 0, a[0]);
    load_columns(rows, 0, b[0]);
    copy(shared, copied);
    MVNROB_UNROLL
    for (int m = 0; m < 4; ++m) {
      float stage[4][4];
      MVNROB_UNROLL
      for (int k = 0; k < kSteps; ++k) {
        const int step = m * kSteps + k, next = step + 1;
        __syncwarp();
        if (next < kSteps) load_columns(rows, next, b[next]);
        if (next < 4 * kSteps) load_rows(rows, next % kSteps, next / kSteps, a[next % 2]);
        MVNROB_UNROLL
        for (int n = 0; n < 4; ++n) {
          float some[4] = {0, 0, 0, 0};
          multiply_bfloat16(some, a[step % 2], b[k][n]);
          MVNROB_UNROLL
          for (int e = 0; e < 4; ++e) stage[n][e] = k == 0 ? some[e] : stage[n][e] + some[e];
        }
      }
      MVNROB_UNROLL
      for (int n = 0; n < 4; ++n) {
        MVNROB_UNROLL
        for (int e = 0; e < 4; ++e) sum_[m][n][e] += stage[n][e];
      }
    }
  }

  // A chunk's sums by themselves, or to S and at the end, less what is due to J_t, to its mirror
  // image. Row and column t are as they were.
  MVNROB_DEVICE void finish(const Shared& shared, bool last) const {
    const JacTileEnd end(row_, column_);
    const int first_row = end.first_row, first_column = end.first_column;
    const int64_t target = a_.jac.target[problem_];
    const int64_t t_row = target - end.row, t_column = target - end.column;
    const auto is_kept = [&](int m, int n, int e) {
      return first_row + m * 16 + e / 2 * 8 != t_row &&
             first_column + n * 8 + e % 2 * 4 != t_column;
    };
    const auto sums_of = [&](int m, float(&some)[4][4]) {
      MVNROB_UNROLL
      for (int n = 0; n < 4; ++n) {
        MVNROB_UNROLL
        for (int e = 0; e < 4; ++e) some[n][e] = is_kept(m, n, e) ? sum_[m][n][e] : 0.0f;
      }
    };
    if (a_.sums != nullptr) {
      end.put(static_cast<float*>(out_), sums_of);
      return;
    }
    const double* const across = shared.middle + (end.diagonal ? 0 : kSide) + first_column;
    const double* const down = shared.middle + first_row;
    end.add(static_cast<double*>(out_), a_.jac.classes, last, sums_of,
            [&](double x, int m, int n, int e) {
              const double middle = down[m * 16 + e / 2 * 8] + across[n * 8 + e % 2 * 4];
              return last && is_kept(m, n, e) ? x - middle : x;
            });
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

  const Args& a_;
  int64_t problem_, left_;
  void* out_;  // the problem's S, or where the chunk's sums go
  int row_, column_, stages_, copy_row_, copies_, reads_rows_, reads_columns_;
  bool aligned_;
  const BFloat16* from_;  // columns of the next stage to be copied
  float sum_[4][4][4];
};

}  // namespace mvnrob::kernels
