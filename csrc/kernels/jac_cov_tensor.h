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
// has loaded. While one stage is multiplied, the next goes from registers to shared memory and the
// one after it comes into registers, so that a stage has one barrier.
//
// Limiter, from the sm_90 code (bench/results/cuda_predicted_jac_cov.md): the L2 cache, of bfloat16
// issue. bench/cuda_latency.py predicts 2,100 to 2,200 cycles for a stage of a multiprocessor's 8
// warps and 200 to 300 for its part of the end of a chunk. When storing, loading and multiplying
// were phases one after another it predicted 3,500 and 500 to 900, and an H100 took 4,500 (D =
// 150,528) to 6,000 (D = 3,072).
#pragma once
#include "kernels/jac_cov_end.h"
#include "kernels/jac_cov_stage.h"
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
      2 * kSide * (kColumns / 2) / kThreads;   // of a thread: two columns of 16
  static constexpr int kPitch = 4 * kColumns;  // bytes of a row of a stage

  struct Shared {
    alignas(16) unsigned char halves[2][2 * kSide * kPitch];
    alignas(16) float scale[2 * kSide], inverse[2 * kSide];
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
      : a_(a), problem_(a.jac.first_problem + problem), lane_(int(threadIdx.x % kWarp)) {
    JacTiles::place(tile, row_, column_);
    row_ *= kSide;
    column_ *= kSide;
    first_ = (a.jac.first_chunk + slice) * kJacChunk<in_t>;
    const int64_t end = first_ + (a.sums == nullptr ? a.jac.chunks : 1) * kJacChunk<in_t>;
    end_ = end < a.jac.columns ? end : a.jac.columns;
    const int64_t classes = a.jac.classes;
    if (a.sums == nullptr)
      out_ = a.S + problem_ * classes * classes;
    else
      out_ =
          static_cast<float*>(a.sums) + ((problem * tiles + tile) * slices + slice) * kSide * kSide;
    const int warp = int(threadIdx.x / kWarp);
    entry_row_ = warp % 2 * 64;
    entry_column_ = warp / 2 * 32;
    // A half warp loads a row: of each 8 rows of 64, rows i % 4 and i % 4 + 4.
    load_row_ = warp * 8 + lane_ / 16 * 4;
    const int l = lane_ % 16, in_8 = lane_ % 2 * 4 + lane_ % 8 / 2;
    stores_ = place(load_row_, l / 4) + l % 4 * 4;
    reads_rows_ = place(entry_row_ + l, lane_ / 16);
    reads_columns_ =
        place((row_ == column_ ? 0 : kSide) + entry_column_ + lane_ / 16 * 8 + in_8, lane_ / 8 % 2);
  }

  // Row i of this thread among the 2 kSide of the tile.
  MVNROB_DEVICE int row_of(int i) const { return load_row_ + i / 4 * 64 + i % 4; }

  MVNROB_DEVICE int64_t class_of(int row) const {
    return row < kSide ? row_ + row : column_ + row - kSide;
  }

  MVNROB_DEVICE void work(Shared& shared) {
    if constexpr (sizeof(in_t) == 2) {
      if (!a_.subtracts[problem_]) return;
    }
    const JacProblem<in_t> problem(a_.jac, problem_);
    MVNROB_UNROLL
    for (int i = 0; i < kRows; ++i) {
      MVNROB_UNROLL
      for (int c = 0; c < 2; ++c) value_[i][c] = in_t{};
    }
    from_ = problem.rows + first_ + lane_ % 16;
    first_class_[0] = int(row_) + load_row_;
    first_class_[1] = int(column_) + load_row_;
    valid_ = problem.valid;
    target_from_ = problem.target + first_ + lane_ % 16;
    MVNROB_UNROLL
    for (int c = 0; c < 2; ++c)
      there_[c] = int((end_ - first_ + kColumns - 1 - lane_ % 16 - 16 * c) / kColumns);
    const int stages = int((end_ - first_ + kColumns - 1) / kColumns);
    const bool whole = (end_ - first_) % kColumns == 0;
    load(0);
    const int row = int(threadIdx.x);  // one for each thread
    const int64_t own = class_of(row);
    const JacScale scale(own < a_.jac.classes ? a_.squares[problem_ * a_.jac.classes + own] : 0.0);
    shared.scale[row] = scale.scale;
    shared.inverse[row] = scale.inverse;
    clear();
    __syncthreads();
    MVNROB_UNROLL
    for (int i = 0; i < kRows; ++i) store(shared, 0, i, scales_of(shared, i).v[i % 4]);
    if (stages == 1 && !whole) wipe(shared, 0, 0);
    load(1);
    __syncthreads();
    for (int stage = 0; stage < stages; ++stage) {
      multiply(shared, stage);
      if (stage + 2 == stages && !whole) wipe(shared, (stage + 1) % 2, stage + 1);
      __syncthreads();
      const bool last = stage + 1 == stages;
      if (last || (stage + 1) % (kJacChunk<in_t> / kColumns) == 0) {
        finish(shared, last);
        clear();
      }
    }
  }

  // Of a stage, which of a lane's columns there are.
  struct Inside {
    bool is[2];
  };

  MVNROB_DEVICE Inside inside(int stage) const { return {{stage < there_[0], stage < there_[1]}}; }

  MVNROB_DEVICE void load_target(const Inside& inside, in_t (&target)[2]) {
    MVNROB_UNROLL
    for (int c = 0; c < 2; ++c) {
      target[c] = in_t{};
      if (inside.is[c]) target[c] = valid_ ? target_from_[16 * c] : not_a_number(in_t{});
    }
    target_from_ += kColumns;
  }

  // Row i of the next stage, of a half of the rows that begins with first_class. Columns that are
  // not there keep what was in the registers, until wipe(); a row that is not there is the last one
  // once more: no product of it is kept. Addresses are taken anew for each stage: all of them would
  // fill 32 registers.
  MVNROB_DEVICE void load(const Inside& inside, int i, int first_class) {
    const int last = int(a_.jac.classes) - 1, own = first_class + i / 4 % 2 * 64 + i % 4;
    const uint64_t bytes = uint64_t(a_.jac.row_stride) * sizeof(in_t);
    const in_t* const from = reinterpret_cast<const in_t*>(
        reinterpret_cast<const char*>(from_) + uint32_t(own < last ? own : last) * bytes);
    MVNROB_UNROLL
    for (int c = 0; c < 2; ++c) load_where(inside.is[c], value_[i][c], from + 16 * c);
  }

  // On the diagonal the second half of the rows is the first.
  MVNROB_DEVICE Inside second_half(const Inside& inside) const {
    const bool used = row_ != column_;
    return {{used && inside.is[0], used && inside.is[1]}};
  }

  // All rows, where there is nothing else to do.
  MVNROB_DEVICE void load(int stage) {
    const Inside first = inside(stage), second = second_half(first);
    load_target(first, target_);
    MVNROB_UNROLL
    for (int i = 0; i < kRows; ++i)
      load(i < kRows / 2 ? first : second, i, first_class_[i / (kRows / 2)]);
    from_ += kColumns;
  }

  // Where a piece of 16 bytes, 0 to 3 of hi, 4 to 7 of lo, lies in a buffer. Both a row's number
  // modulo 8 and the piece's are bits of it of their own: what these are changed by is an exclusive
  // or with what place() has for the change.
  static MVNROB_DEVICE int place(int row, int piece) {
    return row * kPitch + (piece ^ row % 8) * 16;
  }

  // The word of a lane in row i, of hi (0) or lo (1).
  MVNROB_DEVICE uint32_t& word_of(Shared& shared, int buffer, int i, int part) const {
    return *reinterpret_cast<uint32_t*>(shared.halves[buffer] + i / 4 * 64 * kPitch +
                                        (stores_ ^ place(i % 4, part * 4)));
  }

  // Of the four rows that row i is among.
  MVNROB_DEVICE JacVec<float> scales_of(const Shared& shared, int i) const {
    return *reinterpret_cast<const JacVec<float>*>(&shared.scale[row_of(i - i % 4)]);
  }

  // Row i of what was loaded, as differences in two parts.
  MVNROB_DEVICE void store(Shared& shared, int buffer, int i, float scale) const {
    float u[2], high[2];
    MVNROB_UNROLL
    for (int c = 0; c < 2; ++c) u[c] = (widen(target_[c]) - widen(value_[i][c])) * scale;
    const uint32_t word = to_halves(u[0], u[1]);
    from_halves(word, high[0], high[1]);
    word_of(shared, buffer, i, 0) = word;
    word_of(shared, buffer, i, 1) = to_halves(u[0] - high[0], u[1] - high[1]);
  }

  // Hi and lo of 16 rows of entries, in 16 columns of the stage.
  MVNROB_DEVICE void load_rows(const Shared& shared, int buffer, int k, int m,
                               uint32_t (&a)[2][4]) const {
    MVNROB_UNROLL
    for (int part = 0; part < 2; ++part)
      load_matrices(a[part], shared.halves[buffer] + m * 16 * kPitch +
                                 (reads_rows_ ^ place(0, part * 4 + k * 2)));
  }

  // The same of 32 columns of entries. Of eight of them the tensor core's columns 2 t and 2 t + 1
  // are t and t + 4: a sector of S then lies in four lanes side by side.
  MVNROB_DEVICE void load_columns(const Shared& shared, int buffer, int k,
                                  uint32_t (&b)[2][4][2]) const {
    MVNROB_UNROLL
    for (int part = 0; part < 2; ++part) {
      MVNROB_UNROLL
      for (int n = 0; n < 4; n += 2) {
        uint32_t words[4];
        load_matrices(words, shared.halves[buffer] + n * 8 * kPitch +
                                 (reads_columns_ ^ place(0, part * 4 + k * 2)));
        MVNROB_UNROLL
        for (int w = 0; w < 4; ++w) b[part][n + w / 2][w % 2] = words[w];
      }
    }
  }

  // One stage, in eight steps. Beside the products of each of the first four, four of the thread's
  // rows of the next stage go to the other buffer, and the same rows of the stage after that set
  // out for the registers that this leaves free: they have half a stage and more to arrive, as all
  // loads are waited for together. Without __syncwarp() the compiler would move all loads to the
  // end.
  MVNROB_DEVICE void multiply(Shared& shared, int stage) {
    const int buffer = stage % 2;
    const Inside first = inside(stage + 2), second = second_half(first);
    in_t target[2];
    load_target(first, target);
    const int first_class = anew(first_class_[0]), second_class = anew(first_class_[1]);
    uint32_t a[2][4], b[2][4][2];
    load_columns(shared, buffer, 0, b);
    load_rows(shared, buffer, 0, 0, a);
    MVNROB_UNROLL
    for (int k = 0; k < 2; ++k) {  // 16 columns each
      MVNROB_UNROLL
      for (int m = 0; m < 4; ++m) {
        const int step = k * 4 + m;
        __syncwarp();
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
        if (step == 3) load_columns(shared, buffer, 1, b);
        if (step < 7) load_rows(shared, buffer, (step + 1) / 4, (step + 1) % 4, a);
        if (step < kRows / 4) {
          const JacVec<float> scales = scales_of(shared, step * 4);
          const bool in_first = step < kRows / 8;
          MVNROB_UNROLL
          for (int i = step * 4; i < step * 4 + 4; ++i) {
            store(shared, buffer ^ 1, i, scales.v[i % 4]);
            load(in_first ? first : second, i, in_first ? first_class : second_class);
          }
        }
        MVNROB_UNROLL
        for (int n = 0; n < 4; ++n) {
          MVNROB_UNROLL
          for (int e = 0; e < 4; ++e) sum_[m][n][e] += some[n][e];
        }
      }
    }
    from_ += kColumns;
    MVNROB_UNROLL
    for (int c = 0; c < 2; ++c) target_[c] = target[c];
  }

  // A chunk's sums by themselves, or to S and at the end to its mirror image.
  MVNROB_DEVICE void finish(const Shared& shared, bool mirror) const {
    const JacTileEnd end(row_, column_);
    const bool diagonal = end.diagonal;
    const int first_row = end.first_row, first_column = end.first_column;
    float across[4][2];
    MVNROB_UNROLL
    for (int n = 0; n < 4; ++n) {
      MVNROB_UNROLL
      for (int e = 0; e < 2; ++e)
        across[n][e] = shared.inverse[(diagonal ? 0 : kSide) + first_column + n * 8 + e * 4];
    }
    const auto sums_of = [&](int m, float(&some)[4][4]) {
      MVNROB_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int r = first_row + m * 16 + e / 2 * 8;
        const float own = shared.inverse[r];
        // A norm that is not finite is the whole answer.
        const int answer = diagonal && !(own - own == 0.0f) ? r : -1;
        MVNROB_UNROLL
        for (int n = 0; n < 4; ++n) {
          const int c = first_column + n * 8 + e % 2 * 4;
          some[n][e] = c == answer ? own : sum_[m][n][e] * own * across[n][e % 2];
        }
      }
    };
    if (a_.sums != nullptr)
      end.put(static_cast<float*>(out_), sums_of);
    else
      end.add(static_cast<double*>(out_), a_.jac.classes, mirror, sums_of,
              [](double x, int, int, int) { return x; });
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

  // Columns of a stage that are not there, as zeros: by who stored them.
  MVNROB_DEVICE void wipe(Shared& shared, int buffer, int stage) const {
    const Inside there = inside(stage);
    const uint32_t mask = (there.is[0] ? 0xffffu : 0u) | (there.is[1] ? 0xffff0000u : 0u);
    MVNROB_UNROLL
    for (int i = 0; i < kRows; ++i) {
      MVNROB_UNROLL
      for (int part = 0; part < 2; ++part) word_of(shared, buffer, i, part) &= mask;
    }
  }

  const Args& a_;
  int64_t problem_, row_, column_, first_, end_;
  void* out_;  // the problem's S, or where the chunk's sums go
  int lane_, entry_row_, entry_column_, load_row_, stores_, reads_rows_, reads_columns_;
  int there_[2];  // stages that have a lane's columns
  bool valid_;
  int first_class_[2];
  const in_t *target_from_, *from_;
  // As they come: to widen bfloat16 on arrival would wait for it before the products.
  in_t target_[2], value_[kRows][2];
  float sum_[4][4][4];
};

}  // namespace mvnrob::kernels
