// The sampler of mvn_cdf for kTensorDoublePivots and more, in float64 where a device has the
// tensor cores for it (tensor.h) and products are large (is_tensor): those with earlier pivots on
// them.
//
// Mapping: a block of 128 threads takes two streams of one row, a thread for each point. As in
// mvn_cdf_sample_blocked.h the program goes by outer blocks, here of 64 rows: what is read of
// earlier y's falls with their number. What earlier pivots contribute to one is a matrix product,
// C[64, 32] = L[64, K] Y[K, 32] in a warp, by multiply-adds in float64, so sums differ from the
// other sampler's in their order only. Both factors lie in the order of the fragments
// (mvn_cdf_fragments.h) and come to shared memory by asynchronous copies, a slab of 8 pivots each,
// to where C will be: slabs of L, which serve all warps, and a warp's own y's. Three are on their
// way while one is multiplied, as the y's of all blocks are more than the L2 cache holds; in
// registers they could not be, where a load shares one of six counters with what is waited for
// first.
//
// Then each thread goes through the 64 rows of its own point alone, in register blocks of 16 rows,
// whose coefficients come to the place of L; the program's rows and what the draws need are read a
// row ahead. y replaces C in shared memory where C has been used up, and at the end goes to global
// memory as fragments. The blocks of one multiprocessor are in different phases: while one keeps
// the tensor cores busy, another one draws. A warp waits for others only where L or coefficients
// arrive.
//
// Limiter, from the sm_90 code (bench/results/cuda_predicted_tensor_double.md): issue up to some
// three hundred pivots, 352 instructions a draw; beyond, the FP64 lanes and tensor cores, which are
// taken to go by turns, and from four thousand on the bytes of y. An H100 took .14 of the samples
// of its warps to wait for y's that were loaded into registers a slab ahead, and a slab 1,650
// cycles for two warps of a scheduler, where bench/cuda_latency.py predicts 1,030 now: it takes a
// warp 93 instructions, 16 of them DMMA of 32 cycles, for which the lanes would need 1,024.
#pragma once
#include "kernels/mvn_cdf_fragments.h"
#include "kernels/mvn_cdf_sample.h"

namespace mvnrob::kernels {

struct MvnCdfSampleTensorDouble {
  using Args = MvnCdfArgs;
  static constexpr int kThreads = kBlockedThreads;
  static constexpr int kResidentBlocks = 2;

 private:
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kSlab = fragments::kSlab;
  static constexpr int kOuter = fragments::kPanelRows;
  static constexpr int kStages = 4;           // slabs: one multiplied, the others under way
  static constexpr int kGroups = kWarp / 8;   // of 8 points, in a warp
  static constexpr int kTiles = kOuter / 16;  // of 16 rows
  static constexpr int kFirst = kSlab - 1;    // of C, in the tile
  // Threads that work on C meet in a bank in pairs; points do not.
  static constexpr int kPitch = kThreads + 2;
  static_assert(kShifts % kStreamsPerBlock == 0, "no block has fewer streams");

  struct alignas(16) Pair {
    double v[2];
  };

  struct Shared {
    // C from row kFirst on. Row j is y of pivot `base` + j; base, a multiple of kSlab, is at most
    // kSlab - 1 before the outer block's own pivots.
    double tile[kFirst + kOuter][kPitch];
    double coef[kOuter * kInnerRows];  // of a register block
    SampleSums sums[kWarps];
    BlockWork work;
  };

  static constexpr int kSlabHistory = kThreads / 8 * kWarp;  // Pairs of a slab

  // Both factors of a slab, in the place of C.
  struct Stage {
    alignas(16) double panel[fragments::kSlabNumbers];
    Pair points[kSlabHistory];
  };
  static_assert(kStages * sizeof(Stage) <= sizeof(double) * kOuter * kPitch, "C is larger");
  static_assert(kFirst * kPitch % 2 == 0, "C is aligned");

 public:
  static constexpr size_t kSharedBytes = sizeof(Shared);
  static_assert(kSharedBytes <= 81 * 1024, "two blocks of a multiprocessor with 164 KiB");

