// jac_cov of float64 for many classes: tiles of 128 x 128 entries.
//
// Mapping: a block of 256 threads takes one tile of one problem, and all chunks of columns, or (few
// tiles) one chunk. 8 x 8 sums in each thread; the differences of the tile's 256 rows (128 on the
// diagonal), 8 columns at a time, are in shared memory twice, one stage multiplied while
// the next is loaded into registers. After each chunk the sums go to S in float64, which stays in
// the L2 cache meanwhile, or by themselves to `sums`.
#pragma once
#include "kernels/jac_cov_stage.h"

namespace mvnrob::kernels {

template <class in_t>
struct JacCovTile {
  using Args = JacCovArgs;
  using T = JacCompute<in_t>;
  static constexpr int kSide = 128;
  static constexpr int kThreads = 256;
  static constexpr int kResidentBlocks = 1;

 private:
  static constexpr int kBlocks = kSide / 8;
  using Stage = JacStage<in_t, kThreads, 2, kSide>;
  using Block = JacBlock<T>;
  static constexpr int kPart = kBlocks * Block::kVec;

 public:
  static constexpr size_t kSharedBytes = sizeof(typename Stage::Shared);

  static MVNROB_DEVICE_FN void run(const Args& a) {
    auto& shared = *dynamic_shared<typename Stage::Shared>();
    const int64_t tiles = JacTiles(a.jac.classes, kSide).count();
    const int64_t slices = a.sums == nullptr ? 1 : a.jac.chunks;
    const int64_t units = a.jac.problems * tiles * slices;
    // Tiles of one problem and chunk run side by side: they share rows.
    for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
      const int64_t tile = unit % tiles, slice = unit / tiles % slices;
      JacCovTile(a, unit / tiles / slices, tile, slice, tiles, slices).work(shared);
      __syncthreads();
    }
  }

 private:
  MVNROB_DEVICE JacCovTile(const Args& a, int64_t problem, int64_t tile, int64_t slice,
                           int64_t tiles, int64_t slices)
      : a_(a), problem_(a.jac.first_problem + problem) {
    JacTiles::place(tile, row_, column_);
    row_ *= kSide;
    column_ *= kSide;
    first_ = (a.jac.first_chunk + slice) * kJacChunk<in_t>;
    const int64_t end = first_ + (a.sums == nullptr ? a.jac.chunks : 1) * kJacChunk<in_t>;
    end_ = end < a.jac.columns ? end : a.jac.columns;
    sums_ = static_cast<T*>(a.sums) + ((problem * tiles + tile) * slices + slice) * kSide * kSide;
    // A warp takes 8 x 4 of the 16 x 16 register blocks: two and one reads of 128 bytes a column.
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    p_ = warp % 2 * 8 + lane / 4;
    q_ = warp / 2 * 4 + lane % 4;
  }

  MVNROB_DEVICE void work(typename Stage::Shared& shared) {
    const bool diagonal = row_ == column_;
    const int64_t first[2] = {row_, column_};
    const JacProblem<in_t> problem(a_.jac, problem_);
    Stage stage(a_.jac, problem, first, diagonal ? 1 : 2, kSide);
    Block block;
    block.clear();
    stage.load(first_, end_);
    int buffer = 0;
    for (int64_t at = first_; at < end_; at += Stage::kColumns) {
      stage.store(shared, buffer);
      __syncthreads();
      const int64_t next = at + Stage::kColumns;
      // The end of a chunk wants the registers for itself.
      const bool ends = next % kJacChunk<in_t> == 0 || next >= end_;
      if (!ends) stage.load(next, end_);
      const T* a = &shared.u[buffer][0][p_ * Block::kVec];
      const T* b = &shared.u[buffer][0][(diagonal ? 0 : kSide) + q_ * Block::kVec];
      MVNROB_ROLLED
      for (int k = 0; k < Stage::kColumns; k += kUnroll) {
        MVNROB_UNROLL
        for (int l = 0; l < kUnroll; ++l)
          block.multiply(a + l * Stage::kPitch, b + l * Stage::kPitch, kPart);
        a += kUnroll * Stage::kPitch;
        b += kUnroll * Stage::kPitch;
      }
      buffer ^= 1;
      if (ends) {
        if (a_.sums != nullptr)
          put(block);
        else
          add(block, next >= end_);
        block.clear();
        if (next < end_) stage.load(next, end_);
      }
    }
  }

  // A chunk's sums by themselves; those below the diagonal or beyond the classes are not looked at.
  MVNROB_DEVICE void put(const Block& block) const {
    MVNROB_UNROLL
    for (int r = 0; r < 8; ++r) {
      T* line = sums_ + Block::row(p_, r, kBlocks) * kSide;
      MVNROB_UNROLL
      for (int c = 0; c < 8; c += Block::kVec) {
        JacVec<T> out;
        MVNROB_UNROLL
        for (int v = 0; v < Block::kVec; ++v) out.v[v] = block.sum[r][c + v];
        *reinterpret_cast<JacVec<T>*>(line + Block::row(q_, c, kBlocks)) = out;
      }
    }
  }

  // To S, and at the end to its mirror image. Entries of S are read kAtOnce at a time: one after
  // another, each would wait for memory.
  MVNROB_DEVICE void add(const Block& block, bool mirror) const {
    const int64_t classes = anew(a_.jac.classes), row = anew(row_), column = anew(column_);
    double* S = a_.S + problem_ * classes * classes;
    MVNROB_UNROLL
    for (int r = 0; r < 8; ++r) {
      const int64_t i = row + Block::row(p_, r, kBlocks);
      MVNROB_UNROLL
      for (int first = 0; first < 8; first += kAtOnce) {
        double sum[kAtOnce];
        MVNROB_UNROLL
        for (int c = 0; c < kAtOnce; ++c) {
          const int64_t j = column + Block::row(q_, first + c, kBlocks);
          sum[c] = i <= j && j < classes ? S[i * classes + j] : 0.0;
        }
        MVNROB_UNROLL
        for (int c = 0; c < kAtOnce; ++c) {
          const int64_t j = column + Block::row(q_, first + c, kBlocks);
          if (i > j || j >= classes) continue;
          const double all = sum[c] + double(block.sum[r][first + c]);
          S[i * classes + j] = all;
          if (mirror) S[j * classes + i] = all;
        }
      }
    }
  }

  static constexpr int kUnroll = 1, kAtOnce = 2;

  const Args& a_;
  int64_t problem_, row_, column_, first_, end_;
  T* sums_;
  int p_, q_;
};

}  // namespace mvnrob::kernels
