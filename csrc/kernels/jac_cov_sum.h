// Passes over S that move memory and little else: the sums of chunks to S, and S to another type.
#pragma once
#include "kernels/jac_cov_args.h"

namespace mvnrob::kernels {

// Adds the chunks of `sums` to S, in their order, and writes the mirror image, for the kernels of
// few classes. Mapping: an entry of S per thread, row by row, so that reads and one of the two
// writes are coalesced.
template <class T>
struct JacCovSum {
  using Args = JacCovArgs;
  static constexpr int kThreads = 256;
  static constexpr int kResidentBlocks = 4;

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const int64_t classes = a.jac.classes, area = classes * classes;
    const int64_t step = int64_t(gridDim.x) * kThreads;
    for (int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x; e < a.jac.problems * area;
         e += step) {
      const int64_t problem = e / area, i = e % area / classes, j = e % classes;
      if (i > j) continue;
      const T* chunk =
          static_cast<const T*>(a.sums) + problem * a.jac.chunks * area + i * classes + j;
      double* S = a.S + (a.jac.first_problem + problem) * area;
      double sum = S[i * classes + j];
      for (int64_t c = 0; c < a.jac.chunks; ++c) sum += double(chunk[c * area]);
      S[i * classes + j] = sum;
      S[j * classes + i] = sum;
    }
  }
};

// The same of tiles; what jac_cov_gram.h owes to the whole of J comes after the last chunk.
// Mapping: a block takes 32 x 32 entries, and writes their mirror image by way of shared memory, so
// that all accesses are coalesced.
template <class T>
struct JacCovTileSum {
  using Args = JacCovArgs;
  static constexpr int kThreads = 256;
  static constexpr int kResidentBlocks = 4;

 private:
  static constexpr int kSide = 128, kPart = 32, kAcross = kSide / kPart;
  static constexpr int kRows = kPart * kPart / kThreads;  // of a thread

  struct Shared {
    double sum[kPart][kPart + 1];
  };

 public:
  static constexpr size_t kSharedBytes = sizeof(Shared);

  static MVNROB_HD int64_t blocks(int64_t problems, int64_t tiles) {
    return problems * tiles * kAcross * kAcross;
  }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    Shared& shared = *dynamic_shared<Shared>();
    const int64_t tiles = JacTiles(a.jac.classes, kSide).count();
    const int64_t units = blocks(a.jac.problems, tiles);
    for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
      const int part = int(unit % (kAcross * kAcross));
      const int64_t tile = unit / (kAcross * kAcross);
      const int64_t problem = a.jac.first_problem + tile / tiles;
      if (a.subtracts != nullptr && (a.subtracts[problem] != 0) == a.grams) continue;
      add(a, shared, problem, tile, tile % tiles, part / kAcross, part % kAcross);
    }
  }

 private:
  // Part (r, c) of a tile: the `stored`-th in `sums`, the `own`-th of its problem.
  static MVNROB_DEVICE void add(const Args& a, Shared& shared, int64_t problem, int64_t stored,
                                int64_t own, int r, int c) {
    const int64_t classes = a.jac.classes;
    int64_t row, column;
    JacTiles::place(own, row, column);
    const int64_t first_row = row * kSide + r * kPart, first_column = column * kSide + c * kPart;
    if (first_row > first_column || first_column >= classes) return;  // all of the block
    double* const S = a.S + problem * classes * classes;
    const int in_row = int(threadIdx.x) / kPart, in_column = int(threadIdx.x) % kPart;
    constexpr int kStep = kThreads / kPart;
    const T* chunk = static_cast<const T*>(a.sums) + stored * a.jac.chunks * kSide * kSide +
                     (r * kPart + in_row) * kSide + c * kPart + in_column;
    const int64_t j = first_column + in_column;
    double sum[kRows];
    bool is_kept[kRows];
    MVNROB_UNROLL
    for (int k = 0; k < kRows; ++k) {
      const int64_t i = first_row + in_row + k * kStep;
      is_kept[k] = i <= j && j < classes;
      sum[k] = is_kept[k] ? S[i * classes + j] : 0.0;
    }
    for (int64_t slice = 0; slice < a.jac.chunks; ++slice) {
      MVNROB_UNROLL
      for (int k = 0; k < kRows; ++k)
        if (is_kept[k]) sum[k] += double(chunk[k * kStep * kSide]);
      chunk += kSide * kSide;
    }
    if (a.grams && (a.jac.first_chunk + a.jac.chunks) * kJacGramChunk >= a.jac.columns) {
      const int64_t t = a.jac.target[problem];
      const JacMiddle middle(a, problem, t);
      MVNROB_UNROLL
      for (int k = 0; k < kRows; ++k) {
        const int64_t i = first_row + in_row + k * kStep;
        if (is_kept[k] && i != t && j != t) sum[k] -= middle.of(i) + middle.of(j);
      }
    }
    MVNROB_UNROLL
    for (int k = 0; k < kRows; ++k) {
      const int64_t i = first_row + in_row + k * kStep;
      if (is_kept[k]) S[i * classes + j] = sum[k];
      shared.sum[in_row + k * kStep][in_column] = sum[k];
    }
    __syncthreads();
    const int64_t i = first_row + in_column;
    MVNROB_UNROLL
    for (int k = 0; k < kRows; ++k) {
      const int64_t from = first_column + in_row + k * kStep;
      if (i < from && from < classes)
        S[from * classes + i] = shared.sum[in_column][in_row + k * kStep];
    }
    __syncthreads();
  }
};

template <class from_t, class to_t>
struct JacConvertArgs {
  const from_t* from;
  to_t* to;
  int64_t count;
};

// A float32 S is summed in float64 and rounded once.
template <class from_t, class to_t>
struct JacCovConvert {
  using Args = JacConvertArgs<from_t, to_t>;
  static constexpr int kThreads = 256;
  static constexpr int kResidentBlocks = 4;

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const int64_t step = int64_t(gridDim.x) * kThreads;
    for (int64_t k = int64_t(blockIdx.x) * kThreads + threadIdx.x; k < a.count; k += step)
      a.to[k] = to_t(a.from[k]);
  }
};

}  // namespace mvnrob::kernels
