// Independent blocks multiply: P = E v and 1 - P = (1 - E) + E (1 - v), with E the product of the
// blocks that are integrated exactly and v the probability of the rest, which is sampled.
#pragma once
#include <cmath>

#include "math/pack.h"

namespace mvnrob::plan {

// E; one where all is sampled, or nothing is.
struct ExactPart {
  double value = 1, complement = 0;
  double log_value = 0;       // right where the value underflows
  double relative_error = 0;  // of the value; times it, also of the complement

  // x / E, infinite where E underflows.
  MVNROB_HD double in_units(double x) const { return x > 0 ? x * ::exp(-log_value) : 0.0; }

  // Of the whole row, v of the rest being known.
  MVNROB_HD double whole(double v) const { return value * v; }
  MVNROB_HD double whole_complement(double c) const { return complement + value * c; }

  // What an error of the whole row, `allowed`, leaves for v; both in units of E.
  MVNROB_HD double left_for(double allowed, double v) const {
    return (allowed - relative_error * v) / (1 + relative_error);
  }
  // And the whole row's in the same units, of an error of v.
  MVNROB_HD double whole_error(double v, double error) const {
    return relative_error > 0 ? error + relative_error * (v + error) : error;
  }
};

}  // namespace mvnrob::plan
