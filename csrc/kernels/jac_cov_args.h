// What the kernels of jac_cov share: arguments, types of elements, how S is cut into tiles and D
// into chunks.
//
// S_ij = <u_i, u_j>, u_i = J_t - J_i, is summed as on the CPU: in the type that multiplies over at
// most kJacChunk columns, then chunk after chunk in float64. Whoever adds the chunks up, and
// however many are under way at once, the order is theirs, so neither the grid nor the batch can
// change a bit.
#pragma once
#include <cmath>

#include "kernels/device.h"
#include "math/jac_cov.h"
#include "math/pack.h"

namespace mvnrob::kernels {

struct BFloat16 {
  uint16_t bits;
};

// What an element of J is computed in.
template <class in_t>
struct JacElement {
  using Compute = in_t;
};
template <>
struct JacElement<BFloat16> {
  using Compute = float;
};
template <class in_t>
using JacCompute = typename JacElement<in_t>::Compute;

MVNROB_DEVICE float widen(float x) { return x; }
MVNROB_DEVICE double widen(double x) { return x; }
MVNROB_DEVICE float widen(BFloat16 x) { return math::as_real(uint32_t(uint32_t(x.bits) << 16)); }

MVNROB_DEVICE void load_where(bool there, BFloat16& x, const BFloat16* from) {
  load_where(there, x.bits, &from->bits);
}

MVNROB_DEVICE float not_a_number(float) { return NAN; }
MVNROB_DEVICE double not_a_number(double) { return NAN; }
MVNROB_DEVICE BFloat16 not_a_number(BFloat16) { return {0x7fc0}; }

// Columns that are summed in the type that multiplies: of 4096 bytes, and twice as many where fewer
// sums are added for them (jac_cov_gram.h).
template <class in_t>
constexpr int kJacChunk = 4096 / int(sizeof(JacCompute<in_t>));
constexpr int kJacGramChunk = 2048;

struct JacArgs {
  const void* J;  // [batch, classes, columns]; columns lie side by side
  int64_t batch_stride, row_stride;
  int64_t classes, columns;
  const int64_t* target;
  // Of this launch.
  int64_t first_problem, problems;
  int64_t first_chunk, chunks;
};

// One problem's rows. A target that is no class makes every difference NaN: values are not looked
// at before a launch, and nothing outside J may be read.
template <class in_t>
struct JacProblem {
  const in_t* rows;
  const in_t* target;
  bool valid;

  MVNROB_DEVICE JacProblem(const JacArgs& a, int64_t problem) {
    const int64_t t = a.target[problem];
    valid = t >= 0 && t < a.classes;
    rows = static_cast<const in_t*>(a.J) + problem * a.batch_stride;
    target = rows + (valid ? t : 0) * a.row_stride;
  }

  MVNROB_DEVICE in_t target_value(int64_t column) const {
    return valid ? target[column] : not_a_number(in_t{});
  }
};

// Tiles of side x side entries that cover i <= j, column of tiles by column.
struct JacTiles {
  int64_t across;

  MVNROB_HD JacTiles(int64_t classes, int64_t side) : across((classes + side - 1) / side) {}

  MVNROB_HD int64_t count() const { return across * (across + 1) / 2; }
  MVNROB_HD static int64_t index(int64_t row, int64_t column) {
    return column * (column + 1) / 2 + row;
  }
  MVNROB_HD static void place(int64_t index_of_tile, int64_t& row, int64_t& column) {
    column = int64_t((sqrt(8.0 * double(index_of_tile) + 1.0) - 1.0) / 2.0);
    while (index(0, column) > index_of_tile) --column;
    while (index(0, column + 1) <= index_of_tile) ++column;
    row = index_of_tile - index(0, column);
  }
};

struct JacCovArgs {
  JacArgs jac;
  int64_t side;  // of a tile
  // Sums of each chunk by itself, [problems, tiles, chunks, side, side] of the type that
  // multiplies; null: the kernel adds them to S.
  void* sums;
  double* S;              // [batch, classes, classes]
  const double* squares;  // of the norms over all columns, [batch, classes], where tiles need them
  // Of bfloat16, <J_t, J_i> likewise, and which problems must subtract before they multiply
  // (jac_cov_gram.h), [batch].
  const double* products;
  const uint32_t* subtracts;
  bool grams;  // the sums are of those that do not
};

// Of a problem of jac_cov_gram.h: S_ij = <J_i, J_j> - (of(i) + of(j)).
struct JacMiddle {
  const double *squares, *products;
  double half;  // of |J_t|^2

  MVNROB_DEVICE JacMiddle(const JacCovArgs& a, int64_t problem, int64_t target)
      : squares(a.squares + problem * a.jac.classes),
        products(a.products + problem * a.jac.classes),
        half(0.5 * products[target]) {}

  // A norm that is not finite stays so.
  MVNROB_DEVICE double of(int64_t i) const {
    return squares[i] <= math::kJacLargest ? products[i] - half : -HUGE_VAL;
  }
};

}  // namespace mvnrob::kernels
