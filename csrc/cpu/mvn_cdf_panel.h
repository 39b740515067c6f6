// What the samplers of mvn_cdf share: tiles of 64 samples in packs, and the product of a block of
// rows with the samples drawn so far. For the sources that are compiled once per instruction set:
// everything is static to the file that includes this.
#pragma once
#include <cstdint>

#include "cpu/mvn_cdf_program.h"
#include "math/lattice.h"
#include "math/normal.h"
#include "math/pack.h"

namespace mvnrob {
namespace MVNROB_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kBlockRows = 6;  // 6 x 4 accumulators, 4 y's and a broadcast fit 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kBlockRows = 3;  // 3 x 4 accumulators fit 16 registers
#else
constexpr int kVectorBytes = 16;
constexpr int kBlockRows = 3;
#endif
static_assert(kBlockRows <= kMaxBlockRows, "the workspace is sized by kMaxBlockRows");

template <class scalar_t>
constexpr int kWidth = kVectorBytes / int(sizeof(scalar_t));

template <class scalar_t>
using Vec = math::Pack<scalar_t, kWidth<scalar_t>>;

// Packs handled together, so that their dependent chains overlap.
constexpr int kUnroll = 4;
template <class scalar_t>
constexpr int kGroups = kTileSamples / (kUnroll * kWidth<scalar_t>);

// A draw is one long dependent chain: several side by side keep the units busy.
constexpr int kChains = 4;
template <class scalar_t>
using WideVec = math::Pack<scalar_t, kChains * kWidth<scalar_t>>;

template <class scalar_t>
inline Vec<scalar_t> load(const scalar_t* p, int pack) {
  return Vec<scalar_t>::load(p + pack * kWidth<scalar_t>);
}

template <class scalar_t>
inline void store(scalar_t* p, int pack, Vec<scalar_t> v) {
  v.store(p + pack * kWidth<scalar_t>);
}

template <class scalar_t>
inline void fill(scalar_t* p, scalar_t x) {
  for (int i = 0; i < kTileSamples; ++i) p[i] = x;
}

// accumulator[r] = sum_l coef[l, r] y[l]: the part of a block that needs no new y. This is where
// the O(n^2) work is; registers hold `rows` x 4 packs of sums.
template <class scalar_t, int rows>
void multiply_panel(const scalar_t* coef, int64_t columns, const scalar_t* y,
                    scalar_t* accumulator) {
  using V = Vec<scalar_t>;
  for (int g = 0; g < kGroups<scalar_t>; ++g) {
    const int offset = g * kUnroll * kWidth<scalar_t>;
    V sum[rows][kUnroll];
    for (int r = 0; r < rows; ++r)
      for (int p = 0; p < kUnroll; ++p) sum[r][p] = V(scalar_t(0));
    const scalar_t* c = coef;
    const scalar_t* yl = y + offset;
    for (int64_t l = 0; l < columns; ++l, c += rows, yl += kTileSamples) {
      V value[kUnroll];
      for (int p = 0; p < kUnroll; ++p) value[p] = load(yl, p);
      for (int r = 0; r < rows; ++r) {
        const V factor(c[r]);
        for (int p = 0; p < kUnroll; ++p) sum[r][p] = math::fma(factor, value[p], sum[r][p]);
      }
    }
    for (int r = 0; r < rows; ++r)
      for (int p = 0; p < kUnroll; ++p)
        store(accumulator + r * kTileSamples + offset, p, sum[r][p]);
  }
}

template <class scalar_t>
void multiply_panel(const Block& block, const scalar_t* coef, const scalar_t* y,
                    scalar_t* accumulator) {
  switch (block.rows) {
    case 1:
      return multiply_panel<scalar_t, 1>(coef, block.columns, y, accumulator);
    case 2:
      return multiply_panel<scalar_t, 2>(coef, block.columns, y, accumulator);
    case 3:
      return multiply_panel<scalar_t, 3>(coef, block.columns, y, accumulator);
    case 4:
      return multiply_panel < scalar_t,
             kBlockRows < 4 ? 1 : 4 > (coef, block.columns, y, accumulator);
    case 5:
      return multiply_panel < scalar_t,
             kBlockRows < 5 ? 1 : 5 > (coef, block.columns, y, accumulator);
    default:
      return multiply_panel < scalar_t,
             kBlockRows < 6 ? 1 : 6 > (coef, block.columns, y, accumulator);
  }
}

}  // namespace
}  // namespace MVNROB_ISA
}  // namespace mvnrob
