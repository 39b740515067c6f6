// Arguments of the kernel of pivoted_cholesky. No device code: the torch side includes this too.
#pragma once
#include "kernels/mvn_cdf_args.h"

namespace mvnrob::kernels {

struct PivotedCholeskyArgs {
  MvnCdfArgs plan;  // its input, layout and memory; nothing is sampled
  int32_t columns;  // of the result; at most plan.rank()
  // out: [rows, n, columns], [rows, n], [rows, n], [rows], [rows]
  void *factor, *residual;
  int64_t *order, *rank, *status;
};

// Rows first .. first + rows - 1 of a batch.
inline PivotedCholeskyArgs tile_of(PivotedCholeskyArgs a, int64_t first, int64_t rows) {
  MvnCdfArgs &in = a.plan;
  const int64_t element = in.is_double ? 8 : 4, limits = first * in.n * element;
  in.rows = rows;
  in.upper = static_cast<const char *>(in.upper) + limits;
  if (in.lower) in.lower = static_cast<const char *>(in.lower) + limits;
  in.cov = static_cast<const char *>(in.cov) + first * in.cov_strides.batch * element;
  a.factor = static_cast<char *>(a.factor) + limits * a.columns;
  a.residual = static_cast<char *>(a.residual) + limits;
  a.order += first * in.n;
  a.rank += first;
  a.status += first;
  return a;
}

}  // namespace mvnrob::kernels
