// The sampler of mvn_cdf for up to 32 pivots: separation of variables (Genz 1992), a warp to
// itself.
//
// Mapping: a warp takes a stream (the points of one shift and chunk), two points a lane; y in
// shared memory as [pivot][point], coefficients by 16-byte broadcast loads that the L1 cache keeps,
// eight rows of sums in registers. The rows of a block are a rolled loop with shifting
// accumulators, so register indices stay static and the code small. The program's rows and what the
// draws need are read a row ahead. No barrier within a block of threads.
//
// Limiter, from the sm_90 code (bench/results/cuda_predicted.json; an H100 was measured at .81 of
// the floor at 9 pivots in float32 and .60 in float64, planning included and with loads where they
// are used: by bench/cuda_latency.py the draws of a row took all warps of a scheduler 1,400 and
// 1,460 cycles then, 1,940 and 2,220 where the L1 cache misses, and take 1,340 and 1,300 now, or
// 1,360 and 1,300, predicted): issue. A draw takes 147 instructions a point and pivot in float32
// (70 FP32, 49 ALU, 4 MUFU) and 253 in float64, whose 122 of FP64 keep their pipe for 244 cycles:
// the points of a lane are drawn in one piece and share the coefficients. A multiply-add of the
// panel takes 1.4 (1.5) instructions with its loads. For many rows that complete, 52 and 92
// instructions each beside the panel; float64 is then bound by FP64 (116 cycles).
#pragma once
#include "kernels/mvn_cdf_sample.h"

namespace mvnrob::kernels {

template <class scalar_t>
struct MvnCdfSampleSmall {
  using Args = MvnCdfArgs;
  static constexpr int kThreads = 128;
  static constexpr int kResidentBlocks = sizeof(scalar_t) == 4 ? resident_blocks(5, 4) : 2;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kPoints = kTileSamples / kWarp;  // of a lane

  // y of n variables at most.
  static size_t shared_bytes(int n) {
    const int pivots = n < kMaxSmallPivots ? n : kMaxSmallPivots;
    return size_t(kWarps) * pivots * kTileSamples * sizeof(scalar_t);
  }
  static constexpr size_t kSharedBytes =
      size_t(kWarps) * kMaxSmallPivots * kTileSamples * sizeof(scalar_t);  // the most

  static MVNROB_DEVICE_FN void run(const Args& a) {
    if (blockIdx.x == 0 && threadIdx.x == 0) tell_round(a);
    const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
    const int pivots = a.n < kMaxSmallPivots ? a.n : kMaxSmallPivots;
    scalar_t* y = dynamic_shared<scalar_t>() + warp * pivots * kTileSamples + lane;
    for_each_stream(a, &RoundCounters::small, &RoundCounters::small_next, a.small, kWarps,
                    [&](int64_t row, int64_t index) {
                      if constexpr (sizeof(scalar_t) == 8) {  // only float64 samples are tilted
                        if (a.at<RowState>(row, a.layout.state)->plan.tilted)
                          return sample_stream<true>(a, row, index, lane, y);
                      }
                      sample_stream<false>(a, row, index, lane, y);
                    });
  }

 private:
  template <bool tilted>
  static MVNROB_DEVICE_FN void sample_stream(const Args& a, int64_t row, int64_t index, int lane,
                                             scalar_t* y) {
    const RowMemory<scalar_t> m(a, row);
    const Program p = m.state()->program;
    const scalar_t skip = scalar_t(a.order ? HUGE_VAL : m.state()->plan.skip_limit);
    const Stream stream(p, index);
    SampleSums sums{0, 0, 0, 0, 0};
    for (int t = 0; t < stream.tiles; ++t) {
      const uint32_t first = uint32_t(stream.first) + uint32_t(t) * kTileSamples;
      const uint32_t index = math::point_index(a.options.points, first + uint32_t(lane));
      Sample<scalar_t> samples[kPoints];
      for (Sample<scalar_t>& s : samples) tilted ? s.start_tilted() : s.start();
      sample_rows<tilted>(a, m, p, m.shifts() + stream.shift * p.pivots, index, y, samples);
      if constexpr (tilted)
        for (Sample<scalar_t>& s : samples) s.weigh(m.state()->plan.log_unit);
      Completion<scalar_t> rest[kPoints];
      for (int q = 0; q < kPoints; ++q) rest[q].start(samples[q].value);
      complete_rows(m, p, y, skip, rest);
      for (int q = 0; q < kPoints; ++q) add_sample(samples[q], rest[q], sums);
    }
    sums = warp_sums(sums);
    if (lane == 0) m.slots()[int64_t(stream.shift) * a.layout.max_chunks + stream.chunk] = sums;
  }

  // sum[r][q] += coef[l][r] y_l[q] for `columns` pivots
  static MVNROB_DEVICE void multiply(const scalar_t* coef, int columns, const scalar_t* y,
                                     scalar_t (&sum)[kSmallRows][kPoints]) {
    for (int l = 0; l < columns; ++l, coef += kSmallRows, y += kTileSamples) {
      scalar_t c[kSmallRows];
      load(coef, c);
      MVNROB_UNROLL
      for (int q = 0; q < kPoints; ++q) {
        const scalar_t value = y[q * kWarp];
        MVNROB_UNROLL
        for (int r = 0; r < kSmallRows; ++r) sum[r][q] = math::fma(c[r], value, sum[r][q]);
      }
    }
  }

