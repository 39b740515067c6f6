// The sampler of mvn_cdf for tensor_pivots of MvnCdfArgs and more, in float32: the products with
// earlier pivots on tensor cores.
//
// Mapping: a block of 128 threads takes four streams of one row, each warp the 64 points of one,
// two a lane. As in mvn_cdf_sample_blocked.h the program goes by outer blocks of 64 rows, and what
// earlier pivots contribute to one is a matrix product, C[64, 64] = L[64, K] Y[K, 64] in a warp.
// Both factors are float16 hi + lo in the order of the fragments (mvn_cdf_halves.h); products are
// hi hi + hi lo + lo hi, what is left out is 2^-22 of each. Both come to shared memory by
// asynchronous copies two slabs of 16 pivots ahead: L for all warps, a warp's own y's where its
// part of C will be. Sums of a slab come from the tensor core, which cuts off instead of rounding,
// and are added in float32.
//
// Then each lane goes through the 64 rows of its two points alone, in register blocks of 16 rows; y
// replaces C in shared memory where C has been used up, and at the end goes to global memory as
// fragments. What the rows read lies in shared memory too, in the place of L, for two blocks leave
// the L1 cache 28 KB of an H100's multiprocessor: with loads of its own each row waited for four of
// them, one after the other, from the L2 cache. The blocks of one multiprocessor are in different
// phases: while one keeps the tensor cores busy, another one draws. A warp waits for others only
// where L or rows arrive.
//
// Limiter, from the sm_90 code (bench/results/cuda_predicted_tensor.md): issue up to a thousand
// pivots, where the bytes of y from memory and the L2 cache are as busy; beyond, those. An H100 was
// measured at .38 of the floor at 99 pivots and .30 at 999 with the loads where they are used, of
// which bench/cuda_latency.py says that two warps of a scheduler took 1,710 cycles for the draws of
// a row and 1,560 to 1,680 for a slab; it now predicts 640 (265 instructions each) and 1,360 (300,
// of them 96 HMMA, which keep the tensor core for 1,150).
#pragma once
#include "kernels/mvn_cdf_halves.h"
#include "kernels/mvn_cdf_sample.h"

namespace mvnrob::kernels {

struct MvnCdfSampleTensor {
  using Args = MvnCdfArgs;
  static constexpr int kWarps = kTensorStreams;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kResidentBlocks = 2;

 private:
  static constexpr int kOuter = kPanelRows;
  static constexpr int kStages = 3;                     // slabs of L: one multiplied, two under way
  static constexpr int kPoints = kTileSamples / kWarp;  // of a lane
  static constexpr int kColumns = kThreads * kPoints;   // points of a block
  static constexpr int kGroups = kTileSamples / 8;      // of 8 points, in a warp
  static constexpr int kTogether = 4;                   // groups whose sums are made side by side
  static constexpr int kTiles = kOuter / 16;            // of 16 rows
  // A row of 260 numbers: neither fragments of y nor points meet in a bank, those of C in pairs.
  static constexpr int kPitch = kColumns + 4;

  struct alignas(16) Words {
    uint32_t v[4];
  };

  // What the rows of an outer block read.
  struct Rows {
    static constexpr int kInner = kOuter / kInnerRows;
    // Of the register blocks, one after the other: earlier pivots of the outer block, triangle.
    float coef[kOuter * kInnerRows * (kInner + 1) / 2];
    ProgramRow<float> rows[kOuter + 1];  // the one beyond is read, not used; so are draws
    Draw draws[kWarps][kOuter + 1];      // of the outer block's pivots
  };

