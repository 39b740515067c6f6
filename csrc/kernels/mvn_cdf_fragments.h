// How the float64 tensor sampler of mvn_cdf stores coefficients and y's: in the order in which
// lanes take them for products of 16 x 8 by 8 x 8 (tensor.h), 16 bytes at a time.
//
// A panel of 64 rows: slabs of 8 pivots, each [4 tiles of 16 rows][pivots 0 .. 3, 4 .. 7][lane][2
// rows: g, g + 8]. The last slab is filled up with zeros. The history of y: slabs of [8
// points][lane] [2 pivots: t, t + 4].
#pragma once
#include "kernels/mvn_cdf_data.h"
#include "kernels/tensor.h"

namespace mvnrob::kernels::fragments {

constexpr int kSlab = 8;                          // pivots
constexpr int kPanelRows = kMostOuterRows;        // rows of a panel
constexpr int kSlabNumbers = kPanelRows * kSlab;  // of a panel

MVNROB_HD int slabs_of(int pivots) { return (pivots + kSlab - 1) / kSlab; }

// Numbers in a panel of `pivots` columns.
MVNROB_HD int64_t panel_size(int pivots) { return int64_t(kSlabNumbers) * slabs_of(pivots); }

// Where row r of a panel has its column l.
MVNROB_HD int64_t panel_place(int row, int column) {
  const int tile = row / 16, half = column % kSlab / 4;
  const int lane = row % 8 * 4 + column % 4;
  return int64_t(column / kSlab) * kSlabNumbers + ((tile * 2 + half) * kWarp + lane) * 2 +
         row % 16 / 8;
}

}  // namespace mvnrob::kernels::fragments
