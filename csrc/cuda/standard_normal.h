#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace mvnrob::cuda {

// out [rows, count, dim]: draws first .. first + count - 1 of each key's stream.
cudaError_t launch_standard_normal(const int64_t* keys, float* out, int64_t rows, int64_t first,
                                   int64_t count, int64_t dim, int device, cudaStream_t stream);

}  // namespace mvnrob::cuda
