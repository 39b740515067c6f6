// CUDA's errors in an op's own words, for the torch side.
#pragma once
#include <cuda_runtime_api.h>

#include "torch_utils.h"

namespace mvnrob::cuda {

inline void check(const char* op, cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // a later call must not meet it again
  STD_TORCH_CHECK(false, op, ": the device must ", what, ", got ", cudaGetErrorString(error));
}

}  // namespace mvnrob::cuda
