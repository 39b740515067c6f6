#include "cuda/bvn_cdf.h"

#include "cuda/launcher.h"
#include "kernels/bvn_cdf.h"

namespace mvnrob::cuda {

cudaError_t launch_bvn_cdf(const double* h, const double* k, const double* rho, double* out,
                           int64_t n, int device, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  Launcher launcher(device, stream);
  launcher.launch<kernels::BvnCdf>(kernels::BvnCdf::blocks(n), 0, {h, k, rho, out, n});
  return launcher.error();
}

}  // namespace mvnrob::cuda
