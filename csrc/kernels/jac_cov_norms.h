// Squared norms of the differences, ||J_t - J_i||^2: one pass over J, limited by memory.
//
// Mapping: a warp takes eight rows of one chunk of columns, a lane every 32nd column, so that row t
// comes from memory once and from a cache for all but the first of its problem's warps. The lanes
// of a row are added in float64; a second pass adds the chunks in their order. Measured on an H100:
// 2.7 to 3.0 TB/s of float32, 2.0 to 2.5 of bfloat16. Products with row t, <J_t, J_i>, come along
// where they are wanted.
#pragma once
#include "kernels/block.h"
#include "kernels/jac_cov_args.h"

namespace mvnrob::kernels {

struct JacNormsArgs {
  JacArgs jac;
  double* chunks;  // [problems, chunks, classes]
  double* norms;   // [batch, classes]
  // The same of the products with row t, where they are wanted, and zeros for each problem.
  double *product_chunks, *products;
  uint32_t* zeros;
};

template <class in_t, bool with_products>
struct JacRowSums {
  using Args = JacNormsArgs;
  using T = JacCompute<in_t>;
  static constexpr int kThreads = 128;
  static constexpr int kResidentBlocks = sizeof(in_t) == 4 ? 8 : with_products ? 5 : 6;

  static int64_t blocks(int64_t problems, int64_t classes, int64_t chunks) {
    return (problems * ((classes + kRows - 1) / kRows) * chunks + kWarps - 1) / kWarps;
  }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const int64_t groups = (a.jac.classes + kRows - 1) / kRows;
    const int64_t units = a.jac.problems * a.jac.chunks * groups;
    for (int64_t unit = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; unit < units;
         unit += int64_t(gridDim.x) * kWarps)
      work(a, unit / groups, unit % groups * kRows);
  }

 private:
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kRows = 8;

  // `piece` counts chunks of all problems.
  static MVNROB_DEVICE void work(const Args& a, int64_t piece, int64_t first_row) {
    const int lane = int(threadIdx.x) % kWarp;
    const JacProblem<in_t> problem(a.jac, a.jac.first_problem + piece / a.jac.chunks);
    const int64_t first = (a.jac.first_chunk + piece % a.jac.chunks) * kJacChunk<in_t>;
    const int64_t whole = first + kJacChunk<in_t>;
    const int64_t end = whole < a.jac.columns ? whole : a.jac.columns;
    const int rows = a.jac.classes - first_row < kRows ? int(a.jac.classes - first_row) : kRows;
    T sum[kRows], product[kRows];
    MVNROB_UNROLL
    for (int i = 0; i < kRows; ++i) sum[i] = product[i] = 0;
    const in_t* row = problem.rows + first_row * a.jac.row_stride;
    // Loads of two columns are under way at once: those of one are few bytes.
    constexpr int kAhead = sizeof(in_t) < 8 ? 2 : 1;
    MVNROB_ROLLED
    for (int64_t column = first + lane; column < end; column += kAhead * kWarp) {
      in_t target[kAhead], value[kAhead][kRows];
      MVNROB_UNROLL
      for (int slot = 0; slot < kAhead; ++slot) {
        const bool inside = column + slot * kWarp < end;
        const in_t* p = row + column + slot * kWarp;
        target[slot] = inside ? problem.target_value(column + slot * kWarp) : in_t{};
        MVNROB_UNROLL
        for (int i = 0; i < kRows; ++i) {
          value[slot][i] = inside && i < rows ? *p : in_t{};
          p += a.jac.row_stride;
        }
      }
      MVNROB_UNROLL
      for (int slot = 0; slot < kAhead; ++slot) {
        MVNROB_UNROLL
        for (int i = 0; i < kRows; ++i) {
          const T u = i < rows ? widen(target[slot]) - widen(value[slot][i]) : T(0);
          sum[i] += u * u;
          if (with_products) product[i] += widen(target[slot]) * widen(value[slot][i]);
        }
      }
    }
    MVNROB_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const double all = warp_sum(double(sum[i]));
      if (lane == i && i < rows) a.chunks[piece * a.jac.classes + first_row + i] = all;
    }
    if constexpr (with_products) {
      MVNROB_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const double all = warp_sum(double(product[i]));
        if (lane == i && i < rows) a.product_chunks[piece * a.jac.classes + first_row + i] = all;
      }
    }
  }
};

template <class in_t>
struct JacNorms : JacRowSums<in_t, false> {};

template <class in_t>
struct JacNormsProducts : JacRowSums<in_t, true> {};

// Norms from the sums of chunks, going on from those of the chunks before.
struct JacNormsSum {
  using Args = JacNormsArgs;
  static constexpr int kThreads = 128;
  static constexpr int kResidentBlocks = 8;

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const int64_t classes = a.jac.classes, step = int64_t(gridDim.x) * kThreads;
    for (int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x; e < a.jac.problems * classes;
         e += step) {
      const int64_t problem = e / classes, i = e % classes;
      const int64_t from = problem * a.jac.chunks * classes + i;
      const int64_t to = (a.jac.first_problem + problem) * classes + i;
      add(a, a.chunks + from, a.norms[to]);
      if (a.products == nullptr) continue;
      add(a, a.product_chunks + from, a.products[to]);
      if (i == 0) a.zeros[a.jac.first_problem + problem] = 0;
    }
  }

 private:
  static MVNROB_DEVICE void add(const Args& a, const double* chunk, double& out) {
    double sum = a.jac.first_chunk == 0 ? 0.0 : out;
    for (int64_t c = 0; c < a.jac.chunks; ++c) sum += chunk[c * a.jac.classes];
    out = sum;
  }
};

}  // namespace mvnrob::kernels
