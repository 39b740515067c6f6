// The sampler of mvn_cdf and its reverse: derivatives of the integrand with the points held fixed.
// Compiled once per instruction set, with the rules of mvn_cdf_simd.cpp.
//
// Everything runs relative to the integrand f of a sample, the product of all the probabilities e:
// with d ln f in place of df the rows that complete need no second look once f is known. Forward, a
// tile of 64 samples keeps its y, the slopes of each draw (math/pathwise.h) and of each row that
// completes; backward, `bar` of a row's limit is d ln f / d limit along the sample's path,
//   bar_y[l] = sum over later rows of coef[row][l] bar[row],
//   bar of the pivot's upper limit = rho_u + gamma_u bar_y, of its lower one -rho_l + gamma_l
//   bar_y,
// which the row of its group that attains the limit takes. Nothing is kept from tile to tile.
//
// Tilted samples (plan/tilt.h) are the same with f their weight: its logarithm gains
// mu_j^2 / 2 - mu_j y_j, so that bar_y of pivot j begins at -mu_j.
#include <cstdint>

#include "cpu/mvn_cdf_coordinate.h"
#include "cpu/mvn_cdf_panel.h"
#include "cpu/mvn_cdf_pathwise_program.h"
#include "cpu/mvn_cdf_tilted_sample.h"
#include "cpu/simd_dispatch.h"
#include "math/normal.h"
#include "math/pack.h"
#include "math/pathwise.h"

