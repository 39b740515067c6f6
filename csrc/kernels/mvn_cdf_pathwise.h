// Derivatives of the sampler of mvn_cdf under a forced plan: samples and their reverse
// (csrc/cpu/mvn_cdf_pathwise_simd.cpp has the mathematics). mvn_cdf_pathwise_pull.h takes the sums
// on to limits and covariance.
//
// Mapping: a block takes a row and shift, a thread a sample of the tile, and walks the program of
// mvn_cdf_data.h forth and back. What a tile keeps lies in global memory as [number][sample], so
// that a warp's accesses are whole lines; it is recomputed for every tile. Products of the bars and
// the y's are a matrix product over the tile's samples, through shared memory.
//
// Limiter: for a pair of row and pivot a sample takes three multiply-adds, one load forth and one
// load and store back for 8 or 16 of them, and a shared load for 4 in the product (float64: for 2).
// So latency for few pivots, multiply-adds beyond; share reached: not measured.
#pragma once
#include "kernels/mvn_cdf_pathwise_args.h"
#include "kernels/mvn_cdf_sample.h"
#include "math/pathwise.h"

namespace mvnrob::kernels {

template <class scalar_t, bool tilted>
struct MvnCdfPathwise {
  using Args = MvnCdfPathwiseArgs;
  static constexpr int kThreads = kTileSamples;
  static constexpr int kResidentBlocks = sizeof(scalar_t) == 4 ? 6 : 4;

  // A tile of the products, and a thread's part of its rows and columns.
  static constexpr int kEdge = kOuterRows<scalar_t>;
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
      if (work.pivots_ <= kMaxSmallPivots)
        work.template sample<kSmallRows>();
      else
        work.template sample<kInnerRows>();
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

  // Pivots that the row at this place depends on.
  // Of the item: fewer registers than keeping both.
  MVNROB_DEVICE int64_t row() const { return item_ / kShifts; }
  MVNROB_DEVICE int shift() const { return int(item_ % kShifts); }
  MVNROB_DEVICE int columns(int place) const {
    return place < sampled_ ? m_.pivot_of()[place] : pivots_;
  }

