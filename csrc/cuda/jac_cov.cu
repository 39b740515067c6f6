#include "cuda/jac_cov.h"

#include "cuda/launcher.h"
#include "kernels/jac_cov_schedule.h"

namespace mvnrob::cuda {

cudaError_t launch_jac_convert(const float* from, double* to, int64_t count, int device,
                               cudaStream_t stream) {
  Launcher launcher(device, stream);
  kernels::run_jac_convert(launcher, from, to, count);
  return launcher.error();
}

cudaError_t launch_jac_convert(const double* from, float* to, int64_t count, int device,
                               cudaStream_t stream) {
  Launcher launcher(device, stream);
  kernels::run_jac_convert(launcher, from, to, count);
  return launcher.error();
}

cudaError_t launch_jac_finalize(const kernels::JacFinalizeArgs& a, int device,
                                cudaStream_t stream) {
  Launcher launcher(device, stream);
  kernels::run_jac_finalize(launcher, a);
  return launcher.error();
}

}  // namespace mvnrob::cuda
