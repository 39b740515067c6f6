// The sampler of mvn_cdf for more than 32 pivots, if the row is not for tensor cores (is_tensor):
// two-level blocking, a thread for each point.
//
// Mapping: a block of 128 threads takes two streams of one row and walks through the program in
// outer blocks of 64 rows (32 in float64). What earlier pivots contribute to an outer block is one
// matrix product, C[64, 128] = L[64, K] Y[K, 128], both operands staged to shared memory by
// asynchronous copies while the previous stage is multiplied, 64 sums in each thread's registers.
// Then each thread goes through the 64 rows of its own point alone, in register blocks of 16 rows,
// without a barrier: y replaces C in shared memory where C has been used up. The rows' coefficients
// come to shared memory for that, and the program's rows and what the draws need are read a row
// ahead. The y's of the outer block go to global memory (coalesced; the L2 cache keeps what fits)
// for the products to come. Rows that complete are products of the same kind, each followed by a
// normal probability for every row.
//
// Limiter, from the sm_90 code (bench/results/cuda_predicted.json): in float32 issue, 1.13
// instructions for a multiply-add of the product, 1.47 in a register block, 200 a draw, 68 a row
// that completes. In float64 the FP64 pipe (2 cycles an instruction) in the product, 1.41
// instructions for each multiply-add, and issue of the draws for few pivots: 357 instructions, 130
// of them FP64; a row that completes takes 128 and 58. An H100 was measured at .36 of the floor at
// 99 pivots in float64, with loads where they are used: by bench/cuda_latency.py the draws of a row
// took two warps of a scheduler 1,680 cycles then, from the L2 cache, and take 1,110 now
// (predicted), of which chains of FP64 instructions are half.
#pragma once
#include "kernels/mvn_cdf_sample.h"

namespace mvnrob::kernels {

template <class scalar_t>
struct MvnCdfSampleBlocked {
  using Args = MvnCdfArgs;
  static constexpr int kThreads = kBlockedThreads;
  static constexpr int kResidentBlocks = sizeof(scalar_t) == 4 ? resident_blocks(3, 2) : 2;

 private:
  static constexpr int kOuter = kOuterRows<scalar_t>;
  static constexpr int kDepth = 64 / int(sizeof(scalar_t));  // pivots of one stage
  static constexpr int kStages = 2;                          // one multiplied, one under way
  static constexpr int kRows = 8;                            // of the product, in a thread
  static constexpr int kPoints = kOuter / kRows;             // and points
  static constexpr int kQuad = Quad<scalar_t>::kCount;
  static constexpr int kPointThreads = kThreads / kPoints;
  static_assert(kOuter / kRows * kPointThreads == kThreads, "one thread for each part of C");

  struct Stages {
    scalar_t panel[kStages][kDepth][kOuter];
    scalar_t history[kStages][kDepth][kThreads];
  };

  struct Shared {
    scalar_t tile[kOuter][kThreads];  // C, then y
    union {
      Stages stages;  // during the product
      // And after it, of the outer block's register blocks.
      scalar_t coef[kOuter * kInnerRows * (kOuter / kInnerRows + 1) / 2];
    };
    // Out of the registers, which the product wants for itself.
    SampleSums sums[kThreads];
    BlockWork work;
  };

 public:
  static constexpr size_t kSharedBytes = sizeof(Shared);

  // Of one block of threads.
  static size_t history_bytes(int n) { return size_t(n) * kThreads * sizeof(scalar_t); }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    Shared& shared = *dynamic_shared<Shared>();
    for_each_item(
        a, &RoundCounters::blocked, &RoundCounters::blocked_next, a.blocked, shared.work,
        [&](int64_t row, int64_t item) { MvnCdfSampleBlocked(a, row, shared).sample_item(item); });
  }

 private:
  MVNROB_DEVICE MvnCdfSampleBlocked(const Args& a, int64_t row, Shared& shared)
      : a_(a),
        shared_(shared),
        m_(a, row),
        p_(shared.work.program),
        skip_(scalar_t(a.order ? HUGE_VAL : m_.state()->plan.skip_limit)),
        thread_(int(threadIdx.x)),
        history_(reinterpret_cast<scalar_t*>(static_cast<unsigned char*>(a.history) +
                                             blockIdx.x * a.blocked_history)) {}

  // Only float64 samples are tilted.
  MVNROB_DEVICE bool tilted() const {
    if constexpr (sizeof(scalar_t) == 8) return shared_.work.tilted;
    return false;
  }