  // The sums of a place: f times the bars of its upper and lower limit, and of their sum times y_l.
  template <int rows>
  MVNROB_DEVICE_FN void sample() {
    for (int64_t e = block_.thread(); e < int64_t(size_) * a_.width; e += kThreads) sums_[e] = 0;
    if (block_.thread() == 0) a_.value[item_] = 0;
    // A shift has at most 2^31 points; wider numbers would cost registers all the way.
    uint32_t point = uint32_t(a_.first[row()]) + uint32_t(block_.thread());
    uint32_t tiles = (uint32_t(a_.points[row()]) + kTileSamples - 1) / kTileSamples;
    for (; tiles > 0; --tiles) {
      f_ = tilted ? 0 : 1;  // tilted, its logarithm first
      draw_rows<rows>(math::point_index(a_.plan.options.points, point));
      point += kTileSamples;
      if constexpr (tilted) f_ = ::exp(f_ - m_.state()->plan.log_unit);
      complete_rows<rows>();
      for (int l = 0; l < pivots_; ++l)
        mine(kBarY, l) = tilted ? -scalar_t(m_.tilt()[l]) : scalar_t(0);
      reverse_completed<rows>();
      reverse_drawn<rows>();
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

  // sum[r] += coef[l][r] y_l for `count` pivots from `first` on, of rows stored `stride` apart.
  template <int rows>
  MVNROB_DEVICE void multiply(const scalar_t* coef, int stride, int first, int count,
                              scalar_t (&sum)[rows]) const {
    const scalar_t* y = &mine(kY, first);
    for (int l = 0; l < count; ++l, coef += stride, y += kTileSamples) {
      scalar_t c[rows];
      load(coef, c);
      const scalar_t value = *y;
      MVNROB_UNROLL
      for (int r = 0; r < rows; ++r) sum[r] = math::fma(c[r], value, sum[r]);
    }
  }

  // Its transpose: bar_y[l] += sum_r coef[l][r] bar[r].
  template <int rows>
  MVNROB_DEVICE void spread(const scalar_t* coef, int stride, int first, int count,
                            const scalar_t (&bar)[rows]) const {
    scalar_t* to = &mine(kBarY, first);
    for (int l = 0; l < count; ++l, coef += stride, to += kTileSamples) {
      scalar_t c[rows];
      load(coef, c);
      scalar_t even = *to, odd = 0;  // two chains, half the latency
      MVNROB_UNROLL
      for (int r = 0; r < rows; r += 2) {
        even = math::fma(c[r], bar[r], even);
        odd = math::fma(c[r + 1], bar[r + 1], odd);
      }
      *to = even + odd;
    }
  }

  // use(coefficients, their stride, first pivot, pivots) for what precedes the rows of a block.
  template <int rows, class Use>
  MVNROB_DEVICE void for_panels(int b, const Use& use) const {
    const ProgramBlock block = m_.blocks()[b];
    if constexpr (rows == kInnerRows) {
      const int first = b * rows;
      use(m_.coef() + m_.outer()[first / kEdge].coef + first % kEdge, kEdge, 0, block.base);
    }
    use(m_.coef() + block.coef, rows, int(block.base), block.known - block.base);
  }

  template <int rows>
  MVNROB_DEVICE const scalar_t* triangle(int b) const {
    const ProgramBlock block = m_.blocks()[b];
    return m_.coef() + block.coef + int64_t(block.known - block.base) * rows;
  }

  // Of completing rows from `first` on, a multiple of `rows`: all pivots, stored kUnit<rows> apart.
  template <int rows>
  static constexpr int kUnit = rows == kInnerRows ? kEdge : kSmallRows;
  template <int rows>
  MVNROB_DEVICE const scalar_t* completing(int first) const {
    constexpr int unit = kUnit<rows>;
    return m_.coef() + m_.state()->program.completion_coef +
           int64_t(first / unit) * unit * pivots_ + first % unit;
  }

  template <int rows>
  static MVNROB_DEVICE void clear(scalar_t (&x)[rows]) {
    MVNROB_UNROLL
    for (int r = 0; r < rows; ++r) x[r] = 0;
  }

  // ---- forth ----

  template <int rows>
  MVNROB_DEVICE_FN void draw_rows(uint32_t index) {
    int pivot = 0, group = 0;  // the one to draw, and where its group begins
    scalar_t upper = scalar_t(HUGE_VAL), lower = -upper;
    for (int b = 0; b * rows < sampled_; ++b) {
      scalar_t sum[rows];
      clear(sum);
      for_panels<rows>(b, [&](const scalar_t* coef, int stride, int first, int count) {
        multiply(coef, stride, first, count, sum);
      });
      const scalar_t* column = triangle<rows>(b);
      const int end = (b + 1) * rows < sampled_ ? (b + 1) * rows : sampled_;
      MVNROB_ROLLED
      for (int place = b * rows; place < end; ++place, column += rows) {
        const ProgramRow<scalar_t> row = m_.program_rows()[place];
        const scalar_t u = row.upper + sum[0], l = row.lower + sum[0];
        mine(kUpper, place) = u;
        mine(kLower, place) = l;
        upper = math::min(upper, u);
        lower = math::max(lower, l);
        scalar_t y = 0, c[rows];
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
        for (int k = 0; k + 1 < rows; ++k) sum[k] = math::fma(c[k], y, sum[k + 1]);
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
    scalar_t w, wc, e, ec, y, rho = 0, gamma = 0;
    coordinate(a_.plan, pivot, index, m_.shifts()[shift() * pivots_ + pivot], w, wc);
    if (bounded_below) {
      math::step_interval<scalar_t>(lower, upper, w, wc, e, ec, y);
      math::limit_slopes<scalar_t>(lower, wc, e, y, rho, gamma);
    } else {
      math::step_upper<scalar_t>(upper, w, wc, e, ec, y);
    }
    mine(kRhoLower, pivot) = rho;
    mine(kGammaLower, pivot) = gamma;
    math::limit_slopes<scalar_t>(upper, w, e, y, rho, gamma);
    mine(kRhoUpper, pivot) = rho;
    mine(kGammaUpper, pivot) = gamma;
    mine(kY, pivot) = y;
    f_ *= e;
    return y;
  }

  // From N(mu, 1); f_ is the logarithm of the weight.
  MVNROB_DEVICE_FN scalar_t draw_tilted(int pivot, uint32_t index, scalar_t lower, scalar_t upper) {
    scalar_t w, wc, e, ec, z, rho, gamma;
    coordinate(a_.plan, pivot, index, m_.shifts()[shift() * pivots_ + pivot], w, wc);
    const scalar_t mu = scalar_t(m_.tilt()[pivot]), a = lower - mu, b = upper - mu;
    math::step_interval<scalar_t, true>(a, b, w, wc, e, ec, z);
    const scalar_t interval = math::minus_two_log_interval<scalar_t>(a, b);
    math::far_limit_slopes<scalar_t>(a, wc, interval, z, rho, gamma);
    mine(kRhoLower, pivot) = rho;
    mine(kGammaLower, pivot) = gamma;
    math::far_limit_slopes<scalar_t>(b, w, interval, z, rho, gamma);
    mine(kRhoUpper, pivot) = rho;
    mine(kGammaUpper, pivot) = gamma;
    mine(kY, pivot) = z + mu;
    // ln weight: mu^2 / 2 - mu y = -mu^2 / 2 - mu z
    f_ -= math::fma(scalar_t(0.5), interval + mu * mu, mu * z);
    return z + mu;
  }

  template <int rows>
  MVNROB_DEVICE_FN void complete_rows() {
    const int live = size_ - sampled_;
    const ProgramRow<scalar_t>* row = m_.program_rows() + m_.state()->program.sampled_blocks * rows;
    for (int first = 0; first < live; first += rows) {
      scalar_t sum[rows];
      clear(sum);
      multiply(completing<rows>(first), kUnit<rows>, 0, pivots_, sum);
      const int end = first + rows < live ? first + rows : live;
      MVNROB_ROLLED
      for (int r = first; r < end; ++r, ++row) {
        complete(*row, sum[0], sampled_ + r);
        MVNROB_UNROLL
        for (int k = 0; k + 1 < rows; ++k) sum[k] = sum[k + 1];
      }
    }
  }

  // Its probability, and the slopes of the logarithm.
  MVNROB_DEVICE void complete(const ProgramRow<scalar_t>& row, scalar_t sum, int place) {
    const scalar_t upper = row.upper + sum;
    scalar_t e, q, to_lower = 0;
    math::ndtr_pair<scalar_t>(upper, e, q);
    if (row.flags & kHasLower) {
      const scalar_t lower = row.lower + sum;
      scalar_t below, above;
      math::ndtr_pair<scalar_t>(lower, below, above);
      e = math::max(lower > 0 ? above - q : e - below, scalar_t(0));
      to_lower = -math::log_slope<scalar_t>(lower, e);
    }
    mine(kUpper, place) = math::log_slope<scalar_t>(upper, e);
    mine(kLower, place) = to_lower;
    f_ *= e;
  }

  // ---- and back ----

  template <int rows>
  MVNROB_DEVICE_FN void reverse_completed() {
    const int live = size_ - sampled_;
    for (int first = 0; first < live; first += rows) {
      scalar_t bar[rows];
      MVNROB_UNROLL
      for (int r = 0; r < rows; ++r) {
        const int place = sampled_ + first + r;
        bar[r] = place < size_ ? weigh(place, mine(kUpper, place), mine(kLower, place)) : 0;
      }
      spread(completing<rows>(first), kUnit<rows>, 0, pivots_, bar);
    }
  }

  // Keeps f times a row's bars; returns their sum.
  MVNROB_DEVICE scalar_t weigh(int place, scalar_t upper, scalar_t lower) const {
    mine(kUpper, place) = f_ * upper;
    mine(kLower, place) = f_ * lower;
    return upper + lower;
  }

  template <int rows>
  MVNROB_DEVICE_FN void reverse_drawn() {
    int pivot = pivots_;
    scalar_t upper = 0, lower = 0;  // bars of the pivot's limits
    for (int b = (sampled_ + rows - 1) / rows - 1; b >= 0; --b) {
      const scalar_t* columns = triangle<rows>(b);
      scalar_t bar[rows];
      clear(bar);
      MVNROB_ROLLED
      for (int r = ((b + 1) * rows < sampled_ ? rows : sampled_ - b * rows) - 1; r >= 0; --r) {
        const int place = b * rows + r;
        if (m_.program_rows()[place].flags & kClosesPivot) {
          --pivot;
          scalar_t c[rows];
          load(columns + r * rows, c);
          // bar[k] is that of the row k + 1 further on.
          scalar_t to_y = mine(kBarY, pivot);
          MVNROB_UNROLL
          for (int k = 0; k + 1 < rows; ++k) to_y = math::fma(c[k], bar[k], to_y);
          upper = math::fma(mine(kGammaUpper, pivot), to_y, mine(kRhoUpper, pivot));
          lower = math::fma(mine(kGammaLower, pivot), to_y, -mine(kRhoLower, pivot));
        }
        const scalar_t own = weigh(place, upper * mine(kUpper, place), lower * mine(kLower, place));
        MVNROB_UNROLL
        for (int k = rows - 1; k > 0; --k) bar[k] = bar[k - 1];
        bar[0] = own;
      }
      for_panels<rows>(b, [&](const scalar_t* coef, int stride, int first, int count) {
        spread(coef, stride, first, count, bar);
      });
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
