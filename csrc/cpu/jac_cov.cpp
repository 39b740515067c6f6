// jac_cov on the CPU: checks, division of the work over threads, and the finishing pass. The sums
// of products are in jac_cov_simd.cpp, the formulas of the finishing pass in math/jac_cov.h.
#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/jac_cov_simd.h"
#include "cpu/parallel.h"
#include "cpu/simd_dispatch.h"
#include "math/jac_cov.h"
#include "out_of_memory.h"

namespace mvnrob {

namespace {

const JacCovKernels& kernels() { return MVNROB_SIMD_TABLE(jac_cov_kernels); }

JacType jac_type(const Tensor& J) {
  switch (J.scalar_type()) {
    case ScalarType::Double:
      return kJacDouble;
    case ScalarType::BFloat16:
      return kJacBFloat16;
    default:
      return kJacFloat;
  }
}

// The rows may be strided (an expanded or sliced Jacobian), their elements may not.
Tensor with_unit_columns(const Tensor& J) {
  return J.size(2) <= 1 || J.stride(2) == 1 ? J : contiguous_of(J);
}

JacRows problem_rows(const Tensor& J, const int64_t* target, int64_t problem) {
  const char* data = static_cast<const char*>(J.const_data_ptr());
  return {data + problem * J.stride(0) * int64_t(J.element_size()), J.stride(1), J.size(1),
          J.size(2), target[problem]};
}

// Index k of the classes other than t, in increasing order.
int64_t other_class(int64_t k, int64_t target) { return k + (k >= target); }

struct FreeAligned {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
};

// Rows of a tile: large tiles read and take differences less often (each row once per tile it is
// in), small ones give every thread something to do. A pair's sum does not depend on the choice.
// Scratch of a thread is 7 MB for tiles of 500 rows, 9 MB for a single one of 1000.
int64_t tile_rows(int64_t group, int64_t batch, int64_t classes) {
  const int64_t threads = int64_t(torch::stable::get_num_threads());
  const int64_t wanted = threads > 1 ? 3 * threads : 1;
  int64_t rows = classes > 1000 ? 500 : 1000;
  for (; rows > 63; rows /= 2) {
    const int64_t across = (classes + rows - 1) / rows;
    if (batch * across * (across + 1) / 2 >= wanted) break;
  }
  return (std::min(rows, classes) + group - 1) / group * group;
}

// Jobs that one thread should at least take, each of `work` products or elements: waking another
// thread costs some 10 microseconds.
int64_t grain_for(int64_t work) { return 1 + 200000 / std::max<int64_t>(work, 1); }

template <class out_t>
void accumulate(JacTileFn<out_t> add_tile, const JacCovKernels& table, const Tensor& J,
                const int64_t* target, out_t* S) {
  const int64_t batch = J.size(0), classes = J.size(1);
  const int64_t side = tile_rows(table.group, batch, classes);
  std::vector<JacTile> tiles;
  for (int64_t i = 0; i < classes; i += side)
    for (int64_t j = i; j < classes; j += side)
      tiles.push_back({i, std::min(i + side, classes), j, std::min(j + side, classes)});
  const int64_t per_problem = int64_t(tiles.size());
  const int64_t grain = grain_for(std::min(side, classes) * std::min(side, classes) * J.size(2));
  parallel_for(0, batch * per_problem, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<void, FreeAligned> scratch(
        ::operator new(size_t(table.scratch_bytes(side, per_problem == 1)), std::align_val_t(64)));
    for (int64_t job = begin; job < end; ++job) {
      const int64_t problem = job / per_problem;
      add_tile(problem_rows(J, target, problem), tiles[size_t(job % per_problem)],
               S + problem * classes * classes, scratch.get());
    }
  });
}

// One problem's z and norms, and the inverse norms that its correlations need.
template <class in_t, class out_t>
void finish_rows(const in_t* S, const out_t* logits, int64_t classes, int64_t target, double sigma,
                 out_t* z, out_t* norms, double* inverse) {
  for (int64_t k = 0; k < classes - 1; ++k) {
    const int64_t i = other_class(k, target);
    const double norm = std::sqrt(double(S[i * classes + i]));
    const double margin = double(logits[target]) - double(logits[i]);
    z[k] = out_t(math::jac_cov_limit(margin, norm, sigma));
    norms[k] = out_t(norm);
    inverse[k] = math::jac_cov_inverse(norm);
  }
}

template <class in_t, class out_t>
void finalize(JacCorrFn<in_t, out_t> corr_row, const Tensor& S_in, const Tensor& logits_in,
              const int64_t* target, const double* sigma, Tensor& z, Tensor& corr, Tensor& norms) {
  const int64_t batch = logits_in.size(0), classes = logits_in.size(1), n = classes - 1;
  const in_t* S = S_in.const_data_ptr<in_t>();
  const out_t* logits = logits_in.const_data_ptr<out_t>();
  out_t* z_out = z.mutable_data_ptr<out_t>();
  out_t* corr_out = corr.mutable_data_ptr<out_t>();
  out_t* norms_out = norms.mutable_data_ptr<out_t>();
  std::vector<double> inverse(size_t(batch * n));
  const int64_t grain = grain_for(8 * classes);  // an entry costs some eight products of a tile
  parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      finish_rows(S + b * classes * classes, logits + b * classes, classes, target[b], sigma[b],
                  z_out + b * n, norms_out + b * n, inverse.data() + b * n);
  });
  parallel_for(0, batch * n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / n, k = row % n;
      corr_row(S + (b * classes + other_class(k, target[b])) * classes, classes, target[b], k,
               inverse.data() + b * n, corr_out + row * n);
    }
  });
}

}  // namespace

