#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/mendell_elston_args.h"

namespace mvnrob::cuda {

// Blocks that `a`, its input and output set, is to run with.
cudaError_t mendell_elston_blocks(const kernels::MendellElstonArgs& a, int device, int64_t* blocks);

// `a` also has its memory, block_bytes for each block, aligned to 256.
cudaError_t launch_mendell_elston(const kernels::MendellElstonArgs& a, int64_t blocks, int device,
                                  cudaStream_t stream);

}  // namespace mvnrob::cuda
