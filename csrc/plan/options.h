// What mvn_cdf is asked for, and how a row ends; the same on every backend.
#pragma once
#include <cstdint>

#include "math/config.h"
#include "math/point_set.h"

namespace mvnrob {

// The numbers of mvnrob.Status.
enum class Status : int64_t {
  converged = 0,
  exact = 1,
  max_points = 2,
  indefinite = 3,
  nan = 4,
  no_closed_form = 5,
  approximate = 6,
  truncated = 7,
};

enum class Method { automatic, sov, closed_form };
enum class ComputeType { automatic, float32, float64 };

struct RowOptions {
  double abs_tol, rel_tol;
  int64_t max_points;
  Method method;
  ComputeType compute_type;
  PointSet points;
  double log_tol = 0;  // of ln p

  // For digits of a small p.
  MVNROB_HD double relative_to_p() const { return rel_tol > log_tol ? rel_tol : log_tol; }

  // Whether samples are float32. Fewer than five digits do not need more.
  MVNROB_HD bool samples_float32() const {
    return compute_type == ComputeType::float32 ||
           (compute_type == ComputeType::automatic && abs_tol >= 1e-5);
  }
};

struct RowResult {
  double prob, complement, log_prob, error, log_error;
  Status status;
  int64_t n_points, n_active, n_pivots;
};

}  // namespace mvnrob