namespace mvnrob {
namespace MVNROB_ISA {
namespace {

template <class scalar_t>
struct PathTile {
  scalar_t *y, *bar_y;                // [pivots][64]
  scalar_t *rho_upper, *gamma_upper;  // [pivots][64] of a draw's limits
  scalar_t *rho_lower, *gamma_lower;  // [pivots][64]
  scalar_t *row_upper, *row_lower;    // [sampled rows][64] limits, then mark_attaining
  scalar_t *rest_upper, *rest_lower;  // [completion rows][64] d ln e / d limit
  scalar_t* y_by_sample;              // [64][stride]
  scalar_t *accumulator, *bar;        // [kBlockRows][64]
  scalar_t *value, *upper, *lower;    // f; limits, then bars, of the pivot at hand
};

template <class scalar_t, class Coordinate>
void draw_with_slopes(const PathTile<scalar_t>& tile, int64_t pivot, bool has_lower,
                      const Coordinate& coordinate) {
  using V = WideVec<scalar_t>;
  const int64_t base = pivot * kTileSamples;
  for (int at = 0; at < kTileSamples; at += math::width<V>) {
    V w, wc, e, ec, drawn, rho, gamma;
    coordinate.get(at, w, wc);
    const V upper = V::load(tile.upper + at);
    if (has_lower) {
      const V lower = V::load(tile.lower + at);
      math::step_interval<V>(lower, upper, w, wc, e, ec, drawn);
      math::limit_slopes<V>(lower, wc, e, drawn, rho, gamma);
      rho.store(tile.rho_lower + base + at);
      gamma.store(tile.gamma_lower + base + at);
    } else {
      math::step_upper<V>(upper, w, wc, e, ec, drawn);
    }
    math::limit_slopes<V>(upper, w, e, drawn, rho, gamma);
    rho.store(tile.rho_upper + base + at);
    gamma.store(tile.gamma_upper + base + at);
    drawn.store(tile.y + base + at);
    (V::load(tile.value + at) * e).store(tile.value + at);
  }
}

// The same from N(tilt, 1). tile.value holds the logarithm of the weight.
template <class Coordinate>
void draw_tilted_with_slopes(const PathTile<double>& tile, int64_t pivot, double tilt,
                             const Coordinate& coordinate) {
  using V = WideVec<double>;
  const int64_t base = pivot * kTileSamples;
  const V mu(tilt);
  for (int at = 0; at < kTileSamples; at += math::width<V>) {
    V w, wc, e, ec, z, rho, gamma;
    coordinate.get(at, w, wc);
    const V lower = V::load(tile.lower + at) - mu, upper = V::load(tile.upper + at) - mu;
    math::step_interval<V, true>(lower, upper, w, wc, e, ec, z);
    const V interval = math::minus_two_log_interval<V>(lower, upper);
    math::far_limit_slopes<V>(lower, wc, interval, z, rho, gamma);
    rho.store(tile.rho_lower + base + at);
    gamma.store(tile.gamma_lower + base + at);
    math::far_limit_slopes<V>(upper, w, interval, z, rho, gamma);
    rho.store(tile.rho_upper + base + at);
    gamma.store(tile.gamma_upper + base + at);
    (z + mu).store(tile.y + base + at);
    (V::load(tile.value + at) - tilted_loss(interval, mu, z)).store(tile.value + at);
  }
}

// Of a group's rows first .. last, one for the first that attains the pivot's limit, else zero; in
// place of their limits.
template <class scalar_t>
void mark_attaining(const RowList<scalar_t>& list, uint8_t which, int64_t first, int64_t last,
                    const scalar_t* limit, scalar_t* rows) {
  using V = Vec<scalar_t>;
  const V zero(scalar_t(0)), one(scalar_t(1));
  for (int p = 0; p < kTileSamples / kWidth<scalar_t>; ++p) {
    const V extreme = load(limit, p);
    V left = one;
    for (int64_t row = first; row <= last; ++row) {
      if (!(list.flags[row] & which)) continue;
      scalar_t* mark = rows + row * kTileSamples;
      const V mine = math::select(load(mark, p) == extreme, left, zero);
      left = left - mine;
      store(mark, p, mine);
    }
  }
}

template <bool tilted, class scalar_t>
void forward_sampled(const RowList<scalar_t>& list, const PathTile<scalar_t>& tile,
                     const scalar_t* tilt, const ShiftedPoints& points, uint32_t first,
                     uint8_t* pivot_has_lower) {
  using V = Vec<scalar_t>;
  constexpr int kPacks = kTileSamples / kWidth<scalar_t>;
  const scalar_t infinity = scalar_t(__builtin_inf());
  bool has_lower = false;
  int64_t known = 0, group = 0;  // pivots drawn; first row of the next one's group
  fill(tile.upper, infinity);
  fill(tile.lower, -infinity);
  for (int64_t b = 0; b < list.n_blocks; ++b) {
    const Block& block = list.blocks[b];
    const scalar_t* coef = list.coef + block.coef;
    if (block.columns > 0) multiply_panel(block, coef, tile.y, tile.accumulator);
    for (int r = 0; r < block.rows; ++r) {
      const int64_t row = block.first_row + r;
      const uint8_t flags = list.flags[row];
      const scalar_t* sums = tile.accumulator + r * kTileSamples;
      const V upper(list.upper[row]), lower(list.lower[row]);
      for (int p = 0; p < kPacks; ++p) {
        V sum = block.columns > 0 ? load(sums, p) : V(scalar_t(0));
        for (int64_t l = block.columns; l < known; ++l)
          sum = math::fma(V(coef[l * block.rows + r]), load(tile.y + l * kTileSamples, p), sum);
        if (flags & kHasUpper) {
          const V limit = upper + sum;
          store(tile.row_upper + row * kTileSamples, p, limit);
          store(tile.upper, p, math::min(load(tile.upper, p), limit));
        }
        if (flags & kHasLower) {
          const V limit = lower + sum;
          store(tile.row_lower + row * kTileSamples, p, limit);
          store(tile.lower, p, math::max(load(tile.lower, p), limit));
        }
      }
      has_lower |= (flags & kHasLower) != 0;
      if (flags & kClosesPivot) {
        if (row > group) {
          mark_attaining(list, kHasUpper, group, row, tile.upper, tile.row_upper);
          mark_attaining(list, kHasLower, group, row, tile.lower, tile.row_lower);
        }
        group = row + 1;
        with_coordinate(points, known, first, [&](const auto& coordinate) {
          if constexpr (tilted)
            draw_tilted_with_slopes(tile, known, tilt[known], coordinate);
          else
            draw_with_slopes(tile, known, has_lower, coordinate);
        });
        pivot_has_lower[known] = has_lower;
        ++known;
        has_lower = false;
        fill(tile.upper, infinity);
        fill(tile.lower, -infinity);
      }
    }
  }
}

// The rows that complete: their probabilities given y, and the slopes of their logarithms.
template <class scalar_t>
void forward_completion(const RowList<scalar_t>& list, const PathTile<scalar_t>& tile,
                        scalar_t skip_limit) {
  using V = Vec<scalar_t>;
  using W = WideVec<scalar_t>;
  constexpr int kPacks = kTileSamples / kWidth<scalar_t>;
  for (int64_t b = 0; b < list.n_blocks; ++b) {
    const Block& block = list.blocks[b];
    multiply_panel(block, list.coef + block.coef, tile.y, tile.accumulator);
    for (int r = 0; r < block.rows; ++r) {
      const int64_t row = block.first_row + r;
      const scalar_t* sums = tile.accumulator + r * kTileSamples;
      const bool has_lower = list.flags[row] & kHasLower;
      scalar_t* rest_upper = tile.rest_upper + row * kTileSamples;
      scalar_t* rest_lower = tile.rest_lower + row * kTileSamples;
      const V upper(list.upper[row]), lower(list.lower[row]);
      V nearest = V(scalar_t(__builtin_inf()));
      for (int p = 0; p < kPacks; ++p) {
        const V sum = load(sums, p);
        nearest = math::min(nearest, upper + sum);
        if (has_lower) nearest = math::min(nearest, -(lower + sum));
      }
      if (math::reduce_min(nearest) > skip_limit) {
        fill(rest_upper, scalar_t(0));
        if (has_lower) fill(rest_lower, scalar_t(0));
        continue;
      }
      for (int at = 0; at < kTileSamples; at += math::width<W>) {
        const W sum = W::load(sums + at), high = W(list.upper[row]) + sum;
        W e, q;
        math::ndtr_pair<W>(high, e, q);
        if (has_lower) {
          W below, above;
          const W limit = W(list.lower[row]) + sum;
          math::ndtr_pair<W>(limit, below, above);
          e = math::max(math::select(limit > W(scalar_t(0)), above - q, e - below), W(scalar_t(0)));
          (-math::log_slope<W>(limit, e)).store(rest_lower + at);
        }
        math::log_slope<W>(high, e).store(rest_upper + at);
        (W::load(tile.value + at) * e).store(tile.value + at);
      }
    }
  }
}

// y[l] += sum_r coef[l, r] bar[r] for the first `columns` pivots: multiply_panel's transpose.
template <class scalar_t, int rows>
void spread_panel(const scalar_t* coef, int64_t columns, const scalar_t* bar, scalar_t* y) {
  using V = Vec<scalar_t>;
  for (int g = 0; g < kGroups<scalar_t>; ++g) {
    const int offset = g * kUnroll * kWidth<scalar_t>;
    V value[rows][kUnroll];
    for (int r = 0; r < rows; ++r)
      for (int p = 0; p < kUnroll; ++p) value[r][p] = load(bar + r * kTileSamples + offset, p);
    const scalar_t* c = coef;
    scalar_t* yl = y + offset;
    for (int64_t l = 0; l < columns; ++l, c += rows, yl += kTileSamples) {
      V sum[kUnroll];
      for (int p = 0; p < kUnroll; ++p) sum[p] = load(yl, p);
      for (int r = 0; r < rows; ++r) {
        const V factor(c[r]);
        for (int p = 0; p < kUnroll; ++p) sum[p] = math::fma(factor, value[r][p], sum[p]);
      }
      for (int p = 0; p < kUnroll; ++p) store(yl, p, sum[p]);
    }
  }
}

template <class scalar_t>
void spread_panel(const Block& block, const scalar_t* coef, const scalar_t* bar, scalar_t* y) {
  switch (block.rows) {
    case 1:
      return spread_panel<scalar_t, 1>(coef, block.columns, bar, y);
    case 2:
      return spread_panel<scalar_t, 2>(coef, block.columns, bar, y);
    case 3:
      return spread_panel<scalar_t, 3>(coef, block.columns, bar, y);
    case 4:
      return spread_panel < scalar_t, kBlockRows < 4 ? 1 : 4 > (coef, block.columns, bar, y);
    case 5:
      return spread_panel < scalar_t, kBlockRows < 5 ? 1 : 5 > (coef, block.columns, bar, y);
    default:
      return spread_panel < scalar_t, kBlockRows < 6 ? 1 : 6 > (coef, block.columns, bar, y);
  }
}

// products[row][l] += sum over the samples of bar[row] y_l, for the first `columns` pivots (and
// some beyond them that nobody reads).
template <class scalar_t, int rows>
void add_products(const PathTile<scalar_t>& tile, int64_t columns, double* products,
                  int64_t stride) {
  using V = Vec<scalar_t>;
  constexpr int kPairs = 2;
  for (int64_t l = 0; l < columns; l += kPairs * kWidth<scalar_t>) {
    V sum[rows][kPairs];
    for (int r = 0; r < rows; ++r)
      for (int p = 0; p < kPairs; ++p) sum[r][p] = V(scalar_t(0));
    const scalar_t* y = tile.y_by_sample + l;
    for (int s = 0; s < kTileSamples; ++s, y += stride) {
      V value[kPairs];
      for (int p = 0; p < kPairs; ++p) value[p] = load(y, p);
      for (int r = 0; r < rows; ++r) {
        const V factor(tile.bar[r * kTileSamples + s]);
        for (int p = 0; p < kPairs; ++p) sum[r][p] = math::fma(factor, value[p], sum[r][p]);
      }
    }
    for (int r = 0; r < rows; ++r)
      for (int p = 0; p < kPairs; ++p) {
        scalar_t lanes[kWidth<scalar_t>];
        sum[r][p].store(lanes);
        double* out = products + r * stride + l + p * kWidth<scalar_t>;
        for (int i = 0; i < kWidth<scalar_t>; ++i) out[i] += double(lanes[i]);
      }
  }
}

template <class scalar_t>
void add_products(const PathTile<scalar_t>& tile, int rows, int64_t columns, double* products,
                  int64_t stride) {
  switch (rows) {
    case 1:
      return add_products<scalar_t, 1>(tile, columns, products, stride);
    case 2:
      return add_products<scalar_t, 2>(tile, columns, products, stride);
    case 3:
      return add_products<scalar_t, 3>(tile, columns, products, stride);
    case 4:
      return add_products < scalar_t, kBlockRows < 4 ? 1 : 4 > (tile, columns, products, stride);
    case 5:
      return add_products < scalar_t, kBlockRows < 5 ? 1 : 5 > (tile, columns, products, stride);
    default:
      return add_products < scalar_t, kBlockRows < 6 ? 1 : 6 > (tile, columns, products, stride);
  }
}

// bar[r] *= f, then into the sums.
template <class scalar_t>
void weigh_and_add(const PathTile<scalar_t>& tile, const Block& block, int64_t row0,
                   int64_t columns, const PathwiseSums& sums) {
  constexpr int kPacks = kTileSamples / kWidth<scalar_t>;
  if (!sums.products || columns == 0) return;
  for (int r = 0; r < block.rows; ++r) {
    scalar_t* bar = tile.bar + r * kTileSamples;
    for (int p = 0; p < kPacks; ++p) store(bar, p, load(bar, p) * load(tile.value, p));
  }
  add_products(tile, block.rows, columns, sums.products + (row0 + block.first_row) * sums.stride,
               sums.stride);
}

template <class scalar_t>
void backward_completion(const RowList<scalar_t>& list, const PathTile<scalar_t>& tile,
                         int64_t row0, int64_t pivots, const PathwiseSums& sums) {
  using V = Vec<scalar_t>;
  constexpr int kPacks = kTileSamples / kWidth<scalar_t>;
  for (int64_t b = 0; b < list.n_blocks; ++b) {
    const Block& block = list.blocks[b];
    for (int r = 0; r < block.rows; ++r) {
      const int64_t row = block.first_row + r;
      const scalar_t* rest_upper = tile.rest_upper + row * kTileSamples;
      const scalar_t* rest_lower = tile.rest_lower + row * kTileSamples;
      const bool has_lower = list.flags[row] & kHasLower;
      V upper_sum = V(scalar_t(0)), lower_sum = V(scalar_t(0));
      for (int p = 0; p < kPacks; ++p) {
        const V f = load(tile.value, p), up = load(rest_upper, p);
        V bar = up;
        upper_sum = math::fma(f, up, upper_sum);
        if (has_lower) {
          const V low = load(rest_lower, p);
          lower_sum = math::fma(f, low, lower_sum);
          bar = bar + low;
        }
        store(tile.bar + r * kTileSamples, p, bar);
      }
      sums.upper[row0 + row] += double(math::reduce_add(upper_sum));
      if (has_lower) sums.lower[row0 + row] += double(math::reduce_add(lower_sum));
    }
    spread_panel(block, list.coef + block.coef, tile.bar, tile.bar_y);
    weigh_and_add(tile, block, row0, pivots, sums);
  }
}

template <class scalar_t>
void backward_sampled(const RowList<scalar_t>& list, const PathTile<scalar_t>& tile, int64_t pivots,
                      const uint8_t* pivot_has_lower, const PathwiseSums& sums) {
  using V = Vec<scalar_t>;
  constexpr int kPacks = kTileSamples / kWidth<scalar_t>;
  const V zero = V(scalar_t(0));
  int64_t pivot = pivots;  // whose group is being read; the last row of a group comes first here
  for (int64_t b = list.n_blocks - 1; b >= 0; --b) {
    const Block& block = list.blocks[b];
    const scalar_t* coef = list.coef + block.coef;
    for (int r = block.rows - 1; r >= 0; --r) {
      const int64_t row = block.first_row + r;
      const uint8_t flags = list.flags[row];
      if (flags & kClosesPivot) {
        --pivot;
        const int64_t base = pivot * kTileSamples;
        for (int p = 0; p < kPacks; ++p) {
          const V bar_y = load(tile.bar_y + base, p);
          store(tile.upper, p,
                math::fma(load(tile.gamma_upper + base, p), bar_y, load(tile.rho_upper + base, p)));
          if (pivot_has_lower[pivot])
            store(tile.lower, p,
                  math::fma(load(tile.gamma_lower + base, p), bar_y,
                            -load(tile.rho_lower + base, p)));
        }
      }
      // Alone in its group a row attains the limits for certain.
      const bool alone =
          (flags & kClosesPivot) && (row == 0 || (list.flags[row - 1] & kClosesPivot));
      scalar_t* bars = tile.bar + r * kTileSamples;
      V upper_sum = zero, lower_sum = zero;
      for (int p = 0; p < kPacks; ++p) {
        const V f = load(tile.value, p);
        V bar = zero;
        if (flags & kHasUpper) {
          const V left = load(tile.upper, p);
          V mine = left;
          if (!alone) mine = left * load(tile.row_upper + row * kTileSamples, p);
          upper_sum = math::fma(f, mine, upper_sum);
          bar = mine;
        }
        if (flags & kHasLower) {
          const V left = load(tile.lower, p);
          V mine = left;
          if (!alone) mine = left * load(tile.row_lower + row * kTileSamples, p);
          lower_sum = math::fma(f, mine, lower_sum);
          bar = bar + mine;
        }
        store(bars, p, bar);
        for (int64_t l = block.columns; l < pivot; ++l) {
          scalar_t* bar_y = tile.bar_y + l * kTileSamples;
          store(bar_y, p, math::fma(V(coef[l * block.rows + r]), bar, load(bar_y, p)));
        }
      }
      if (flags & kHasUpper) sums.upper[row] += double(math::reduce_add(upper_sum));
      if (flags & kHasLower) sums.lower[row] += double(math::reduce_add(lower_sum));
    }
    if (block.columns > 0) spread_panel(block, coef, tile.bar, tile.bar_y);
    int64_t after = block.columns;
    for (int r = 0; r < block.rows; ++r)
      after += (list.flags[block.first_row + r] & kClosesPivot) != 0;
    weigh_and_add(tile, block, 0, after, sums);
  }
}

// y[l][s] to y_by_sample[s][l].
template <class scalar_t>
void transpose(const PathTile<scalar_t>& tile, int64_t pivots, int64_t stride) {
  for (int64_t l = 0; l < pivots; ++l)
    for (int s = 0; s < kTileSamples; ++s)
      tile.y_by_sample[s * stride + l] = tile.y[l * kTileSamples + s];
}

template <class scalar_t, bool tilted = false>
void run(const Program<scalar_t>& program, int64_t sampled_rows, int64_t completion_rows,
         const ShiftedPoints& points, uint32_t first, int64_t tiles, scalar_t* workspace,
         const PathwiseSums& sums) {
  using V = Vec<scalar_t>;
  const int64_t pivots = program.n_pivots;
  scalar_t* next = workspace;
  auto take = [&next](int64_t rows) {
    scalar_t* p = next;
    next += rows * kTileSamples;
    return p;
  };
  PathTile<scalar_t> tile;
  for (scalar_t** p : {&tile.y, &tile.bar_y, &tile.rho_upper, &tile.gamma_upper, &tile.rho_lower,
                       &tile.gamma_lower})
    *p = take(pivots);
  for (scalar_t** p : {&tile.row_upper, &tile.row_lower}) *p = take(sampled_rows);
  for (scalar_t** p : {&tile.rest_upper, &tile.rest_lower}) *p = take(completion_rows);
  tile.y_by_sample = take(pathwise_stride(pivots));
  for (scalar_t** p : {&tile.accumulator, &tile.bar}) *p = take(kBlockRows);
  for (scalar_t** p : {&tile.value, &tile.upper, &tile.lower}) *p = take(1);
  // A byte for each pivot, in the elements that are left (pathwise_workspace_size).
  auto* pivot_has_lower = reinterpret_cast<uint8_t*>(next);
  if (sums.products)  // what add_products reads beyond the pivots
    for (int64_t i = 0; i < pathwise_stride(pivots) * kTileSamples; ++i)
      tile.y_by_sample[i] = scalar_t(0);
  for (int64_t t = 0; t < tiles; ++t) {
    fill(tile.value, scalar_t(tilted ? 0 : 1));
    forward_sampled<tilted>(program.sampled, tile, program.tilt, points,
                            first + uint32_t(t) * kTileSamples, pivot_has_lower);
    if constexpr (tilted) weigh(tile.value, program.log_unit);
    forward_completion(program.completion, tile, program.skip_limit);
    V value = V(scalar_t(0));
    for (int p = 0; p < kTileSamples / kWidth<scalar_t>; ++p) value = value + load(tile.value, p);
    *sums.value += double(math::reduce_add(value));
    if (sums.products) transpose(tile, pivots, sums.stride);
    for (int64_t l = 0; l < pivots; ++l)
      fill(tile.bar_y + l * kTileSamples, tilted ? -program.tilt[l] : scalar_t(0));
    backward_completion(program.completion, tile, sampled_rows, pivots, sums);
    backward_sampled(program.sampled, tile, pivots, pivot_has_lower, sums);
  }
}

}  // namespace
}  // namespace MVNROB_ISA

const PathwiseTable MVNROB_SIMD_SYMBOL(mvn_cdf_pathwise_table) = {
    MVNROB_ISA::run<float>, MVNROB_ISA::run<double>, MVNROB_ISA::run<double, true>};

}  // namespace mvnrob
