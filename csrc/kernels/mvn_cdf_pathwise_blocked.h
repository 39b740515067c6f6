// mvn_cdf_pathwise.h for more than 32 pivots: two-level blocking forth and back, as in
// mvn_cdf_sample_blocked.h.
//
// Mapping: a block of 128 threads takes two tiles of 64 samples, a thread a sample: the same tile
// of two shifts, or where cov is wanted two tiles of one shift. Forth, the part of earlier pivots
// in an outer block's rows is a matrix product (mvn_cdf_panel_product.h), then each thread draws
// its own sample's pivots. Back, the part of all later rows in the bars of an outer block's y's is
// the transposed product, and each thread goes back through the rows alone. So y's and bars are
// written once, as [number][sample] in global memory, and read once for each outer block: by every
// 64 rows (float64: 32). Bars are of f, not of its logarithm: the products of bars and y's over the
// samples take them as they are.
//
// Limiter, from the sm_90 code and bench/cuda_latency.py with three warps of a scheduler: issue in
// the products, 1.14 and 1.17 instructions for a multiply-add forth and back (float32), and latency
// of the rows, 396 instructions and 470 cycles of a scheduler for a draw, 152 and 280 on the way
// back. Of 999 pivots the products are a good half of that and draws a quarter; what must be done
// (bench/cuda_floor_pathwise.py) takes as long by multiply-adds, two for a pair of row and pivot,
// as by the bytes of y's, slopes and bars, 5.9 ms for 20 such rows of 9,728 points on an H100.
// Predicted for these samples, not measured: 12 to 18 ms, where a thread alone with each sample
// took some 340 (float32, slopes to limits).
#pragma once
#include "kernels/mvn_cdf_panel_product.h"
#include "kernels/mvn_cdf_pathwise_step.h"

namespace mvnrob::kernels {

template <class scalar_t, bool tilted>
struct MvnCdfPathwiseBlocked {
  using Args = MvnCdfPathwiseArgs;
  static constexpr int kThreads = kBlockedThreads;
  static constexpr int kResidentBlocks = sizeof(scalar_t) == 4 ? resident_blocks(3, 2) : 2;

 private:
  using Product = PanelProduct<scalar_t>;
  static constexpr int kOuter = Product::kOuter;
  static constexpr int kInnerBlocks = kOuter / kInnerRows;
  static constexpr int kQuad = Quad<scalar_t>::kCount;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kHalves = kThreads / kTileSamples;
  static_assert(kShifts % kHalves == 0 && kPathwiseChunks % kHalves == 0, "halves never meet");

  // Products over the samples: so many places by so many pivots, of a thread kEach of both.
  static constexpr int kPlaces = kOuter, kColumns = 2 * kOuter, kColumnThreads = 16;
  static constexpr int kEach = kOuter / 8;
  static constexpr int kDepth = 128 / int(sizeof(scalar_t));  // samples of a stage
  static constexpr int kPitch = kDepth + kQuad;               // threads' rows are in other banks
  struct Samples {
    scalar_t bar[kPlaces][kPitch], y[kColumns][kPitch];
  };

  // Bars of the limits of the pivot whose group is gone through back, and who attains them.
  struct Open {
    scalar_t upper, lower;
    int32_t at_upper, at_lower;
  };
  struct Shared {
    union {
      struct {
        // What a product gives for the rows; then y. Back: the bars of the pivots' y.
        typename Product::Tile tile;
        union {
          typename Product::Stages stages;
          // And after it, of the outer block's register blocks.
          scalar_t coef[kOuter * kInnerRows * (kInnerBlocks + 1) / 2];
        };
      };
      Samples samples[2];  // one multiplied, one under way
    };
    // A thread's integrand, and what is open between outer blocks: out of the registers, which the
    // products want for themselves.
    scalar_t f[kThreads];
    Open open[kThreads];
    double value[kWarps];
    unsigned long long item;
    typename Block<kThreads>::Shared block;
  };

