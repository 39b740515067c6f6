// Derivatives of the sampler of mvn_cdf under a forced plan: samples and their reverse
// (csrc/cpu/mvn_cdf_pathwise_simd.cpp has the mathematics), of rows of up to 32 pivots;
// mvn_cdf_pathwise_blocked.h is for more. mvn_cdf_pathwise_pull.h takes the sums on to limits and
// covariance.
//
// Mapping: a block takes a row and shift, a thread a sample of the tile, and walks the program of
// mvn_cdf_data.h forth and back. What a tile keeps lies in global memory as [number][sample], so
// that a warp's accesses are whole lines; it is recomputed for every tile. Products of the bars and
// the y's are a matrix product over the tile's samples, through shared memory.
//
// Limiter: for a pair of row and pivot a sample takes three multiply-adds, one load forth and one
// load and store back for 8 of them, and a shared load for 4 in the product (float64: for 2). So
// latency, in which a block's outer products would be padding; share reached: not measured.
#pragma once
#include "kernels/mvn_cdf_pathwise_step.h"

namespace mvnrob::kernels {

template <class scalar_t, bool tilted>
struct MvnCdfPathwise {
  using Args = MvnCdfPathwiseArgs;
  static constexpr int kThreads = kTileSamples;
  static constexpr int kResidentBlocks = sizeof(scalar_t) == 4 ? 6 : 4;

  // A tile of the products, and a thread's part of its rows and columns.
  static constexpr int kEdge = kOuterRows<scalar_t>;
  static constexpr int kRows = kSmallRows;
  static constexpr int kSide = 8, kEach = kEdge / kSide;
  static_assert(kSide * kSide == kThreads, "every thread has its part of the tile");

  struct Shared {
    typename Block<kThreads>::Shared block;
    // One number more, so that rows begin in different banks.
    scalar_t bar[kEdge][kTileSamples + 1], y[kEdge][kTileSamples + 1];
  };
  static constexpr size_t kSharedBytes = sizeof(Shared);

  // Of one block: numbers [n][samples] of eight kinds.
  static MVNROB_HD int64_t scratch_bytes(int64_t n) {
    return 8 * n * kTileSamples * int64_t(sizeof(scalar_t));
  }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    Shared& shared = *dynamic_shared<Shared>();
    const Block<kThreads> block(shared.block);
    for (int64_t item = blockIdx.x; item < a.plan.rows * kShifts; item += gridDim.x) {
      if (a.failed(item / kShifts)) continue;
      MvnCdfPathwise work(a, item, block, shared);
      if (work.pivots_ <= kMaxSmallPivots) work.sample();
    }
  }

 private:
  MVNROB_DEVICE MvnCdfPathwise(const Args& a, int64_t item, const Block<kThreads>& block,
                               Shared& shared)
      : a_(a),
        item_(item),
        block_(block),
        shared_(shared),
        m_(a.plan, row()),
        size_(m_.state()->facts.variables),
        pivots_(m_.state()->facts.pivots),
        sampled_(size_ - m_.state()->live),
        sums_(a.sums + item * a.plan.n * a.width),
        tile_(reinterpret_cast<scalar_t*>(a.scratch + blockIdx.x * a.scratch_bytes)) {}

  // Of each pivot: y, its bar, the slopes of its draw; of each row at its place in the program: its
  // limits, then which of a group attains them, or the slopes of a row that completes; in the end f
  // times the bars of the limits.
  enum Kind { kY, kBarY, kRhoUpper, kGammaUpper, kRhoLower, kGammaLower, kUpper, kLower };
  MVNROB_DEVICE scalar_t* numbers(Kind kind, int i) const {
    return tile_ + (int64_t(kind) * a_.plan.n + i) * kTileSamples;
  }
  MVNROB_DEVICE scalar_t& mine(Kind kind, int i) const { return numbers(kind, i)[block_.thread()]; }

  // Of the item: fewer registers than keeping both.
  MVNROB_DEVICE int64_t row() const { return item_ / kShifts; }
  MVNROB_DEVICE int shift() const { return int(item_ % kShifts); }
  // Pivots that the row at this place depends on.
  MVNROB_DEVICE int columns(int place) const {
    return place < sampled_ ? m_.pivot_of()[place] : pivots_;
  }