  // Of one block of threads.
  static size_t history_bytes(int pivots) {
    return size_t(fragments::slabs_of(pivots)) * kSlabHistory * sizeof(Pair);
  }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    Shared& shared = *dynamic_shared<Shared>();
    for_each_item(a, &RoundCounters::tensor, &RoundCounters::tensor_next, a.tensor, shared.work,
                  [&](int64_t row, int64_t item) {
                    MvnCdfSampleTensorDouble(a, row, shared).sample_item(item);
                  });
  }

 private:
  MVNROB_DEVICE MvnCdfSampleTensorDouble(const Args& a, int64_t row, Shared& shared)
      : a_(a),
        shared_(shared),
        m_(a, row),
        p_(shared.work.program),
        thread_(int(threadIdx.x)),
        history_(reinterpret_cast<Pair*>(static_cast<unsigned char*>(a.history) +
                                         blockIdx.x * a.tensor_history) +
                 warp() * kGroups * kWarp + lane()) {}

  MVNROB_DEVICE int lane() const { return thread_ % kWarp; }
  MVNROB_DEVICE int warp() const { return thread_ / kWarp; }
  // Of the warp's sums.
  MVNROB_DEVICE SampleSums& sums() const { return shared_.sums[warp()]; }

  MVNROB_DEVICE Stream stream_of(int64_t item) const {
    return Stream(p_, item * kStreamsPerBlock + thread_ / kTileSamples);
  }

  MVNROB_DEVICE_FN void sample_item(int64_t item) {
    if (lane() == 0) sums() = {0, 0, 0, 0, 0};
    {
      const Stream stream = stream_of(item);
      const uint32_t* shifts = m_.shifts() + stream.shift * p_.pivots;
      const uint32_t first = uint32_t(stream.first) + uint32_t(thread_ % kTileSamples);
      // The same number of trips for all threads: barriers inside.
      for (int t = 0; t < p_.chunk_tiles; ++t) {
        const uint32_t point = first + uint32_t(t) * kTileSamples;
        SampleSums some{0, 0, 0, 0, 0};
        sample(shifts, math::point_index(a_.options.points, point), some);
        some = warp_sums(some);
        if (lane() == 0 && t < stream.tiles) sums().add(some);
      }
    }
    __syncthreads();
    const Stream stream = stream_of(item);
    if (thread_ % kTileSamples == 0) {
      SampleSums whole = shared_.sums[warp()];
      whole.add(shared_.sums[warp() + 1]);
      m_.slots()[int64_t(stream.shift) * a_.layout.max_chunks + stream.chunk] = whole;
    }
  }

  // This thread's point through the whole program.
  MVNROB_DEVICE_FN void sample(const uint32_t* shifts, uint32_t index, SampleSums& some) {
    Sample<double> sample;
    shared_.work.tilted ? sample.start_tilted() : sample.start();
    int known = 0;
    for (int o = 0; o < p_.sampled_outer; ++o) {
      if (known > 0) product(m_.coef() + m_.outer()[o].coef, known);
      known = sample_rows(o, known, shifts, index, sample);
    }
    if (shared_.work.tilted) sample.weigh(m_.state()->plan.log_unit);
    Completion<double> rest;
    rest.start(sample.value);
    for (int first = 0; first < p_.completion_rows; first += kOuter) {
      product(m_.coef() + p_.completion_coef + first / kOuter * fragments::panel_size(p_.pivots),
              p_.pivots);
      complete_rows(first, rest);
    }
    add_sample(sample, rest, some);
  }

  // The rows of outer block o.
  MVNROB_DEVICE int sample_rows(int o, int before, const uint32_t* shifts, uint32_t index,
                                Sample<double>& sample) const {
    constexpr int kInnerBlocks = kOuter / kInnerRows;
    const int first = o * kInnerBlocks, left = p_.sampled_blocks - first;
    int known = before;
    for (int b = 0; b < kInnerBlocks && b < left; ++b)
      known = inner_block(first + b, b * kInnerRows, before, known, shifts, index, sample);
    if (left > kInnerBlocks || p_.completion_rows > 0) keep(before, known);
    return known;
  }