 public:
  static constexpr size_t kSharedBytes = sizeof(Shared);

  // Of one block: numbers [n][samples] of eight kinds.
  static MVNROB_HD int64_t scratch_bytes(int64_t n) {
    return 8 * n * kThreads * int64_t(sizeof(scalar_t));
  }

  static MVNROB_HD int64_t items(const Args& a, int64_t rows) {
    return rows * (a.wants_cov() ? kShifts : kShifts / kHalves * kPathwiseChunks);
  }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    Shared& shared = *dynamic_shared<Shared>();
    const int64_t each = items(a, 1);
    for (;;) {
      if (threadIdx.x == 0) shared.item = atomicAdd(&a.plan.counters->blocked_next, 1ull);
      __syncthreads();
      const int64_t item = int64_t(shared.item), row = item / each;
      __syncthreads();
      if (row >= a.plan.rows) return;
      if (a.failed(row) ||
          RowMemory<scalar_t>(a.plan, row).state()->facts.pivots <= kMaxSmallPivots)
        continue;
      MvnCdfPathwiseBlocked(a, row, int(item % each), shared).sample();
    }
  }

 private:
  MVNROB_DEVICE MvnCdfPathwiseBlocked(const Args& a, int64_t row, int part, Shared& shared)
      : a_(a),
        row_(row),
        part_(part),
        shared_(shared),
        thread_(int(threadIdx.x)),
        m_(a.plan, row),
        size_(m_.state()->facts.variables),
        pivots_(m_.state()->facts.pivots),
        sampled_(size_ - m_.state()->live),
        own_(reinterpret_cast<scalar_t*>(a.scratch + blockIdx.x * a.scratch_bytes) + thread_) {}

  // Of each pivot: y and the slopes of its draw, and in a group the places that attain its limits.
  // Of each place: f times its bar, and where some row has a lower limit, of the bar of either
  // limit, in the place of the slopes of pivots that are done with by then.
  enum Kind {
    kY,
    kBar,
    kRhoUpper,
    kGammaUpper,
    kRhoLower,
    kGammaLower,
    kAtUpper,
    kAtLower,
    kBarUpper = kRhoUpper,
    kBarLower = kRhoLower
  };
  // Of this thread.
  MVNROB_DEVICE scalar_t* numbers(Kind kind, int i) const {  // 2^31 numbers are 8 GiB a block
    return own_ + (kind * a_.plan.n + i) * kThreads;
  }
  MVNROB_DEVICE scalar_t& f() const { return shared_.f[thread_]; }
  MVNROB_DEVICE scalar_t& mine(Kind kind, int i) const { return *numbers(kind, i); }
  // Of thread 0.
  MVNROB_DEVICE scalar_t* all(Kind kind, int i) const { return numbers(kind, i) - thread_; }

  // ---- tiles and shifts of the halves of the block ----

  MVNROB_DEVICE int half() const { return thread_ / kTileSamples; }
  MVNROB_DEVICE int shift_of(int half) const {
    return a_.wants_cov() ? part_ : part_ / kPathwiseChunks * kHalves + half;
  }
  MVNROB_DEVICE int tile_of(int step, int half) const {
    return a_.wants_cov() ? step * kHalves + half
                          : step * kPathwiseChunks + part_ % kPathwiseChunks;
  }
  // The sums of the chunk that a tile belongs to: chunks take tiles in turn, so that a sum's order,
  // and its bits, are the same with cov and without.
  MVNROB_DEVICE double* slot(int step, int half) const {
    return pathwise_slot(a_, row_, shift_of(half), tile_of(step, half) % kPathwiseChunks);
  }
  MVNROB_DEVICE bool is_first(int step, int half) const {
    return tile_of(step, half) < kPathwiseChunks;
  }
  MVNROB_DEVICE int tiles() const { return int(pathwise_tiles(a_, row_)); }
  MVNROB_DEVICE bool has(int step, int half) const { return tile_of(step, half) < tiles(); }

