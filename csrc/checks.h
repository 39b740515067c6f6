// Shape, dtype and device requirements of each op, in the same words on every backend. The public
// Python functions check first (ValueError, TypeError); these guard direct calls of torch.ops.
#pragma once
#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "plan/estimate.h"
#include "torch_utils.h"

namespace mvnrob {

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device() == b.get_device();
}

inline void check_limits_and_cov(const char* op, const Tensor& upper, const Tensor& cov,
                                 const std::optional<Tensor>& lower, bool factored = false) {
  STD_TORCH_CHECK(upper.dim() == 2, op, ": upper must have shape [B, n], got ", shape_text(upper));
  const int64_t batch = upper.size(0), n = upper.size(1);
  const char* name = factored ? "factor" : "cov";
  const std::string columns = factored ? "r" : std::to_string(n);
  STD_TORCH_CHECK(
      cov.dim() == 3 && cov.size(0) == batch && cov.size(1) == n && (factored || cov.size(2) == n),
      op, ": ", name, " must have shape [", batch, ", ", n, ", ", columns, "], got ",
      shape_text(cov));
  // Rows are numbered in 64 bits, variables of one row in 31, with room for what is added to them.
  constexpr int64_t kMost = int64_t(1) << 30;
  STD_TORCH_CHECK(n <= kMost, op, ": upper must have at most 2^30 variables, got ", n);
  STD_TORCH_CHECK(!factored || cov.size(2) <= kMost, op,
                  ": factor must have at most 2^30 columns, got ", cov.size(2));
  STD_TORCH_CHECK(is_float_or_double(upper), op, ": upper must be float32 or float64");
  STD_TORCH_CHECK(cov.scalar_type() == upper.scalar_type(), op, ": ", name,
                  " must have the dtype of upper");
  if (lower.has_value()) {
    STD_TORCH_CHECK(lower->dim() == 2 && lower->size(0) == batch && lower->size(1) == n, op,
                    ": lower must have shape [", batch, ", ", n, "], got ", shape_text(*lower));
    STD_TORCH_CHECK(lower->scalar_type() == upper.scalar_type(), op,
                    ": lower must have the dtype of upper");
  }
  STD_TORCH_CHECK(same_device(cov, upper), op, ": ", name, " must be on the device of upper");
  STD_TORCH_CHECK(!lower.has_value() || same_device(*lower, upper), op,
                  ": lower must be on the device of upper");
}

inline void check_mvn_cdf_rows(const char* op, const Tensor& upper, const Tensor& cov,
                               const std::optional<Tensor>& lower, const Tensor& seed,
                               bool factored) {
  check_limits_and_cov(op, upper, cov, lower, factored);
  const int64_t batch = upper.size(0);
  STD_TORCH_CHECK(
      seed.dim() == 1 && seed.size(0) == batch && seed.scalar_type() == ScalarType::Long, op,
      ": seed must be int64 of shape [", batch, "], got ", shape_text(seed));
  STD_TORCH_CHECK(same_device(seed, upper), op, ": seed must be on the device of upper");
}

inline void check_mvn_cdf(const Tensor& upper, const Tensor& cov,
                          const std::optional<Tensor>& lower, const Tensor& seed, bool factored) {
  check_mvn_cdf_rows("mvn_cdf", upper, cov, lower, seed, factored);
}

inline void check_mvn_cdf_sums(const Tensor& upper, const Tensor& cov,
                               const std::optional<Tensor>& lower, const Tensor& seed,
                               const Tensor& order, int64_t n_points,
                               const std::string& compute_dtype, bool factored) {
  const char* op = "mvn_cdf_sums";
  check_mvn_cdf_rows(op, upper, cov, lower, seed, factored);
  const int64_t batch = upper.size(0), n = upper.size(1);
  STD_TORCH_CHECK(order.dim() == 2 && order.size(0) == batch && order.size(1) >= 1 &&
                      order.size(1) <= n && order.scalar_type() == ScalarType::Long,
                  op, ": order must be int64 of shape [", batch, ", k] with 1 <= k <= ", n,
                  ", got ", shape_text(order));
  STD_TORCH_CHECK(same_device(order, upper), op, ": order must be on the device of upper");
  STD_TORCH_CHECK(n_points > 0 && n_points % 64 == 0 && n_points <= int64_t(1) << 31, op,
                  ": n_points must be a positive multiple of 64, at most 2^31, got ", n_points);
  STD_TORCH_CHECK(compute_dtype == "float32" || compute_dtype == "float64", op,
                  ": compute_dtype must be float32 or float64, got ", compute_dtype);
}

