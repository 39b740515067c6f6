// Samples of the union (mvn_cdf_union.h says of which), in tiles of 64. Included by
// mvn_cdf_simd.cpp, once for each instruction set.
#pragma once
#include "cpu/mvn_cdf_coordinate.h"
#include "cpu/mvn_cdf_panel.h"
#include "plan/union.h"

namespace mvnrob {
namespace MVNROB_ISA {
namespace {

// X = L e of all variables, e standard normal.
inline void draw_normals(const UnionProgram& p, const ShiftedPoints& points, uint32_t first,
                         double* e) {
  using V = WideVec<double>;
  for (int64_t j = 0; j < p.n_pivots; ++j) {
    with_coordinate(points, j + 1, first, [&](const auto& coordinate) {
      for (int at = 0; at < kTileSamples; at += math::width<V>) {
        V w, wc;
        coordinate.get(at, w, wc);
        const V z = math::ndtri_half<V>(math::min(w, wc));
        math::select(w < wc, z, -z).store(e + j * kTileSamples + at);
      }
    });
  }
}

inline void sample_union(const UnionProgram& p, const ShiftedPoints& points, uint32_t first,
                         int64_t tiles, double* workspace, SampleSums* sums) {
  using V = Vec<double>;
  double* e = workspace;
  double* x = e + p.n_pivots * kTileSamples;
  double* tail = x + (p.n_variables + kMaxBlockRows) * kTileSamples;
  double* move = tail + kTileSamples;
  double* failed = move + kTileSamples;
  int64_t event[kTileSamples];
  const double* correlation[kTileSamples];  // of the variable that fails, with the others
  for (int64_t t = 0; t < tiles; ++t, first += kTileSamples) {
    draw_normals(p, points, first, e);
    for (int64_t row = 0; row < p.n_variables; row += kBlockRows) {
      const int rows = int(row + kBlockRows < p.n_variables ? kBlockRows : p.n_variables - row);
      multiply_panel({0, 0, rows, int32_t(p.n_pivots)}, p.coef + row * p.n_pivots, e,
                     x + row * kTileSamples);
    }
    // The event that happens, and how far in its tail.
    with_coordinate(points, 0, first, [&](const auto& coordinate) {
      for (int pack = 0; pack < kTileSamples / kWidth<double>; ++pack) {
        V w, wc;
        coordinate.get(pack * kWidth<double>, w, wc);
        store(tail, pack, w);
      }
    });
    for (int lane = 0; lane < kTileSamples; ++lane) {
      const double w = tail[lane];
      event[lane] = plan::find_event(p.share, p.n_events, w);
      tail[lane] = plan::tail_within_event(p.share, p.mass, p.whole_mass, event[lane], w);
    }
    for (int pack = 0; pack < kTileSamples / kWidth<double>; ++pack)
      store(move, pack, math::ndtri<V>(load(tail, pack)));  // negative
    for (int lane = 0; lane < kTileSamples; ++lane) {
      const bool above = event[lane] < p.n_variables;
      const int64_t i = p.row_of[above ? event[lane] : event[lane] - p.n_variables];
      correlation[lane] = p.correlation + i * p.n_variables;
      move[lane] = (above ? -move[lane] : move[lane]) - x[i * kTileSamples + lane];
      event[lane] = i;
      failed[lane] = 0;
    }
    for (int64_t i = 0; i < p.n_variables; ++i) {
      const double upper = p.upper[i], lower = p.lower[i];
      for (int lane = 0; lane < kTileSamples; ++lane) {
        const double moved = x[i * kTileSamples + lane] + correlation[lane][i] * move[lane];
        // Rounding must not save the variable that fails.
        failed[lane] += moved > upper || moved < lower || i == event[lane] ? 1.0 : 0.0;
      }
    }
    for (int lane = 0; lane < kTileSamples; ++lane) {
      const double value = p.whole_mass / failed[lane];
      sums->complement += value;
      sums->value += 1 - value;
      sums->square += value * value;
    }
  }
}

}  // namespace
}  // namespace MVNROB_ISA
}  // namespace mvnrob
