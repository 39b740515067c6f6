#include "cuda/pivoted_cholesky.h"

#include "cuda/launcher.h"
#include "kernels/pivoted_cholesky.h"

namespace mvnrob::cuda {

int64_t pivoted_cholesky_bytes(const kernels::PivotedCholeskyArgs& a) {
  return a.plan.rows * kernels::pivoted_layout(a).bytes;
}

cudaError_t launch_pivoted_cholesky(const kernels::PivotedCholeskyArgs& a, void* memory, int device,
                                    cudaStream_t stream) {
  Launcher launcher(device, stream);
  kernels::run_pivoted_tile(launcher, a, static_cast<unsigned char*>(memory));
  return launcher.error();
}

}  // namespace mvnrob::cuda