  // The sums of a place: f times the bars of its upper and lower limit, and of their sum times y_l.
  MVNROB_DEVICE_FN void sample() {
    for (int64_t e = block_.thread(); e < int64_t(size_) * a_.width; e += kThreads) sums_[e] = 0;
    if (block_.thread() == 0) a_.value[item_] = 0;
    // A shift has at most 2^31 points; wider numbers would cost registers all the way.
    uint32_t point = uint32_t(a_.first[row()]) + uint32_t(block_.thread());
    uint32_t tiles = (uint32_t(a_.points[row()]) + kTileSamples - 1) / kTileSamples;
    for (; tiles > 0; --tiles) {
      f_ = tilted ? 0 : 1;  // tilted, its logarithm first
      draw_rows(math::point_index(a_.plan.options.points, point));
      point += kTileSamples;
      if constexpr (tilted) f_ = ::exp(f_ - m_.state()->plan.log_unit);
      complete_rows();
      for (int l = 0; l < pivots_; ++l)
        mine(kBarY, l) = tilted ? -scalar_t(m_.tilt()[l]) : scalar_t(0);
      reverse_completed();
      reverse_drawn();
      block_.sync();
      // Once a tile: a sum of each thread's own would cost registers all the way.
      const double sum = block_.sum(double(f_));
      if (block_.thread() == 0) a_.value[item_] += sum;
      add_slopes();
      if (a_.wants_cov()) add_products();
      block_.sync();
    }
  }

  // ---- the program's coefficients ----

  // sum[r] += coef[l][r] y_l for the first `count` pivots.
  MVNROB_DEVICE void multiply(const scalar_t* coef, int count, scalar_t (&sum)[kRows]) const {
    const scalar_t* y = &mine(kY, 0);
    for (int l = 0; l < count; ++l, coef += kRows, y += kTileSamples) {
      scalar_t c[kRows];
      load(coef, c);
      const scalar_t value = *y;
      MVNROB_UNROLL
      for (int r = 0; r < kRows; ++r) sum[r] = math::fma(c[r], value, sum[r]);
    }
  }

  // Its transpose: bar_y[l] += sum_r coef[l][r] bar[r].
  MVNROB_DEVICE void spread(const scalar_t* coef, int count, const scalar_t (&bar)[kRows]) const {
    scalar_t* to = &mine(kBarY, 0);
    for (int l = 0; l < count; ++l, coef += kRows, to += kTileSamples) {
      scalar_t c[kRows];
      load(coef, c);
      scalar_t even = *to, odd = 0;  // two chains, half the latency
      MVNROB_UNROLL
      for (int r = 0; r < kRows; r += 2) {
        even = math::fma(c[r], bar[r], even);
        odd = math::fma(c[r + 1], bar[r + 1], odd);
      }
      *to = even + odd;
    }
  }

  // Coefficients of the pivots before a register block, which are all the earlier ones.
  MVNROB_DEVICE const scalar_t* panel(int b) const { return m_.coef() + m_.blocks()[b].coef; }
  MVNROB_DEVICE const scalar_t* triangle(int b) const {
    return panel(b) + m_.blocks()[b].known * kRows;
  }

  // Of completing rows from `first` on, a multiple of `rows`: all pivots.
  MVNROB_DEVICE const scalar_t* completing(int first) const {
    return m_.coef() + m_.state()->program.completion_coef + int64_t(first) * pivots_;
  }

  template <int count>
  static MVNROB_DEVICE void clear(scalar_t (&x)[count]) {
    MVNROB_UNROLL
    for (int r = 0; r < count; ++r) x[r] = 0;
  }

  // ---- forth ----

  MVNROB_DEVICE_FN void draw_rows(uint32_t index) {
    int pivot = 0, group = 0;  // the one to draw, and where its group begins
    scalar_t upper = scalar_t(HUGE_VAL), lower = -upper;
    for (int b = 0; b * kRows < sampled_; ++b) {
      scalar_t sum[kRows];
      clear(sum);
      multiply(panel(b), m_.blocks()[b].known, sum);
      const scalar_t* column = triangle(b);
      const int end = (b + 1) * kRows < sampled_ ? (b + 1) * kRows : sampled_;
      MVNROB_ROLLED
      for (int place = b * kRows; place < end; ++place, column += kRows) {
        const ProgramRow<scalar_t> row = m_.program_rows()[place];
        const scalar_t u = row.upper + sum[0], l = row.lower + sum[0];
        mine(kUpper, place) = u;
        mine(kLower, place) = l;
        upper = math::min(upper, u);
        lower = math::max(lower, l);
        scalar_t y = 0, c[kRows];
        clear(c);
        if (row.flags & kClosesPivot) {
          mark(kUpper, group, place, upper);
          mark(kLower, group, place, lower);
          if constexpr (tilted) {  // first: it needs the registers
            y = draw_tilted(pivot, index, lower, upper);
            load(column, c);
          } else {
            load(column, c);
            y = draw(pivot, index, row.flags & kBoundedBelow, lower, upper);
          }
          ++pivot;
          group = place + 1;
          upper = scalar_t(HUGE_VAL);
          lower = -upper;
        }
        // The next row's sum moves to the front, with the new y's part.
        MVNROB_UNROLL
        for (int k = 0; k + 1 < kRows; ++k) sum[k] = math::fma(c[k], y, sum[k + 1]);
      }
    }
  }

