// Variables that are multiples of one another: such a pair is one variable, with the tighter
// limits; where the multiple is negative, with limits from both sides.
#pragma once
#include <cmath>

#include "math/box.h"
#include "plan/ordering.h"

namespace mvnrob::plan {

// Looking for pairs takes the square of the number of variables where many are alike.
constexpr int64_t kMostToMerge = 4096;

// Multiples look alike from everywhere: a sum of |entries|, with weights, tells most other pairs
// apart without a look at their own entry. Of a factor the entries are those of a row, of a
// covariance those at kMarks variables.
constexpr int kMarks = 4;
MVNROB_HD double weight_of_mark(int64_t l) {
  const double turns = double(l + 1) * 0.6180339887498949;
  return 0.5 + 0.5 * (turns - ::floor(turns));
}
MVNROB_HD int64_t mark(int64_t l, int64_t variables) { return l * (variables - 1) / (kMarks - 1); }
MVNROB_HD double tolerance_of_marks(double entry_error, double factor_columns) {
  return factor_columns < 0 ? 32 * entry_error
                            : 16 * entry_error * ::sqrt(math::max(factor_columns, 1.0));
}

// 1 - rho^2 of two variables of variances v, w and covariance c, formed with the products' rounding
// errors: zero for exact multiples.
MVNROB_HD double rest_of_pair(double v, double w, double c, double rho) {
  const math::detail::TwoDoubles p = math::detail::two_product(v, w);
  const math::detail::TwoDoubles q = math::detail::two_product(c, c);
  const double ratio = ((p.hi - q.hi) + (p.lo - q.lo)) / p.hi;
  const bool fits = p.hi > 1e-290 && p.hi <= DBL_MAX;
  return fits ? ratio : (1 - rho) * (1 + rho);
}

// One is a multiple of the other where `rest` is within a few entries' rounding, and they agree so
// well with every other variable (same_entry); anything else is left to the factor, which tells a
// contradiction. The rows of a factor have no other entries to agree in.
MVNROB_HD bool is_multiple(double rest, double entry_error, bool factored) {
  const double error = factored ? first_factor_error(entry_error) : 4 * entry_error;
  return ::fabs(rest) <= error;
}
// Limits that two such variables have together may contain nothing, lower >= upper: then exact
// multiples have no answer but zero, and others, that differ by a variable of standard deviation
// `sd`, at most int phi(x) P(difference > gap) dx over the gap (bivariate and to first order in
// sd). Up to kMostApart variables they are left apart for a closed form.
constexpr int64_t kMostApart = 3;
MVNROB_HD_FN double most_of_contradiction(double lower, double upper, double sd) {
  const double gap = lower - upper;
  if (!(gap < 39 * sd)) return 0;
  const double nearest = math::max(upper, math::min(lower, 0.0));
  return 1.001 * phi(nearest) * sd * phi(gap / sd);
}

MVNROB_HD bool same_entry(double one, double other, double sign, double entry_error) {
  return ::fabs(one - sign * other) <= 8 * entry_error;
}

}  // namespace mvnrob::plan
