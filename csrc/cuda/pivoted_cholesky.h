#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/pivoted_cholesky_args.h"

namespace mvnrob::cuda {

// Bytes that one tile of rows, `a`, is to have.
int64_t pivoted_cholesky_bytes(const kernels::PivotedCholeskyArgs& a);

// `memory` is aligned to 256.
cudaError_t launch_pivoted_cholesky(const kernels::PivotedCholeskyArgs& a, void* memory, int device,
                                    cudaStream_t stream);

}  // namespace mvnrob::cuda
