// Samples of the union (mvn_cdf_union.h says of which), in tiles of 64. Included by
// mvn_cdf_simd.cpp, once for each instruction set.
#pragma once
#include "cpu/mvn_cdf_coordinate.h"
#include "cpu/mvn_cdf_panel.h"
#include "plan/union.h"

namespace mvnrob {
namespace MVNROB_ISA {
namespace {

// Standard normal e; X = L e.
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

// Moves e along the rows of L of the variables that fail, to where they are at `target`: X given
// that is its own mean plus what is independent of the variable, and L e does both.
inline void move_to_events(const UnionProgram& p, const int64_t* failing, const double* target,
                           double* e, double* move) {
  const double* coef[kTileSamples];
  int64_t step[kTileSamples];
  for (int lane = 0; lane < kTileSamples; ++lane) {
    const int64_t i = failing[lane], row = i / kBlockRows * kBlockRows, rest = p.n_variables - row;
    step[lane] = kBlockRows < rest ? kBlockRows : rest;
    coef[lane] = p.coef + row * p.n_pivots + (i - row);
    move[lane] = target[lane];
  }
  for (int64_t l = 0; l < p.n_pivots; ++l)
    for (int lane = 0; lane < kTileSamples; ++lane)
      move[lane] -= coef[lane][l * step[lane]] * e[l * kTileSamples + lane];
  for (int64_t l = 0; l < p.n_pivots; ++l)
    for (int lane = 0; lane < kTileSamples; ++lane)
      e[l * kTileSamples + lane] += coef[lane][l * step[lane]] * move[lane];
}

inline void sample_union(const UnionProgram& p, const ShiftedPoints& points, uint32_t first,
                         int64_t tiles, double* workspace, SampleSums* sums) {
  using V = Vec<double>;
  double* e = workspace;
  double* x = e + p.n_pivots * kTileSamples;
  double* tail = x + (p.n_variables + kMaxBlockRows) * kTileSamples;
  double* target = tail + kTileSamples;
  double* move = target + kTileSamples;
  double* failed = move + kTileSamples;
  int64_t event[kTileSamples];
  for (int64_t t = 0; t < tiles; ++t, first += kTileSamples) {
    draw_normals(p, points, first, e);
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
      store(target, pack, math::ndtri<V>(load(tail, pack)));  // negative
    for (int lane = 0; lane < kTileSamples; ++lane) {
      const bool above = event[lane] < p.n_variables;
      const int64_t i = p.row_of[above ? event[lane] : event[lane] - p.n_variables];
      if (above) target[lane] = -target[lane];
      event[lane] = i;
      failed[lane] = 0;
    }
    move_to_events(p, event, target, e, move);
    for (int64_t row = 0; row < p.n_variables; row += kBlockRows) {
      const int rows = int(row + kBlockRows < p.n_variables ? kBlockRows : p.n_variables - row);
      multiply_panel({0, 0, rows, int32_t(p.n_pivots)}, p.coef + row * p.n_pivots, e,
                     x + row * kTileSamples);
    }
    for (int64_t i = 0; i < p.n_variables; ++i) {
      const double upper = p.upper[i], lower = p.lower[i];
      for (int lane = 0; lane < kTileSamples; ++lane) {
        const double moved = x[i * kTileSamples + lane];
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
