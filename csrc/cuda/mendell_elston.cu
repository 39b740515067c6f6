#include "cuda/mendell_elston.h"

#include "cuda/launcher.h"
#include "kernels/mendell_elston.h"

namespace mvnrob::cuda {

cudaError_t mendell_elston_blocks(const kernels::MendellElstonArgs& a, int device,
                                  int64_t* blocks) {
  Launcher launcher(device, nullptr);
  *blocks = kernels::sweep_blocks(launcher, a);
  return launcher.error();
}

cudaError_t launch_mendell_elston(const kernels::MendellElstonArgs& a, int64_t blocks, int device,
                                  cudaStream_t stream) {
  Launcher launcher(device, stream);
  kernels::run_sweep(launcher, a, blocks);
  return launcher.error();
}

}  // namespace mvnrob::cuda
