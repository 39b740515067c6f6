// Samples of the union of the events that a variable fails (plan/union.h), for rows whose 1 - p is
// small. Its set-up is collective over a team; the sampler is a kernel.
//
// Mapping: a warp takes a stream, two points a lane, always in float64. The normals e and X = L e
// go through global memory, a column for each point, coalesced; L is read straight from the factor
// by uniform loads, sixteen rows at a time (eight where there are no more), as far as the last of
// them has entries. Limiter: reading e once for each of these blocks of rows, then the gather of
// L's row of the variable that fails, for each point.
#pragma once
#include "kernels/mvn_cdf_sample.h"
#include "plan/union.h"
#include "plan/variable.h"

namespace mvnrob::kernels {

// Masses and shares of the events, in the order of the variables (the factor's own differs between
// backends where rows have left); what the factor leaves unset above its diagonal becomes zero.
template <class scalar_t, class Team>
MVNROB_DEVICE_FN void start_union(const MvnCdfArgs& a, int64_t row, const Team& team, RowState& s) {
  const RowMemory<scalar_t> m(a, row);
  const int size = s.facts.variables, pivots = s.facts.pivots;
  for (int i = team.thread(); i < size; i += team.size()) {
    const int32_t variable = m.variable()[i];
    int before = 0;
    for (int j = 0; j < size; ++j) before += m.variable()[j] < variable;
    m.row_of()[before] = i;
    m.event_mass()[before] = math::ndtr<double>(-m.upper()[i]);
    m.event_mass()[size + before] = math::ndtr<double>(m.lower()[i]);
  }
  for (int l = 1; l < pivots; ++l)
    for (int i = team.thread(); i < l; i += team.size()) m.factor()[int64_t(l) * size + i] = 0;
  for (int e = team.thread(); e < kShifts * (pivots + 1); e += team.size())
    m.shifts()[e] = math::hash_shift(uint64_t(a.seed[row]), uint32_t(e / (pivots + 1)),
                                     uint32_t(e % (pivots + 1)));
  for (int e = team.thread(); e < kShifts; e += team.size()) m.totals()[e] = {0, 0, 0, 0, 0};
  team.sync();
  if (team.thread() == 0) {
    const int events = s.rectangular ? 2 * size : size;
    double whole = 0;
    for (int h = 0; h < events; ++h) m.event_share()[h] = whole += m.event_mass()[h];
    for (int h = 0; h < events; ++h) m.event_share()[h] /= whole;
    s.program.pivots = pivots;
    s.program.events = events;
    s.program.whole_mass = whole;
  }
  team.sync();
}

template <class scalar_t>
struct MvnCdfSampleUnion {
  using Args = MvnCdfArgs;
  static constexpr int kThreads = 128;
  static constexpr int kResidentBlocks = 3;
  static constexpr size_t kSharedBytes = 0;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kPoints = kTileSamples / kWarp;  // of a lane
  static constexpr int kRows = 16;

  // e and X of one block's streams.
  static size_t history_bytes(int n) {
    return size_t(kWarps) * (2 * round_up(n, kRows)) * kTileSamples * sizeof(double);
  }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
    const int64_t columns = 2 * round_up(a.n, kRows);
    double* e = reinterpret_cast<double*>(static_cast<unsigned char*>(a.history) +
                                          blockIdx.x * a.union_history) +
                warp * columns * kTileSamples + lane;
    for_each_stream(a, &RoundCounters::united, &RoundCounters::united_next, a.united, kWarps,
                    [&](int64_t row, int64_t index) {
                      sample_stream(a, row, index, lane, e, e + columns / 2 * kTileSamples);
                    });
  }

 private:
  static MVNROB_DEVICE_FN void sample_stream(const Args& a, int64_t row, int64_t index, int lane,
                                             double* e, double* x) {
    const RowMemory<scalar_t> m(a, row);
    const Program& p = m.state()->program;
    const int size = m.state()->facts.variables;
    const Stream stream(p, index);
    const uint32_t* shifts = m.shifts() + stream.shift * (p.pivots + 1);
    SampleSums sums{0, 0, 0, 0, 0};
    for (int t = 0; t < stream.tiles; ++t) {
      const uint32_t first = uint32_t(stream.first) + uint32_t(t) * kTileSamples;
      const uint32_t index = math::point_index(a.options.points, first + uint32_t(lane));
      // A lane's points are 32 apart, and the first one's index has no 32 in it.
      const uint32_t next = math::point_index(a.options.points, kWarp);
      draw_normals(a, shifts, p.pivots, index, next, e);
      int failing[kPoints];
      MVNROB_UNROLL
      for (int q = 0; q < kPoints; ++q)
        failing[q] =
            move_to_event(a, m, p, size, shifts[0], index + uint32_t(q) * next, e + q * kWarp);
      if (size <= kRows / 2)
        multiply_factor<kRows / 2>(m.factor(), size, p.pivots, e, x);
      else
        multiply_factor<kRows>(m.factor(), size, p.pivots, e, x);
      MVNROB_UNROLL
      for (int q = 0; q < kPoints; ++q) {
        const double failed = count_failed(m, size, failing[q], x + q * kWarp);
        const double value = p.whole_mass / failed;
        sums.complement += value;
        sums.value += 1 - value;
        sums.square += value * value;
      }
    }
    sums = warp_sums(sums);
    if (lane == 0) m.slots()[int64_t(stream.shift) * a.layout.max_chunks + stream.chunk] = sums;
  }

