// Compiled once per instruction set (setup.py).
#include "cpu/mvn_cdf_factor_simd.h"

#include "cpu/simd_dispatch.h"
#include "math/pack.h"
#include "plan/ordering.h"

namespace mvnrob {
namespace MVNROB_ISA {
namespace {

using V = math::Pack<double, math::native_width<double>>;
constexpr int kWidth = math::native_width<double>;
constexpr int kPacks = kTileRows / kWidth;  // of a column of a tile

constexpr double kLanes[] = {0, 1, 2, 3, 4, 5, 6, 7};

// Columns and tiles whose sums are in registers together.
#if defined(__AVX512F__)
constexpr int kColumns = 4, kTiles = 4;
#elif defined(__AVX2__)
constexpr int kColumns = 4, kTiles = 1;
#else
constexpr int kColumns = 2, kTiles = 1;
#endif
constexpr int kTilesOfOne = kPacks < 4 ? 4 : 2;  // where there is one column

template <bool rectangular>
int64_t choose_one(const FactorRows& rows, const int64_t* position, double* priority, int64_t n) {
  const V infinity(__builtin_inf());
  V smallest = infinity;
  for (int64_t i = 0; i < n; i += kWidth) {
    V p = plan::priority<V>(V::load(rows.upper + i),
                            rectangular ? V::load(rows.lower + i) : -infinity,
                            V::load(rows.mean + i), V::load(rows.variance + i), rectangular);
    if (n - i < kWidth) p = math::select(V::load(kLanes) < V(double(n - i)), p, infinity);
    p.store(priority + i);
    smallest = math::min(p, smallest);
  }
  const double least = math::reduce_min(smallest);
  int64_t best = 0, first = INT64_MAX;
  for (int64_t i = 0; i < n; i += kWidth) {
    if (!math::any(V::load(priority + i) == V(least))) continue;
    for (int64_t k = i; k < i + kWidth && k < n; ++k) {
      const bool better = (priority[k] == least) & (position[k] < first);
      best = better ? k : best;
      first = better ? position[k] : first;
    }
  }
  return best;
}

int64_t choose(const FactorRows& rows, const int64_t* position, double* priority, int64_t n) {
  return rows.lower ? choose_one<true>(rows, position, priority, n)
                    : choose_one<false>(rows, position, priority, n);
}

template <int columns, int tiles>
inline void eliminate_block(double* const* column, int64_t n, const double* weights,
                            const double* tile, int64_t first, int64_t depth) {
  constexpr int packs = tiles * kPacks;
  V sum[columns][packs];
  for (int c = 0; c < columns; ++c)
    for (int p = 0; p < packs; ++p) sum[c][p] = V::load(column[c] + first + p * kWidth);
  for (int64_t l = 0; l < depth; ++l, weights += n, tile += kTileRows) {
    V entry[packs];
    for (int t = 0; t < tiles; ++t)
      for (int p = 0; p < kPacks; ++p)
        entry[t * kPacks + p] = V::load(tile + t * kTileSize + p * kWidth);
    for (int c = 0; c < columns; ++c) {
      const V weight(weights[c]);
      for (int p = 0; p < packs; ++p) sum[c][p] = math::fma(entry[p], weight, sum[c][p]);
    }
  }
  for (int c = 0; c < columns; ++c)
    for (int p = 0; p < packs; ++p) sum[c][p].store(column[c] + first + p * kWidth);
}

// All tiles, `tiles` at a time and the rest together.
template <int columns, int tiles>
inline void eliminate_columns(double* const* column, int64_t n, const double* weights,
                              const double* tile, int64_t first, int64_t n_tiles, int64_t depth) {
  for (; n_tiles >= tiles; n_tiles -= tiles, tile += tiles * kTileSize, first += tiles * kTileRows)
    eliminate_block<columns, tiles>(column, n, weights, tile, first, depth);
  if constexpr (tiles > 1)
    eliminate_columns<columns, tiles - 1>(column, n, weights, tile, first, n_tiles, depth);
}

void eliminate(double* const* columns, int64_t n, const double* weights, const double* tiles,
               int64_t n_tiles, int64_t depth) {
  int64_t c = 0;
  for (; c + kColumns <= n; c += kColumns)
    eliminate_columns<kColumns, kTiles>(columns + c, n, weights + c, tiles, 0, n_tiles, depth);
  for (; c < n; ++c)
    eliminate_columns<1, kTilesOfOne>(columns + c, n, weights + c, tiles, 0, n_tiles, depth);
}

unsigned add(const double* column, const NewPivot& pivot, const FactorRows& rows, double* tiles,
             int64_t n_tiles) {
  const V inverse(pivot.inverse), mean(pivot.mean), growth(pivot.growth);
  auto spent = V(0.0) > V(0.0), valid = V(0.0) == V(0.0);
  for (int64_t t = 0; t < n_tiles; ++t, tiles += kTileSize)
    for (int p = 0; p < kPacks; ++p) {
      const int64_t i = t * kTileRows + p * kWidth;
      const V c = V::load(column + i) * inverse, square = c * c;
      const V variance = math::fma(-c, c, V::load(rows.variance + i));
      const V error = math::fma(square, growth, V::load(rows.error + i));
      c.store(tiles + p * kWidth);
      variance.store(rows.variance + i);
      error.store(rows.error + i);
      math::fma(c, mean, V::load(rows.mean + i)).store(rows.mean + i);
      spent = spent | plan::is_zero_variance<V>(variance, error);
      valid = valid & plan::is_valid_variance<V>(variance, error);
    }
  return (math::any(spent) ? kSpent : 0u) | (math::any(!valid) ? kInvalid : 0u);
}

}  // namespace
}  // namespace MVNROB_ISA

extern const FactorKernels MVNROB_SIMD_SYMBOL(factor_kernels) = {
    &MVNROB_ISA::choose, &MVNROB_ISA::eliminate, &MVNROB_ISA::add};

}  // namespace mvnrob