  MVNROB_DEVICE double* sums() const {
    return a_.sums + (row_ * kShifts + part_) * a_.plan.n * a_.width;
  }

  MVNROB_DEVICE_FN void sample() {
    unsigned flags = 0;
    for (int r = thread_; r < size_; r += kThreads) flags |= unsigned(program_row(r)->flags);
    bounded_ = Block<kThreads>(shared_.block).any_bits(flags) & kHasLower;
    if (a_.wants_cov())
      for (int64_t e = thread_; e < int64_t(size_) * a_.width; e += kThreads) sums()[e] = 0;
    for (int step = 0; has(step, 0); ++step) {
      f() = tilted ? 0 : 1;  // tilted, its logarithm first
      draw_rows(step);
      if constexpr (tilted) f() = ::exp(f() - m_.state()->plan.log_unit);
      complete_rows();
      // A half without a tile goes along and has no weight.
      if (!has(step, half())) f() = 0;
      add_value(step);
      reverse(step);
      if (a_.wants_cov()) add_products();
      __syncthreads();
    }
  }

  // At a place, after the padding of the sampled ones.
  MVNROB_DEVICE const ProgramRow<scalar_t>* program_row(int place) const {
    const int padding = m_.state()->program.sampled_blocks * kInnerRows - sampled_;
    return m_.program_rows() + (place < sampled_ ? place : place + padding);
  }

  // ---- coefficients ----

  // Of the register blocks of one outer block, which lie one after the other.
  MVNROB_DEVICE_FN void fetch_coefficients(int o) const {
    const int first = o * kInnerBlocks, last = end_block(o) - 1;
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
  MVNROB_DEVICE int sampled_blocks() const { return m_.state()->program.sampled_blocks; }
  MVNROB_DEVICE int end_block(int o) const {
    const int end = (o + 1) * kInnerBlocks, all = sampled_blocks();
    return end < all ? end : all;
  }
  MVNROB_DEVICE const scalar_t* completing(int first) const {
    return m_.coef() + m_.state()->program.completion_coef + int64_t(first) * pivots_;
  }

  // ---- forth ----

  // Limits of the pivot whose group is being read, and the first places that attain them.
  struct Limits {
    scalar_t upper = scalar_t(HUGE_VAL), lower = scalar_t(-HUGE_VAL), at_upper = -1, at_lower = -1;
  };

  MVNROB_DEVICE_FN void draw_rows(int step) {
    const uint32_t* shifts = m_.shifts() + shift_of(half()) * pivots_;
    // A shift has at most 2^31 points; wider numbers would cost registers all the way.
    const uint32_t index = math::point_index(
        a_.plan.options.points, uint32_t(a_.first[row_]) +
                                    uint32_t(tile_of(step, half())) * uint32_t(kTileSamples) +
                                    uint32_t(thread_ % kTileSamples));
    Limits open;
    int known = 0;
    for (int o = 0; o * kInnerBlocks < sampled_blocks(); ++o) {
      const int before = known;
      if (before > 0)
        Product(shared_.tile, shared_.stages)
            .forth(m_.coef() + m_.outer()[o].coef, before, all(kY, 0));
      fetch_coefficients(o);
      const scalar_t* coef = shared_.coef;
      for (int b = o * kInnerBlocks; b < end_block(o); ++b)
        known = draw_block(b, before, known, coef, shifts, index, open);
      __syncthreads();
    }
  }

  // Rows of one register block of the outer block that begins with pivot `before`. `coef` moves on
  // to the next one's.
  MVNROB_DEVICE int draw_block(int b, int before, int known, const scalar_t*& coef,
                               const uint32_t* shifts, uint32_t index, Limits& open) {
    const int sobol = sobol_coordinates(a_.plan), rows = sampled_blocks() * kInnerRows;
    const int offset = b % kInnerBlocks * kInnerRows;
    ProgramRow<scalar_t> row = read_row(m_, b * kInnerRows, rows);
    Draw draw = Draw::read(a_.plan, shifts, known, pivots_);
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
      const scalar_t u = row.upper + sum[0], l = row.lower + sum[0];
      const auto place = scalar_t(b * kInnerRows + r);
      if (u < open.upper) {
        open.upper = u;
        open.at_upper = place;
      }
      if (l > open.lower) {
        open.lower = l;
        open.at_lower = place;
      }
      row = read_row(m_, b * kInnerRows + r + 1, rows);
      scalar_t y = 0;
      if (closes) {
        scalar_t w[1], wc[1];
        coordinates(a_.plan, known, known < sobol, index, 0, draw.generator, draw.shift, w, wc);
        draw = Draw::read(a_.plan, shifts, known + 1, pivots_);
        PathwiseDraw<scalar_t> d;
        if constexpr (tilted)
          d = draw_pathwise_tilted(scalar_t(m_.tilt()[known]), open.lower, open.upper, w[0], wc[0],
                                   f());
        else
          d = draw_pathwise(below, open.lower, open.upper, w[0], wc[0], f());
        y = d.y;
        // Row `known - before` of the product is this row or an earlier one: used up.
        shared_.tile[known - before][thread_] = y;
        mine(kY, known) = y;
        mine(kRhoUpper, known) = d.rho_upper;
        mine(kGammaUpper, known) = d.gamma_upper;
        if (bounded_) {
          mine(kRhoLower, known) = d.rho_lower;
          mine(kGammaLower, known) = d.gamma_lower;
        }
        if (sampled_ > pivots_) {
          mine(kAtUpper, known) = open.at_upper;
          mine(kAtLower, known) = open.at_lower;
        }
        open = Limits{};
        ++known;
      }
      // The next row's sum moves to the front, with the new y's part.
      scalar_t c[kInnerRows];
      load(coef, c);
      MVNROB_UNROLL
      for (int k = 0; k + 1 < kInnerRows; ++k) sum[k] = math::fma(c[k], y, sum[k + 1]);
    }
    return known;
  }