// Values, where they are at hand (on the CPU).
inline void check_mvn_cdf_order_values(const int64_t* order, int64_t batch, int64_t pivots,
                                       int64_t n) {
  std::vector<bool> seen(n);
  for (int64_t b = 0; b < batch; ++b) {
    seen.assign(n, false);
    for (int64_t k = 0; k < pivots; ++k) {
      const int64_t i = order[b * pivots + k];
      STD_TORCH_CHECK(i >= 0 && i < n && !seen[i],
                      "mvn_cdf_sums: order must name distinct variables of [0, ", n,
                      ") in a row, got ", i);
      seen[i] = true;
    }
  }
}

inline void check_pivoted_cholesky(const Tensor& upper, const Tensor& cov,
                                   const std::optional<Tensor>& lower, int64_t columns,
                                   bool factored) {
  const char* op = "pivoted_cholesky";
  check_limits_and_cov(op, upper, cov, lower, factored);
  const int64_t most = std::min(upper.size(1), cov.size(2));
  STD_TORCH_CHECK(columns >= 0 && columns <= most, op, ": columns must be between 0 and ", most,
                  ", got ", columns);
}

inline void check_mendell_elston(const Tensor& upper, const Tensor& cov,
                                 const std::optional<Tensor>& lower) {
  check_limits_and_cov("mendell_elston", upper, cov, lower);
}

inline void check_mendell_elston_backward(const Tensor& grad, const Tensor& upper,
                                          const Tensor& cov, const std::optional<Tensor>& lower) {
  const char* op = "mendell_elston_backward";
  check_limits_and_cov(op, upper, cov, lower);
  STD_TORCH_CHECK(
      grad.dim() == 1 && grad.size(0) == upper.size(0) && grad.scalar_type() == ScalarType::Double,
      op, ": grad must be float64 of shape [", upper.size(0), "], got ", shape_text(grad));
  STD_TORCH_CHECK(same_device(grad, upper), op, ": grad must be on the device of upper");
}

inline void check_mvn_cdf_pathwise(const Tensor& upper, const Tensor& cov,
                                   const std::optional<Tensor>& lower, const Tensor& seed,
                                   const Tensor& order, const Tensor& first, const Tensor& points,
                                   const Tensor& weight, const std::string& compute_dtype,
                                   bool wants_cov, bool factored,
                                   const std::optional<Tensor>& tilt) {
  const char* op = "mvn_cdf_pathwise";
  check_mvn_cdf_rows(op, upper, cov, lower, seed, factored);
  STD_TORCH_CHECK(!(wants_cov && factored), op,
                  ": wants_cov must be False with a factor, got True");
  const int64_t batch = upper.size(0), n = upper.size(1);
  STD_TORCH_CHECK(order.dim() == 2 && order.size(0) == batch && order.size(1) >= 1 &&
                      order.size(1) <= n && order.scalar_type() == ScalarType::Long,
                  op, ": order must be int64 of shape [", batch, ", k] with 1 <= k <= ", n,
                  ", got ", shape_text(order));
  for (const Tensor* t : {&first, &points})
    STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == batch && t->scalar_type() == ScalarType::Long,
                    op, ": first and points must be int64 of shape [", batch, "], got ",
                    shape_text(*t));
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == batch && weight.size(1) == kShifts &&
                      weight.scalar_type() == ScalarType::Double,
                  op, ": weight must be float64 of shape [", batch, ", ", kShifts, "], got ",
                  shape_text(weight));
  for (const Tensor* t : {&order, &first, &points, &weight})
    STD_TORCH_CHECK(same_device(*t, upper), op,
                    ": order, first, points and weight must be on the device of upper");
  STD_TORCH_CHECK(compute_dtype == "float32" || compute_dtype == "float64", op,
                  ": compute_dtype must be float32 or float64, got ", compute_dtype);
  if (!tilt.has_value()) return;
  STD_TORCH_CHECK(tilt->dim() == 2 && tilt->size(0) == batch && tilt->size(1) == order.size(1) &&
                      tilt->scalar_type() == ScalarType::Double,
                  op, ": tilt must be float64 of the shape of order, got ", shape_text(*tilt));
  STD_TORCH_CHECK(same_device(*tilt, upper), op, ": tilt must be on the device of upper");
  STD_TORCH_CHECK(compute_dtype == "float64", op,
                  ": compute_dtype must be float64 with a tilt, got ", compute_dtype);
}

