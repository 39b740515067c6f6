// Decisions of the recursion of Mendell and Elston that every backend shares.
//
// The variable least probable next is pivot j: with its mean m_j and variance V_j so far, Z_j =
// (X_j - m_j) / sqrt(V_j) has its interval's probability, mean mu_j and variance 1 - g_j. For the
// others, taken as normal still, with c_ij = S_ij / sqrt(V_j):
//   m_i += c_ij mu_j,   S_ik -= g_j c_ij c_kj.
// S is not formed: its column j is R_ij - sum over the pivots l before of g_l c_jl c_il, so that
// the sweep is a Cholesky factor with weights (g = 1 gives that of separation of variables).
#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>

#include "math/mendell_elston.h"
#include "plan/ordering.h"

namespace mvnrob::plan {

// What orders the variables left: the smallest goes first. Without lower limits the limit itself
// will do; T is double or a pack of them.
template <bool rectangular, class T>
MVNROB_HD T sweep_priority(T upper, T lower, T mean, T variance) {
  const T sd = math::sqrt(variance);
  const T b = (upper - mean) / sd;
  if constexpr (rectangular)
    return math::two_log_interval<T>((lower - mean) / sd, b);
  else
    return b;
}

// Whether `count` variables, the least probable of which has log-probability `log_mass`, cannot
// change log p any more: conditioning on what holds nearly always moves nothing.
MVNROB_HD bool is_settled(double log_prob, double log_mass, int64_t count) {
  return double(count) * -log_mass <= 0.25 * DBL_EPSILON * -log_prob;
}

// What is left of variable i once pivot j is known as a value: variance V_i - c^2 with the error of
// that (ordering.h). A variable without any is a multiple of the pivot, and bounds its interval.
// One whose own variance is rounding already (its pivots lie in narrow intervals) is none: its
// variance stays at that.
enum class Relation { ordinary, multiple, indefinite, nan };

MVNROB_HD Relation relation(double variance, double error, double c, double growth) {
  const double square = c * c, left = variance - square, left_error = error + square * growth;
  if (left != left) return Relation::nan;
  if (!is_valid_variance(left, left_error)) return Relation::indefinite;
  return is_zero_variance(left, left_error) && square > left_error ? Relation::multiple
                                                                   : Relation::ordinary;
}

// Bounds that meet, to rounding, share the slope of a minimum or maximum.
MVNROB_HD bool bounds_meet(double x, double y, double entry_error) {
  return ::fabs(x - y) <= 8 * entry_error * math::max(1.0, ::fabs(y));
}

}  // namespace mvnrob::plan