  struct Shared {
    // C from row kSlab on. Row j is y of pivot `base` + j; base, a multiple of kSlab, is at most
    // kSlab - 1 before the outer block's own pivots. During the product the rows of C have y's of
    // the slabs under way (arrived).
    float tile[kSlab + kOuter][kPitch];
    union {
      uint32_t panel[kStages][kSlabWords];  // during the product
      Rows rows;                            // and after it
    };
    float inverse[kOuter];  // scales
    // Out of the registers, which the product wants for itself.
    Sample<float> samples[kPoints][kThreads];
    Stream streams[kWarps];  // `first` moves on
    // Tiles to go, as many for every warp: barriers inside. A shorter stream goes along and adds
    // nothing.
    int32_t left[kWarps];
    SampleSums sums[kWarps];
    BlockWork work;
  };
  static_assert(kStages * kGroups * kWarp * 4 <= kOuter * kTileSamples, "y's under way, in C");

  static constexpr int kSlabHistory = kColumns / 8 * kWarp;  // Words of a slab

  struct Place {
    unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    // Of the lane's first point in a row of the tile.
    MVNROB_DEVICE unsigned column() const { return warp * kTileSamples + lane; }
  };

 public:
  static constexpr size_t kSharedBytes = sizeof(Shared);
  static_assert(kSharedBytes <= 99 * 1024, "the most of a block on any architecture");

  // Of one block of threads.
  static size_t history_bytes(int pivots) {
    return size_t(slabs_of(pivots)) * kSlabHistory * sizeof(Words);
  }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    Shared& shared = *dynamic_shared<Shared>();
    for_each_item(a, &RoundCounters::tensor, &RoundCounters::tensor_next, a.tensor, shared.work,
                  [&](int64_t, int64_t item) { MvnCdfSampleTensor(a, shared).sample_item(item); });
  }

 private:
  MVNROB_DEVICE MvnCdfSampleTensor(const Args& a, Shared& shared)
      : a_(a), shared_(shared), p_(shared.work.program) {}

  // Made where it is used, like all places in memory: the product wants the registers.
  MVNROB_DEVICE RowMemory<float> memory() const { return {a_, shared_.work.row}; }
  // Of the warp, at the lane, which reads what it wrote.
  MVNROB_DEVICE Words* history() const {
    const Place place;
    return reinterpret_cast<Words*>(static_cast<unsigned char*>(a_.history) +
                                    blockIdx.x * a_.tensor_history) +
           (place.warp * kGroups * kWarp + place.lane);
  }

  MVNROB_DEVICE_FN void sample_item(int64_t item) {
    start_stream(item);
    while (shared_.left[Place().warp] > 0) sample_tile();
    const Place place;
    const Stream& stream = shared_.streams[place.warp];
    if (place.lane == 0)
      memory().slots()[int64_t(stream.shift) * a_.layout.max_chunks + stream.chunk] =
          shared_.sums[place.warp];
  }

  MVNROB_DEVICE void start_stream(int64_t item) const {
    const Place place;
    if (place.lane == 0) {
      shared_.streams[place.warp] = Stream(p_, item * kTensorStreams + int64_t(place.warp));
      shared_.sums[place.warp] = {0, 0, 0, 0, 0};
      shared_.left[place.warp] = p_.chunk_tiles;
    }
    __syncwarp();
  }

  // 64 points of the warp through the whole program: outer blocks, then blocks of rows that
  // complete.
  MVNROB_DEVICE_FN void sample_tile() {
    Sample<float> samples[kPoints];
    MVNROB_UNROLL
    for (int q = 0; q < kPoints; ++q) samples[q].start();
    int known = 0;
    for (int o = 0; o * kOuter < p_.sampled_outer * kOuter + p_.completion_rows; ++o) {
      const int completing = o - p_.sampled_outer;
      if (completing == 0) start_completion(samples);
      if (known > 0) {
        MVNROB_UNROLL
        for (int q = 0; q < kPoints; ++q) shared_.samples[q][threadIdx.x] = samples[q];
        product(memory().coef() + (completing < 0
                                       ? memory().outer()[o].coef
                                       : p_.completion_coef + completing * panel_size(p_.pivots)),
                known);
        MVNROB_UNROLL
        for (int q = 0; q < kPoints; ++q) samples[q] = shared_.samples[q][threadIdx.x];
      }
      stage(o, known);
      if (completing < 0)
        known = sample_rows(o, known, samples);
      else
        complete_rows();
    }
    if (p_.completion_rows == 0) start_completion(samples);
    SampleSums sums{0, 0, 0, 0, 0};
    MVNROB_UNROLL
    for (int q = 0; q < kPoints; ++q) add_sample(samples[q], completion(q), sums);
    sums = warp_sums(sums);
    const Place place;
    __syncwarp();
    if (place.lane == 0) {
      const int done = p_.chunk_tiles - shared_.left[place.warp]--;
      if (done < shared_.streams[place.warp].tiles) shared_.sums[place.warp].add(sums);
      shared_.streams[place.warp].first += kTileSamples;
    }
    __syncwarp();
  }