  // Coefficients of a register block.
  MVNROB_DEVICE const double* fetch_coefficients(const ProgramBlock& block) const {
    const int count = (block.known - block.base + kInnerRows) * kInnerRows;
    const double* coef = m_.coef() + block.coef;
    double* to = shared_.coef;
    __syncthreads();  // the block before is done with it
    for (int e = thread_ * 2; e < count; e += kThreads * 2) copy_async16(to + e, coef + e);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    return to;
  }

  // Rows of one register block, at `offset` in the outer block that begins with pivot `before`.
  MVNROB_DEVICE int inner_block(int b, int offset, int before, int known, const uint32_t* shifts,
                                uint32_t index, Sample<double>& sample) const {
    const int base = before / kSlab * kSlab;
    const int sobol = sobol_coordinates(a_), rows = p_.sampled_blocks * kInnerRows;
    const double* coef = fetch_coefficients(m_.blocks()[b]);
    ProgramRow<double> row = read_row(m_, b * kInnerRows, rows);
    Draw draw = Draw::read(a_, shifts, known, p_.pivots);
    double sum[kInnerRows];
    MVNROB_UNROLL
    for (int r = 0; r < kInnerRows; ++r)
      sum[r] = before > 0 ? shared_.tile[kFirst + offset + r][thread_] : 0.0;
    for (int l = before; l < known; ++l, coef += kInnerRows) {
      double c[kInnerRows];
      load(coef, c);
      const double y = shared_.tile[l - base][thread_];
      MVNROB_UNROLL
      for (int r = 0; r < kInnerRows; ++r) sum[r] = math::fma(c[r], y, sum[r]);
    }
    MVNROB_ROLLED
    for (int r = 0; r < kInnerRows; ++r, coef += kInnerRows) {
      const bool closes = row.flags & kClosesPivot, below = row.flags & kBoundedBelow;
      double y = 0, c[kInnerRows];
      load(coef, c);
      sample.bound(row, sum[0]);
      row = read_row(m_, b * kInnerRows + r + 1, rows);
      if (closes) {
        double w[1], wc[1];
        coordinates(a_, known, known < sobol, index, 0, draw.generator, draw.shift, w, wc);
        draw = Draw::read(a_, shifts, known + 1, p_.pivots);
        y = shared_.work.tilted ? sample.draw_tilted(w[0], wc[0], m_.tilt()[known])
                                : sample.draw(below, w[0], wc[0]);
        // C of this row, or of an earlier one: used up.
        shared_.tile[known - base][thread_] = y;
        ++known;
      }
      // The next row's sum moves to the front, with the new y's part.
      MVNROB_UNROLL
      for (int k = 0; k + 1 < kInnerRows; ++k) sum[k] = math::fma(c[k], y, sum[k + 1]);
    }
    return known;
  }

  // The warp's y's of pivots before .. known - 1 go to the history, those of a slab that is not
  // full to the tile's first rows as well.
  MVNROB_DEVICE_FN void keep(int before, int known) const {
    const int base = before / kSlab * kSlab, count = known - base;
    const int column = warp() * kWarp + lane() / 4, row = lane() % 4;
    __syncwarp();
    Pair* to = history_ + int64_t(base / kSlab) * kSlabHistory;
    for (int slab = 0; slab < count; slab += kSlab, to += kSlabHistory) {
      MVNROB_UNROLL
      for (int n = 0; n < kGroups; ++n) {
        Pair pair;
        MVNROB_UNROLL
        for (int e = 0; e < 2; ++e) {
          const int j = slab + row + e * 4;
          pair.v[e] = j < count ? shared_.tile[j][column + n * 8] : 0.0;
        }
        to[n * kWarp] = pair;
      }
    }
    __syncwarp();
    const int full = count / kSlab * kSlab;
    for (int j = full; j < count; ++j) shared_.tile[j - full][thread_] = shared_.tile[j][thread_];
  }

  // 64 of the rows that complete.
  MVNROB_DEVICE void complete_rows(int first, Completion<double>& rest) const {
    const ProgramRow<double>* rows = m_.program_rows() + p_.sampled_blocks * kInnerRows + first;
    const double skip = a_.order ? HUGE_VAL : m_.state()->plan.skip_limit;
    MVNROB_ROLLED
    for (int r = 0; r < kOuter; ++r) {
      const ProgramRow<double> row = rows[r];
      const double sum = shared_.tile[kFirst + r][thread_];
      // Rows that are far for the whole warp are left out; plan.skipped is what that may cost.
      if (__any_sync(kFullWarp, !(Completion<double>::nearest(row, sum) > skip)))
        rest.multiply(row, sum);
    }
  }