  static MVNROB_DEVICE void draw_normals(const Args& a, const uint32_t* shifts, int pivots,
                                         uint32_t index, uint32_t next, double* e) {
    for (int j = 0; j < pivots; ++j) {
      // Coordinates first, which have branches: no branch is then between the points' normals.
      double w[kPoints], wc[kPoints];
      MVNROB_UNROLL
      for (int q = 0; q < kPoints; ++q)
        coordinate(a, j + 1, index + q * next, shifts[j + 1], w[q], wc[q]);
      MVNROB_UNROLL
      for (int q = 0; q < kPoints; ++q) {
        const double z = math::ndtri_half<double>(math::min(w[q], wc[q]));
        e[j * kTileSamples + q * kWarp] = w[q] < wc[q] ? z : -z;
      }
    }
  }

  // X = L e. A pivot's row ends with its own column. The factor has no rows beyond its last one:
  // that one is read again.
  template <int rows>
  static MVNROB_DEVICE void multiply_factor(const double* factor, int size, int pivots,
                                            const double* e, double* x) {
    for (int first = 0; first < size; first += rows) {
      double sum[rows][kPoints];
      int at[rows];
      MVNROB_UNROLL
      for (int r = 0; r < rows; ++r) {
        at[r] = first + r < size ? first + r : size - 1;
        MVNROB_UNROLL
        for (int q = 0; q < kPoints; ++q) sum[r][q] = 0;
      }
      const int columns = first + rows < pivots ? first + rows : pivots;
      for (int l = 0; l < columns; ++l) {
        const double* column = factor + int64_t(l) * size;
        double y[kPoints], c[rows];
        MVNROB_UNROLL
        for (int q = 0; q < kPoints; ++q) y[q] = e[l * kTileSamples + q * kWarp];
        MVNROB_UNROLL
        for (int r = 0; r < rows; ++r) c[r] = column[at[r]];
        MVNROB_UNROLL
        for (int r = 0; r < rows; ++r) MVNROB_UNROLL
        for (int q = 0; q < kPoints; ++q) sum[r][q] = math::fma(c[r], y[q], sum[r][q]);
      }
      MVNROB_UNROLL
      for (int r = 0; r < rows; ++r) MVNROB_UNROLL
      for (int q = 0; q < kPoints; ++q) x[(first + r) * kTileSamples + q * kWarp] = sum[r][q];
    }
  }

  // Draws the event that happens and how far out, and moves e along L's row of its variable, which
  // it returns, to there: X given that variable is its own mean plus what is independent of it, and
  // L e does both.
  static MVNROB_DEVICE int move_to_event(const Args& a, const RowMemory<scalar_t>& m,
                                         const Program& p, int size, uint32_t shift, uint32_t index,
                                         double* e) {
    double w, wc;
    coordinate(a, 0, index, shift, w, wc);
    const int64_t event = plan::find_event(m.event_share(), p.events, w);
    const double tail =
        plan::tail_within_event(m.event_share(), m.event_mass(), p.whole_mass, event, w);
    const double z = math::ndtri<double>(tail);  // negative
    const bool above = event < size;
    const int failing = m.row_of()[above ? event : event - size];
    double move = above ? -z : z;
    const double* coef = m.factor() + failing;
    for (int l = 0; l < p.pivots; ++l) move -= coef[int64_t(l) * size] * e[l * kTileSamples];
    for (int l = 0; l < p.pivots; ++l)
      e[l * kTileSamples] = math::fma(coef[int64_t(l) * size], move, e[l * kTileSamples]);
    return failing;
  }

  static MVNROB_DEVICE double count_failed(const RowMemory<scalar_t>& m, int size, int failing,
                                           const double* x) {
    double failed = 0;
    for (int i = 0; i < size; ++i) {
      const double moved = x[int64_t(i) * kTileSamples];
      // Rounding must not save the variable that fails.
      failed += moved > m.upper()[i] || moved < m.lower()[i] || i == failing ? 1.0 : 0.0;
    }
    return failed;
  }
};

}  // namespace mvnrob::kernels
