// bvn_cdf on the CPU: the closed form of math/bivariate.h, element by element.
#include "checks.h"
#include "cpu/parallel.h"
#include "math/bivariate.h"
#include "out_of_memory.h"

namespace mvnrob {

Tensor bvn_cdf_cpu(const Tensor& h_in, const Tensor& k_in, const Tensor& rho_in) {
  check_bvn_cdf(h_in, k_in, rho_in);
  const Tensor h = contiguous_of(h_in), k = contiguous_of(k_in), rho = contiguous_of(rho_in);
  Tensor out = tensor_like(h);
  const double* hp = h.const_data_ptr<double>();
  const double* kp = k.const_data_ptr<double>();
  const double* rp = rho.const_data_ptr<double>();
  double* op = out.mutable_data_ptr<double>();
  parallel_for(0, h.numel(), 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) op[i] = math::bvn_cdf(hp[i], kp[i], rp[i]);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CPU, m) { MVNROB_IMPL(m, "bvn_cdf", &bvn_cdf_cpu); }

}  // namespace mvnrob