// Values, where they are at hand (on the CPU). A row names distinct variables and then, from the
// first negative number on, -1 (the next in greedy order) only where all are, and -2 for no more.
inline void check_mvn_cdf_pathwise_values(const int64_t* order, const int64_t* first,
                                          const int64_t* points, int64_t batch, int64_t pivots,
                                          int64_t n) {
  std::vector<bool> seen(n);
  for (int64_t b = 0; b < batch; ++b) {
    seen.assign(n, false);
    const int64_t* mine = order + b * pivots;
    bool ended = false;
    for (int64_t k = 0; k < pivots; ++k) {
      const int64_t i = mine[k];
      const bool named = i >= 0 && i < n && !seen[i] && mine[0] >= 0;
      const bool greedy = i == -1 && mine[0] == -1;
      STD_TORCH_CHECK((i == -2 && k > 0) || (!ended && (named || greedy)),
                      "mvn_cdf_pathwise: order must name distinct variables of [0, ", n,
                      ") in a row, or be -1 for the greedy ones; -2 ends it; got ", i);
      ended |= i == -2;
      if (named) seen[i] = true;
    }
    STD_TORCH_CHECK(first[b] >= 0 && first[b] % kTileSamples == 0 && points[b] > 0 &&
                        points[b] % kTileSamples == 0 && first[b] + points[b] <= int64_t(1) << 31,
                    "mvn_cdf_pathwise: first and points must be multiples of ", kTileSamples,
                    " up to 2^31, and points positive, got ", first[b], " and ", points[b]);
  }
}

inline void check_bvn_cdf(const Tensor& h, const Tensor& k, const Tensor& rho) {
  for (const Tensor* t : {&h, &k, &rho}) {
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Double, "bvn_cdf: arguments must be float64");
    STD_TORCH_CHECK(shape_text(*t) == shape_text(h), "bvn_cdf: arguments must have one shape, got ",
                    shape_text(h), " and ", shape_text(*t));
    STD_TORCH_CHECK(same_device(*t, h), "bvn_cdf: arguments must be on one device");
  }
}

inline void check_standard_normal(const Tensor& keys, int64_t first, int64_t count, int64_t dim) {
  STD_TORCH_CHECK(keys.dim() == 1 && keys.scalar_type() == ScalarType::Long,
                  "standard_normal: keys must be int64 of shape [b], got ", shape_text(keys));
  STD_TORCH_CHECK(first >= 0, "standard_normal: first must be at least 0, got ", first);
  STD_TORCH_CHECK(count >= 0, "standard_normal: count must be at least 0, got ", count);
  STD_TORCH_CHECK(dim >= 0, "standard_normal: dim must be at least 0, got ", dim);
  STD_TORCH_CHECK(count == 0 || keys.size(0) < (int64_t(1) << 31) / count,
                  "standard_normal: keys must make fewer than 2^31 draws, got ", keys.size(0),
                  " keys of ", count);
}

inline void check_nearest_ends(const Tensor& limit, const Tensor& table, const Tensor& draws,
                               int64_t rising, int64_t exact, int64_t split) {
  const char* op = "nearest_ends";
  STD_TORCH_CHECK(limit.dim() == 2, op, ": limit must have shape [b, S], got ", shape_text(limit));
  const int64_t inputs = limit.size(0), rows = limit.size(1);
  STD_TORCH_CHECK(table.dim() == 3 && table.size(0) == inputs && table.size(1) == rows, op,
                  ": table must have shape [", inputs, ", ", rows, ", K], got ", shape_text(table));
  const int64_t columns = table.size(2);
  STD_TORCH_CHECK(draws.dim() == 2 && draws.size(1) >= columns, op, ": draws must have shape [N, ",
                  columns, " or more], got ", shape_text(draws));
  for (const auto* t : {&limit, &table, &draws}) {
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float, op, ": arguments must be float32");
    STD_TORCH_CHECK(same_device(*t, limit), op, ": arguments must be on one device");
  }
  // Numbered in 32 bits, with room for what is added to them.
  constexpr int64_t kMost = int64_t(1) << 30;
  STD_TORCH_CHECK(inputs <= kMost && rows <= kMost && columns <= kMost && draws.size(0) <= kMost,
                  op, ": arguments must have at most 2^30 rows, got ", shape_text(table), " and ",
                  shape_text(draws));
  STD_TORCH_CHECK(rising >= 0 && rising <= rows, op, ": rising must be 0 to ", rows, ", got ",
                  rising);
  STD_TORCH_CHECK(exact >= 0 && exact <= columns, op, ": exact must be 0 to ", columns, ", got ",
                  exact);
  STD_TORCH_CHECK(split >= -1 && split <= columns - exact, op, ": split must be -1 to ",
                  columns - exact, ", got ", split);
}