  static MVNROB_DEVICE void clear(scalar_t (&sum)[kSmallRows][kPoints]) {
    MVNROB_UNROLL
    for (int r = 0; r < kSmallRows; ++r) MVNROB_UNROLL
    for (int q = 0; q < kPoints; ++q) sum[r][q] = 0;
  }

  template <bool tilted>
  static MVNROB_DEVICE void sample_rows(const Args& a, const RowMemory<scalar_t>& m,
                                        const Program& p, const uint32_t* shifts, uint32_t index,
                                        scalar_t* y, Sample<scalar_t> (&samples)[kPoints]) {
    // A lane's points are 32 apart, and the first one's index has no 32 in it.
    const uint32_t next = math::point_index(a.options.points, kWarp);
    const int sobol = sobol_coordinates(a);
    int known = 0, ahead = p.sampled_blocks * kSmallRows;
    const ProgramRow<scalar_t>* rows = m.program_rows();
    ProgramRow<scalar_t> row = *rows;
    Draw draw = Draw::read(a, shifts, 0, p.pivots);
    for (int b = 0; b < p.sampled_blocks; ++b) {
      const scalar_t* coef = m.coef() + m.blocks()[b].coef;
      scalar_t sum[kSmallRows][kPoints];
      clear(sum);
      multiply(coef, known, y, sum);
      const scalar_t* triangle = coef + known * kSmallRows;
      MVNROB_ROLLED
      for (int r = 0; r < kSmallRows; ++r, triangle += kSmallRows) {
        const bool closes = row.flags & kClosesPivot, below = row.flags & kBoundedBelow;
        scalar_t drawn[kPoints], c[kSmallRows];
        load(triangle, c);
        MVNROB_UNROLL
        for (int q = 0; q < kPoints; ++q) {
          samples[q].bound(row, sum[0][q]);
          drawn[q] = 0;
        }
        rows += --ahead > 0;
        row = *rows;
        if (closes) {
          // Coordinates first, which have branches: no branch is then between the points' draws.
          scalar_t w[kPoints], wc[kPoints];
          coordinates(a, known, known < sobol, index, next, draw.generator, draw.shift, w, wc);
          draw = Draw::read(a, shifts, known + 1, p.pivots);
          if constexpr (tilted) {
            const scalar_t mu = scalar_t(m.tilt()[known]);
            MVNROB_UNROLL
            for (int q = 0; q < kPoints; ++q) drawn[q] = samples[q].draw_tilted(w[q], wc[q], mu);
          } else {
            draw_points(samples, below, w, wc, drawn);
          }
          MVNROB_UNROLL
          for (int q = 0; q < kPoints; ++q) y[known * kTileSamples + q * kWarp] = drawn[q];
          ++known;
        }
        // The next row's sums move to the front, with the new y's part.
        MVNROB_UNROLL
        for (int q = 0; q < kPoints; ++q) {
          MVNROB_UNROLL
          for (int k = 0; k + 1 < kSmallRows; ++k)
            sum[k][q] = math::fma(c[k], drawn[q], sum[k + 1][q]);
        }
      }
    }
  }

  static MVNROB_DEVICE void complete_rows(const RowMemory<scalar_t>& m, const Program& p,
                                          const scalar_t* y, scalar_t skip,
                                          Completion<scalar_t> (&rest)[kPoints]) {
    const ProgramRow<scalar_t>* rows = m.program_rows() + p.sampled_blocks * kSmallRows;
    const scalar_t* coef = m.coef() + p.completion_coef;
    constexpr int kStep = 4;  // rows of one trip: code size against moving sums to the front
    for (int first = 0; first < p.completion_rows; first += kSmallRows) {
      scalar_t sum[kSmallRows][kPoints];
      clear(sum);
      multiply(coef + int64_t(first) * p.pivots, p.pivots, y, sum);
      MVNROB_ROLLED
      for (int r = 0; r < kSmallRows; r += kStep) {
        MVNROB_UNROLL
        for (int k = 0; k < kStep; ++k) {
          const ProgramRow<scalar_t> row = rows[first + r + k];
          scalar_t nearest = Completion<scalar_t>::nearest(row, sum[k][0]);
          MVNROB_UNROLL
          for (int q = 1; q < kPoints; ++q)
            nearest = math::min(nearest, Completion<scalar_t>::nearest(row, sum[k][q]));
          // Rows that are far for the whole warp are left out; plan.skipped is what that may cost.
          if (__any_sync(kFullWarp, !(nearest > skip))) {
            MVNROB_UNROLL
            for (int q = 0; q < kPoints; ++q) rest[q].multiply(row, sum[k][q]);
          }
        }
        MVNROB_UNROLL
        for (int k = 0; k + kStep < kSmallRows; ++k) MVNROB_UNROLL
        for (int q = 0; q < kPoints; ++q) sum[k][q] = sum[k + kStep][q];
      }
    }
  }
};

}  // namespace mvnrob::kernels
