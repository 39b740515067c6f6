// How the tensor sampler of mvn_cdf stores coefficients and y's: split into two float16, hi + lo to
// 22 bits or more, in the order in which lanes take them for products of 16 x 16 by 16 x 8
// (tensor.h). Both parts together are as large as the float32 they stand for.
//
// A panel of 64 rows: a float32 factor for each row, which undoes both scales; then slabs of 16
// pivots, each [4 tiles of 16 rows][hi, lo][lane][4 words]. The last slab is filled up with zeros.
// The history of y: slabs of [8 points][lane][4 words: hi, hi, lo, lo].
//
// Scales. The factor's rows have norm 1, so a coefficient is at most 1 / d, d the divisor of its
// row; its scale is the power of two that brings 1 / d to 2^12 .. 2^13. What falls below float16's
// smallest number is then 2^-37 of 1 / d. A y is scaled by 2^8: samples that count have |y| < 14,
// and 255 is where float16 ends. Of those that fail (f = 0) y may be anything, and is cut off
// there.
#pragma once
#include "kernels/mvn_cdf_data.h"
#include "kernels/tensor.h"

namespace mvnrob::kernels {

constexpr int kSlab = 16;                               // pivots
constexpr int kPanelRows = kMostOuterRows;              // rows of a panel
constexpr int kSlabWords = kPanelRows * kSlab;          // of a panel
constexpr float kPointScale = 256, kMostPoint = 65000;  // of y, scaled

MVNROB_HD int slabs_of(int pivots) { return (pivots + kSlab - 1) / kSlab; }

// Numbers of 32 bits in a panel of `pivots` columns.
MVNROB_HD int64_t panel_size(int pivots) {
  return kPanelRows + int64_t(kSlabWords) * slabs_of(pivots);
}

// The scale of a row of coefficients with this divisor, and what undoes it and that of y.
struct PanelScale {
  float scale, inverse;

  MVNROB_HD explicit PanelScale(double divisor) {
    const int exponent = int(math::as_uint(divisor) >> 52 & 0x7ff) - 1023;
    const int k = exponent < -100 ? -100 : exponent > 10 ? 10 : exponent;
    scale = math::as_real(uint32_t(127 + 13 + k) << 23);
    inverse = math::as_real(uint32_t(127 - 13 - 8 - k) << 23);
  }
};

// Two numbers as words of their parts.
MVNROB_DEVICE void split(float first, float second, uint32_t& high, uint32_t& low) {
  float a, b;
  high = to_halves(first, second);
  from_halves(high, a, b);
  low = to_halves(first - a, second - b);
}

// Where row r of a panel has its columns 2 c and 2 c + 1: the word of hi; that of lo is
// kLowWords beyond.
constexpr int kLowWords = 4 * kWarp;
MVNROB_HD int64_t panel_word(int row, int pair) {
  const int in_slab = pair % (kSlab / 2);
  const int lane = row % 8 * 4 + in_slab % 4;
  const int word = row / 8 % 2 + in_slab / 4 * 2;
  return int64_t(pair / (kSlab / 2)) * kSlabWords + row / 16 * (2 * kLowWords) + lane * 4 + word;
}

}  // namespace mvnrob::kernels