inline std::string stride_text(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.stride(i));
  return text + "]";
}

inline void check_jac_cov_rows(const char* op, const Tensor& J, const Tensor& target) {
  STD_TORCH_CHECK(J.dim() == 3 && J.size(1) >= 1, op,
                  ": J must have shape [B, C, D] with C >= 1, got ", shape_text(J));
  STD_TORCH_CHECK(is_float_or_double(J) || J.scalar_type() == ScalarType::BFloat16, op,
                  ": J must be float32, float64 or bfloat16");
  STD_TORCH_CHECK(target.scalar_type() == ScalarType::Long, op, ": target must be int64");
  STD_TORCH_CHECK(target.dim() == 1 && target.size(0) == J.size(0), op,
                  ": target must have shape [", J.size(0), "], got ", shape_text(target));
  STD_TORCH_CHECK(same_device(target, J), op, ": target must be on the device of J");
}

inline void check_jac_cov_S(const char* op, const Tensor& S, int64_t batch, int64_t classes) {
  STD_TORCH_CHECK(
      S.dim() == 3 && S.size(0) == batch && S.size(1) == classes && S.size(2) == classes, op,
      ": S must have shape [", batch, ", ", classes, ", ", classes, "], got ", shape_text(S));
  STD_TORCH_CHECK(is_float_or_double(S), op, ": S must be float32 or float64");
  STD_TORCH_CHECK(S.is_contiguous(), op, ": S must be contiguous, got strides ", stride_text(S));
}

inline void check_jac_cov_accumulate(const Tensor& S, const Tensor& J, const Tensor& target) {
  const char* op = "jac_cov_accumulate";
  check_jac_cov_rows(op, J, target);
  check_jac_cov_S(op, S, J.size(0), J.size(1));
  STD_TORCH_CHECK(same_device(S, J), op, ": S must be on the device of J");
}

inline void check_jac_cov_finalize(const Tensor& S, const Tensor& logits, const Tensor& target,
                                   const Tensor& sigma) {
  const char* op = "jac_cov_finalize";
  STD_TORCH_CHECK(logits.dim() == 2 && logits.size(1) >= 1, op,
                  ": logits must have shape [B, C] with C >= 1, got ", shape_text(logits));
  STD_TORCH_CHECK(is_float_or_double(logits), op, ": logits must be float32 or float64");
  check_jac_cov_S(op, S, logits.size(0), logits.size(1));
  STD_TORCH_CHECK(target.scalar_type() == ScalarType::Long, op, ": target must be int64");
  STD_TORCH_CHECK(sigma.scalar_type() == ScalarType::Double, op, ": sigma must be float64");
  STD_TORCH_CHECK(target.dim() == 1 && target.size(0) == logits.size(0), op,
                  ": target must have shape [", logits.size(0), "], got ", shape_text(target));
  STD_TORCH_CHECK(sigma.dim() == 1 && sigma.size(0) == logits.size(0), op,
                  ": sigma must have shape [", logits.size(0), "], got ", shape_text(sigma));
  STD_TORCH_CHECK(same_device(S, logits), op, ": S must be on the device of logits");
  STD_TORCH_CHECK(same_device(target, logits), op, ": target must be on the device of logits");
  STD_TORCH_CHECK(same_device(sigma, logits), op, ": sigma must be on the device of logits");
}

// Values, where they are at hand (on the CPU).
inline void check_jac_cov_target_values(const char* op, const int64_t* target, int64_t batch,
                                        int64_t classes) {
  for (int64_t b = 0; b < batch; ++b)
    STD_TORCH_CHECK(target[b] >= 0 && target[b] < classes, op, ": target must lie in [0, ", classes,
                    "), got ", target[b]);
}

inline void check_jac_cov_sigma_values(const double* sigma, int64_t batch) {
  for (int64_t b = 0; b < batch; ++b)
    STD_TORCH_CHECK(sigma[b] > 0.0 && sigma[b] <= std::numeric_limits<double>::max(),
                    "jac_cov_finalize: sigma must be positive and finite, got ", sigma[b]);
}

}  // namespace mvnrob
