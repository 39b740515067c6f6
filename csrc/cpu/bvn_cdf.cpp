// bvn_cdf on the CPU: the closed form of math/bivariate.h, element by element.
#include "checks.h"
#include "math/bivariate.h"

namespace mvnrob {

Tensor bvn_cdf_cpu(const Tensor& h_in, const Tensor& k_in, const Tensor& rho_in) {
  check_bvn_cdf(h_in, k_in, rho_in);
  const Tensor h = torch::stable::contiguous(h_in), k = torch::stable::contiguous(k_in),
               rho = torch::stable::contiguous(rho_in);
  Tensor out = torch::stable::empty_like(h);
  const double* hp = h.const_data_ptr<double>();
  const double* kp = k.const_data_ptr<double>();
  const double* rp = rho.const_data_ptr<double>();
  double* op = out.mutable_data_ptr<double>();
  torch::stable::parallel_for(0, h.numel(), 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) op[i] = math::bvn_cdf(hp[i], kp[i], rp[i]);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CPU, m) { m.impl("bvn_cdf", TORCH_BOX(&bvn_cdf_cpu)); }

}  // namespace mvnrob
