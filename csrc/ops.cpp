// Every operator schema of the package, and the empty Python modules that carry the registrations.
// Backends register their implementations next to their code: csrc/cpu/<op>.cpp,
// csrc/cuda/<op>.cpp.
#include <Python.h>

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(mvnrob, m) {
  // upper [B, n], cov [B, n, n] (batch stride 0 allowed), lower [B, n] or none, seed int64 [B].
  // Where factored, cov is a factor [B, n, r] of the covariance, here and below.
  m.def(
      "mvn_cdf(Tensor upper, Tensor cov, Tensor? lower, Tensor seed, float abs_tol, float rel_tol, "
      "int max_points, str method, str compute_dtype, str points, bool factored=False, "
      "float log_tol=0.0) -> (Tensor prob, Tensor complement, Tensor error, Tensor status, Tensor "
      "n_points, Tensor n_active, Tensor n_pivots, "
      "Tensor log_prob, Tensor log_error)");
  // grad [B] times the derivatives of prob, and grad_log times those of log_prob (at least one of
  // the two is given), to upper and lower [B, n] and, where wants_cov, to cov (shaped like it);
  // what is not wanted is empty. mvnrob/_mvn_cdf_grad.py, by calls of mvn_cdf and mvn_cdf_pathwise.
  m.def(
      "mvn_cdf_backward(Tensor? grad, Tensor? grad_log, Tensor upper, Tensor cov, Tensor? lower, "
      "Tensor seed, Tensor prob, Tensor complement, Tensor log_prob, Tensor n_points, "
      "Tensor n_pivots, float abs_tol, float rel_tol, int max_points, str method, "
      "str compute_dtype, str points, bool wants_cov, bool factored=False, float log_tol=0.0) "
      "-> (Tensor upper, Tensor lower, Tensor cov)");
  // The products of second derivatives with to_upper, to_lower [B, n] and to_cov (shaped like cov;
  // those not given are zero), which are cotangents of what mvn_cdf_backward returns: of grad [B]
  // times prob plus grad_log times log_prob, to upper, lower and, where wants_cov, to cov; where
  // wants_slopes also the products of the slopes of prob and of log_prob with them, [B]. What is
  // not wanted is empty. mvnrob/_mvn_cdf_hvp.py.
  m.def(
      "mvn_cdf_hvp(Tensor? grad, Tensor? grad_log, Tensor? to_upper, Tensor? to_lower, "
      "Tensor? to_cov, Tensor upper, Tensor cov, Tensor? lower, Tensor seed, Tensor prob, "
      "Tensor complement, Tensor log_prob, Tensor n_points, Tensor n_pivots, float abs_tol, "
      "float rel_tol, int max_points, str method, str compute_dtype, str points, "
      "bool wants_slopes, bool wants_cov, bool factored=False, float log_tol=0.0) "
      "-> (Tensor along, Tensor along_log, Tensor upper, Tensor lower, Tensor cov)");
  // Sums over the points of each shift, float64 [B, 8, 5], with the pivots order int64 [B, k]: no
  // screening, no decisions. For tests and benchmarks.
  m.def(
      "mvn_cdf_sums(Tensor upper, Tensor cov, Tensor? lower, Tensor seed, Tensor order, "
      "int n_points, str compute_dtype, str points=\"lattice\", bool factored=False) -> Tensor");
  // mvn_cdf's method of that name, which samples nothing; n_active and n_pivots as of mvn_cdf
  m.def(
      "mendell_elston(Tensor upper, Tensor cov, Tensor? lower) -> (Tensor prob, "
      "Tensor complement, Tensor log_prob, Tensor status, Tensor n_active, Tensor n_pivots)");
  // grad, float64 [B], times the derivatives of log p to upper and lower [B, n] and, where
  // wants_cov, to cov [B, n, n]; what is not wanted is empty.
  m.def(
      "mendell_elston_backward(Tensor grad, Tensor upper, Tensor cov, Tensor? lower, "
      "bool wants_cov) -> (Tensor upper, Tensor lower, Tensor cov)");
  // At most `columns` columns of the factor in mvn_cdf's order: factor [B, n, columns], order int64
  // [B, n], rank int64 [B], residual variances [B, n], status int64 [B].
  m.def(
      "pivoted_cholesky(Tensor upper, Tensor cov, Tensor? lower, int columns, bool factored=False) "
      "-> (Tensor factor, Tensor order, Tensor rank, Tensor residual, Tensor status)");
  // With pivots order int64 [B, k] and points first .. first + points - 1 of each shift (int64
  // [B]), all float64: the sums of the integrand [B, 8], their derivatives to the limits [B, 8, n],
  // and of sum_s weight[b, s] value[b, s] to cov [B, n, n] with its variance; pivots used int64
  // [B]. With a tilt, float64 [B, k], the samples are tilted by it (NaN at first: by the saddle
  // point), and all but pivots is in units of exp(log_unit), [B].
  m.def(
      "mvn_cdf_pathwise(Tensor upper, Tensor cov, Tensor? lower, Tensor seed, Tensor order, "
      "Tensor first, Tensor count, Tensor weight, str compute_dtype, bool wants_cov, "
      "str points=\"lattice\", bool factored=False, Tensor? tilt=None) "
      "-> (Tensor value, Tensor upper, Tensor lower, Tensor cov, Tensor cov_variance, "
      "Tensor pivots, Tensor log_unit)");
  // S [B, C, C] += sum over the columns of J [B, C, D] of u u^T, u_i = J_t - J_i; target int64 [B]
  m.def("jac_cov_accumulate_(Tensor(a!) S, Tensor J, Tensor target) -> ()");
  // z, norms [B, C - 1], corr [B, C - 1, C - 1] of the classes other than t; sigma float64 [B]
  m.def(
      "jac_cov_finalize(Tensor S, Tensor logits, Tensor target, Tensor sigma) "
      "-> (Tensor z, Tensor corr, Tensor norms)");
  // float64 [B, C]: squared norms of u_i
  m.def("jac_cov_norms(Tensor J, Tensor target) -> Tensor");
  // elementwise over float64 tensors of one shape
  m.def("bvn_cdf(Tensor h, Tensor k, Tensor rho) -> Tensor");
  // float32 [b, count, dim]: draws first .. first + count - 1 of each key's stream, keys int64 [b]
  m.def("standard_normal(Tensor keys, int first, int count, int dim) -> Tensor");
  // All float32: limit [b, S] - (table [b, S, K] . draws [N, K or more]) with the columns from
  // `exact` on taken with both signs, +, -, or where split is not -1 the first `split` of them and
  // the others with signs of their own, ++, +-, -+, --: the least over the rows before `rising` and
  // the greatest over the others, [signs, N, b], infinite where there are none; and where
  // wants_rows the numbers of these rows, int64, otherwise empty. The CPU's:
  // mvnrob/_nearest_ends.py.
  m.def(
      "nearest_ends(Tensor limit, Tensor table, Tensor draws, int rising, int exact, int split, "
      "bool wants_rows) -> (Tensor upper, Tensor lower, Tensor above, Tensor below)");
  // which instruction set the CPU kernels use: "generic", "avx2" or "avx512"
  m.def("simd_level() -> str");
}

PyMODINIT_FUNC PyInit__C(void) {
  static struct PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
