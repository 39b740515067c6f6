// pivoted_cholesky's kernel run on the shim as on a device.
#pragma once
#include <cstdint>

#include "kernels/pivoted_cholesky.h"
#include "shim_mvn_cdf.h"

namespace mvnrob::shim {

// All rows of `whole`, input and output set, `tile_rows` at a time.
inline void run_pivoted_cholesky(const kernels::PivotedCholeskyArgs& whole, int64_t tile_rows,
                                 int64_t resident) {
  MvnCdfLauncher launcher;
  launcher.resident = resident;
  for (int64_t first = 0; first < whole.plan.rows; first += tile_rows) {
    const int64_t rows = std::min(tile_rows, whole.plan.rows - first);
    const auto a = kernels::tile_of(whole, first, rows);
    with_workspace(rows * kernels::pivoted_layout(a).bytes,
                   [&](unsigned char* memory) { kernels::run_pivoted_tile(launcher, a, memory); });
  }
}

}  // namespace mvnrob::shim