  MVNROB_DEVICE_FN void sample_item(int64_t item) {
    SampleSums& sums = shared_.sums[thread_];
    sums = {0, 0, 0, 0, 0};
    {
      const Stream stream = stream_of(item);
      const uint32_t* shifts = m_.shifts() + stream.shift * p_.pivots;
      const uint32_t first = uint32_t(stream.first) + uint32_t(thread_ % kTileSamples);
      // The same number of trips for all threads: barriers inside.
      for (int t = 0; t < p_.chunk_tiles; ++t) {
        Sample<scalar_t> sample;
        tilted() ? sample.start_tilted() : sample.start();
        const uint32_t point = first + uint32_t(t) * kTileSamples;
        sample_rows(shifts, math::point_index(a_.options.points, point), sample);
        if (tilted()) sample.weigh(m_.state()->plan.log_unit);
        Completion<scalar_t> rest;
        rest.start(sample.value);
        complete_rows(rest);
        if (t < stream.tiles) add_sample(sample, rest, sums);
      }
    }
    sums = warp_sums(sums);
    __syncthreads();
    const Stream stream = stream_of(item);
    if (stream.tiles > 0 && thread_ % kTileSamples == 0) {
      sums.add(shared_.sums[thread_ + kWarp]);
      m_.slots()[int64_t(stream.shift) * a_.layout.max_chunks + stream.chunk] = sums;
    }
  }

  // This thread's. The last item of an odd number of streams has one only; the second half of the
  // threads then goes along with the first and adds nothing.
  MVNROB_DEVICE Stream stream_of(int64_t item) const {
    const int64_t index = item * kStreamsPerBlock + thread_ / kTileSamples;
    if (index < int64_t(kShifts) * p_.chunks) return Stream(p_, index);
    Stream stream(p_, index - 1);
    stream.tiles = 0;
    return stream;
  }

  MVNROB_DEVICE_FN void sample_rows(const uint32_t* shifts, uint32_t index,
                                    Sample<scalar_t>& sample) {
    constexpr int kInnerBlocks = kOuter / kInnerRows;
    int known = 0;
    for (int o = 0; o < p_.sampled_outer; ++o) {
      const int before = known;
      if (before > 0) product(m_.coef() + m_.outer()[o].coef, before);
      const int end =
          (o + 1) * kInnerBlocks < p_.sampled_blocks ? (o + 1) * kInnerBlocks : p_.sampled_blocks;
      fetch_coefficients(o * kInnerBlocks, end - 1);
      const scalar_t* coef = shared_.coef;
      for (int b = o * kInnerBlocks; b < end; ++b)
        known = inner_block(b, (b - o * kInnerBlocks) * kInnerRows, before, known, coef, shifts,
                            index, sample);
      const bool wanted = o + 1 < p_.sampled_outer || p_.completion_rows > 0;
      for (int j = before; wanted && j < known; ++j)
        history_[int64_t(j) * kThreads + thread_] = shared_.tile[j - before][thread_];
      __syncthreads();
    }
  }

  // Coefficients of register blocks of one outer block, which lie one after the other.
  MVNROB_DEVICE void fetch_coefficients(int first, int last) {
    const int64_t from = m_.blocks()[first].coef;
    const ProgramBlock end = m_.blocks()[last];
    const int count = int(end.coef - from) + (end.known - end.base + kInnerRows) * kInnerRows;
    const scalar_t* coef = m_.coef() + from;
    for (int e = thread_ * kQuad; e < count; e += kThreads * kQuad)
      copy_async16(shared_.coef + e, coef + e);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
  }

  // Rows of one register block, at `offset` in the outer block that begins with pivot `before`.
  // `coef` moves on to the next one's.
  MVNROB_DEVICE int inner_block(int b, int offset, int before, int known, const scalar_t*& coef,
                                const uint32_t* shifts, uint32_t index, Sample<scalar_t>& sample) {
    const int sobol = sobol_coordinates(a_), rows = p_.sampled_blocks * kInnerRows;
    ProgramRow<scalar_t> row = read_row(m_, b * kInnerRows, rows);
    Draw draw = Draw::read(a_, shifts, known, p_.pivots);
    scalar_t sum[kInnerRows];
    MVNROB_UNROLL
    for (int r = 0; r < kInnerRows; ++r)
      sum[r] = before > 0 ? shared_.tile[offset + r][thread_] : scalar_t(0);
    for (int l = 0; l < known - before; ++l, coef += kInnerRows) {
      scalar_t c[kInnerRows];
      load(coef, c);
      const scalar_t y = shared_.tile[l][thread_];
      MVNROB_UNROLL
      for (int r = 0; r < kInnerRows; ++r) sum[r] = math::fma(c[r], y, sum[r]);
    }
    MVNROB_ROLLED
    for (int r = 0; r < kInnerRows; ++r, coef += kInnerRows) {
      const bool closes = row.flags & kClosesPivot, below = row.flags & kBoundedBelow;
      scalar_t y = 0, c[kInnerRows];
      load(coef, c);
      sample.bound(row, sum[0]);
      row = read_row(m_, b * kInnerRows + r + 1, rows);
      if (closes) {
        scalar_t w[1], wc[1];
        coordinates(a_, known, known < sobol, index, 0, draw.generator, draw.shift, w, wc);
        draw = Draw::read(a_, shifts, known + 1, p_.pivots);
        y = tilted() ? sample.draw_tilted(w[0], wc[0], scalar_t(m_.tilt()[known]))
                     : sample.draw(below, w[0], wc[0]);
        // Row `known - before` of C is this row or an earlier one: used up.
        shared_.tile[known - before][thread_] = y;
        ++known;
      }
      // The next row's sum moves to the front, with the new y's part.
      MVNROB_UNROLL
      for (int k = 0; k + 1 < kInnerRows; ++k) sum[k] = math::fma(c[k], y, sum[k + 1]);
    }
    return known;
  }