  // Of this lane's points, in the rows of the tile that C leaves free, where y's of earlier pivots
  // are no longer wanted.
  MVNROB_DEVICE Completion<float> completion(int q) const {
    const unsigned column = Place().column() + q * kWarp;
    return {shared_.tile[0][column], shared_.tile[1][column], shared_.tile[2][column],
            shared_.tile[3][column]};
  }
  MVNROB_DEVICE void keep_completion(int q, const Completion<float>& rest) const {
    const unsigned column = Place().column() + q * kWarp;
    shared_.tile[0][column] = rest.completed;
    shared_.tile[1][column] = rest.missing;
    shared_.tile[2][column] = rest.mass;
    shared_.tile[3][column] = rest.largest;
  }
  MVNROB_DEVICE void start_completion(const Sample<float> (&samples)[kPoints]) const {
    MVNROB_UNROLL
    for (int q = 0; q < kPoints; ++q) {
      Completion<float> rest;
      rest.start(samples[q].value);
      keep_completion(q, rest);
    }
  }

  // Brings to shared memory what the rows of outer block o (or so many that complete) read, the L1
  // cache being small beside two blocks' shared memory. Pivots from `before` on.
  MVNROB_DEVICE_FN void stage(int o, int before) const {
    Rows& rows = shared_.rows;
    const Place place;
    // The only ones are there from the first tile on.
    if (p_.sampled_outer == 1 && p_.completion_rows == 0 &&
        shared_.left[place.warp] < p_.chunk_tiles)
      return;
    __syncthreads();  // the product before is done with its stages, or other rows are
    const int first = o < p_.sampled_outer
                          ? o * Rows::kInner
                          : p_.sampled_blocks + (o - p_.sampled_outer) * Rows::kInner;
    int blocks = Rows::kInner;
    if (o < p_.sampled_outer) {
      blocks = p_.sampled_blocks - first < blocks ? p_.sampled_blocks - first : blocks;
      const ProgramBlock from = memory().blocks()[first];
      const ProgramBlock last = memory().blocks()[first + blocks - 1];
      const int count =
          int(last.coef - from.coef) + (last.known - last.base + kInnerRows) * kInnerRows;
      const float* coef = memory().coef() + from.coef;
      for (int e = int(threadIdx.x) * 4; e < count; e += kThreads * 4)
        copy_async16(rows.coef + e, coef + e);
    }
    if (int(threadIdx.x) < blocks * kInnerRows)
      copy_async16(&rows.rows[threadIdx.x],
                   &memory().program_rows()[first * kInnerRows + int(threadIdx.x)]);
    copy_async_commit();
    const int left = p_.pivots - before;
    const uint32_t* shifts =
        memory().shifts() + shared_.streams[place.warp].shift * p_.pivots + before;
    for (int e = int(place.lane); e < kOuter && e < left; e += kWarp)
      rows.draws[place.warp][e] = {shifts[e], generator_of(a_, before + e)};
    copy_async_wait<0>();
    __syncthreads();
  }

