// Products of an outer block's panel with the numbers of 128 points, by a block of 128 threads:
// what the samplers without tensor cores spend their multiply-adds on.
//
// forth: tile[row][point] = sum_l panel[l][row] y[l][point], over the pivots before the block.
// back: tile[l][point] = sum_row panel[l][row] bar[row][point], over the rows of later panels.
// Both operands are staged to shared memory by asynchronous copies while the previous stage is
// multiplied; a thread has 8 rows (or pivots) of 8 points, in float64 of 4.
#pragma once
#include "kernels/mvn_cdf_sample.h"

namespace mvnrob::kernels {

template <class scalar_t>
class PanelProduct {
 public:
  static constexpr int kThreads = kBlockedThreads;  // and points
  static constexpr int kOuter = kOuterRows<scalar_t>;

 private:
  static constexpr int kDepth = 64 / int(sizeof(scalar_t));  // pivots or rows of one stage
  static constexpr int kStages = 2;                          // one multiplied, one under way
  static constexpr int kRows = 8;                            // of the product, in a thread
  static constexpr int kPoints = kOuter / kRows;             // and points
  static constexpr int kQuad = Quad<scalar_t>::kCount;
  static constexpr int kPointThreads = kThreads / kPoints;
  static_assert(kOuter / kRows * kPointThreads == kThreads, "one thread for each part of the tile");
  static constexpr int kPanelStages = kOuter / kDepth;  // of one panel's rows, back
  static constexpr int kPitch = kDepth + kQuad;

 public:
  using Tile = scalar_t[kOuter][kThreads];
  struct Stages {
    union {
      scalar_t panel[kStages][kDepth][kOuter];    // forth
      scalar_t columns[kStages][kOuter][kPitch];  // back
    };
    scalar_t points[kStages][kDepth][kThreads];
  };

  MVNROB_DEVICE PanelProduct(Tile& tile, Stages& stages)
      : tile_(tile),
        stages_(stages),
        thread_(anew(int(threadIdx.x))),
        row0_(thread_ / kPointThreads * kRows),
        point0_(thread_ % kPointThreads * kQuad) {}

  // A barrier comes before, by who calls, since stages may lie where other things did, and one at
  // the end.
  MVNROB_DEVICE_FN void forth(const scalar_t* panel, int columns, const scalar_t* y) const {
    Sums sum;
    clear(sum);
    const int stages = (columns + kDepth - 1) / kDepth;
    const auto fetch = [&](int stage) {
      const int first = stage * kDepth, s = stage % kStages;
      const int depth = columns - first < kDepth ? columns - first : kDepth;
      copy<kDepth * kOuter>(&stages_.panel[s][0][0], panel + int64_t(first) * kOuter,
                            depth * kOuter);
      copy<kDepth * kThreads>(&stages_.points[s][0][0], y + int64_t(first) * kThreads,
                              depth * kThreads);
    };
    for_stages(stages, fetch, [&](int s) {
      MVNROB_UNROLL
      for (int l = 0; l < kDepth; ++l) {
        scalar_t c[kRows];
        load(&stages_.panel[s][l][row0_], c);
        multiply(c, s, l, sum);
      }
    });
    store(sum);
  }

