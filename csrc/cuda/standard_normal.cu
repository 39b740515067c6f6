#include "cuda/standard_normal.h"

#include "cuda/launcher.h"
#include "kernels/standard_normal.h"

namespace mvnrob::cuda {

cudaError_t launch_standard_normal(const int64_t* keys, float* out, int64_t rows, int64_t first,
                                   int64_t count, int64_t dim, int device, cudaStream_t stream) {
  if (rows == 0 || count == 0 || dim == 0) return cudaSuccess;
  Launcher launcher(device, stream);
  const kernels::StandardNormalArgs args{keys, out, rows, first, count, dim};
  launcher.launch<kernels::StandardNormal>(kernels::StandardNormal::blocks(args), 0, args);
  return launcher.error();
}

}  // namespace mvnrob::cuda
