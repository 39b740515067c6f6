// One variable of a row: standardised, classified, its probability of failing.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>

#include "math/normal.h"

namespace mvnrob::plan {

// Error of one entry of the correlation: the input's own rounding for float32, that of the
// arithmetic for float64.
MVNROB_HD double entry_error(bool is_double) {
  return is_double ? 4 * DBL_EPSILON : double(FLT_EPSILON);
}

// What one variable says of its whole row.
enum RowFact : uint32_t {
  kNanInput = 1,     // a limit is NaN, or a variance not finite
  kIndefinite = 2,   // a negative variance
  kImpossible = 4,   // the limits contain nothing
  kRectangular = 8,  // an active variable has a finite lower limit
  kZeroVariance = 16,
  kEmpty = 32,       // the limits leave no value, not even one
  kUnderflows = 64,  // a variable is screened whose probability of failing is below all numbers
};

struct Variable {
  double upper, lower;  // in units of the standard deviation
  double inverse_sd;
  bool active;  // false: it holds always, or never (kImpossible)
  uint32_t facts;
};

MVNROB_HD Variable read_variable(double upper, double lower, double variance,
                                 double largest_variance, double error_of_entry) {
  Variable v{0, 0, 0, false, 0};
  if (upper != upper || lower != lower || !(::fabs(variance) <= DBL_MAX)) {
    v.facts = kNanInput;
    return v;
  }
  if (variance < -10 * error_of_entry * largest_variance) v.facts |= kIndefinite;
  if (variance <= 0) v.facts |= kZeroVariance;
  if (lower > upper || upper == -HUGE_VAL || lower == HUGE_VAL) v.facts |= kImpossible | kEmpty;
  if (upper == HUGE_VAL && lower == -HUGE_VAL) return v;
  if (variance <= 0) {  // a constant zero; the limits include their ends
    if (upper < 0 || lower > 0) v.facts |= kImpossible;
    return v;
  }
  if (lower == upper) v.facts |= kImpossible;
  v.active = true;
  v.inverse_sd = 1 / ::sqrt(variance);
  v.upper = upper * v.inverse_sd;
  v.lower = lower * v.inverse_sd;
  if (v.lower != -HUGE_VAL) v.facts |= kRectangular;
  return v;
}

// P(not lower <= X <= upper).
MVNROB_HD double mass_outside(double upper, double lower) {
  return math::ndtr<double>(-upper) + (lower == -HUGE_VAL ? 0.0 : math::ndtr<double>(lower));
}

}  // namespace mvnrob::plan
