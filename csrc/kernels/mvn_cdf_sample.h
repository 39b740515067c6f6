// What the samplers of mvn_cdf share: a draw, a completed row, the sums.
#pragma once
#include "kernels/block.h"
#include "kernels/mvn_cdf_work.h"
#include "math/normal.h"
#include "math/points.h"
#include "plan/tilt.h"

namespace mvnrob::kernels {

// Consecutive numbers moved as 16 bytes.
template <class scalar_t>
struct alignas(16) Quad {
  static constexpr int kCount = 16 / int(sizeof(scalar_t));
  scalar_t v[kCount];
};

// x[0..count) = p[0..count), p aligned to 16 bytes.
template <int count, class scalar_t>
MVNROB_DEVICE void load(const scalar_t* p, scalar_t (&x)[count]) {
  constexpr int kStep = Quad<scalar_t>::kCount;
  MVNROB_UNROLL
  for (int q = 0; q < count / kStep; ++q) {
    const Quad<scalar_t> quad = reinterpret_cast<const Quad<scalar_t>*>(p)[q];
    MVNROB_UNROLL
    for (int e = 0; e < kStep; ++e) x[q * kStep + e] = quad.v[e];
  }
}

// Coordinate j of the point of this index (math::point_index: found once for a point).
template <class scalar_t>
MVNROB_DEVICE void coordinate(const MvnCdfArgs& a, int j, uint32_t index, uint32_t shift,
                              scalar_t& w, scalar_t& wc) {
  const PointSet set = a.options.points;
  const uint32_t* words = a.generators + int64_t(j) * math::words_of(set);
  if (math::is_sobol(set, j))
    math::scrambled_point<scalar_t>(math::sobol_word(words, index), shift, w, wc);
  else
    math::lattice_point<scalar_t>(index, *words, shift, w, wc);
}

// The same of several points, whose indices are `next` apart in bits that the first one's has not.
// `generator`: the first word of the coordinate (generator_of); `sobol`: is_sobol.
template <class scalar_t, int points>
MVNROB_DEVICE void coordinates(const MvnCdfArgs& a, int j, bool sobol, uint32_t index,
                               uint32_t next, uint32_t generator, uint32_t shift,
                               scalar_t (&w)[points], scalar_t (&wc)[points]) {
  if (sobol) {
    const uint32_t* words = a.generators + int64_t(j) * math::words_of(a.options.points);
    const uint32_t first = math::sobol_word(words, index);
    MVNROB_UNROLL
    for (int q = 0; q < points; ++q)
      math::scrambled_point<scalar_t>(first ^ math::sobol_word(words, q * next), shift, w[q],
                                      wc[q]);
  } else {
    MVNROB_UNROLL
    for (int q = 0; q < points; ++q)
      math::lattice_point<scalar_t>(index + q * next, generator, shift, w[q], wc[q]);
  }
}
MVNROB_DEVICE uint32_t generator_of(const MvnCdfArgs& a, int j) {
  return a.generators[int64_t(j) * math::words_of(a.options.points)];
}
// Of how many coordinates `sobol` is to be told: in a register, for from constant memory each would
// be waited for.
MVNROB_DEVICE int sobol_coordinates(const MvnCdfArgs& a) {
  return int(anew(math::sobol_coordinates(a.options.points)));
}

// What gives a coordinate of all points of a shift. The samplers read it a row ahead, and the
// program's rows as well: memory is far, and each would be waited for.
struct Draw {
  uint32_t shift, generator;

  // Of coordinate j, or of some other where there is none.
  static MVNROB_DEVICE Draw read(const MvnCdfArgs& a, const uint32_t* shifts, int j, int pivots) {
    j = j < pivots ? j : 0;
    return {shifts[j], generator_of(a, j)};
  }
};
// Row r of the sampled ones, or some other where there is none.
template <class scalar_t>
MVNROB_DEVICE ProgramRow<scalar_t> read_row(const RowMemory<scalar_t>& m, int r, int rows) {
  return m.program_rows()[r < rows ? r : 0];
}

// One sample on its way through the program.
template <class scalar_t>
struct Sample {
  scalar_t value, complement;  // the running product f, and 1 - f
  scalar_t upper, lower;       // limits of the pivot whose group is being read

  MVNROB_DEVICE void start() {
    value = 1;
    complement = 0;
    open_pivot();
  }
  MVNROB_DEVICE void open_pivot() {
    upper = scalar_t(HUGE_VAL);
    lower = scalar_t(-HUGE_VAL);
  }

  // A row of the pivot's group bounds it.
  MVNROB_DEVICE void bound(const ProgramRow<scalar_t>& row, scalar_t sum) {
    if (row.flags & kHasUpper) upper = math::min(upper, row.upper + sum);
    if (row.flags & kHasLower) lower = math::max(lower, row.lower + sum);
  }

