#include "cuda/nearest_ends.h"

#include "cuda/launcher.h"
#include "kernels/nearest_ends.h"

namespace mvnrob::cuda {

cudaError_t launch_nearest_ends(const kernels::NearestEndsArgs& args, int device,
                                cudaStream_t stream) {
  const unsigned blocks = kernels::NearestEnds::blocks(args);
  if (blocks == 0) return cudaSuccess;
  Launcher launcher(device, stream);
  launcher.launch<kernels::NearestEnds>(blocks, kernels::NearestEnds::kSharedBytes, args);
  return launcher.error();
}

}  // namespace mvnrob::cuda