  // The rows of outer block o.
  MVNROB_DEVICE int sample_rows(int o, int before, Sample<float> (&samples)[kPoints]) const {
    constexpr int kInnerBlocks = Rows::kInner;
    const int left = p_.sampled_blocks - o * kInnerBlocks;
    int known = before;
    const float* coef = shared_.rows.coef;
    for (int b = 0; b < kInnerBlocks && b < left; ++b)
      known = inner_block(coef, b * kInnerRows, before, known, samples);
    if (left > kInnerBlocks || p_.completion_rows > 0) keep(before, known);
    return known;
  }

  // Rows of one register block, at `offset` in the outer block that begins with pivot `before`.
  // `coef` moves on to the next one's.
  MVNROB_DEVICE int inner_block(const float*& coef, int offset, int before, int known,
                                Sample<float> (&samples)[kPoints]) const {
    const Place place;
    const uint32_t point = math::point_index(
        a_.options.points, uint32_t(shared_.streams[place.warp].first) + uint32_t(place.lane));
    // A lane's points are 32 apart, and the first one's index has no 32 in it.
    const uint32_t next = math::point_index(a_.options.points, kWarp);
    const int sobol = sobol_coordinates(a_);
    const int base = before / kSlab * kSlab;
    const unsigned column = place.column();
    const auto at = [&](int row, int q) -> float& { return shared_.tile[row][column + q * kWarp]; };
    float sum[kInnerRows][kPoints];
    MVNROB_UNROLL
    for (int r = 0; r < kInnerRows; ++r) MVNROB_UNROLL
    for (int q = 0; q < kPoints; ++q) sum[r][q] = before > 0 ? at(kSlab + offset + r, q) : 0.0f;
    for (int l = before; l < known; ++l, coef += kInnerRows) {
      float c[kInnerRows];
      load(coef, c);
      MVNROB_UNROLL
      for (int q = 0; q < kPoints; ++q) {
        const float y = at(l - base, q);
        MVNROB_UNROLL
        for (int r = 0; r < kInnerRows; ++r) sum[r][q] = math::fma(c[r], y, sum[r][q]);
      }
    }
    const ProgramRow<float>* rows = shared_.rows.rows + offset;
    const Draw* draws = shared_.rows.draws[place.warp] + (known - before);
    // A row ahead, and so are the draws.
    ProgramRow<float> row = *rows;
    Draw draw = *draws;
    MVNROB_ROLLED
    for (int r = 0; r < kInnerRows; ++r, coef += kInnerRows) {
      const int flags = row.flags;
      float y[kPoints], c[kInnerRows];
      load(coef, c);
      MVNROB_UNROLL
      for (int q = 0; q < kPoints; ++q) {
        samples[q].bound(row, sum[0][q]);
        y[q] = 0;
      }
      row = *++rows;
      if (flags & kClosesPivot) {
        // Coordinates first, which have branches: no branch is then between the points' draws.
        float w[kPoints], wc[kPoints];
        coordinates(a_, known, known < sobol, point, next, draw.generator, draw.shift, w, wc);
        draw = *++draws;
        draw_points(samples, flags & kBoundedBelow, w, wc, y);
        // C of this row, or of an earlier one, which lies beyond: used up.
        MVNROB_UNROLL
        for (int q = 0; q < kPoints; ++q) at(known - base, q) = y[q];
        ++known;
      }
      // The next row's sums move to the front, with the new y's part.
      MVNROB_UNROLL
      for (int q = 0; q < kPoints; ++q) {
        MVNROB_UNROLL
        for (int k = 0; k + 1 < kInnerRows; ++k) sum[k][q] = math::fma(c[k], y[q], sum[k + 1][q]);
      }
    }
    return known;
  }