  // Their bars are those of ln f, which is not known before all are done.
  MVNROB_DEVICE_FN void complete_rows() {
    for (int first = sampled_; first < size_; first += kOuter) {
      Product(shared_.tile, shared_.stages)
          .forth(completing(first - sampled_), pivots_, all(kY, 0));
      const int end = first + kOuter < size_ ? kOuter : size_ - first;
      ProgramRow<scalar_t> row = *program_row(first);
      MVNROB_ROLLED
      for (int r = 0; r < end; ++r) {
        const ProgramRow<scalar_t> now = row;
        row = *program_row(first + (r + 1 < end ? r + 1 : r));
        scalar_t to_upper, to_lower;
        f() *= complete_pathwise(now, shared_.tile[r][thread_], to_upper, to_lower);
        mine(bounded_ ? kBarUpper : kBar, first + r) = to_upper;
        if (bounded_) mine(kBarLower, first + r) = to_lower;
      }
      __syncthreads();
    }
  }

  // ---- and back ----

  MVNROB_DEVICE void set_bar(int place, scalar_t upper, scalar_t lower) const {
    mine(kBar, place) = upper + lower;
    if (!bounded_) return;
    mine(kBarUpper, place) = upper;
    mine(kBarLower, place) = lower;
  }

  MVNROB_DEVICE_FN void reverse(int step) {
    MVNROB_ROLLED
    for (int place = sampled_; place < size_; ++place)
      set_bar(place, f() * mine(bounded_ ? kBarUpper : kBar, place),
              bounded_ ? f() * mine(kBarLower, place) : scalar_t(0));
    __syncthreads();
    add_slopes(step, sampled_, size_);
    int pivot = pivots_;
    for (int o = (sampled_blocks() + kInnerBlocks - 1) / kInnerBlocks - 1; o >= 0; --o) {
      const int before = m_.outer()[o].known;
      gather(o, before, pivot - before);
      fetch_coefficients(o);
      Slopes ahead = slopes(pivot - 1);
      Open open = shared_.open[thread_];
      for (int b = end_block(o) - 1; b >= o * kInnerBlocks; --b)
        reverse_block(b, before, pivot, ahead, open);
      shared_.open[thread_] = open;
      __syncthreads();
      const int end = (o + 1) * kOuter < sampled_ ? (o + 1) * kOuter : sampled_;
      add_slopes(step, o * kOuter, end);
    }
  }

