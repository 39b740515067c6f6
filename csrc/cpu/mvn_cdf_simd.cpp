// The sampler of mvn_cdf: separation of variables (Genz 1992) over tiles of 64 samples, vectorised
// over the samples. Compiled once per instruction set (setup.py), so nothing here may call code
// that the linker could merge with another level's copy: only math/ (namespaced by level), what
// is static to this file and what is always inlined.
#include <cstdint>

#include "cpu/mvn_cdf_coordinate.h"
#include "cpu/mvn_cdf_panel.h"
#include "cpu/mvn_cdf_program.h"
#include "cpu/mvn_cdf_tilted_sample.h"
#include "cpu/mvn_cdf_union_sample.h"
#include "cpu/simd_dispatch.h"
#include "math/lattice.h"
#include "math/normal.h"
#include "math/pack.h"
#include "plan/one_factor.h"
#include "plan/ordering.h"

namespace mvnrob {
namespace MVNROB_ISA {
namespace {

template <class scalar_t>
struct Tile {
  scalar_t* y;            // [n_pivots][64]
  scalar_t* accumulator;  // [kBlockRows][64]
  scalar_t* value;        // the running product f
  scalar_t* complement;   // 1 - f
  scalar_t* upper;        // limits of the pivot whose group is being read
  scalar_t* lower;
  scalar_t* completed;  // f times the probabilities of the completion's rows
  scalar_t* missing;    // f - completed, without cancellation
  scalar_t* mass;       // sum of the completion's probabilities of failing
  scalar_t* largest;    // and the largest of them
};

// Draws y given its limits and multiplies the integrand by the probability of the interval.
template <class scalar_t, class Coordinate>
void draw(const Tile<scalar_t>& tile, scalar_t* y, bool has_lower, const Coordinate& coordinate) {
  using V = WideVec<scalar_t>;
  for (int at = 0; at < kTileSamples; at += math::width<V>) {
    V w, wc, e, ec, drawn;
    coordinate.get(at, w, wc);
    const V upper = V::load(tile.upper + at);
    if (has_lower)
      math::step_interval<V>(V::load(tile.lower + at), upper, w, wc, e, ec, drawn);
    else
      math::step_upper<V>(upper, w, wc, e, ec, drawn);
    drawn.store(y + at);
    const V value = V::load(tile.value + at);
    // 1 - f e = (1 - f) + f (1 - e): no subtraction, so 1 - f keeps its digits.
    math::fma(value, ec, V::load(tile.complement + at)).store(tile.complement + at);
    (value * e).store(tile.value + at);
  }
}

// The same from N(tilt, 1). tile.value holds the logarithm of the weight.
template <class Coordinate>
void draw_tilted(const Tile<double>& tile, double* y, double tilt, const Coordinate& coordinate) {
  using V = WideVec<double>;
  const V mu(tilt);
  for (int at = 0; at < kTileSamples; at += math::width<V>) {
    V w, wc, e, ec, z;
    coordinate.get(at, w, wc);
    const V lower = V::load(tile.lower + at) - mu, upper = V::load(tile.upper + at) - mu;
    math::step_interval<V, true>(lower, upper, w, wc, e, ec, z);
    (z + mu).store(y + at);
    const V loss = tilted_loss(math::minus_two_log_interval<V>(lower, upper), mu, z);
    (V::load(tile.value + at) - loss).store(tile.value + at);
  }
}

template <bool tilted, class scalar_t>
void sample_rows(const RowList<scalar_t>& list, const Tile<scalar_t>& tile, const scalar_t* tilt,
                 const ShiftedPoints& points, uint32_t first) {
  using V = Vec<scalar_t>;
  constexpr int kPacks = kTileSamples / kWidth<scalar_t>;
  const scalar_t infinity = scalar_t(__builtin_inf());
  bool has_upper = false, has_lower = false;
  int known = 0;  // pivots whose y is drawn
  for (int64_t b = 0; b < list.n_blocks; ++b) {
    const Block& block = list.blocks[b];
    const scalar_t* coef = list.coef + block.coef;
    if (block.columns > 0) multiply_panel(block, coef, tile.y, tile.accumulator);
    for (int r = 0; r < block.rows; ++r) {
      const int row = block.first_row + r;
      const uint8_t flags = list.flags[row];
      scalar_t* sums = tile.accumulator + r * kTileSamples;
      const V upper(list.upper[row]), lower(list.lower[row]);
      const bool first_upper = (flags & kHasUpper) && !has_upper;
      const bool first_lower = (flags & kHasLower) && !has_lower;
#pragma GCC unroll 4
      for (int p = 0; p < kPacks; ++p) {
        V sum = block.columns > 0 ? load(sums, p) : V(scalar_t(0));
        for (int l = block.columns; l < known; ++l)
          sum = math::fma(V(coef[int64_t(l) * block.rows + r]),
                          load(tile.y + int64_t(l) * kTileSamples, p), sum);
        if (flags & kHasUpper) {
          const V limit = upper + sum;
          store(tile.upper, p, first_upper ? limit : math::min(load(tile.upper, p), limit));
        }
        if (flags & kHasLower) {
          const V limit = lower + sum;
          store(tile.lower, p, first_lower ? limit : math::max(load(tile.lower, p), limit));
        }
      }
      has_upper |= (flags & kHasUpper) != 0;
      has_lower |= (flags & kHasLower) != 0;
      if (flags & kClosesPivot) {
        if (!has_upper) fill(tile.upper, infinity);
        scalar_t* y = tile.y + int64_t(known) * kTileSamples;
        if constexpr (tilted) {
          if (!has_lower) fill(tile.lower, -infinity);
        }
        with_coordinate(points, known, first, [&](const auto& coordinate) {
          if constexpr (tilted)
            draw_tilted(tile, y, tilt[known], coordinate);
          else
            draw(tile, y, has_lower, coordinate);
        });
        ++known;
        has_upper = has_lower = false;
      }
    }
  }
}

// Multiplies by the rows' probabilities given y, and keeps what bounds the error of treating the
// rows as independent given y (see mvn_cdf_row.cpp).
template <class scalar_t>
void complete_rows(const RowList<scalar_t>& list, const Tile<scalar_t>& tile, scalar_t skip_limit) {
  using V = Vec<scalar_t>;
  using W = WideVec<scalar_t>;
  constexpr int kPacks = kTileSamples / kWidth<scalar_t>;
  for (int p = 0; p < kPacks; ++p) store(tile.completed, p, load(tile.value, p));
  for (scalar_t* p : {tile.missing, tile.mass, tile.largest}) fill(p, scalar_t(0));
  for (int64_t b = 0; b < list.n_blocks; ++b) {
    const Block& block = list.blocks[b];
    multiply_panel(block, list.coef + block.coef, tile.y, tile.accumulator);
    for (int r = 0; r < block.rows; ++r) {
      const int row = block.first_row + r;
      scalar_t* sums = tile.accumulator + r * kTileSamples;
      const bool has_lower = list.flags[row] & kHasLower;
      const V upper(list.upper[row]), lower(list.lower[row]);
      V nearest = V(scalar_t(__builtin_inf()));
      for (int p = 0; p < kPacks; ++p) {
        const V sum = load(sums, p);
        nearest = math::min(nearest, upper + sum);
        if (has_lower) nearest = math::min(nearest, -(lower + sum));
      }
      if (math::reduce_min(nearest) > skip_limit) continue;
      for (int at = 0; at < kTileSamples; at += math::width<W>) {
        const W sum = W::load(sums + at);
        W e, q;
        math::ndtr_pair<W>(W(list.upper[row]) + sum, e, q);
        if (has_lower) {
          W below, above;
          const W limit = W(list.lower[row]) + sum;
          math::ndtr_pair<W>(limit, below, above);
          // Phi(u) - Phi(l) in whichever tail both are small.
          e = math::max(math::select(limit > W(scalar_t(0)), above - q, e - below), W(scalar_t(0)));
          q = q + below;
        }
        const W value = W::load(tile.completed + at);
        math::fma(value, q, W::load(tile.missing + at)).store(tile.missing + at);
        (value * e).store(tile.completed + at);
        (W::load(tile.mass + at) + q).store(tile.mass + at);
        math::max(W::load(tile.largest + at), q).store(tile.largest + at);
      }
    }
  }
}

// Adds the tile's integrand, completed when there is a completion.
template <class scalar_t>
void add_tile(const Tile<scalar_t>& tile, bool completes, SampleSums& sums) {
  using V = Vec<scalar_t>;
  constexpr int kPacks = kTileSamples / kWidth<scalar_t>;
  const V zero(scalar_t(0)), one(scalar_t(1));
  V value_sum = zero, complement_sum = zero, square_sum = zero, below_sum = zero, above_sum = zero;
  for (int p = 0; p < kPacks; ++p) {
    const V sampled = load(tile.value, p);
    V value = sampled, complement = load(tile.complement, p);
    if (completes) {
      // Given y, the rest holds with probability in [max(0, 1 - mass), 1 - largest] (Bonferroni,
      // Frechet), and so does the product of its probabilities.
      const V missing = load(tile.missing, p);
      below_sum = below_sum +
                  math::max(math::fma(sampled, math::min(load(tile.mass, p), one), -missing), zero);
      above_sum = above_sum + math::max(math::fma(-sampled, load(tile.largest, p), missing), zero);
      value = load(tile.completed, p);
      complement = complement + missing;
    }
    value_sum = value_sum + value;
    complement_sum = complement_sum + complement;
    square_sum = math::fma(value, value, square_sum);
  }
  sums.value += double(math::reduce_add(value_sum));
  sums.complement += double(math::reduce_add(complement_sum));
  sums.below += double(math::reduce_add(below_sum));
  sums.above += double(math::reduce_add(above_sum));
  sums.square += double(math::reduce_add(square_sum));
}

template <class scalar_t, bool tilted = false>
void sample(const Program<scalar_t>& program, const ShiftedPoints& points, uint32_t first,
            int64_t tiles, scalar_t* workspace, SampleSums* sums) {
  scalar_t* next = workspace;
  auto take = [&next](int64_t rows) {
    scalar_t* p = next;
    next += rows * kTileSamples;
    return p;
  };
  Tile<scalar_t> tile;
  tile.y = take(program.n_pivots);
  tile.accumulator = take(kBlockRows);
  for (scalar_t** p : {&tile.value, &tile.complement, &tile.upper, &tile.lower, &tile.completed,
                       &tile.missing, &tile.mass, &tile.largest})
    *p = take(1);
  const bool completes = program.completion.n_blocks > 0;
  for (int64_t t = 0; t < tiles; ++t) {
    fill(tile.value, scalar_t(tilted ? 0 : 1));
    fill(tile.complement, scalar_t(0));
    sample_rows<tilted>(program.sampled, tile, program.tilt, points,
                        first + uint32_t(t) * kTileSamples);
    if constexpr (tilted) weigh(tile.value, program.log_unit);
    if (completes) complete_rows(program.completion, tile, program.skip_limit);
    add_tile(tile, completes, *sums);
  }
}

void eliminate(double* __restrict column, const double* __restrict L, int64_t ld, const double* row,
               int64_t columns, int64_t m) {
  int64_t l = 0;
  for (; l + 4 <= columns; l += 4) {
    const double *a = L + l * ld, *b = a + ld, *c = b + ld, *d = c + ld;
    const double ra = row[l], rb = row[l + 1], rc = row[l + 2], rd = row[l + 3];
    for (int64_t i = 0; i < m; ++i) column[i] -= (a[i] * ra + b[i] * rb) + (c[i] * rc + d[i] * rd);
  }
  for (; l < columns; ++l) {
    const double* a = L + l * ld;
    const double ra = row[l];
    for (int64_t i = 0; i < m; ++i) column[i] -= a[i] * ra;
  }
}

void ndtr_array(const double* x, double* p, int64_t n) {
  using V = Vec<double>;
  int64_t i = 0;
  for (; i + kWidth<double> <= n; i += kWidth<double>) math::ndtr<V>(V::load(x + i)).store(p + i);
  for (; i < n; ++i) p[i] = math::ndtr<double>(x[i]);
}

// The lanes each keep a product; what is left over goes through them as variables that hold.
double one_factor_fails(const double* upper, const double* lower, const double* slope, double y,
                        int64_t m) {
  using V = Vec<double>;
  constexpr int kWide = kWidth<double>;
  V value(1.0), complement(0.0);
  for (int64_t i = 0; i < m; i += kWide) {
    double u[kWide], l[kWide], c[kWide];
    const bool whole = i + kWide <= m;
    if (!whole)
      for (int e = 0; e < kWide; ++e) {
        u[e] = i + e < m ? upper[i + e] : HUGE_VAL;
        l[e] = i + e < m ? lower[i + e] : -HUGE_VAL;
        c[e] = i + e < m ? slope[i + e] : 0;
      }
    V holds, fails;
    plan::holds_and_fails<V>(V::load(whole ? upper + i : u), V::load(whole ? lower + i : l),
                             V::load(whole ? slope + i : c), V(y), holds, fails);
    complement = math::fma(value, fails, complement);
    value = value * holds;
  }
  double values[kWide], complements[kWide];
  value.store(values);
  complement.store(complements);
  double all = 1, missing = 0;
  for (int e = 0; e < kWide; ++e) {
    missing += all * complements[e];
    all *= values[e];
  }
  return missing;
}

double one_factor_log(const double* upper, const double* lower, const double* slope, double y,
                      int64_t m) {
  using V = Vec<double>;
  constexpr int kWide = kWidth<double>;
  V sum(0.0);
  int64_t i = 0;
  for (; i + kWide <= m; i += kWide) {
    const V move = V::load(slope + i) * V(y);
    sum =
        sum + math::minus_two_log_interval<V>(V::load(lower + i) - move, V::load(upper + i) - move);
  }
  double total = math::reduce_add(sum);
  for (; i < m; ++i)
    total += math::minus_two_log_interval<double>(lower[i] - slope[i] * y, upper[i] - slope[i] * y);
  return -0.5 * total;
}

}  // namespace
}  // namespace MVNROB_ISA

const SimdTable MVNROB_SIMD_SYMBOL(mvn_cdf_table) = {
    MVNROB_ISA::kBlockRows,           MVNROB_ISA::sample<float>,    MVNROB_ISA::sample<double>,
    MVNROB_ISA::sample<double, true>, MVNROB_ISA::sample_union,     MVNROB_ISA::eliminate,
    MVNROB_ISA::ndtr_array,           MVNROB_ISA::one_factor_fails, MVNROB_ISA::one_factor_log};

}  // namespace mvnrob