  // The warp's C = panel [64, columns] y [columns, 32]. What the tile held there has been used up.
  MVNROB_DEVICE_FN void product(const double* panel, int columns) const {
    const int slabs = fragments::slabs_of(columns);
    double sum[kTiles][kGroups][4];
    MVNROB_UNROLL
    for (int m = 0; m < kTiles; ++m) MVNROB_UNROLL
    for (int n = 0; n < kGroups; ++n) MVNROB_UNROLL
    for (int e = 0; e < 4; ++e) sum[m][n][e] = 0;
    __syncthreads();  // all warps are done with the tile
    MVNROB_ROLLED
    for (int slab = 0; slab < kStages - 1; ++slab) fetch(panel, slabs, slab);
    MVNROB_ROLLED
    for (int slab = 0; slab < slabs; ++slab) {
      copy_async_wait<kStages - 2>();
      __syncthreads();
      fetch(panel, slabs, slab + kStages - 1);
      const Stage& stage = stages()[slab % kStages];
      const Pair* const points = stage.points + warp() * kGroups * kWarp + lane();
      const auto* of_panel = reinterpret_cast<const Pair*>(stage.panel) + lane();
      double y[kGroups][2];
      MVNROB_UNROLL
      for (int n = 0; n < kGroups; ++n) {
        const Pair pair = points[n * kWarp];
        MVNROB_UNROLL
        for (int e = 0; e < 2; ++e) y[n][e] = pair.v[e];
      }
      MVNROB_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        const Pair low = of_panel[m * 2 * kWarp], high = of_panel[(m * 2 + 1) * kWarp];
        const double l[4] = {low.v[0], low.v[1], high.v[0], high.v[1]};
        MVNROB_UNROLL
        for (int n = 0; n < kGroups; ++n) multiply_matrices(sum[m][n], l, y[n]);
      }
    }
    __syncthreads();  // all warps are done with the stages
    const int row = lane() / 4, column = warp() * kWarp + lane() % 4 * 2;
    MVNROB_UNROLL
    for (int m = 0; m < kTiles; ++m) MVNROB_UNROLL
    for (int half = 0; half < 2; ++half) MVNROB_UNROLL
    for (int n = 0; n < kGroups; ++n)
      *reinterpret_cast<Pair*>(&shared_.tile[kFirst + m * 16 + half * 8 + row][column + n * 8]) = {
          {sum[m][n][half * 2], sum[m][n][half * 2 + 1]}};
    __syncwarp();
  }

  MVNROB_DEVICE Stage* stages() const { return reinterpret_cast<Stage*>(&shared_.tile[kFirst][0]); }

  // Starts the copies of one slab, where there is one; a group in any case. What a lane copies of
  // the y's is what it wrote.
  MVNROB_DEVICE void fetch(const double* panel, int slabs, int slab) const {
    constexpr int kStep = kThreads * 2;
    static_assert(fragments::kSlabNumbers % kStep == 0, "every thread copies as much");
    if (slab < slabs) {
      Stage& stage = stages()[slab % kStages];
      const double* from = panel + int64_t(slab) * fragments::kSlabNumbers + thread_ * 2;
      MVNROB_UNROLL
      for (int e = 0; e < fragments::kSlabNumbers; e += kStep)
        copy_async16(stage.panel + thread_ * 2 + e, from + e);
      const Pair* const points = history_ + int64_t(slab) * kSlabHistory;
      MVNROB_UNROLL
      for (int n = 0; n < kGroups; ++n)
        copy_async16(stage.points + (warp() * kGroups + n) * kWarp + lane(), points + n * kWarp);
    }
    copy_async_commit();
  }

  const Args& a_;
  Shared& shared_;
  const RowMemory<double> m_;
  const Program& p_;
  const int thread_;
  Pair* const history_;
};

}  // namespace mvnrob::kernels
