// A draw and a completed row of the sampler of mvn_cdf with their slopes, for the kernels that
// differentiate samples.
#pragma once
#include "kernels/mvn_cdf_pathwise_args.h"
#include "kernels/mvn_cdf_sample.h"
#include "math/pathwise.h"

namespace mvnrob::kernels {

// A pivot's y, and of each of its limits the slope of ln f, without a sign, and of y.
template <class scalar_t>
struct PathwiseDraw {
  scalar_t y, rho_upper, gamma_upper, rho_lower, gamma_lower;
};

// Multiplies f by the probability of the interval.
template <class scalar_t>
MVNROB_DEVICE PathwiseDraw<scalar_t> draw_pathwise(bool bounded_below, scalar_t lower,
                                                   scalar_t upper, scalar_t w, scalar_t wc,
                                                   scalar_t& f) {
  PathwiseDraw<scalar_t> d;
  scalar_t e, ec;
  d.rho_lower = d.gamma_lower = 0;
  if (bounded_below) {
    math::step_interval<scalar_t>(lower, upper, w, wc, e, ec, d.y);
    math::limit_slopes<scalar_t>(lower, wc, e, d.y, d.rho_lower, d.gamma_lower);
  } else {
    math::step_upper<scalar_t>(upper, w, wc, e, ec, d.y);
  }
  math::limit_slopes<scalar_t>(upper, w, e, d.y, d.rho_upper, d.gamma_upper);
  f *= e;
  return d;
}

// From N(mu, 1); f is the logarithm of the weight.
template <class scalar_t>
MVNROB_DEVICE PathwiseDraw<scalar_t> draw_pathwise_tilted(scalar_t mu, scalar_t lower,
                                                          scalar_t upper, scalar_t w, scalar_t wc,
                                                          scalar_t& f) {
  PathwiseDraw<scalar_t> d;
  scalar_t e, ec, z;
  const scalar_t a = lower - mu, b = upper - mu;
  math::step_interval<scalar_t, true>(a, b, w, wc, e, ec, z);
  const scalar_t interval = math::minus_two_log_interval<scalar_t>(a, b);
  math::far_limit_slopes<scalar_t>(a, wc, interval, z, d.rho_lower, d.gamma_lower);
  math::far_limit_slopes<scalar_t>(b, w, interval, z, d.rho_upper, d.gamma_upper);
  // ln weight: mu^2 / 2 - mu y = -mu^2 / 2 - mu z
  f -= math::fma(scalar_t(0.5), interval + mu * mu, mu * z);
  d.y = z + mu;
  return d;
}

// The probability of a row that completes, and the slopes of its logarithm.
template <class scalar_t>
MVNROB_DEVICE scalar_t complete_pathwise(const ProgramRow<scalar_t>& row, scalar_t sum,
                                         scalar_t& to_upper, scalar_t& to_lower) {
  const scalar_t upper = row.upper + sum;
  scalar_t e, q;
  math::ndtr_pair<scalar_t>(upper, e, q);
  to_lower = 0;
  if (row.flags & kHasLower) {
    const scalar_t lower = row.lower + sum;
    scalar_t below, above;
    math::ndtr_pair<scalar_t>(lower, below, above);
    e = math::max(lower > 0 ? above - q : e - below, scalar_t(0));
    to_lower = -math::log_slope<scalar_t>(lower, e);
  }
  to_upper = math::log_slope<scalar_t>(upper, e);
  return e;
}

}  // namespace mvnrob::kernels