void jac_cov_accumulate_cpu(Tensor& S, const Tensor& J_in, const Tensor& target_in) {
  check_jac_cov_accumulate(S, J_in, target_in);
  if (J_in.numel() == 0) return;
  const Tensor J = with_unit_columns(J_in), target = contiguous_of(target_in);
  const int64_t* t = target.const_data_ptr<int64_t>();
  check_jac_cov_target_values("jac_cov_accumulate", t, J.size(0), J.size(1));
  const JacCovKernels& table = kernels();
  if (S.scalar_type() == ScalarType::Float)
    accumulate(table.tile_float[jac_type(J)], table, J, t, S.mutable_data_ptr<float>());
  else
    accumulate(table.tile_double[jac_type(J)], table, J, t, S.mutable_data_ptr<double>());
}

std::tuple<Tensor, Tensor, Tensor> jac_cov_finalize_cpu(const Tensor& S, const Tensor& logits_in,
                                                        const Tensor& target_in,
                                                        const Tensor& sigma_in) {
  check_jac_cov_finalize(S, logits_in, target_in, sigma_in);
  const int64_t batch = logits_in.size(0), classes = logits_in.size(1);
  const Tensor logits = contiguous_of(logits_in);
  const Tensor target = contiguous_of(target_in);
  const Tensor sigma = contiguous_of(sigma_in);
  const int64_t* t = target.const_data_ptr<int64_t>();
  const double* s = sigma.const_data_ptr<double>();
  check_jac_cov_target_values("jac_cov_finalize", t, batch, classes);
  check_jac_cov_sigma_values(s, batch);
  Tensor z = new_tensor(logits, {batch, classes - 1});
  Tensor corr = new_tensor(logits, {batch, classes - 1, classes - 1});
  Tensor norms = new_tensor(logits, {batch, classes - 1});
  const bool single_S = S.scalar_type() == ScalarType::Float;
  const bool single = logits.scalar_type() == ScalarType::Float;
  const JacCovKernels& table = kernels();
  if (single_S && single)
    finalize(table.corr_float_float, S, logits, t, s, z, corr, norms);
  else if (single_S)
    finalize(table.corr_float_double, S, logits, t, s, z, corr, norms);
  else if (single)
    finalize(table.corr_double_float, S, logits, t, s, z, corr, norms);
  else
    finalize(table.corr_double_double, S, logits, t, s, z, corr, norms);
  return {z, corr, norms};
}

Tensor jac_cov_norms_cpu(const Tensor& J_in, const Tensor& target_in) {
  check_jac_cov_rows("jac_cov_norms", J_in, target_in);
  const int64_t batch = J_in.size(0), classes = J_in.size(1);
  const Tensor J = with_unit_columns(J_in), target = contiguous_of(target_in);
  const int64_t* t = target.const_data_ptr<int64_t>();
  check_jac_cov_target_values("jac_cov_norms", t, batch, classes);
  Tensor norms = new_tensor(J, {batch, classes}, ScalarType::Double);
  double* out = norms.mutable_data_ptr<double>();
  const JacNormsFn squared_norms = kernels().norms[jac_type(J)];
  // Rows are cut into the same pieces whatever the threads; enough of them to share one problem.
  constexpr int64_t kRows = 32;
  const int64_t pieces = (classes + kRows - 1) / kRows;
  const int64_t grain = grain_for(std::min(kRows, classes) * J.size(2));
  parallel_for(0, batch * pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t b = job / pieces, first = job % pieces * kRows;
      squared_norms(problem_rows(J, t, b), first, std::min(first + kRows, classes),
                    out + b * classes);
    }
  });
  return norms;
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CPU, m) {
  MVNROB_IMPL(m, "jac_cov_accumulate_", &jac_cov_accumulate_cpu);
  MVNROB_IMPL(m, "jac_cov_finalize", &jac_cov_finalize_cpu);
  MVNROB_IMPL(m, "jac_cov_norms", &jac_cov_norms_cpu);
}

}  // namespace mvnrob