  // Draws the pivot within its limits, at w of the way; wc = 1 - w.
  MVNROB_DEVICE scalar_t draw(bool bounded_below, scalar_t w, scalar_t wc) {
    scalar_t e, ec, y;
    if (bounded_below)
      math::step_interval<scalar_t>(lower, upper, w, wc, e, ec, y);
    else
      math::step_upper<scalar_t>(upper, w, wc, e, ec, y);
    // 1 - f e = (1 - f) + f (1 - e): no subtraction, so 1 - f keeps its digits.
    complement = math::fma(value, ec, complement);
    value = value * e;
    open_pivot();
    return y;
  }

  // Tilted samples (plan/tilt.h): `value` is the logarithm of the weight until weigh().
  MVNROB_DEVICE void start_tilted() {
    value = complement = 0;
    open_pivot();
  }
  MVNROB_DEVICE scalar_t draw_tilted(scalar_t w, scalar_t wc, scalar_t mu) {
    scalar_t e, ec, z;
    const scalar_t a = lower - mu, b = upper - mu;
    math::step_interval<scalar_t, true>(a, b, w, wc, e, ec, z);
    // ln weight: mu^2 / 2 - mu y = -mu^2 / 2 - mu z
    value -=
        math::fma(scalar_t(0.5), math::minus_two_log_interval<scalar_t>(a, b) + mu * mu, mu * z);
    open_pivot();
    return z + mu;
  }
  MVNROB_DEVICE void weigh(double log_unit) { value = scalar_t(::exp(double(value) - log_unit)); }
};

// Draws the same pivot of several points. One branch for all of them: their steps overlap and share
// the coefficients.
template <class scalar_t, int points>
MVNROB_DEVICE void draw_points(Sample<scalar_t> (&samples)[points], bool bounded_below,
                               const scalar_t (&w)[points], const scalar_t (&wc)[points],
                               scalar_t (&y)[points]) {
  if (bounded_below) {
    MVNROB_UNROLL
    for (int q = 0; q < points; ++q) y[q] = samples[q].draw(true, w[q], wc[q]);
  } else {
    MVNROB_UNROLL
    for (int q = 0; q < points; ++q) y[q] = samples[q].draw(false, w[q], wc[q]);
  }
}

// What the rows that complete make of a sample.
template <class scalar_t>
struct Completion {
  scalar_t completed;      // f times the rows' probabilities
  scalar_t missing;        // f - completed, without cancellation
  scalar_t mass, largest;  // of the rows' probabilities of failing

  MVNROB_DEVICE void start(scalar_t value) {
    completed = value;
    missing = mass = largest = 0;
  }

  static MVNROB_DEVICE scalar_t nearest(const ProgramRow<scalar_t>& row, scalar_t sum) {
    return math::min(row.upper + sum, -(row.lower + sum));
  }

  MVNROB_DEVICE void multiply(const ProgramRow<scalar_t>& row, scalar_t sum) {
    scalar_t e, q;
    math::ndtr_pair<scalar_t>(row.upper + sum, e, q);
    if (row.flags & kHasLower) {
      scalar_t below, above;
      const scalar_t limit = row.lower + sum;
      math::ndtr_pair<scalar_t>(limit, below, above);
      // Phi(u) - Phi(l) in whichever tail both are small.
      e = math::max(limit > 0 ? above - q : e - below, scalar_t(0));
      q = q + below;
    }
    missing = math::fma(completed, q, missing);
    completed = completed * e;
    mass = mass + q;
    largest = math::max(largest, q);
  }
};

// Adds one sample. Given y, the rows that complete hold with probability in [max(0, 1 - mass),
// 1 - largest] (Bonferroni, Frechet), and so does the product of their probabilities.
template <class scalar_t>
MVNROB_DEVICE void add_sample(const Sample<scalar_t>& sample, const Completion<scalar_t>& rest,
                              SampleSums& sums) {
  const scalar_t zero = 0, one = 1;
  const scalar_t below =
      math::max(math::fma(sample.value, math::min(rest.mass, one), -rest.missing), zero);
  const scalar_t above = math::max(math::fma(-sample.value, rest.largest, rest.missing), zero);
  sums.value += double(rest.completed);
  sums.complement += double(sample.complement + rest.missing);
  sums.below += double(below);
  sums.above += double(above);
  sums.square += double(rest.completed * rest.completed);
}

MVNROB_DEVICE SampleSums warp_sums(const SampleSums& s) {
  return {warp_sum(s.value), warp_sum(s.complement), warp_sum(s.below), warp_sum(s.above),
          warp_sum(s.square)};
}

}  // namespace mvnrob::kernels
