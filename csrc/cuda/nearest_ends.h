#pragma once
#include <cuda_runtime_api.h>

#include "kernels/nearest_ends_args.h"

namespace mvnrob::cuda {

cudaError_t launch_nearest_ends(const kernels::NearestEndsArgs& args, int device,
                                cudaStream_t stream);

}  // namespace mvnrob::cuda
