// Passes over S that move memory and little else: the sums of chunks to S, and S to another type.
#pragma once
#include "kernels/jac_cov_args.h"

namespace mvnrob::kernels {

// Adds the chunks of `sums` to S, in their order, and writes the mirror image; what jac_cov_gram.h
// owes to the whole of J comes after the last. Mapping: an entry of S per thread, row by row, so
// that reads and one of the two writes are coalesced.
template <class T>
struct JacCovSum {
  using Args = JacCovArgs;
  static constexpr int kThreads = 256;
  static constexpr int kResidentBlocks = 4;

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const int64_t classes = a.jac.classes, area = classes * classes, tile = a.side * a.side;
    const int64_t tiles = JacTiles(classes, a.side).count();
    const int64_t step = int64_t(gridDim.x) * kThreads;
    const int64_t end =
        (a.jac.first_chunk + a.jac.chunks) * (a.grams ? kJacGramChunk : kJacChunk<T>);
    for (int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x; e < a.jac.problems * area;
         e += step) {
      const int64_t problem = e / area, i = e % area / classes, j = e % classes;
      if (i > j) continue;
      if (a.subtracts != nullptr && (a.subtracts[a.jac.first_problem + problem] != 0) == a.grams)
        continue;
      const int64_t index = problem * tiles + JacTiles::index(i / a.side, j / a.side);
      const T* chunk = static_cast<const T*>(a.sums) + index * a.jac.chunks * tile +
                       i % a.side * a.side + j % a.side;
      double* S = a.S + (a.jac.first_problem + problem) * area;
      double sum = S[i * classes + j];
      for (int64_t c = 0; c < a.jac.chunks; ++c) sum += double(chunk[c * tile]);
      if (a.grams && end >= a.jac.columns) {
        const int64_t t = a.jac.target[a.jac.first_problem + problem];
        const JacMiddle middle(a, a.jac.first_problem + problem, t);
        if (i != t && j != t) sum -= middle.of(i) + middle.of(j);
      }
      S[i * classes + j] = sum;
      S[j * classes + i] = sum;
    }
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
