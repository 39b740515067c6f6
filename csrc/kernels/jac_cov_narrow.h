// jac_cov for at most 10 classes, limited by memory: every product of one column in one thread.
//
// Mapping: a warp takes one chunk of columns of one problem, a lane every 32nd column, with all
// rows of that column and the sums of all pairs in its registers: J is read once, coalesced, and
// nothing is shared. At the end the lanes are folded: in five steps each lane gives away half of
// its sums and keeps the other half. Chunks are added up by JacCovSum.
// Measured on an H100, all of jac_cov: 2.3 TB/s of float32.
#pragma once
#include "kernels/jac_cov_args.h"

namespace mvnrob::kernels {

template <class in_t>
struct JacCovNarrow {
  using Args = JacCovArgs;
  using T = JacCompute<in_t>;
  static constexpr int kMostClasses = 10;
  static constexpr int kThreads = 128;
  static constexpr int kResidentBlocks = sizeof(T) == 4 ? 3 : 2;

  static int64_t blocks(int64_t units) { return (units + kWarps - 1) / kWarps; }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const int64_t units = a.jac.problems * a.jac.chunks;
    for (int64_t unit = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; unit < units;
         unit += int64_t(gridDim.x) * kWarps)
      work(a, unit);
  }

 private:
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kPairs = kMostClasses * (kMostClasses + 1) / 2;
  static constexpr int kFolded = (kPairs + kWarp - 1) / kWarp;  // sums that a lane keeps

  static MVNROB_DEVICE void work(const Args& a, int64_t unit) {
    const int classes = int(a.jac.classes), lane = int(threadIdx.x) % kWarp;
    const JacProblem<in_t> problem(a.jac, a.jac.first_problem + unit / a.jac.chunks);
    const int64_t first = (a.jac.first_chunk + unit % a.jac.chunks) * kJacChunk<in_t>;
    const int64_t whole = first + kJacChunk<in_t>;
    const int64_t end = whole < a.jac.columns ? whole : a.jac.columns;
    T sum[kFolded * kWarp];
    MVNROB_UNROLL
    for (int k = 0; k < kFolded * kWarp; ++k) sum[k] = 0;
    // Two columns ahead: a lane's loads are under way while the products of those before are taken.
    constexpr int kAhead = 2;
    in_t target[kAhead], value[kAhead][kMostClasses];
    const auto load = [&](int slot, int64_t column) {
      if (column >= end) return;
      target[slot] = problem.target_value(column);
      const in_t* p = problem.rows + column;
      MVNROB_UNROLL
      for (int i = 0; i < kMostClasses; ++i) {
        value[slot][i] = i < classes ? *p : in_t{};
        p += a.jac.row_stride;
      }
    };
    MVNROB_UNROLL
    for (int slot = 0; slot < kAhead; ++slot) load(slot, first + lane + slot * kWarp);
    MVNROB_ROLLED
    for (int64_t column = first + lane; column < end; column += kAhead * kWarp) {
      MVNROB_UNROLL
      for (int slot = 0; slot < kAhead; ++slot) {
        if (column + slot * kWarp >= end) break;
        T u[kMostClasses];
        MVNROB_UNROLL
        for (int i = 0; i < kMostClasses; ++i)
          u[i] = i < classes ? widen(target[slot]) - widen(value[slot][i]) : T(0);
        load(slot, column + (kAhead + slot) * kWarp);
        int k = 0;
        MVNROB_UNROLL
        for (int i = 0; i < kMostClasses; ++i) {
          MVNROB_UNROLL
          for (int j = i; j < kMostClasses; ++j, ++k) sum[k] += u[i] * u[j];
        }
      }
    }
    int index = 0;
    fold<kWarp / 2>(sum, lane, index);
    T* out = static_cast<T*>(a.sums) + unit * classes * classes;
    MVNROB_UNROLL
    for (int k = 0; k < kFolded; ++k) {
      int i = 0, j = index + k;  // the pair's place, row after row of the triangle
      while (i < kMostClasses && j >= kMostClasses) j -= kMostClasses - 1 - i++;
      if (j < classes && i <= j) out[i * classes + j] = sum[k];
    }
  }

  // 2 offset kFolded sums of each lane to kFolded sums over all lanes: those from `index` on.
  template <int offset>
  static MVNROB_DEVICE void fold(T* v, int lane, int& index) {
    constexpr int half = offset * kFolded;
    const bool upper = (lane & offset) != 0;
    MVNROB_UNROLL
    for (int k = 0; k < half; ++k) {
      const T mine = upper ? v[k + half] : v[k], given = upper ? v[k] : v[k + half];
      v[k] = mine + __shfl_xor_sync(kFullWarp, given, offset);
    }
    if (upper) index += half;
    if constexpr (offset > 1) fold<offset / 2>(v, lane, index);
  }
};

}  // namespace mvnrob::kernels