  // The panels that follow an outer block: of `panels`, the one numbered i begins at panel(i), at
  // its coefficient of the first of `columns` pivots, and has the rows first(i) .. last(i) - 1 of
  // `bar`. The same barriers.
  template <class Panel>
  MVNROB_DEVICE_FN void back(int panels, const Panel& panel, int columns,
                             const scalar_t* bar) const {
    Sums sum;
    clear(sum);
    const auto fetch = [&](int stage) {
      constexpr int kStep = kThreads * kQuad, kQuads = kDepth / kQuad;
      static_assert(kOuter * kDepth % kStep == 0, "every thread copies as much");
      const int s = stage % kStages, first = stage % kPanelStages * kDepth;
      const auto from = panel(stage / kPanelStages);
      MVNROB_UNROLL
      for (int e = 0; e < kOuter * kDepth; e += kStep) {
        const int quad = e / kQuad + thread_, l = quad / kQuads, r = quad % kQuads * kQuad;
        const bool there = l < columns;
        copy_async16(&stages_.columns[s][l][r],
                     from.coef + (there ? int64_t(l) * kOuter + first + r : 0), there);
      }
      const int rows = from.rows - first;  // may be none
      copy<kDepth * kThreads>(&stages_.points[s][0][0],
                              bar + int64_t(from.first + first) * kThreads, rows * kThreads);
    };
    for_stages(panels * kPanelStages, fetch, [&](int s) {
      MVNROB_UNROLL
      for (int r = 0; r < kDepth; r += kQuad) {
        Quad<scalar_t> quad[kRows];
        MVNROB_UNROLL
        for (int l = 0; l < kRows; ++l)
          quad[l] = *reinterpret_cast<const Quad<scalar_t>*>(&stages_.columns[s][row0_ + l][r]);
        MVNROB_UNROLL
        for (int e = 0; e < kQuad; ++e) {
          scalar_t c[kRows];
          MVNROB_UNROLL
          for (int l = 0; l < kRows; ++l) c[l] = quad[l].v[e];
          multiply(c, s, r + e, sum);
        }
      }
    });
    store(sum);
  }

 private:
  using Sums = scalar_t[kRows][kPoints];

  static MVNROB_DEVICE void clear(Sums& sum) {
    MVNROB_UNROLL
    for (int r = 0; r < kRows; ++r) MVNROB_UNROLL
    for (int q = 0; q < kPoints; ++q) sum[r][q] = 0;
  }

  template <class Fetch, class Multiply>
  MVNROB_DEVICE void for_stages(int stages, const Fetch& fetch, const Multiply& multiply) const {
    fetch(0);
    copy_async_commit();
    MVNROB_ROLLED
    for (int stage = 0; stage < stages; ++stage) {
      if (stage + 1 < stages) {
        fetch(stage + 1);
        copy_async_commit();
        copy_async_wait<1>();
      } else {
        copy_async_wait<0>();
      }
      __syncthreads();
      multiply(stage % kStages);
      __syncthreads();
    }
  }

  // With number l of the stage's points.
  MVNROB_DEVICE void multiply(const scalar_t (&c)[kRows], int s, int l, Sums& sum) const {
    scalar_t y[kPoints];
    MVNROB_UNROLL
    for (int q = 0; q < kPoints / kQuad; ++q) {
      scalar_t part[kQuad];
      load(&stages_.points[s][l][point0_ + q * kPointThreads * kQuad], part);
      MVNROB_UNROLL
      for (int e = 0; e < kQuad; ++e) y[q * kQuad + e] = part[e];
    }
    MVNROB_UNROLL
    for (int r = 0; r < kRows; ++r) MVNROB_UNROLL
    for (int q = 0; q < kPoints; ++q) sum[r][q] = math::fma(c[r], y[q], sum[r][q]);
  }

  MVNROB_DEVICE void store(const Sums& sum) const {
    MVNROB_UNROLL
    for (int r = 0; r < kRows; ++r) MVNROB_UNROLL
    for (int q = 0; q < kPoints / kQuad; ++q) {
      Quad<scalar_t> part;
      MVNROB_UNROLL
      for (int e = 0; e < kQuad; ++e) part.v[e] = sum[r][q * kQuad + e];
      *reinterpret_cast<Quad<scalar_t>*>(&tile_[row0_ + r][point0_ + q * kPointThreads * kQuad]) =
          part;
    }
    __syncthreads();
  }

  // `padded` numbers, zeros from `count` on. A known number of trips: nothing is left of the loop.
  template <int padded>
  MVNROB_DEVICE void copy(scalar_t* to, const scalar_t* from, int count) const {
    constexpr int kStep = kThreads * kQuad;
    static_assert(padded % kStep == 0, "every thread copies as much");
    to += thread_ * kQuad;
    from += thread_ * kQuad;
    count -= thread_ * kQuad;
    MVNROB_UNROLL
    for (int e = 0; e < padded; e += kStep) copy_async16(to + e, from + e, e < count);
  }

  Tile& tile_;
  Stages& stages_;
  const int thread_, row0_, point0_;
};

}  // namespace mvnrob::kernels