  // The part of all rows after outer block o in the bars of its `count` pivots from `before` on.
  MVNROB_DEVICE_FN void gather(int o, int before, int count) const {
    struct Panel {
      const scalar_t* coef;
      int first, rows;  // places
    };
    const int outer = m_.state()->program.sampled_outer, later = outer - 1 - o;
    const int completions = (size_ - sampled_ + kOuter - 1) / kOuter;
    if (later + completions == 0) {
      for (int l = 0; l < count; ++l) shared_.tile[l][thread_] = 0;
      return;
    }
    const auto panel = [&](int i) -> Panel {
      const bool sampled = i < later;
      const int first = sampled ? (o + 1 + i) * kOuter : sampled_ + (i - later) * kOuter;
      const scalar_t* coef =
          sampled ? m_.coef() + m_.outer()[o + 1 + i].coef : completing(first - sampled_);
      return {coef + int64_t(before) * kOuter, first, (sampled ? sampled_ : size_) - first};
    };
    Product(shared_.tile, shared_.stages).back(later + completions, panel, count, all(kBar, 0));
  }

  // What is read of a pivot, one ahead.
  struct Slopes {
    scalar_t rho_upper, gamma_upper, rho_lower, gamma_lower;
  };
  MVNROB_DEVICE Slopes slopes(int pivot) const {
    pivot = pivot < 0 ? 0 : pivot;
    Slopes s{mine(kRhoUpper, pivot), mine(kGammaUpper, pivot), 0, 0};
    if (bounded_) {
      s.rho_lower = mine(kRhoLower, pivot);
      s.gamma_lower = mine(kGammaLower, pivot);
    }
    return s;
  }

  MVNROB_DEVICE void reverse_block(int b, int before, int& pivot, Slopes& ahead, Open& open) {
    const ProgramBlock block = m_.blocks()[b];
    const bool grouped = sampled_ > pivots_;
    const scalar_t* coef =
        shared_.coef + int(block.coef - m_.blocks()[b / kInnerBlocks * kInnerBlocks].coef);
    const scalar_t* columns = coef + (block.known - block.base) * kInnerRows;
    scalar_t bar[kInnerRows];
    MVNROB_UNROLL
    for (int r = 0; r < kInnerRows; ++r) bar[r] = 0;
    const int end = (b + 1) * kInnerRows < sampled_ ? kInnerRows : sampled_ - b * kInnerRows;
    int flags = program_row(b * kInnerRows + end - 1)->flags;
    MVNROB_ROLLED
    for (int r = end - 1; r >= 0; --r) {
      const int place = b * kInnerRows + r;
      if (flags & kClosesPivot) {
        --pivot;
        const Slopes now = ahead;
        ahead = slopes(pivot - 1);
        scalar_t c[kInnerRows];
        load(columns + r * kInnerRows, c);
        // bar[k] is that of the row k + 1 further on. Two chains, half the latency.
        scalar_t even = shared_.tile[pivot - before][thread_], odd = 0;
        if constexpr (tilted) even -= f() * scalar_t(m_.tilt()[pivot]);
        MVNROB_UNROLL
        for (int k = 0; k + 1 < kInnerRows; ++k) {
          scalar_t& chain = k % 2 ? odd : even;
          chain = math::fma(c[k], bar[k], chain);
        }
        const scalar_t to_y = even + odd;
        open.upper = math::fma(now.gamma_upper, to_y, f() * now.rho_upper);
        open.lower = math::fma(now.gamma_lower, to_y, -f() * now.rho_lower);
        if (grouped) {
          open.at_upper = int(mine(kAtUpper, pivot));
          open.at_lower = int(mine(kAtLower, pivot));
        }
      }
      flags = program_row(place > 0 ? place - 1 : 0)->flags;
      const scalar_t upper = !grouped || open.at_upper == place ? open.upper : scalar_t(0);
      const scalar_t lower = !grouped || open.at_lower == place ? open.lower : scalar_t(0);
      set_bar(place, upper, lower);
      MVNROB_UNROLL
      for (int k = kInnerRows - 1; k > 0; --k) bar[k] = bar[k - 1];
      bar[0] = upper + lower;
    }
    // To the outer block's earlier pivots.
    for (int l = 0; l < block.known - block.base; ++l, coef += kInnerRows) {
      scalar_t c[kInnerRows];
      load(coef, c);
      scalar_t even = shared_.tile[l][thread_], odd = 0;
      MVNROB_UNROLL
      for (int r = 0; r < kInnerRows; r += 2) {
        even = math::fma(c[r], bar[r], even);
        odd = math::fma(c[r + 1], bar[r + 1], odd);
      }
      shared_.tile[l][thread_] = even + odd;
    }
  }