  // One for the first of a group's rows that attains the pivot's limit, in place of their limits.
  MVNROB_DEVICE void mark(Kind kind, int first, int last, scalar_t limit) const {
    scalar_t left = 1;
    for (int place = first; place <= last; ++place) {
      const scalar_t attains = mine(kind, place) == limit ? left : scalar_t(0);
      left -= attains;
      mine(kind, place) = attains;
    }
  }

  MVNROB_DEVICE_FN scalar_t draw(int pivot, uint32_t index, bool bounded_below, scalar_t lower,
                                 scalar_t upper) {
    scalar_t w, wc;
    coordinate(a_.plan, pivot, index, m_.shifts()[shift() * pivots_ + pivot], w, wc);
    return keep(pivot, draw_pathwise(bounded_below, lower, upper, w, wc, f_));
  }

  MVNROB_DEVICE_FN scalar_t draw_tilted(int pivot, uint32_t index, scalar_t lower, scalar_t upper) {
    scalar_t w, wc;
    coordinate(a_.plan, pivot, index, m_.shifts()[shift() * pivots_ + pivot], w, wc);
    const scalar_t mu = scalar_t(m_.tilt()[pivot]);
    return keep(pivot, draw_pathwise_tilted(mu, lower, upper, w, wc, f_));
  }

  MVNROB_DEVICE scalar_t keep(int pivot, const PathwiseDraw<scalar_t>& d) const {
    mine(kY, pivot) = d.y;
    mine(kRhoUpper, pivot) = d.rho_upper;
    mine(kGammaUpper, pivot) = d.gamma_upper;
    mine(kRhoLower, pivot) = d.rho_lower;
    mine(kGammaLower, pivot) = d.gamma_lower;
    return d.y;
  }

  MVNROB_DEVICE_FN void complete_rows() {
    const int live = size_ - sampled_;
    const ProgramRow<scalar_t>* row =
        m_.program_rows() + m_.state()->program.sampled_blocks * kRows;
    for (int first = 0; first < live; first += kRows) {
      scalar_t sum[kRows];
      clear(sum);
      multiply(completing(first), pivots_, sum);
      const int end = first + kRows < live ? first + kRows : live;
      MVNROB_ROLLED
      for (int r = first; r < end; ++r, ++row) {
        scalar_t to_upper, to_lower;
        f_ *= complete_pathwise(*row, sum[0], to_upper, to_lower);
        mine(kUpper, sampled_ + r) = to_upper;
        mine(kLower, sampled_ + r) = to_lower;
        MVNROB_UNROLL
        for (int k = 0; k + 1 < kRows; ++k) sum[k] = sum[k + 1];
      }
    }
  }

  // ---- and back ----

