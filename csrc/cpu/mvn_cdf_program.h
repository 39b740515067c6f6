// What the sampler executes for one problem. Torch-free; built by mvn_cdf_pack.cpp, run by
// mvn_cdf_simd.cpp.
//
// The factor's rows form a sequence. Pivot j comes with the rows that have no variance left once
// y_0..y_j are known (its group): each bounds y_j from above or below, so that
//   y_j in [max of the lower bounds, min of the upper bounds],  bound = limit + sum_l coef_l y_l,
// with the limits and coefficients already divided by the row's coefficient of y_j, and the
// coefficients negated. Rows of a "completion" have variance left after the last pivot sampled;
// given the y's each is a single normal probability. kTileSamples samples walk through the rows
// together.
#pragma once
#include <cstdint>

#include "cpu/simd_dispatch.h"
#include "math/point_set.h"
#include "plan/estimate.h"

namespace mvnrob {

constexpr int kMaxBlockRows = 6;  // rows of a register block (a level may use fewer)

enum RowFlag : uint8_t { kHasUpper = 1, kHasLower = 2, kClosesPivot = 4 };

// Rows first_row .. first_row + rows - 1. coef[l * rows + r] multiplies y_l in row r, for the
// `columns` pivots known before the block, then for the pivots that the block itself closes.
struct Block {
  int64_t coef;
  int32_t first_row;
  int32_t rows;
  int32_t columns;
};

template <class scalar_t>
struct RowList {
  const Block* blocks;
  int64_t n_blocks;
  const scalar_t* coef;
  const scalar_t* upper;
  const scalar_t* lower;
  const uint8_t* flags;
};

template <class scalar_t>
struct Program {
  RowList<scalar_t> sampled;
  RowList<scalar_t> completion;
  int n_pivots;
  scalar_t skip_limit;  // a completion row with every limit of the tile above it is left out
  // Tilted samples (plan/tilt.h): of each pivot, or null; weights in units of exp(log_unit).
  const scalar_t* tilt;
  double log_unit;
};

// The union of the events that a variable fails, for samples of it (mvn_cdf_union.h).
struct UnionProgram {
  int64_t n_variables, n_pivots;
  const double* coef;  // the factor in blocks of rows: block b begins at b * rows * n_pivots
  const double *upper, *lower;  // of each variable, in the factor's order
  // Event i < n_variables: X_i > upper_i; those after it: X_i < lower_i. In the problem's order,
  // since the factor's differs between backends where rows have left.
  int64_t n_events;
  const int64_t* row_of;  // in the factor's order
  const double* mass;     // of each event
  const double* share;    // share of the whole mass that this event and those before it have
  double whole_mass;
};

// The points of one shift.
struct ShiftedPoints {
  PointSet set;
  const uint32_t* words;  // of all coordinates (cpu/generators.h)
  const uint32_t*
      shift;  // of each coordinate: what it is shifted by, or the seed of its scrambling
};

// Samples points first .. first + 64 * tiles - 1 of one shift, `first` a multiple of 64, and adds
// to `sums`.
template <class scalar_t>
using SampleFn = void (*)(const Program<scalar_t>& program, const ShiftedPoints& points,
                          uint32_t first, int64_t tiles, scalar_t* workspace, SampleSums* sums);

// Elements of the `workspace` of a SampleFn.
inline int64_t workspace_size(int n_pivots) {
  return int64_t(kTileSamples) * (n_pivots + kMaxBlockRows + 8);
}

using UnionSampleFn = void (*)(const UnionProgram& program, const ShiftedPoints& points,
                               uint32_t first, int64_t tiles, double* workspace, SampleSums* sums);

inline int64_t union_workspace_size(const UnionProgram& p) {
  return int64_t(kTileSamples) * (p.n_variables + kMaxBlockRows + p.n_pivots + 5);
}

struct SimdTable {
  int block_rows;
  SampleFn<float> sample_float;
  SampleFn<double> sample_double;
  SampleFn<double> sample_tilted;
  UnionSampleFn sample_union;
  // column[i] -= sum_l L[l * ld + i] * row[l] for i < m, l < columns
  void (*eliminate)(double* column, const double* L, int64_t ld, const double* row, int64_t columns,
                    int64_t m);
  // p[i] = Phi(x[i])
  void (*ndtr)(const double* x, double* p, int64_t n);
  // Over m variables given their common factor y: 1 - prod P_i, and sum ln P_i (plan/one_factor.h)
  double (*one_factor_fails)(const double* upper, const double* lower, const double* slope,
                             double y, int64_t m);
  double (*one_factor_log)(const double* upper, const double* lower, const double* slope, double y,
                           int64_t m);
};

MVNROB_SIMD_TABLES(SimdTable, mvn_cdf_table);
const SimdTable& simd_table();

}  // namespace mvnrob