  // ---- the sums, over the samples of all threads ----

  // To a number of a chunk.
  MVNROB_DEVICE void add(int step, int half, int number, double x) const {
    double* to = slot(step, half) + number;
    *to = is_first(step, half) ? x : *to + x;
  }

  MVNROB_DEVICE void add_value(int step) const {
    const double sum = warp_sum(double(f()));
    if (thread_ % kWarp == 0) shared_.value[thread_ / kWarp] = sum;
    __syncthreads();
    constexpr int kEachHalf = kWarps / kHalves;
    if (thread_ % kTileSamples == 0 && has(step, half())) {
      double x = 0;
      MVNROB_UNROLL
      for (int w = 0; w < kEachHalf; ++w) x += shared_.value[half() * kEachHalf + w];
      add(step, half(), 0, x);
    }
  }

  // A warp for each place of first .. last - 1; some at a time, whose loads are then under way
  // together.
  MVNROB_DEVICE_FN void add_slopes(int step, int first, int last) const {
    MVNROB_UNROLL
    for (int side = 0; side < 2; ++side) {
      const Kind kind = side == 1 ? kBarLower : bounded_ ? kBarUpper : kBar;
      const bool some = side == 0 || bounded_;
      MVNROB_ROLLED
      for (int place0 = first + thread_ / kWarp; place0 < last; place0 += 4 * kWarps) {
        double sum[4][kHalves];
        MVNROB_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int place = place0 + i * kWarps;
          const scalar_t* x = all(kind, place) + thread_ % kWarp;
          MVNROB_UNROLL
          for (int h = 0; h < kHalves; ++h)
            sum[i][h] = some && place < last
                            ? double(x[h * kTileSamples]) + double(x[h * kTileSamples + kWarp])
                            : 0.0;
        }
        MVNROB_UNROLL
        for (int i = 0; i < 4; ++i) MVNROB_UNROLL
        for (int h = 0; h < kHalves; ++h) {
          const int place = place0 + i * kWarps;
          if (some) sum[i][h] = warp_sum(sum[i][h]);
          if (thread_ % kWarp == 0 && place < last && has(step, h))
            add(step, h, 1 + 2 * place + side, sum[i][h]);
        }
      }
    }
  }

  // Pivots that the row at this place depends on.
  MVNROB_DEVICE int columns(int place) const {
    return place < sampled_ ? m_.pivot_of()[place] : pivots_;
  }

  // Places by pivots. Both halves are of one shift.
  MVNROB_DEVICE_FN void add_products() const {
    for (int place0 = 0; place0 < size_; place0 += kPlaces) {
      const int end = columns((place0 + kPlaces < size_ ? place0 + kPlaces : size_) - 1);
      for (int l0 = 0; l0 < end; l0 += kColumns) add_product(place0, l0, end);
    }
  }

  MVNROB_DEVICE void add_product(int place0, int l0, int end) const {
    constexpr int kParts = kThreads / kDepth;
    const int row0 = thread_ / kColumnThreads * kEach, column0 = thread_ % kColumnThreads;
    scalar_t sum[kEach][kEach];
    MVNROB_UNROLL
    for (int i = 0; i < kEach; ++i) MVNROB_UNROLL
    for (int j = 0; j < kEach; ++j) sum[i][j] = 0;
    __syncthreads();  // the memory is free, and what others wrote is there
    fetch(place0, l0, end, 0);
    MVNROB_ROLLED
    for (int part = 0; part < kParts; ++part) {
      if (part + 1 < kParts) {
        fetch(place0, l0, end, part + 1);
        copy_async_wait<1>();
      } else {
        copy_async_wait<0>();
      }
      __syncthreads();
      const Samples& samples = shared_.samples[part % 2];
      MVNROB_ROLLED
      for (int s = 0; s < kDepth; s += kQuad) {
        Quad<scalar_t> y[kEach];
        MVNROB_UNROLL
        for (int j = 0; j < kEach; ++j)
          y[j] =
              *reinterpret_cast<const Quad<scalar_t>*>(&samples.y[column0 + kColumnThreads * j][s]);
        MVNROB_UNROLL
        for (int i = 0; i < kEach; ++i) {
          const auto bar = *reinterpret_cast<const Quad<scalar_t>*>(&samples.bar[row0 + i][s]);
          MVNROB_UNROLL
          for (int e = 0; e < kQuad; ++e) MVNROB_UNROLL
          for (int j = 0; j < kEach; ++j) sum[i][j] = math::fma(bar.v[e], y[j].v[e], sum[i][j]);
        }
      }
      __syncthreads();
    }
    MVNROB_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int place = place0 + row0 + i;
      if (place >= size_) continue;
      const int count = columns(place);
      double* to = sums() + int64_t(place) * a_.width + 2;
      MVNROB_UNROLL
      for (int j = 0; j < kEach; ++j) {
        const int l = l0 + column0 + kColumnThreads * j;
        if (l < count) to[l] += double(sum[i][j]);
      }
    }
  }

  // Starts the copies of kDepth samples: bars of the places, y's of the pivots, zeros beyond.
  MVNROB_DEVICE void fetch(int place0, int l0, int end, int part) const {
    Samples& to = shared_.samples[part % 2];
    constexpr int kQuads = kDepth / kQuad;
    MVNROB_ROLLED
    for (int q = thread_; q < (kPlaces + kColumns) * kQuads; q += kThreads) {
      const int r = q / kQuads, s = q % kQuads * kQuad;
      const bool is_bar = r < kPlaces;
      const int i = is_bar ? place0 + r : l0 + r - kPlaces;
      const bool there = i < (is_bar ? size_ : end);
      copy_async16(is_bar ? &to.bar[r][s] : &to.y[r - kPlaces][s],
                   all(is_bar ? kBar : kY, there ? i : 0) + part * kDepth + s, there);
    }
    copy_async_commit();
  }

  const Args& a_;
  const int64_t row_;
  const int part_;  // of the row: its shift, or pair of shifts and chunk
  Shared& shared_;
  const int thread_;
  const RowMemory<scalar_t> m_;
  const int size_, pivots_, sampled_;
  scalar_t* const own_;   // [kinds][n][samples], this thread's
  bool bounded_ = false;  // some row has a lower limit
};

}  // namespace mvnrob::kernels