  MVNROB_DEVICE_FN void reverse_completed() {
    const int live = size_ - sampled_;
    for (int first = 0; first < live; first += kRows) {
      scalar_t bar[kRows];
      MVNROB_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const int place = sampled_ + first + r;
        bar[r] = place < size_ ? weigh(place, mine(kUpper, place), mine(kLower, place)) : 0;
      }
      spread(completing(first), pivots_, bar);
    }
  }

  // Keeps f times a row's bars; returns their sum.
  MVNROB_DEVICE scalar_t weigh(int place, scalar_t upper, scalar_t lower) const {
    mine(kUpper, place) = f_ * upper;
    mine(kLower, place) = f_ * lower;
    return upper + lower;
  }

  MVNROB_DEVICE_FN void reverse_drawn() {
    int pivot = pivots_;
    scalar_t upper = 0, lower = 0;  // bars of the pivot's limits
    for (int b = (sampled_ + kRows - 1) / kRows - 1; b >= 0; --b) {
      const scalar_t* columns = triangle(b);
      scalar_t bar[kRows];
      clear(bar);
      MVNROB_ROLLED
      for (int r = ((b + 1) * kRows < sampled_ ? kRows : sampled_ - b * kRows) - 1; r >= 0; --r) {
        const int place = b * kRows + r;
        if (m_.program_rows()[place].flags & kClosesPivot) {
          --pivot;
          scalar_t c[kRows];
          load(columns + r * kRows, c);
          // bar[k] is that of the row k + 1 further on.
          scalar_t to_y = mine(kBarY, pivot);
          MVNROB_UNROLL
          for (int k = 0; k + 1 < kRows; ++k) to_y = math::fma(c[k], bar[k], to_y);
          upper = math::fma(mine(kGammaUpper, pivot), to_y, mine(kRhoUpper, pivot));
          lower = math::fma(mine(kGammaLower, pivot), to_y, -mine(kRhoLower, pivot));
        }
        const scalar_t own = weigh(place, upper * mine(kUpper, place), lower * mine(kLower, place));
        MVNROB_UNROLL
        for (int k = kRows - 1; k > 0; --k) bar[k] = bar[k - 1];
        bar[0] = own;
      }
      spread(panel(b), m_.blocks()[b].known, bar);
    }
  }

  // ---- the sums, over the samples of all threads ----

  // A warp for each place.
  MVNROB_DEVICE_FN void add_slopes() const {
    const int lane = block_.thread() % kWarp;
    for (int place = block_.thread() / kWarp; place < size_; place += kThreads / kWarp) {
      MVNROB_UNROLL
      for (int side = 0; side < 2; ++side) {
        const scalar_t* x = numbers(side == 0 ? kUpper : kLower, place) + lane;
        const double sum = warp_sum(double(x[0]) + double(x[kWarp]));
        if (lane == 0) sums_[int64_t(place) * a_.width + side] += sum;
      }
    }
  }

  // Places and pivots in tiles. A thread has every eighth of each.
  MVNROB_DEVICE_FN void add_products() const {
    const int row = block_.thread() / kSide, column = block_.thread() % kSide;
    for (int place0 = 0; place0 < size_; place0 += kEdge) {
      for (int i = 0; i < kEdge; ++i) {
        const int place = place0 + i;
        shared_.bar[i][block_.thread()] =
            place < size_ ? mine(kUpper, place) + mine(kLower, place) : scalar_t(0);
      }
      const int end = columns(place0 + kEdge < size_ ? place0 + kEdge - 1 : size_ - 1);
      for (int l0 = 0; l0 < end; l0 += kEdge) {
        for (int i = 0; i < kEdge; ++i)
          shared_.y[i][block_.thread()] = l0 + i < end ? mine(kY, l0 + i) : scalar_t(0);
        block_.sync();
        scalar_t sum[kEach][kEach];
        MVNROB_UNROLL
        for (int i = 0; i < kEach; ++i) clear(sum[i]);
        MVNROB_ROLLED
        for (int s = 0; s < kTileSamples; ++s) {
          scalar_t y[kEach];
          MVNROB_UNROLL
          for (int j = 0; j < kEach; ++j) y[j] = shared_.y[column + kSide * j][s];
          MVNROB_UNROLL
          for (int i = 0; i < kEach; ++i) {
            const scalar_t bar = shared_.bar[row + kSide * i][s];
            MVNROB_UNROLL
            for (int j = 0; j < kEach; ++j) sum[i][j] = math::fma(bar, y[j], sum[i][j]);
          }
        }
        MVNROB_UNROLL
        for (int i = 0; i < kEach; ++i) {
          const int place = place0 + row + kSide * i;
          if (place >= size_) continue;
          const int mine_end = columns(place);
          double* sums = sums_ + int64_t(place) * a_.width + 2;
          MVNROB_UNROLL
          for (int j = 0; j < kEach; ++j) {
            const int l = l0 + column + kSide * j;
            if (l < mine_end) sums[l] += double(sum[i][j]);
          }
        }
        block_.sync();
      }
      block_.sync();
    }
  }

  const Args& a_;
  const int64_t item_;
  const Block<kThreads>& block_;
  Shared& shared_;
  const RowMemory<scalar_t> m_;
  const int size_, pivots_, sampled_;
  double* const sums_;    // [size][width]
  scalar_t* const tile_;  // [kinds][n][samples]
  scalar_t f_ = 1;        // this thread's integrand
};

}  // namespace mvnrob::kernels