  // The warp's y's of pivots before .. known - 1 go to the history, those of a slab that is not
  // full to the tile's first rows as well.
  MVNROB_DEVICE_FN void keep(int before, int known) const {
    const int base = before / kSlab * kSlab, count = known - base;
    const Place place;
    const unsigned column = place.warp * kTileSamples + place.lane / 4, pair = place.lane % 4 * 2;
    __syncwarp();
    Words* to = history() + int64_t(base / kSlab) * kSlabHistory;
    for (int slab = 0; slab < count; slab += kSlab, to += kSlabHistory) {
      MVNROB_UNROLL
      for (int n = 0; n < kTileSamples / 8; ++n) {
        float y[4];
        MVNROB_UNROLL
        for (int e = 0; e < 4; ++e) {
          const int j = slab + int(pair) + e % 2 + e / 2 * 8;
          const float scaled = shared_.tile[j][column + n * 8] * kPointScale;
          y[e] = j < count ? math::max(-kMostPoint, math::min(kMostPoint, scaled)) : 0.0f;
        }
        Words words;
        split(y[0], y[1], words.v[0], words.v[2]);
        split(y[2], y[3], words.v[1], words.v[3]);
        to[n * kWarp] = words;
      }
    }
    __syncwarp();
    const int full = count / kSlab * kSlab;
    for (int j = full; j < count; ++j) MVNROB_UNROLL
    for (int q = 0; q < kPoints; ++q)
      shared_.tile[j - full][place.column() + q * kWarp] =
          shared_.tile[j][place.column() + q * kWarp];
  }

  // 64 of the rows that complete.
  MVNROB_DEVICE void complete_rows() const {
    const ProgramRow<float>* rows = shared_.rows.rows;
    const float skip = float(a_.order ? HUGE_VAL : memory().state()->plan.skip_limit);
    const unsigned column = Place().column();
    Completion<float> rest[kPoints];
    MVNROB_UNROLL
    for (int q = 0; q < kPoints; ++q) rest[q] = completion(q);
    MVNROB_ROLLED
    for (int r = 0; r < kOuter; ++r) {
      const ProgramRow<float> row = rows[r];
      float sum[kPoints], nearest = HUGE_VALF;
      MVNROB_UNROLL
      for (int q = 0; q < kPoints; ++q) {
        sum[q] = shared_.tile[kSlab + r][column + q * kWarp];
        nearest = math::min(nearest, Completion<float>::nearest(row, sum[q]));
      }
      // Rows that are far for the whole warp are left out; plan.skipped is what that may cost.
      if (__any_sync(kFullWarp, !(nearest > skip))) {
        MVNROB_UNROLL
        for (int q = 0; q < kPoints; ++q) rest[q].multiply(row, sum[q]);
      }
    }
    MVNROB_UNROLL
    for (int q = 0; q < kPoints; ++q) keep_completion(q, rest[q]);
  }

  // The tile's C = panel [64, columns] y [columns, 64]. What the tile held there has been used up.
  MVNROB_DEVICE void product(const float* panel, int columns) const {
    float sum[kTiles][kGroups][4];
    MVNROB_UNROLL
    for (int m = 0; m < kTiles; ++m) MVNROB_UNROLL
    for (int n = 0; n < kGroups; ++n) MVNROB_UNROLL
    for (int e = 0; e < 4; ++e) sum[m][n][e] = 0;
    // Of the slab to be fetched next, for this thread.
    const float* words = panel + kPanelRows + threadIdx.x * 4;
    const Words* y = history();
    int to_fetch = slabs_of(columns);
    __syncthreads();  // the rows before are done
    MVNROB_UNROLL
    for (int s = 0; s < kStages - 1; ++s) {
      if (s == 0 && threadIdx.x < kOuter / 4)
        copy_async16(shared_.inverse + threadIdx.x * 4, panel + threadIdx.x * 4);
      fetch(words, y, to_fetch, s);
    }
    int stage = 0, fetched = kStages - 1;
    do {
      copy_async_wait<kStages - 2>();
      __syncthreads();
      fetch(words, y, to_fetch, fetched);
      multiply(stage, sum);
      fetched = stage;
      stage = stage + 1 < kStages ? stage + 1 : 0;
    } while (to_fetch > 1 - kStages);
    const Place own;
    const unsigned row = own.lane / 4, column = own.warp * kTileSamples + own.lane % 4 * 2;
    __syncwarp();
    MVNROB_UNROLL
    for (int m = 0; m < kTiles; ++m) MVNROB_UNROLL
    for (int half = 0; half < 2; ++half) {
      const unsigned r = m * 16 + half * 8 + row;
      const float inverse = shared_.inverse[r];
      MVNROB_UNROLL
      for (int n = 0; n < kGroups; ++n) {
        float* to = &shared_.tile[kSlab + r][column + n * 8];
        to[0] = sum[m][n][half * 2] * inverse;
        to[1] = sum[m][n][half * 2 + 1] * inverse;
      }
    }
    __syncwarp();
  }