  MVNROB_DEVICE_FN void complete_rows(Completion<scalar_t>& rest) {
    const ProgramRow<scalar_t>* rows = m_.program_rows() + p_.sampled_blocks * kInnerRows;
    for (int first = 0; first < p_.completion_rows; first += kOuter) {
      product(m_.coef() + p_.completion_coef + int64_t(first) * p_.pivots, p_.pivots);
      MVNROB_ROLLED
      for (int r = 0; r < kOuter; ++r) {
        const ProgramRow<scalar_t> row = rows[first + r];
        const scalar_t sum = shared_.tile[r][thread_];
        // Rows that are far for the whole warp are left out; plan.skipped is what that may cost.
        if (__any_sync(kFullWarp, !(Completion<scalar_t>::nearest(row, sum) > skip_)))
          rest.multiply(row, sum);
      }
      __syncthreads();
    }
  }

  // tile = panel [64, columns] history [columns, 128]. A barrier comes before, by who calls, since
  // the stages lie where coefficients did, and one at the end.
  MVNROB_DEVICE_FN void product(const scalar_t* panel, int columns) {
    const int row0 = thread_ / kPointThreads * kRows;
    const int point0 = thread_ % kPointThreads * kQuad;
    scalar_t sum[kRows][kPoints];
    MVNROB_UNROLL
    for (int r = 0; r < kRows; ++r) MVNROB_UNROLL
    for (int q = 0; q < kPoints; ++q) sum[r][q] = 0;
    const int stages = (columns + kDepth - 1) / kDepth;
    fetch(panel, columns, 0);
    for (int stage = 0; stage < stages; ++stage) {
      if (stage + 1 < stages) {
        fetch(panel, columns, stage + 1);
        copy_async_wait<1>();
      } else {
        copy_async_wait<0>();
      }
      __syncthreads();
      MVNROB_UNROLL
      for (int l = 0; l < kDepth; ++l) {
        scalar_t c[kRows], y[kPoints];
        load(&shared_.stages.panel[stage % kStages][l][row0], c);
        MVNROB_UNROLL
        for (int q = 0; q < kPoints / kQuad; ++q) {
          scalar_t part[kQuad];
          load(&shared_.stages.history[stage % kStages][l][point0 + q * kPointThreads * kQuad],
               part);
          MVNROB_UNROLL
          for (int e = 0; e < kQuad; ++e) y[q * kQuad + e] = part[e];
        }
        MVNROB_UNROLL
        for (int r = 0; r < kRows; ++r) MVNROB_UNROLL
        for (int q = 0; q < kPoints; ++q) sum[r][q] = math::fma(c[r], y[q], sum[r][q]);
      }
      __syncthreads();
    }
    MVNROB_UNROLL
    for (int r = 0; r < kRows; ++r) MVNROB_UNROLL
    for (int q = 0; q < kPoints / kQuad; ++q) {
      Quad<scalar_t> part;
      MVNROB_UNROLL
      for (int e = 0; e < kQuad; ++e) part.v[e] = sum[r][q * kQuad + e];
      *reinterpret_cast<Quad<scalar_t>*>(
          &shared_.tile[row0 + r][point0 + q * kPointThreads * kQuad]) = part;
    }
    __syncthreads();
  }

  // Starts the copies of one stage. Pivots beyond the last one are zeros.
  MVNROB_DEVICE void fetch(const scalar_t* panel, int columns, int stage) {
    const int first = stage * kDepth, s = stage % kStages;
    const int depth = columns - first < kDepth ? columns - first : kDepth;
    copy<kDepth * kOuter>(&shared_.stages.panel[s][0][0], panel + int64_t(first) * kOuter,
                          depth * kOuter);
    copy<kDepth * kThreads>(&shared_.stages.history[s][0][0], history_ + int64_t(first) * kThreads,
                            depth * kThreads);
    copy_async_commit();
  }

  // `padded` numbers, zeros from `count` on. A known number of trips: nothing is left of the loop.
  template <int padded>
  MVNROB_DEVICE void copy(scalar_t* to, const scalar_t* from, int count) {
    constexpr int kStep = kThreads * kQuad;
    static_assert(padded % kStep == 0, "every thread copies as much");
    to += thread_ * kQuad;
    from += thread_ * kQuad;
    count -= thread_ * kQuad;
    MVNROB_UNROLL
    for (int e = 0; e < padded; e += kStep) copy_async16(to + e, from + e, e < count);
  }

  const Args& a_;
  Shared& shared_;
  const RowMemory<scalar_t> m_;
  const Program& p_;
  const scalar_t skip_;
  const int thread_;
  scalar_t* history_;
};

}  // namespace mvnrob::kernels