  // Where y's of group n come to from the history: 16 lanes' Words in a row of C, in the columns of
  // the warp, so that each lane reads what it has fetched and nobody else waits.
  MVNROB_DEVICE Words* arrived(int stage, int n) const {
    const Place place;
    const unsigned row = (stage * kGroups + n) * (kWarp / 16) + place.lane / 16;
    return reinterpret_cast<Words*>(
        &shared_.tile[kSlab + row][place.warp * kTileSamples + place.lane % 16 * 4]);
  }

  // Sums of one slab.
  MVNROB_DEVICE void multiply(int stage, float (&sum)[kTiles][kGroups][4]) const {
    const auto* panel = reinterpret_cast<const Words*>(shared_.panel[stage]) + Place().lane;
    MVNROB_UNROLL
    for (int g = 0; g < kGroups; g += kTogether) {
      Words y[kTogether];
      MVNROB_UNROLL
      for (int n = 0; n < kTogether; ++n) y[n] = *arrived(stage, g + n);
      MVNROB_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        const Words a[2] = {panel[m * 2 * kWarp], panel[(m * 2 + 1) * kWarp]};
        float some[kTogether][4];
        MVNROB_UNROLL
        for (int n = 0; n < kTogether; ++n) MVNROB_UNROLL
        for (int e = 0; e < 4; ++e) some[n][e] = 0;
        // The small products first.
        MVNROB_UNROLL
        for (int term = 0; term < 3; ++term) MVNROB_UNROLL
        for (int n = 0; n < kTogether; ++n) {
          const uint32_t b[2] = {y[n].v[term == 0 ? 2 : 0], y[n].v[term == 0 ? 3 : 1]};
          multiply_matrices(some[n], a[term == 1].v, b);
        }
        MVNROB_UNROLL
        for (int n = 0; n < kTogether; ++n) MVNROB_UNROLL
        for (int e = 0; e < 4; ++e) sum[m][g + n][e] += some[n][e];
      }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
      // Holds back the compiler, which here would load ahead until no register is left.
      __syncwarp();
#endif
    }
  }

  // Starts the copies of one slab, where there is one to go; a group in any case.
  MVNROB_DEVICE void fetch(const float*& words, const Words*& y, int& slabs, int stage) const {
    constexpr int kStep = kThreads * 4;
    static_assert(kSlabWords % kStep == 0, "every thread copies as much");
    if (slabs-- > 0) {
      uint32_t* to = shared_.panel[stage] + int(threadIdx.x) * 4;
      MVNROB_UNROLL
      for (int e = 0; e < kSlabWords; e += kStep) copy_async16(to + e, words + e);
      MVNROB_UNROLL
      for (int n = 0; n < kGroups; ++n) copy_async16(arrived(stage, n), y + n * kWarp);
      words += kSlabWords;
      y += kSlabHistory;
    }
    copy_async_commit();
  }

  const Args& a_;
  Shared& shared_;
  const Program& p_;
};

}  // namespace mvnrob::kernels
